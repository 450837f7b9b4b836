"""python -m pipeline.stages: the one way in which stages are started."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.history.record import describe_lineage
from pipeline.runtime.environment import HardwareError
from pipeline.runtime.preemption import names_dvc, names_stage
from pipeline.stages import __main__ as runner
from tests.conftest import ROOT


def start(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipeline.stages", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["tarin", "gan"], 2)])
def test_without_a_known_stage_it_lists_the_stages(arguments: list[str], status: int) -> None:
    done = start(*arguments)
    assert done.returncode == status
    assert "python -m pipeline.stages train gan" in done.stdout
    names = {path.stem for path in (ROOT / "pipeline" / "stages").glob("[a-z]*.py")}
    assert names >= {"check", "fetch", "prepare", "train", "sample", "evaluate", "report"}
    assert {line.split()[0] for line in done.stdout.splitlines()[1:] if line.startswith("  ")} >= names


def test_a_stage_begins_without_the_libraries_that_it_may_not_need() -> None:
    # torch and Lightning take seconds and half a gigabyte, and nine stages begin in each `dvc repro`.
    code = (
        "import sys, pipeline.stages.__main__; print({'torch', 'mlflow', 'dvc', 'pytorch_lightning'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stage that takes a key and remembers it."""
    calls: list[str] = []

    def main(key: str) -> None:
        calls.append(key)

    stage = SimpleNamespace(main=main, __doc__="Stage train: what it does.", calls=calls)
    for name in ("sample", "train"):
        monkeypatch.setitem(sys.modules, f"pipeline.stages.{name}", stage)
    return stage


def test_a_stage_gets_its_key(stage: SimpleNamespace) -> None:
    runner.main(["train", "gan"])
    assert stage.calls == ["gan"]


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["a", "b"], 2), (["--key"], 2)])
def test_arguments_that_do_not_fit_show_what_the_stage_is(
    stage: SimpleNamespace, arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        runner.main(["train", *arguments])
    assert error.value.code == status
    assert "Stage train: what it does." in capsys.readouterr().out
    assert stage.calls == []


def test_an_expected_error_is_one_line(stage: SimpleNamespace) -> None:
    def fail(key: str) -> None:
        msg = f"PIPELINE_TIMEOUT: expected seconds above 0, got {key!r}"
        raise HardwareError(msg)

    stage.main = fail
    with pytest.raises(SystemExit, match="error: PIPELINE_TIMEOUT: expected seconds above 0, got 'x'"):
        runner.main(["train", "x"])


@pytest.mark.fault(57)
@pytest.mark.parametrize(("name", "value"), [("PIPELINE_CHECKPOINT_SECONDS", "nan"), ("PIPELINE_STRATEGY", "")])
def test_a_variable_with_nonsense_is_refused_before_any_stage_begins(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    for key in ("train", "sample"):
        with pytest.raises(SystemExit, match=f"error: {name}: expected .*, got '{value}'"):
            runner.main([key, "gan"])
    assert stage.calls == []


@pytest.mark.fault(22)
def test_only_trainings_run_in_several_processes(stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="error: sample runs in one process, WORLD_SIZE is 2"):
        runner.main(["sample", "gan"])
    runner.main(["train", "gan"])
    assert stage.calls == ["gan"]


def test_command_lines_of_stages_and_of_dvc_are_recognised() -> None:
    assert names_stage(["python", "-m", "pipeline.stages", "train", "gan"])
    assert names_stage(["python", "-u", "-m", "pipeline.stages", "train", "gan"])  # of torchrun
    assert not names_stage(["python", "-m", "pipeline", "doctor"])
    assert names_dvc(["/x/python", "/x/bin/dvc", "repro"])
    assert names_dvc(["/x/python", "-m", "dvc", "repro"])
    assert not names_dvc(["/x/python", "-m", "pipeline.history.dvc_cache"])


def test_the_lineage_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = SimpleNamespace(name="pipeline.stages.__main__")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", [str(Path(str(runner.__file__))), "train", "gan"])
    assert describe_lineage()["mlflow.source.name"] == "python -m pipeline.stages train gan"


@pytest.mark.fault(0)
def test_signals_have_their_meaning_before_the_libraries_of_a_stage_are_imported() -> None:
    code = """
import runpy, signal, sys
class Look:
    def find_spec(self, name, *rest):
        if name in {"torch", "numpy", "pipeline.params", "pipeline.artifacts"}:
            print(name, signal.getsignal(signal.SIGTERM) not in {signal.SIG_DFL, None})
            sys.exit(0)
sys.meta_path.insert(0, Look())
sys.argv = ["stages", "train", "gan"]
runpy.run_module("pipeline.stages", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split()[1:] == ["True"], done.stderr
