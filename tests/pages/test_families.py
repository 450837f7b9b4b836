"""The table of families in results.md: means over seeds, costs with those of the starts, speed, and one protocol."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.kinds.images import make_fields
from tests.commands.test_results import CLAIM, make_content, write
from tests.history.test_serving import make_generator_of

TABLE = """
all:
  title: Two families
  columns: {test_nats: nats, other: what none has}
  families:
    small: [one, two, three]
    large: [long]
"""
VALUES = {"one": 1.0, "two": 2.0, "three": 3.0, "long": 0.5, "start": 9.0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark's folder with two families; `long` begins with `start`, and weights of `one` and `long` are there."""
    monkeypatch.chdir(tmp_path)
    Path("results.yaml").write_text(CLAIM.replace("[one, two]", "[two, three]"), encoding="utf-8")
    Path("families.yaml").write_text(TABLE, encoding="utf-8")
    for seed, (name, value) in enumerate(VALUES.items()):
        run = {"seed": seed, "model": "m", "start": "start" if name == "long" else "none"}
        write(name, {"test_nats": value, "test_targets": 99}, make_content(run), seconds=10.0 + seed)
        path = artifacts.RUNS / name / "record" / "run.json"
        artifacts.write_json(path, artifacts.read_json(path) | {"config": {"run": run}})
    for name in ("one", "long"):
        make_generator_of("gan", make_fields((1, 8, 8), 3), artifacts.RUNS / name / "model")
    return tmp_path


def read_table() -> list[list[str]]:
    lines = Path("results.md").read_text(encoding="utf-8").partition("Two families:")[2].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def read_found() -> dict[str, Any]:
    found: dict[str, Any] = artifacts.read_json(Path("families.json"))["all"]
    return found


@pytest.mark.usefixtures("folder")
def test_a_family_has_means_over_its_seeds_the_cost_of_its_starts_and_its_speed() -> None:
    assert main(["results"]) == 0
    heading, _, small, large = read_table()
    assert heading == ["family", "seeds", "nats", "what none has", "CPU", "samples a second"]
    # 4.303 (Student's t of three values) times the standard error of 1, 2 and 3
    assert small[:5] == ["small", "3", "2 [-0.4841, 4.484]", "", "24 s"]
    assert large[:5] == ["large", "1", "0.5", "", "54 s"]  # 2 x 13 of its own, 2 x 14 of its start
    assert all(float(row[5].replace(",", "")) > 1 for row in (small, large))


def test_cost_and_speed_outlive_the_trainings_and_go_with_the_values(folder: Path) -> None:
    assert main(["results"]) == 0
    before = read_found()
    (folder / artifacts.RUNS).rename(folder / "elsewhere")
    assert main(["results"]) == 0
    assert read_found() == before
    path = artifacts.REPORTS / "runs" / "one" / "metrics.json"
    artifacts.write_json(path, artifacts.read_json(path) | {"test_nats": 1.5})
    assert main(["results"]) == 0
    assert "cpu_seconds" not in read_found()["small"]
    assert read_found()["large"] == before["large"]


def test_the_table_says_on_which_machine_each_cost_was_measured(folder: Path) -> None:
    assert main(["results"]) == 0
    found = read_found()
    here = f"{found['large']['processor']} (threads: {found['large']['threads']})"
    assert f"Cost and speed on {here}: small, large." in Path("results.md").read_text(encoding="utf-8")
    found["small"] |= {"processor": "abacus", "threads": 7}
    artifacts.write_json(Path("families.json"), {"all": found})
    (folder / artifacts.RUNS).rename(folder / "elsewhere")
    assert main(["results"]) == 0
    lines = Path("results.md").read_text(encoding="utf-8").splitlines()
    assert {"Cost and speed on abacus (threads: 7): small.", f"Cost and speed on {here}: large."} <= {*lines}


@pytest.mark.usefixtures("folder")
def test_families_with_different_protocols_of_a_column_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    content = make_content({"seed": 3, "model": "m", "start": "start"}, context=64)
    artifacts.write_json(artifacts.REPORTS / "runs" / "long" / "protocol.json", content)
    assert main(["results"]) == 1
    said = "families.yaml: all: Not comparable: test_nats: scores.context is None in one and 64 in long"
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title: ", "titel: ", "families.yaml: all.titel: unknown key, did you mean 'title'?"),
        (
            "[long]",
            "[one, one]",
            "all.families.large: expected different runs, one per seed, got one, one",
        ),
        ("[long]", "[other]", "reports/runs/other/protocol.json: not found"),
    ],
)
def test_a_wrong_file_is_refused_by_its_key(old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("families.yaml")
    path.write_text(TABLE.replace(old, new), encoding="utf-8")
    assert main(["results"]) == 1
    assert said in capsys.readouterr().err
