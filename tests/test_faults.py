"""Signals and kills from outside, to the trainer and to DVC: nothing half-done counts, nothing is lost or left."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from pipeline.runtime.preemption import names_stage
from tests.forks import Fork
from tests.test_dvc import BIN, copy_project, list_runs, run, set_params

pytestmark = pytest.mark.slow
MODEL = Path("data/runs/transformer/model/model.safetensors")
STAGE = ("pipeline.stages", "train", "transformer")
TRAIN = ("python", "-m", *STAGE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with prepared text and a language model that trains for some seconds."""
    folder = tmp_path_factory.mktemp("faults") / "project"
    copy_project(folder)
    set_params(folder, {"models.transformer.steps": 1500})
    run(folder, "dvc", "repro", "prepare@text")
    return folder


@pytest.fixture(scope="module")
def expected(project: Path) -> bytes:
    """The weights of the uninterrupted training."""
    run(project, *TRAIN, cold=True)
    content = (project / MODEL).read_bytes()
    (project / MODEL).unlink()
    return content


def prepare_environment() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    return environment | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PIPELINE_CHECKPOINT_SECONDS": "0.2"}


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=folder, env=prepare_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def start_training(project: Path, tmp_path: Path) -> Callable[[], Fork]:
    """Return what starts a training; its output is that of all which the test has started."""
    return lambda: Fork(STAGE, project, prepare_environment(), tmp_path / "output")


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def list_checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / ".state").rglob("step-*.ckpt.sha256")}


def forget(folder: Path) -> None:
    """Remove states of earlier trainings, whose outputs a test has removed, and DVC's table of locks of killed ones."""
    shutil.rmtree(folder / ".state", ignore_errors=True)
    (folder / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)


