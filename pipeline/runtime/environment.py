"""Every environment variable that the package reads: settings of the machine, which params.yaml never has.

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

MLFLOW_TRACKING_URI          address of MLflow's store (mlflow.db in the project)
MLFLOW_EXPERIMENT_NAME       name of the experiment (generative-experiments)
DATA_MIRROR                  folder or address from which raw files come first

Every variable is read here, also those of DVC, torchrun and SLURM. A value that is not valid ends a stage before it
touches anything, with one line that names the variable. A name with PIPELINE_ that is none of these is warned of.
"""

import difflib
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps", "tpu")
PRECISIONS = (
    *("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "transformer-engine"),
    *("transformer-engine-float16", "64", "32", "16", "bf16"),
)
ALL_DEVICES = ("auto", "-1")
MAX_SECONDS = 1e9  # timedelta and PyTorch's time-outs take no more than about this
STORES = r"(databricks|databricks-uc|uc)(:\S+)?|(https?|file|(sqlite|postgresql|mysql|mssql)(\+\w+)?):\S+"  # MLflow's
OURS = (
    *("ACCELERATOR", "DEVICES", "NODES", "STRATEGY", "PRECISION", "DETERMINISTIC"),
    *("CHECKPOINT_SECONDS", "TIMEOUT", "RELAUNCHES", "SUPERVISOR", "REPORTS"),
)
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # of torchrun and ours
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")


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
    text = os.environ.get("PIPELINE_STRATEGY", "auto")
    if not text.strip():
        raise _refuse("PIPELINE_STRATEGY", "auto, ddp, fsdp or another strategy of Lightning")
    return text


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


def read_number(name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
    """Return a variable that holds a whole number, of ours or of torchrun and SLURM.

    Raises:
        HardwareError: if it holds something else, less than `least` or more than `most`.
    """
    text = os.environ.get(name, str(default)).strip()
    if not _is_number(text) or int(text) < least or (most is not None and int(text) > most):
        raise _refuse(name, f"a whole number, {least} {'or more' if most is None else f'to {most}'}")
    return int(text)


def read_port() -> int:
    """Return MASTER_PORT; 0 stands for a free one."""
    return read_number("MASTER_PORT", 0, most=65535)


def read_reports() -> tuple[int, int] | None:
    """Return the pipes to the supervisor, which sets PIPELINE_REPORTS; None without one."""
    name = "PIPELINE_REPORTS"
    if name not in os.environ:
        return None
    words = os.environ[name].split(",")
    if len(words) != 2 or not all(map(_is_number, words)):
        raise _refuse(name, "the numbers of two pipes, which only a supervisor sets")
    return int(words[0]), int(words[1])


def read_text(name: str) -> str:
    """Return a variable of DVC, torchrun or SLURM that is any text; empty where it is not set."""
    return os.environ.get(name, "")


def is_set(name: str) -> bool:
    """Say whether a variable is there, whatever its value."""
    return name in os.environ


def read_root() -> Path:
    """Return the project's folder: in a temporary experiment the main one, which DVC names in DVC_ROOT."""
    path = Path(os.environ.get("DVC_ROOT", "."))
    if not path.is_dir():
        raise _refuse("DVC_ROOT", "an existing folder")
    return path.resolve()


def read_threads() -> str:
    """Return OMP_NUM_THREADS, of which PyTorch and OpenMP take a wrong value for none; empty where it is not set."""
    name = "OMP_NUM_THREADS"
    text = os.environ.get(name, "").strip()
    if text and not re.fullmatch(r"0*[1-9][0-9]*(,[0-9]+)*", text):
        raise _refuse(name, "a whole number, 1 or more")
    return text


def read_tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI; empty for the project's own store."""
    name = "MLFLOW_TRACKING_URI"
    text = os.environ.get(name, "")
    if text and not re.fullmatch(STORES, text):
        raise _refuse(name, "an address such as http://host:5000 or sqlite:////folder/mlflow.db")
    return text


def read_experiment_name() -> str:
    """Return MLFLOW_EXPERIMENT_NAME."""
    name = "MLFLOW_EXPERIMENT_NAME"
    text = os.environ.get(name, "generative-experiments")
    if not text.strip():
        raise _refuse(name, "the name of an experiment")
    return text


def read_mirror() -> str:
    """Return DATA_MIRROR, a folder or an address; empty without one."""
    name = "DATA_MIRROR"
    text = os.path.expanduser(os.environ.get(name, ""))  # noqa: PTH111 - may be an address
    if "://" in text and not re.match(r"https?://[^/\s]", text, re.IGNORECASE):
        raise _refuse(name, "a folder or an address such as https://host/folder")
    return text


def require_valid() -> None:
    """Read every variable, so that no stage begins with one that it would refuse in the end.

    Raises:
        HardwareError: with the variable, what is expected and what came.
    """
    readers: tuple[Callable[[], object], ...] = (
        *(read_accelerator, read_devices, read_strategy, read_precision, read_determinism, read_checkpoint_seconds),
        *(read_timeout, read_relaunches, read_reports, read_port, read_root, read_threads, read_tracking_uri),
        *(read_experiment_name, read_mirror, lambda: read_nodes(1)),
    )
    for read in readers:
        read()
    for name in ("PIPELINE_SUPERVISOR", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", *RANKS, *SLURM):
        read_number(name, 0)
    read_number("MLFLOW_HTTP_REQUEST_TIMEOUT", 1, least=1)


def warn_of_unknown() -> None:
    """Name each variable with PIPELINE_ that is none of ours on standard error: it is probably misspelt."""
    known = [f"PIPELINE_{name}" for name in OURS]
    for name in sorted(os.environ):
        if name.startswith("PIPELINE_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; {near[0]} is meant?" if near else ""
            print(f"warning: {name} is no setting of this project and changes nothing{meant}", file=sys.stderr)


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
    value = re.sub(r"//[^/@]*@", "//***@", os.environ[name])  # a password
    return HardwareError(f"{name}: expected {expected}, got {value!r}")
