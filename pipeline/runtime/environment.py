"""Settings of the machine, from environment variables and never from params.yaml.

DVC does not know these variables, so that another machine retrains nothing:

PIPELINE_ACCELERATOR         auto (default: CUDA if there is one, else the CPU), cpu, cuda, gpu, mps or tpu
PIPELINE_DEVICES             auto (default: all GPUs, or one CPU process), a number, or a list such as 0,2
PIPELINE_NODES               number of machines (1)
PIPELINE_STRATEGY            auto (default), ddp, fsdp, or another strategy of Lightning
PIPELINE_PRECISION           32-true (default), bf16-mixed, or another precision of Lightning
PIPELINE_DETERMINISTIC       true (default); warn: on a GPU, use an operator whose bits differ from run to run where no
                             other exists
PIPELINE_CHECKPOINT_SECONDS  seconds between two checkpoints (60)
PIPELINE_TIMEOUT             seconds until a process that does not answer ends all processes (120)
PIPELINE_RELAUNCHES          how often failed processes are started again from the last checkpoint (0)

Every variable is read here. A value that is not valid ends a stage with one line that names the variable.
"""

import math
import os
import re
from typing import Literal

ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps", "tpu")
PRECISIONS = (
    *("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "transformer-engine"),
    *("transformer-engine-float16", "64", "32", "16", "bf16"),
)
ALL_DEVICES = ("auto", "-1")
MAX_SECONDS = 1e9  # timedelta and PyTorch's time-outs take no more than about this


class HardwareError(RuntimeError):
    """The processes cannot be started as the environment says, or did not all end well; the message says why."""


def read_accelerator() -> str:
    """Return PIPELINE_ACCELERATOR."""
    return _read_choice("PIPELINE_ACCELERATOR", ACCELERATORS)


def read_devices() -> int | list[int] | None:
    """Return PIPELINE_DEVICES as a number of devices or a list of their indices; None stands for auto."""
    name = "PIPELINE_DEVICES"
    text = os.environ.get(name, "auto").strip()
    if text in ALL_DEVICES:
        return None
    if _is_number(text) and int(text) > 0:
        return int(text)
    words = [word.strip() for word in text.removesuffix(",").split(",")]
    if "," in text and all(map(_is_number, words)) and len(set(words)) == len(words):
        return [int(word) for word in words]
    raise _refuse(name, "auto, a number above 0 or a list such as 0,2")


def read_nodes(default: int) -> int:
    """Return PIPELINE_NODES."""
    return read_number("PIPELINE_NODES", default, least=1)


def read_strategy() -> str:
    """Return PIPELINE_STRATEGY; hardware.py knows the strategies that exist."""
    return os.environ.get("PIPELINE_STRATEGY", "auto")


def read_precision() -> str:
    """Return PIPELINE_PRECISION."""
    return _read_choice("PIPELINE_PRECISION", PRECISIONS)


def read_determinism() -> Literal["warn"] | bool:
    """Return PIPELINE_DETERMINISTIC as Lightning's Trainer takes it."""
    return "warn" if _read_choice("PIPELINE_DETERMINISTIC", ("true", "warn")) == "warn" else True


def read_checkpoint_seconds() -> float:
    """Return PIPELINE_CHECKPOINT_SECONDS."""
    return _read_seconds("PIPELINE_CHECKPOINT_SECONDS", 60)


def read_timeout() -> float:
    """Return PIPELINE_TIMEOUT in seconds."""
    return _read_seconds("PIPELINE_TIMEOUT", 120)


def read_relaunches() -> int:
    """Return PIPELINE_RELAUNCHES."""
    return read_number("PIPELINE_RELAUNCHES", 0)


def read_number(name: str, default: int, *, least: int = 0) -> int:
    """Return a variable that holds a whole number, of ours or of torchrun and SLURM.

    Raises:
        HardwareError: if it holds something else, or less than `least`.
    """
    text = os.environ.get(name, str(default)).strip()
    if not _is_number(text) or int(text) < least:
        raise _refuse(name, f"a whole number, {least} or more")
    return int(text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def _read_seconds(name: str, default: float) -> float:
    try:
        seconds = float(os.environ.get(name, str(default)))
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise _refuse(name, "seconds above 0")
    if seconds > MAX_SECONDS:
        raise _refuse(name, f"at most {MAX_SECONDS:,.0f} seconds")
    return seconds


def _read_choice(name: str, choices: tuple[str, ...]) -> str:
    text = os.environ.get(name, choices[0])
    if text not in choices:
        raise _refuse(name, f"{', '.join(choices[:-1])} or {choices[-1]}")
    return text


def _refuse(name: str, expected: str) -> HardwareError:
    return HardwareError(f"{name}: expected {expected}, got {os.environ[name]!r}")
