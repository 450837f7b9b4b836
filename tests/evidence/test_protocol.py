"""Protocols: a value's hash covers the fields that its number depends on, and no others; a difference is named."""

import copy
from typing import Any

import pytest

from pipeline.artifacts import ArtifactError
from pipeline.evidence.protocol import (
    check_content,
    describe_values,
    find_differences,
    find_refusals,
    flatten,
    format_refusals,
    make_tags,
)
from pipeline.evidence.values import EVERY, Value

PROTOCOL: dict[str, Any] = {
    "code": {"metric": "1", "network": "2"},
    "counts": {"samples": 1000},
    "metric": {"name": "m", "subsets": 100, "sampling": {"count": 1000}},
    "network": {"name": "a", "weights_sha256": "ab" * 32},
    "networks": "none of a value's fields, though a field's name begins it",
    "scores": {"of": "bernoulli"},
    "versions": {"torch": "2.14.0", "numpy": "2.4.6"},
}
VALUES = {
    "fid_{network}": Value(depends=("network", "counts.samples")),
    "kid_{network}": Value(depends=("network", "metric.subsets")),
    "bound": Value(depends=("scores",)),
    "samples": Value(role="count", in_protocol=True),
}
NAMES = ("fid_a", "kid_a", "bound", "samples")


def make(**changes: object) -> dict[str, Any]:
    """The content of a protocol.json; changes: by field, with two underscores for a dot."""
    protocol = copy.deepcopy(PROTOCOL)
    for field, value in changes.items():
        *path, last = field.split("__")
        inner = protocol
        for part in path:
            inner = inner[part]
        inner[last] = value
    return {"protocol": protocol, "run": {"seed": 0}, "values": describe_values(VALUES, NAMES, protocol)}


def test_a_leaf_changes_the_hashes_of_the_values_that_depend_on_it_and_no_others() -> None:
    before = make()["values"]
    changed = {
        leaf: {
            name
            for name, entry in make(**{leaf.replace(".", "__"): "other"})["values"].items()
            if entry["hash"] != before[name]["hash"]
        }
        for leaf, _ in flatten(PROTOCOL)
    }
    none: set[str] = set()
    every = {"fid_a", "kid_a", "bound"}
    assert changed == {
        "code.metric": every,
        "code.network": none,
        "counts.samples": {"fid_a"},
        "metric.name": none,
        "metric.sampling.count": none,
        "metric.subsets": {"kid_a"},
        "network.name": {"fid_a", "kid_a"},
        "network.weights_sha256": {"fid_a", "kid_a"},
        "networks": none,
        "scores.of": {"bound"},
        "versions.numpy": none,
        "versions.torch": every,
    }


def test_a_hash_does_not_depend_on_the_order_of_the_fields() -> None:
    assert describe_values(VALUES, NAMES, dict(reversed(PROTOCOL.items()))) == make()["values"]


def test_each_value_names_its_fields_and_a_count_has_none() -> None:
    values = make()["values"]
    assert list(values) == ["fid_a", "kid_a", "bound"]
    assert values["kid_a"]["fields"] == sorted([*EVERY, "network", "metric.subsets"])
    assert make_tags(make()) == {f"protocol.{name}": entry["hash"] for name, entry in values.items()}


def test_a_field_that_the_protocol_lacks_is_named() -> None:
    absent = {name: value for name, value in PROTOCOL.items() if name != "scores"}
    with pytest.raises(ArtifactError, match="bound depends on scores, a field that the protocol lacks; it has code, "):
        describe_values(VALUES, NAMES, absent)
    assert list(describe_values(VALUES, ["fid_a"], absent)) == ["fid_a"]


def test_only_the_values_that_depend_on_a_difference_are_refused_with_the_field() -> None:
    other = make(metric__subsets=50, counts__samples=500, scores__of="logistic")
    assert find_refusals(NAMES, {"a": make(), "b": make()}) == {}
    assert format_refusals(find_refusals(NAMES, {"a": make(), "b": make(), "c": other})) == [
        "Not comparable: fid_a: counts.samples is 1000 in a and 500 in c",
        "Not comparable: kid_a: metric.subsets is 100 in a and 50 in c",
        "Not comparable: bound: scores.of is 'bernoulli' in a and 'logistic' in c",
    ]


def test_values_with_the_same_difference_share_a_line_and_a_long_value_is_cut() -> None:
    (line,) = format_refusals(find_refusals(NAMES, {"a": make(), "b": make(network__weights_sha256="cd" * 32)}))
    assert line.startswith("Not comparable: fid_a, kid_a: network.weights_sha256 is 'abab")
    assert len(line) < 160


def test_a_field_that_one_side_lacks_differs() -> None:
    older = make()
    del older["protocol"]["scores"]
    older["values"]["bound"]["fields"].remove("scores")
    assert find_differences(make(), older, "bound") == [("scores.of", "bernoulli", None)]
    assert find_differences(older, make(), "bound") == [("scores.of", None, "bernoulli")]


def test_a_value_is_compared_among_the_runs_that_have_it() -> None:
    without = make(scores__of="logistic")
    del without["values"]["bound"]
    assert find_refusals(NAMES, {"a": without, "b": make(), "c": make()}) == {}


def test_only_what_is_allowed_may_differ() -> None:
    contents = {"a": make(), "b": make(versions__torch="2.15.0")}
    assert find_refusals(NAMES, contents, ["versions"]) == {}
    assert list(find_refusals(NAMES, contents, ["version"])) == ["versions.torch is '2.14.0' in a and '2.15.0' in b"]


@pytest.mark.parametrize("content", [{"hash": "1", "protocol": {}, "run": {}}, {}, [], None])
def test_a_protocol_of_another_form_is_refused_by_its_place(content: object) -> None:
    with pytest.raises(ArtifactError, match=r"^x/protocol.json: expected the keys protocol, run, values, got "):
        check_content(content, "x/protocol.json")
    assert check_content(make(), "x") == make()
