"""What a training runs on, as the environment says and the model allows."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning.accelerators import AcceleratorRegistry

from pipeline.runtime import hardware
from pipeline.runtime.environment import HardwareError
from tests.test_training import make, run


def test_an_unknown_strategy_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_STRATEGY", "dp")
    message = "^PIPELINE_STRATEGY: expected auto, ddp, fsdp or another strategy of Lightning, got 'dp'$"
    with pytest.raises(HardwareError, match=message):
        hardware.choose(make("gan")[0])


def test_an_unknown_time_between_checkpoints_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_CHECKPOINT_SECONDS", "nan")
    with pytest.raises(HardwareError, match="PIPELINE_CHECKPOINT_SECONDS: expected seconds above 0, got 'nan'"):
        run("vae", state=tmp_path)


def test_a_listed_device_is_used_by_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = make("vae")[0]
    for value, devices in (("3,", [3]), ("0,2", 1), ("2", 1), ("auto", 1)):
        monkeypatch.setenv("PIPELINE_DEVICES", value)
        assert hardware.choose(model)["devices"] == devices, value
    monkeypatch.setenv("PIPELINE_ACCELERATOR", "cpu")
    monkeypatch.setenv("PIPELINE_DEVICES", "3,")
    assert hardware.choose(model)["devices"] == 1  # a processor has no number


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps", "tpu"])
def test_a_device_that_is_not_there_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if AcceleratorRegistry["cuda" if name == "gpu" else name]["accelerator"].is_available():
        pytest.skip(f"this machine has {name}")
    monkeypatch.setenv("PIPELINE_ACCELERATOR", name)
    with pytest.raises(HardwareError, match=f"expected auto or cpu, as PyTorch finds no such device .*, got '{name}'"):
        hardware.require_available()
    for present in ("auto", "cpu"):
        monkeypatch.setenv("PIPELINE_ACCELERATOR", present)
        hardware.require_available()