def trainers(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if names_stage(process.info["cmdline"] or []) and process.info["cwd"] == str(folder)
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.fault(0)
def test_a_stopped_training_exits_with_75_within_5_seconds_and_goes_on_to_the_same_bits(
    project: Path, expected: bytes, number: int, start_training: Callable[[], Fork]
) -> None:
    process = start_training()
    wait_for(lambda: list_checkpoints(project))
    process.send_signal(number)
    before = time.monotonic()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output[-2000:]
    assert time.monotonic() - before < 5
    assert "the state is saved; the same command goes on from there" in output
    assert not (project / MODEL).exists()
    assert "resuming at step" in run(project, *TRAIN)
    assert (project / MODEL).read_bytes() == expected
    (project / MODEL).unlink()


@pytest.mark.fault(3)
def test_ten_kills_at_random_moments_lose_nothing(
    project: Path, expected: bytes, start_training: Callable[[], Fork]
) -> None:
    rng = random.Random(0)  # noqa: S311
    for _ in range(10):
        before = list_checkpoints(project)
        process = start_training()
        wait_for(lambda: process.poll() is not None or list_checkpoints(project) - before)  # noqa: B023
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        output = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, output[-2000:]
    run(project, *TRAIN)
    assert (project / MODEL).read_bytes() == expected
    assert set(load_file(project / MODEL))
    (project / MODEL).unlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.fault(0, 6)
def test_a_killed_dvc_leaves_no_trainer_and_the_next_one_goes_on(project: Path, expected: bytes, number: int) -> None:
    forget(project)
    process = start(project, str(BIN / "dvc"), "repro", "--no-run-cache", "train@transformer")
    wait_for(lambda: list_checkpoints(project))
    assert trainers(project)
    process.send_signal(number)
    wait_for(lambda: not trainers(project), 10)
    process.communicate(timeout=60)
    assert "train@transformer" not in (project / "dvc.lock").read_text()
    assert "resuming at step" in run(project, "dvc", "repro", "--no-run-cache", "train@transformer")
    assert (project / MODEL).read_bytes() == expected
    lock = (project / "dvc.lock").read_text()
    (project / "dvc.lock").write_text(lock[: lock.index("  train@transformer")])
    (project / MODEL).unlink()


FAILS = """import errno, os, sys
from dvc.cli import main
from dvc.stage import Stage
def fail(name, act):
    usual = getattr(Stage, name)
    def changed(self, *arguments, **options):
        if self.addressing.startswith("train@"):
            act()
        return usual(self, *arguments, **options)
    setattr(Stage, name, changed)
def fill():
    raise OSError(errno.ENOSPC, "No space left on device")
fail("save", lambda: os._exit(137)) if sys.argv.pop(1) == "kill" else fail("commit", fill)
sys.exit(main(sys.argv[1:]))
"""  # a dvc that is killed before it hashes the outputs of a training, or whose cache is full when it stores them


@pytest.mark.fault(52)
def test_a_finished_training_outlives_a_dvc_that_fails_before_it_has_stored_its_outputs(
    project: Path, expected: bytes, tmp_path: Path
) -> None:
    forget(project)
    failing = tmp_path / "dvc"
    failing.write_text(FAILS)
    repro = ("repro", "--single-item", "--no-run-cache", "train@transformer")
    lock = (project / "dvc.lock").read_text()
    before = [(each.info.run_id, each.info.status) for each in list_runs(project)]
    run(project, "python", str(failing), "kill", *repro, status=137)
    assert (project / MODEL).read_bytes() == expected
    said = run(project, "python", "-m", "pipeline", "doctor", status=1)  # for the entry in DVC's table of locks
    assert "a finished training, whose outputs DVC has not stored: `dvc repro train@transformer` ends it at" in said
    output = run(project, "python", str(failing), "full", *repro, status=255)
    assert "No space left on device" in output
    assert "resuming at step 1500 of 1500" in output
    assert "train@transformer" not in (project / "dvc.lock").read_text()
    assert "resuming at step 1500 of 1500" in run(project, "dvc", *repro)
    assert (project / MODEL).read_bytes() == expected
    after = [(each.info.run_id, each.info.status) for each in list_runs(project)]
    assert [status for number, status in after if (number, status) not in before] == ["FINISHED"]
    assert len(list_checkpoints(project)) == 1
    assert "whose outputs DVC has stored" in run(project, "python", "-m", "pipeline", "doctor", status=1)
    run(project, "dvc", "repro", "--force", "--single-item", "fetch@text")
    assert not list_checkpoints(project)
    (project / "dvc.lock").write_text(lock)
    (project / MODEL).unlink()


@pytest.mark.fault(59)
def test_two_repros_at_once_in_one_clone_train_once(project: Path, expected: bytes) -> None:
    forget(project)
    lock = (project / "dvc.lock").read_text()
    both = [start(project, str(BIN / "dvc"), "repro", "--no-run-cache", "train@transformer") for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    statuses = sorted(process.returncode for process in both)
    assert statuses[0] == 0, outputs
    assert (project / MODEL).read_bytes() == expected
    assert sum("1500 steps in" in output for output in outputs) == 1, outputs
    (project / "dvc.lock").write_text(lock)
    (project / MODEL).unlink()


@pytest.mark.fault(6)
def test_a_second_trainer_of_the_same_run_is_refused(project: Path, start_training: Callable[[], Fork]) -> None:
    forget(project)
    process = start_training()
    wait_for(lambda: list_checkpoints(project))
    output = run(project, *TRAIN, status=1)
    assert "another process is training this run" in output
    process.kill()
    process.communicate()


def test_hardware_variables_change_no_hash_of_dvc(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(project, "dvc", "repro", "train@transformer")
    before = json.loads(run(project, "dvc", "status", "--json"))
    hardware = {"DEVICES": "2", "NODES": "2", "ACCELERATOR": "cuda", "PRECISION": "bf16-mixed", "TIMEOUT": "9"}
    for name, value in hardware.items():
        monkeypatch.setenv(f"PIPELINE_{name}", value)
    assert json.loads(run(project, "dvc", "status", "--json")) == before
    assert "train@transformer" not in before
