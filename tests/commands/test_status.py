"""pipeline status: the state of each run, DVC's reasons in words, and the next command."""

import contextlib
import json
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dvc.lock import LockError
from filelock import FileLock

from pipeline import artifacts, plugins
from pipeline.__main__ import main
from pipeline.commands import status
from pipeline.evidence.values import is_measurement, load_values, sort_names
from pipeline.history import dvc_plan

BUSY = "busy"
GRAPH = {
    "prepare@x": set(),
    **{f"train@{run}": {"prepare@x"} for run in ("gan", "vae", "transformer")},
    **{f"evaluate@{run}": {f"train@{run}", "check"} for run in ("gan", "vae", "transformer")},
    "check": set(),
}


class Graph:
    """What DVC's graph is to the command: stages that tell what changed, and what each of them needs."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer

    def __iter__(self) -> Any:
        return iter(SimpleNamespace(addressing=name, status=partial(self.tell, name)) for name in GRAPH)

    def tell(self, name: str, **_: bool) -> dict[str, Any]:
        if self.answer.get(name) == BUSY:
            raise LockError(BUSY)
        return {name: self.answer[name]} if name in self.answer else {}

    def successors(self, stage: Any) -> Any:
        return (SimpleNamespace(addressing=name) for name in GRAPH[stage.addressing])


@pytest.fixture
def said(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What DVC says of a project whose runs gan and vae have numbers; a test may change it."""
    for run, numbers in (("gan", {"samples": 100, "fid_x": 6.0451, "precision_x": 0.5}), ("vae", {"elbo_nats": 99.0})):
        artifacts.write_json(workdir / artifacts.REPORTS / "runs" / run / "metrics.json", numbers)
    answer: dict[str, Any] = {}
    repo = SimpleNamespace(lock=contextlib.nullcontext(), index=SimpleNamespace(graph=Graph(answer)))
    monkeypatch.setattr(dvc_plan, "open_repo", lambda **_: repo)
    monkeypatch.setattr(status, "PORT", 1)  # nobody answers there
    return answer


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the cells of each run, and the lines below the table."""
    assert main(["status", *arguments]) == 0
    table, _, rest = capsys.readouterr().out.partition("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: others for name, *others in rows}, rest.splitlines()


def test_runs_with_and_without_numbers(said: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said["train@transformer"] = [{"changed outs": {"data/runs/transformer/model": "deleted"}}]
    rows, rest = ask(capsys)
    assert rows == {
        "gan": ["done", "fid_x 6.045"],
        "vae": ["done", "elbo_nats 99"],
        "transformer": ["never run", ""],
    }
    assert rest[:2] == [
        "3 runs: 2 done, 1 never run",
        "2 stages are not up to date: train@transformer, evaluate@transformer",
    ]
    assert rest[-1].startswith("next: `pipeline repro -j 2` brings 2 stages up to date")


def test_a_stale_run_names_the_keys_that_changed_and_what_needs_nothing_of_it_is_done(
    said: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = {"train@vae": {"params": {"params.yaml": {"models.vae": {"latent": 99, "gone": 1}}}}}
    artifacts.write_json(Path("dvc.lock"), {"schema": "2.0", "stages": lock})
    said["train@vae"] = [{"changed deps": {"params.yaml": {"models.vae": "modified"}}}, "changed command"]
    rows, rest = ask(capsys)
    state = rows["vae"][0]
    assert state.startswith("stale: models.vae.")
    assert state.endswith(" more changed")
    assert rows["gan"][0] == "done"
    assert "train@vae, evaluate@vae" in rest[1]
    rows, _ = ask(capsys, "vae")
    assert list(rows) == ["vae"]


def test_data_that_changed_make_all_their_runs_stale(said: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said["prepare@x"] = [{"changed deps": {"data/raw/x": "modified"}}]
    rows, _ = ask(capsys)
    assert {rows[run][0] for run in ("gan", "vae")} == {"stale: data/raw/x changed"}


def test_a_clone_has_numbers_and_no_files(said: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said["train@gan"] = [{"changed outs": {"data/runs/gan/model": "deleted", "data/runs/gan/record": "not in cache"}}]
    rows, _ = ask(capsys)
    assert rows["gan"] == ["not here", "fid_x 6.045"]


def test_a_stage_that_works_now_is_named_where_dvc_status_fails(
    said: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    said["evaluate@vae"] = BUSY
    rows, rest = ask(capsys)
    assert rows["vae"] == ["working: evaluate@vae", "elbo_nats 99"]
    assert rows["gan"][0] == "done"
    assert rest[-1] == "next: wait, or `pipeline status` again"


def test_changed_code_is_said_once_and_makes_no_run_stale(
    said: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    said["check"] = [{"changed deps": {"pipeline": "modified"}}]
    rows, rest = ask(capsys)
    assert rows["gan"][0] == "done"
    assert "the code changed" in "\n".join(rest)
    assert rest[-1] == "next: `pipeline repro check`, then `pipeline status`"


@pytest.mark.usefixtures("said")
def test_trainings_that_run_and_that_were_interrupted_say_how_far_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = artifacts.STATE / "train-transformer" / "abc"
    artifacts.write_json(state / "record" / "run.json", {"parameters": {"model.steps": 700}})
    for step in (100, 400):
        (state / f"step-{step:09}.ckpt").touch()
    rows, rest = ask(capsys)
    assert rows["transformer"][0] == "interrupted: at step 400 of 700"
    assert "`pipeline repro -j 2`" in rest[-1]
    now = time.time()
    lines = [{"step": step, "time": now + step / 10, "values": {}} for step in (500, 550, 600)]
    (state / "record" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 6\n')
    with FileLock(state.parent / "lock"):
        rows, rest = ask(capsys)
    assert rows["transformer"][0] == "training: step 600 of 700, 0:00:10 left"
    assert rest[-1] == "next: wait, or `pipeline status` again"


@pytest.mark.usefixtures("said")
def test_a_state_that_a_later_training_has_left_behind_is_no_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"parameters": {"model.steps": 700}}
    artifacts.write_json(artifacts.STATE / "train-gan" / "old" / "record" / "run.json", record | {"started": 1.0})
    for started, state in ((0.5, "interrupted: at step 0 of 700"), (2.0, "done")):
        artifacts.write_json(artifacts.RUNS / "gan" / "record" / "run.json", record | {"started": started})
        rows, _ = ask(capsys, "gan")
        assert rows["gan"][0] == state


@pytest.mark.usefixtures("said")
def test_only_ten_runs_are_shown_those_with_something_to_do_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "SHOWN", 2)
    rows, rest = ask(capsys)
    assert list(rows) == ["transformer", "gan"]
    assert rest[0].endswith("; 1 are not shown, `pipeline status --all` shows them")
    assert len(ask(capsys, "--all")[0]) == 3
    assert main(["status", "gann"]) == 1
    assert "params.yaml: no run 'gann'; there are gan, vae, transformer" in capsys.readouterr().err


@pytest.mark.parametrize("metric", plugins.names("metrics"))
def test_the_number_of_a_run_is_the_first_headline_that_its_metric_declares(metric: str) -> None:
    values = load_values(metric)
    found = status.list_measurements(metric)
    assert found[0] == next(name for name in sort_names(values, values) if is_measurement(values, name))
    assert values[found[0]].headline
    assert [name for name in found if not is_measurement(values, name)] == []


@pytest.mark.usefixtures("workdir")
def test_an_extrapolation_is_not_taken_for_the_number_that_it_extrapolates() -> None:
    path = artifacts.REPORTS / "runs" / "own" / "metrics.json"
    artifacts.write_json(path, {"fid_infinity_rotation": 9.9, "fid_rotation": 12.3, "fid_rotation_ratio": 3.0})
    assert status.read_number("own", "images") == "fid_rotation 12.3"
