"""Writes a run's history to a folder of plain files, from which MLflow is fed.

record/run.json                           name, times, status, parameters, tags, data sets, environment, totals
record/metrics.jsonl                      one line per logged step: {"step", "time", "values"}
record/system.jsonl                       the machine's load every few seconds, numbered instead of a step
record/exhibits/<key>/<step><suffix>      a preview's pictures, texts, sounds, ...

The folder is part of the resume state while the training runs, and becomes a DVC output at its end. An outage of MLflow
loses nothing, and a clone can create the MLflow run again.

A disk that is full ends nothing: lines and files wait in memory until there is space, and a line is written as a whole
or not at all. A line that is none, such as one that a power cut tore, is passed over with a warning.
"""

import json
import logging
import math
import os
import platform
import re
import resource
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from pipeline import artifacts
from pipeline.history import dvc_lock
from pipeline.history.costs import measure_memory
from pipeline.params import NONE, Params
from pipeline.runtime import environment

log = logging.getLogger(__name__)
LIBRARIES = ("torch", "pytorch-lightning", "torchmetrics", "torch-fidelity", "mlflow", "dvc", "numpy")
EXHIBITS = ("images/", "texts/", "exhibits/")  # the first two in records of older versions


class ExhibitId(NamedTuple):
    """What names an exhibit: the preview that it belongs to, the step, and the suffix of its file."""

    key: str
    step: int
    suffix: str


