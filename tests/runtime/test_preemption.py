"""Stops from outside, where no training catches them: status 75 from a process's first moment on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.runtime import checkpoints
from pipeline.runtime.preemption import PreemptedError, catch
from pipeline.stages import networks
from tests.conftest import ROOT

TRAIN = [sys.executable, "-m", "pipeline.stages", "train", "transformer"]


def catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler of its own for a signal."""
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (number - 1) & 1)


@pytest.mark.fault(0)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not show who catches a signal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_before_the_training_ends_with_75_too(workdir: Path, number: int) -> None:
    process = subprocess.Popen(TRAIN, cwd=workdir, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    while not catches(process.pid, signal.SIGTERM):  # it takes seconds more to import PyTorch, Lightning and MLflow
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors.decode()[-2000:]


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    received: list[int] = []
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        former = catch(lambda number, _: received.append(number))
        for number in (signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert received == [signal.SIGTERM]
    assert former == {number: handler for number, handler in before.items() if number != signal.SIGHUP}


@pytest.mark.fault(6)
def test_a_stage_whose_dvc_is_already_gone_does_nothing_and_ends_with_75(workdir: Path) -> None:
    """The shell that starts it is gone at once, so that process 1 has adopted it before it has started."""
    script = f"({' '.join(TRAIN)} 2> errors; echo $? > status.tmp; mv status.tmp status) &"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_STAGE": "train@transformer"}
    subprocess.run(["sh", "-c", script], cwd=workdir, env=environment, check=True)
    end = time.monotonic() + 60
    while not (workdir / "status").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (workdir / "status").read_text() == "75\n", (workdir / "errors").read_text()
    assert "the process that started this one is gone" in (workdir / "errors").read_text()
    assert not (workdir / ".state").exists()


@pytest.mark.usefixtures("tiny", "prepared")
@pytest.mark.fault(0, 6)
def test_a_stopped_feature_network_goes_on_to_the_same_bits(
    workdir: Path, edit_params: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_params({"networks.classifier.steps": 12})
    networks.main("classifier")
    weights = workdir / "data" / "networks" / "classifier" / "model.safetensors"
    straight = load_file(weights)
    weights.unlink()
    monkeypatch.setenv("PIPELINE_CHECKPOINT_SECONDS", "1e-6")

    def stop() -> None:
        while not [path for folder in (workdir / ".state").glob("*/*") for path in checkpoints.list_steps(folder)]:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(PreemptedError, match="the state is saved"):
        networks.main("classifier")
    assert not weights.exists()
    networks.main("classifier")
    assert "resuming at step" in capsys.readouterr().out
    again = load_file(weights)
    assert all(torch.equal(again[key], tensor) for key, tensor in straight.items())
