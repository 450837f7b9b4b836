"""The table of faults: what ran replaces what is recorded, and nothing else does."""

import json
from typing import Any

import pytest

from tests.faults import FOLDER, TITLES, merge, note_faults, render

RECORDED: dict[str, Any] = {
    "0": {
        "tests": {
            "tests/test_a.py::test_kept": {"outcome": "survived", "seconds": 3.0},
            "tests/test_a.py::test_renamed": {"outcome": "failed", "seconds": 1.0},
        }
    }
}
KNOWN = {"tests/test_a.py::test_kept": (0,), "tests/test_a.py::test_new": (0, 3)}


def test_the_committed_table_has_every_fault() -> None:
    table = json.loads((FOLDER / "faults.json").read_text(encoding="utf-8"))
    assert {int(number): entry["title"] for number, entry in table.items()} == TITLES
    assert (FOLDER / "faults.md").read_text(encoding="utf-8") == render(table)


def test_a_test_that_ran_is_entered_under_each_of_its_numbers_and_the_others_stay() -> None:
    ran = {"tests/test_a.py::test_new": {"outcome": "skipped", "reason": "no root", "seconds": 0.1}}
    table = merge(RECORDED, ran, KNOWN, whole=False)
    assert set(table["0"]["tests"]) == {*RECORDED["0"]["tests"], "tests/test_a.py::test_new"}
    assert (table["3"]["outcome"], table["1"]["outcome"]) == ("skipped", "not covered")
    assert (
        "| 3 | kill -9 while a checkpoint is written | skipped | `test_a.py::test_new` (skipped: no root) | 0.1 |"
        in (render(table))
    )


def test_the_worst_outcome_of_a_number_counts_and_one_that_survived_before_one_that_was_skipped() -> None:
    assert merge(RECORDED, {}, KNOWN, whole=False)["0"]["outcome"] == "failed"
    ran = {"tests/test_a.py::test_new": {"outcome": "skipped", "reason": "no root", "seconds": 0.1}}
    assert merge(RECORDED, ran, KNOWN, whole=True)["0"]["outcome"] == "survived"


def test_the_whole_suite_drops_tests_that_are_gone() -> None:
    assert set(merge(RECORDED, {}, KNOWN, whole=True)["0"]["tests"]) == {"tests/test_a.py::test_kept"}


def test_an_outcome_as_recorded_changes_nothing_and_another_does() -> None:
    again = {"tests/test_a.py::test_kept": {"outcome": "survived", "seconds": 9.0}}
    assert merge(RECORDED, again, KNOWN, whole=False)["0"]["seconds"] == 4.0
    worse = {"tests/test_a.py::test_kept": {"outcome": "failed", "seconds": 9.0}}
    assert merge(RECORDED, worse, KNOWN, whole=False)["0"]["seconds"] == 10.0


@pytest.mark.parametrize("number", [-1, 51, max(TITLES) + 1])
def test_a_number_that_no_fault_has_is_refused(number: int, request: pytest.FixtureRequest) -> None:
    item = pytest.Function.from_parent(request.node.parent, name="test_other", callobj=lambda: None)
    item.add_marker(pytest.mark.fault(number))
    with pytest.raises(pytest.UsageError, match=r"tests/faults\.py lists them"):
        note_faults([item])