class Record:
    """The record of one run in `folder`; a record that is opened again continues where it stopped."""

    def __init__(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.loads = 0  # the number of the next line of system.jsonl
        self.opened = time.monotonic()
        self.waiting: dict[Path, bytes] = {}  # what a full disk did not take: lines of a .jsonl, or a whole file
        self.writing = threading.Lock()  # of the training's thread and the one that samples the load
        self.warned: set[str] = set()
        if about is None or (folder / "run.json").exists():
            self.about: dict[str, Any] = artifacts.read_json(folder / "run.json")
        else:
            new = {"id": uuid.uuid4().hex, "started": time.time(), "status": "RUNNING", "process": describe_process()}
            self.about = {**new, **about}
            self.save()

    def save(self) -> None:
        """Write run.json."""
        text = json.dumps(artifacts.encode(self.about), indent=2, sort_keys=True, allow_nan=False) + "\n"
        self._put(self.folder / "run.json", text.encode())

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append finite values at a step; others are left out and named in a tag."""
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        if missing := sorted(values.keys() - finite.keys()):
            self.about["tags"]["nonfinite"] = f"step {step}: {', '.join(missing)}"
            self.save()
        self._append("metrics", step, finite)

    def log_load(self, values: dict[str, float]) -> None:
        """Append the machine's load under the next number."""
        if not self.loads:
            self.loads = max((line["step"] + 1 for line in self.read("system")), default=0)
        self._append("system", self.loads, {key: value for key, value in values.items() if math.isfinite(value)})
        self.loads += 1

    def _append(self, name: str, step: int, values: dict[str, float]) -> None:
        line = json.dumps({"step": step, "time": time.time(), "values": values}) + "\n"
        path = self.folder / f"{name}.jsonl"
        with self.writing:
            self.waiting[path] = self.waiting.get(path, b"") + line.encode()
        self._write_waiting()

    def _put(self, path: Path, content: bytes) -> None:
        with self.writing:
            self.waiting[path] = content
        self._write_waiting()

    def _write_waiting(self) -> None:
        """Write what waits; what a full disk does not take waits for the next time, with one warning."""
        try:
            self.flush()
        except OSError as error:
            self._warn("full", f"{self.folder}: {error.strerror}; what it lacks waits in memory until there is space")
        else:
            self.warned.discard("full")

    def flush(self) -> None:
        """Write all that waits in memory.

        Raises:
            OSError: if the disk is still full.
        """
        with self.writing:
            for path, content in list(self.waiting.items()):
                write = append_lines if path.suffix == ".jsonl" else write_durably
                try:
                    write(path, content)
                except OSError as error:
                    error.filename = str(path)  # which a failed write does not have
                    raise
                del self.waiting[path]

    def _warn(self, what: str, message: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            log.warning("%s", message)

    def read(self, name: str = "metrics") -> list[dict[str, Any]]:
        """Return all complete lines of metrics.jsonl or another file, in order, and those that wait for space."""
        waiting = self._parse(name, self.waiting.get(self.folder / f"{name}.jsonl", b""))
        return self.read_on(name, 0)[0] + waiting

    def read_on(self, name: str, start: int) -> tuple[list[dict[str, Any]], int]:
        """Return the complete lines of a file from the byte `start` on, and the byte where they end."""
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            return [], start
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
        end = content.rfind(b"\n") + 1
        return self._parse(name, content[:end]), start + end

    def _parse(self, name: str, content: bytes) -> list[dict[str, Any]]:
        found = [parse_line(text) for text in content.split(b"\n") if text]
        if torn := sum(line is None for line in found):
            place = self.folder / f"{name}.jsonl"
            self._warn(name, f"{place}: {torn} lines are torn, so they are no JSON of a step, and are skipped")
        return [line for line in found if line is not None]

    def rewind(self, step: int) -> None:
        """Drop values after `step`, from which a training resumes, and lines that a crash cut off."""
        for name, last in (("metrics", step), ("system", math.inf)):
            kept = [json.dumps(line) for line in self.read(name) if line["step"] <= last]
            artifacts.write_bytes(self.folder / f"{name}.jsonl", "".join(line + "\n" for line in kept).encode())

    def reopen(self, tags: dict[str, str]) -> None:
        """Go on with a run that was interrupted: it is RUNNING again, in this process, with the tags of its code."""
        self.about |= {"status": "RUNNING", "process": describe_process()}
        self.about.pop("ended", None)
        self.about["tags"].pop("failure", None)
        self.about["tags"] |= tags
        self.save()

    def abandon(self) -> None:
        """Set the status of a run that is RUNNING though its process is gone to KILLED, ended with its last line.

        Raises:
            OSError: if it cannot be written.
        """
        lines = [*self.read(), *self.read("system")]
        self.about |= {
            "status": "KILLED",
            "ended": max((line["time"] for line in lines), default=self.about["started"]),
        }
        self.about["tags"]["failure"] = "the process ended without a word"
        self.save()
        self.flush()

    def exhibit(self, key: str, step: int, suffix: str, content: bytes) -> None:
        """Store what a model made at a step: a file whose suffix (.png, .txt, .wav, ...) says what it is.

        Raises:
            ValueError: if MLflow could not take the key or the suffix as a name.
        """
        if not re.fullmatch(r"[\w-]+\.[a-z0-9]+", key + suffix, re.ASCII):
            msg = f"exhibit: expected a key such as samples and a suffix such as .png, got {key!r}, {suffix!r}"
            raise ValueError(msg)
        self._put(self.folder / "exhibits" / key / f"{step:07d}{suffix}", content)

    def list_exhibits(self) -> dict[ExhibitId, Path]:
        """List the exhibits, also those of older versions, which had a folder for images and one for texts."""
        paths = [path for folder in EXHIBITS for path in self.folder.glob(f"{folder}*/*")]
        return {exhibit: path for path in sorted(paths) if (exhibit := read_exhibit(path))}

    def finish(self, status: str, *, failure: str = "", **totals: float) -> None:
        """Set the status (FINISHED, FAILED, KILLED), why it failed, and the totals: costs count every attempt.

        Raises:
            OSError: if the record cannot be written as a whole.
        """
        before = self.about.get("totals", {})
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cost = {
            "seconds": before.get("seconds", 0.0) + time.monotonic() - self.opened,
            "cpu_seconds": before.get("cpu_seconds", 0.0) + usage.ru_utime + usage.ru_stime,  # of all threads
            "peak_memory_mib": max(before.get("peak_memory_mib", 0.0), measure_memory()),
        }
        ended = max(time.time(), self.about["started"])  # a clock that was set back must not end it before it began
        self.about |= {"status": status, "ended": ended, "totals": cost | totals}
        self.about["tags"].pop("failure", None)
        if failure:
            self.about["tags"]["failure"] = failure[:1000]
        self.save()
        self.flush()


def append_lines(path: Path, lines: bytes) -> None:
    """Append whole lines, all or none, durably: a checkpoint that survives a power cut must find its lines.

    A line that was cut off stays as it is: these begin on a new one.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        is_cut = size and os.pread(descriptor, 1, size - 1) != b"\n"
        rest = memoryview(b"\n" * is_cut + lines)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file, complete or not at all, also if the power is cut."""
    with artifacts.replace(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def parse_line(text: bytes) -> dict[str, Any] | None:
    """Return a line of a .jsonl: a step, a time and values; None for another text."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or not isinstance(line.get("values"), dict):
        return None
    numbers = [line.get("time"), *line["values"].values()]
    return line if all(isinstance(number, int | float) for number in numbers) else None


def read_exhibit(path: Path) -> ExhibitId | None:
    """Return what a path <key>/<step><suffix> names; None for another file, such as one that is being written."""
    match = re.fullmatch(r"(\d+)(\.[a-z0-9]+)", path.name)
    return ExhibitId(path.parent.name, int(match[1]), match[2]) if match else None


def describe_settings(key: str, settings: Params) -> dict[str, dict[str, Any]]:
    """Return the sections of params.yaml that a run stands on, and MLflow's parameters: those of its training."""
    run = settings.runs[key]
    trained = {"run": run, "model": settings.models[key], "data": settings.data[run.data]}
    network = {} if run.network == NONE else settings.networks[run.network].model_dump()
    config = {name: section.model_dump() for name, section in trained.items()}
    parameters = {
        f"{section}.{name}": value
        for section, values in config.items()
        for name, value in values.items()
        if name != "changes"
    }
    measured = {"metric": settings.metrics[run.metric].model_dump(), "network": network}
    return {"parameters": parameters, "config": config | measured}


def describe_environment() -> dict[str, str]:
    """Return the machine and versions on which equal bits depend: lock file, instruction set, threads, libraries.

    The lock file is the one of this folder, or else of the repository: benchmarks are projects in its subfolders.
    """
    lock = Path("requirements.lock")
    if not lock.exists():
        lock = Path(_git("rev-parse", "--show-toplevel"), lock)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "lock_sha256": artifacts.digest(lock) if lock.exists() else "none",
        **{name: version(name) for name in LIBRARIES},
    }


def describe_process() -> str:
    """Return a name of this process that is unique over machines and containers: host, process space, id, start."""
    space = Path("/proc/self/ns/pid")
    inside = space.readlink() if space.exists() else "-"
    return f"{platform.node()} {inside} {os.getpid()} {_describe_start(os.getpid())}"


def _describe_start(process: int) -> str:
    """Return when a process started, by no clock that can be set: boot, and ticks since then; on a Mac seconds.

    Raises:
        psutil.NoSuchProcess: if it has ended.
    """
    boot, about = Path("/proc/sys/kernel/random/boot_id"), Path(f"/proc/{process}/stat")
    if not boot.exists():
        return f"{psutil.Process(process).create_time():.0f}"
    try:
        words = about.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        raise psutil.NoSuchProcess(process) from None
    return f"{boot.read_text(encoding='ascii').strip()}/{words[19]}"  # field 22, of which the name was the second


def is_gone(process: str) -> bool:
    """Say whether a process that describe_process described is known to have ended; of other machines nothing is."""
    words = process.split(" ")
    if len(words) != 4 or words[:2] != describe_process().split(" ")[:2]:
        return False
    try:
        return _describe_start(int(words[2])) != words[3]  # another process has the id now
    except psutil.NoSuchProcess:
        return True


def describe_lineage() -> dict[str, str]:
    """Return the tags that lead from a run to its code and its place in DVC."""
    lock = Path("dvc.lock")
    tags = {
        "mlflow.source.git.commit": _git("rev-parse", "HEAD"),
        "git.dirty": str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc.stage": environment.read_text("DVC_STAGE"),
        "dvc.exp_name": environment.read_text("DVC_EXP_NAME"),
        "dvc.baseline": environment.read_text("DVC_EXP_BASELINE_REV"),
        "dvc.lock_md5": dvc_lock.hash_file(lock) if lock.exists() else "",
        "mlflow.source.name": " ".join(["python -m", *_module()]),
    }
    return {key: value for key, value in tags.items() if value}


def name_origin(about: Mapping[str, Any]) -> dict[str, str]:
    """Return what a sample of a run's model says of its origin: the run, its commit, and the source of its data."""
    tags, config = about.get("tags") or {}, about.get("config") or {}
    commit = tags.get("mlflow.source.git.commit", "")
    changed = "-dirty" if tags.get("git.dirty") == "true" else ""
    found = {
        "run": about.get("name", ""),
        "commit": f"{commit}{changed}" if commit else "",
        "source": (config.get("data") or {}).get("source", ""),
    }
    return {key: value for key, value in found.items() if value}


def _module() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name.removesuffix(".__main__") if spec else sys.argv[0], *sys.argv[1:]]


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
