"""benchmarks/speed: rows, the table, and each benchmark at a size of seconds."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import artifacts
from pipeline.commands import results
from pipeline.stages import fetch, prepare
from tests.conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from speed import (
    __main__ as entry,
)
from speed import (
    cache,
    data,
    dvc,
    fid,
    overhead,
    plain,
    rates,
    seeds,
    table,
    timing,
    tracking,
    trainings,
)
from speed import compile as compilation


def test_a_row_of_speed_says_what_was_counted_and_is_read_as_it_is_written(tmp_path: Path) -> None:
    ways = [2.0, 3.0, 4.0], [1.0, 1.0, 1.0]
    first, second = (iter(seconds).__next__ for seconds in ways)
    row = timing.compare("a_over_b", "t", "<= 2", (first, second), count="9 steps", seeds=(4, 5), detail="d", repeats=3)
    assert (row.ratio, row.low, row.high, row.repeats) == (3, 2, 4, 3)
    assert (row.detail, row.count, row.seeds, row.seconds) == ("3 s against 1 s; d", "9 steps", (4, 5), (3, 1))
    assert row.peak_memory_mib > 50  # of a process that has imported torch
    about = {"processor": "p", "threads": "2", "torch": "t", "commit": "1a2b3c4"}
    artifacts.write_json(tmp_path / "speed.json", {"rows": {"a_over_b": asdict(row) | about}})
    rows = artifacts.read_json(tmp_path / "speed.json")["rows"]
    found = results.read_speed({"rows": rows})["a_over_b"]
    assert (found["value"], found["count"], found["seeds"], found["seconds"]) == (3, "9 steps", [4, 5], [3, 1])
    assert found["peak_memory_mib"] == row.peak_memory_mib
    assert "| 3 (missed) | 2 to 4 | 3 | 9 steps | <= 2 | 3 s against 1 s; d |" in table.render(rows)


def test_speed_marks_what_is_missed_and_names_the_commit() -> None:
    row = {"name": "a", "title": "t", "low": 0.1, "high": 9.0, "repeats": 3, "detail": "", "torch": "t"}
    row |= {"processor": "p", "threads": "2"}
    wanted = {"<= 1": 1.0, ">= 0.5": 0.414, "< 1 to be used": 1.0, "< 1": 0.9, "<= 0.01": 0.02, "none": 1.0}
    rows = {text: row | {"ratio": ratio, "wanted": text} for text, ratio in wanted.items()}
    rows["none"]["commit"] = "1a2b3c4"
    lines = table.render(rows).splitlines()
    assert {line.count("|") for line in lines} == {9}  # with an empty count: the rows are of an older version
    cells = [line.split(" | ") for line in lines[2:]]
    assert [cell[1] for cell in cells] == ["1", "0.414 (missed)", "1 (missed)", "0.9", "0.02 (missed)", "1"]
    assert [cell[-1] for cell in cells[-2:]] == ["p, 2 threads |", "p, 2 threads, commit `1a2b3c4` |"]


def test_speed_notes_the_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(table, "HERE", tmp_path)
    assert table.describe_commit() == "unknown"
    (tmp_path / "file").write_text("one\n", encoding="utf-8")
    for command in (["init"], ["add", "file"], ["commit", "-m", "c"], ["tag", "-a", "v1", "-m", "t"]):
        git(*command)
    commit = git("rev-parse", "--short", "HEAD")
    row = timing.summarize("one", "t", "< 1", [0.5], count="1 step")
    monkeypatch.setattr(entry, "NAMES", ("one",))
    monkeypatch.setitem(sys.modules, "speed.one", SimpleNamespace(measure=lambda: iter([row])))
    monkeypatch.setattr("sys.argv", ["speed"])
    entry.main()
    assert artifacts.read_json(tmp_path / "speed.json")["rows"]["one"]["commit"] == commit
    assert f"commit `{commit}` |" in (tmp_path / "speed.md").read_text(encoding="utf-8")
    (tmp_path / "file").write_text("two\n", encoding="utf-8")
    assert table.describe_commit() == f"{commit}-dirty"


def test_speed_trains_nothing_where_the_main_project_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        called.append(command[3:])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match="run `make repro`"):
        list(dvc.measure())
    assert called == [["status", "--quiet"]]


def test_speed_says_in_the_title_that_a_gan_has_no_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    config = type("Config", (), {"batch_size": 1})
    monkeypatch.setattr(rates, "make", lambda *_, **__: (type("Model", (), {"config": config}), None))
    monkeypatch.setattr(rates, "fit", lambda *_, **__: None)
    monkeypatch.setattr(rates, "time_pipeline", lambda *_, **__: 1.0)
    titles = {row.name: row.title for row in rates.measure()}
    assert "training gan without its penalties" in titles["rate_gan"]
    assert "penalties" not in titles["rate_vae"] + titles["rate_transformer"]


def test_speed_divides_the_waiting_for_batches_by_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"transformer": (0.4, 20.0), "gan": (0.3, 30.0), "vae": (0.1, 20.0)}
    monkeypatch.setattr(data, "time_waits", lambda kind, *_, **__: times[kind])
    (row,) = data.measure(110)
    assert (row.name, row.ratio, row.count, row.seconds) == ("data_share", 0.02, "100 steps", (0.4, 20))
    assert row.detail == "4 ms of 200 ms a step; 0.01 of the GAN's, 0.005 of the VAE's"


def test_speed_counts_only_the_seconds_of_fetching_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 1.5, 7.0, 7.25])
    monkeypatch.setattr(data, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    waits = data.Waits()
    for action in ("[_TrainingEpochLoop].train_dataloader_next", "run_training_batch") * 2:
        with waits.profile(action):
            pass
    assert waits.seconds == 0.75


def test_speed_counts_the_start_and_the_end_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = {"start": 2.0, "steps": 0.5, "between": 90.0, "close": 1.5, "record": 0.9}
    times = {str(index): found | {"wall": wall} for index, wall in enumerate((100.0, 200.0, 400.0))}
    monkeypatch.setattr(tracking, "time_tracking", lambda _store, name, _steps: times[name])
    monkeypatch.setattr(tracking, "time_import", lambda: 3.0)
    (row,) = tracking.measure(2400)
    assert (row.ratio, row.low, row.high, row.seconds, row.count) == (0.02, 0.01, 0.04, (4, 200), "2,400 steps")
    assert row.detail == (
        "2 s until the run is open and 1.5 s at the end, with the model, whatever the length; 0.0056 of the time "
        "between; not counted: 0.9 s for the record's lines, 3 s to import MLflow"
    )


def test_speed_compares_no_ways_that_give_other_values() -> None:
    row = fid.compare_values("a", "t", (lambda: 2.0, lambda: 2.000001), "1 image", repeats=1)
    assert row.detail.endswith("; FID 2, relative difference 5e-07")
    with pytest.raises(AssertionError, match=r"a: 2\.0 against 2\.1"):
        fid.compare_values("a", "t", (lambda: 2.0, lambda: 2.1), "1 image")


# --- Each benchmark starts ---------------------------------------------------


@pytest.fixture
def small(workdir: Path, edit_params: Callable[..., None], tiny: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of benchmarks/: tiny models, digits, and a text that is no Shakespeare."""
    del tiny
    (workdir / "text.txt").write_text("".join(f"Line {number} of a play.\n" for number in range(2000)))
    source = {"source": "text_file", "path": "text.txt"}
    values = YAML(typ="safe", pure=True).load(workdir / "params.yaml")["data"]
    edit_params({"data": {"digits": values["images"], "shakespeare": values["text"] | source}, "runs": {}})
    for key in ("digits", "shakespeare"):
        fetch.main(key)
        prepare.main(key)
    (workdir / "project").mkdir()
    for name in ("pipeline", "benchmarks/speed"):
        (workdir / "project" / Path(name).name).symlink_to(ROOT / name)
    for module in (timing, trainings, tracking, seeds, compilation):
        monkeypatch.setattr(module, "HERE", workdir / "project")
    (workdir / "project" / "params.yaml").symlink_to(workdir / "params.yaml")
    (workdir / "project" / "data").symlink_to(workdir / "data")
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "steps", "names"),
    [
        (overhead, 14, ["step_over_bare"]),
        (data, 14, ["data_share"]),
        (plain, 3, ["loss_equal_steps", "loss_equal_seconds"]),
        (tracking, 14, ["tracking_share"]),
        (seeds, 12, ["together_over_in_turn"]),
    ],
)
@pytest.mark.usefixtures("small")
def test_a_benchmark_of_trainings_measures_its_rows(module: Any, steps: int, names: list[str]) -> None:
    assert [row.name for row in module.measure(steps)] == names


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_benchmark_of_the_cache_measures_its_row() -> None:
    row = cache.compare_cache("uncached_over_cached", 2, length=8)
    assert (row.count, row.repeats) == ("16 tokens", 3)


def test_every_benchmark_of_the_entry_is_a_file_that_measures() -> None:
    assert all(callable(importlib.import_module(f"speed.{name}").measure) for name in entry.NAMES)
    command = [sys.executable, "-m", "speed", "--help"]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True)
    assert "{" + ",".join(entry.NAMES) + "}" in done.stdout.replace("\n", "").replace(" ", "")
