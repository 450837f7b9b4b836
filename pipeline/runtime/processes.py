"""Several processes for one training: started, watched and ended together, on one machine or one node of many.

Not used for one device. With PIPELINE_DEVICES x PIPELINE_NODES > 1 a training stage becomes a supervisor. It starts
one process of itself per device of this node. A process that is killed, raises, ends early or hangs ends all of them,
and the report's first line names the first cause. Each node has a supervisor of its own; under torchrun and SLURM,
which start the processes themselves, there is none.

Lightning's own launcher kills its main process with SIGKILL when another one fails, and keeps the cause to itself.
"""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

from pipeline.runtime import environment, preemption
from pipeline.runtime.environment import HardwareError
from pipeline.runtime.preemption import PREEMPTED, STAGES, SUPERVISOR, PreemptedError

REPORTS = "PIPELINE_REPORTS"  # numbers of two pipes: what stopped the process, and how far it is
MAX_REPORT = 4000  # characters; a pipe holds 64 KiB, so that nobody waits for its reader
SILENCE = 3.0  # seconds from the first failure to the end of processes that have noticed nothing
CLOSING = 20.0  # seconds that a process which has noticed may take to close its record
# Messages of a process that has lost another one: a consequence, not a cause.
LOST = re.compile(r"gloo|NCCL|ProcessGroup|TCPStore|DistNetwork|connection|time.?out|timed out", re.IGNORECASE)


class Layout(NamedTuple):
    """Devices (processes) a node, nodes, and which node this is."""

    devices: int
    nodes: int
    node: int

    @property
    def world(self) -> int:
        """Count all processes."""
        return self.devices * self.nodes


def read_layout() -> Layout:
    """Return the layout that PIPELINE_DEVICES, PIPELINE_NODES and NODE_RANK give, or torchrun or SLURM.

    Raises:
        HardwareError: if they are not numbers or contradict one another.
    """
    names = ("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS") if uses_slurm() else ("LOCAL_WORLD_SIZE", "WORLD_SIZE")
    local, world = (environment.read_number(name, 0) for name in names)
    devices = local if local and environment.read_devices() is None else _count_devices()
    nodes = environment.read_nodes(world // local if local and world else 1)
    layout = Layout(devices, nodes, environment.read_number("NODE_RANK", environment.read_number("GROUP_RANK", 0)))
    if world and world != layout.world:
        msg = (
            f"{names[1]} is {world}, but PIPELINE_DEVICES x PIPELINE_NODES is {devices} x {nodes}: "
            f"expected {layout.world} processes"
        )
        raise HardwareError(msg)
    if layout.node >= nodes:
        msg = f"NODE_RANK: expected 0 to {nodes - 1}, got {layout.node}"
        raise HardwareError(msg)
    return layout


def _count_devices() -> int:
    """Count the devices that PIPELINE_DEVICES names; auto is all GPUs, or one CPU process."""
    devices = environment.read_devices()
    if isinstance(devices, list):
        return len(devices)
    if devices is not None:
        return devices
    if environment.read_accelerator() == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def is_member() -> bool:
    """Say whether somebody (the supervisor, torchrun, SLURM) has started this process as one of several."""
    return environment.is_set("LOCAL_RANK") or environment.is_set("RANK") or uses_slurm()


def are_to_be_started() -> bool:
    """Say whether this process is to become the supervisor of several."""
    return not is_member() and read_layout().world > 1


def uses_slurm() -> bool:
    """Say whether `srun` started this process as one of several, and not an interactive shell or a script's step."""
    interactive = environment.read_text("SLURM_JOB_NAME") in {"bash", "interactive"}
    return environment.is_set("SLURM_PROCID") and environment.read_number("SLURM_NTASKS", 1) > 1 and not interactive


def get_rank() -> int:
    """Return this process's rank among all, before Lightning has started."""
    if environment.is_set("RANK"):
        return environment.read_number("RANK", 0)
    if uses_slurm():
        return environment.read_number("SLURM_PROCID", 0)
    if not environment.is_set("LOCAL_RANK"):
        return 0
    layout = read_layout()
    return layout.node * layout.devices + environment.read_number("LOCAL_RANK", 0)


def refuse_several(name: str) -> None:
    """Refuse to run a stage that is made for one process in several: each would do all of the work.

    Raises:
        HardwareError: if WORLD_SIZE is more than 1.
    """
    if (world := environment.read_number("WORLD_SIZE", 1)) > 1:
        msg = f"{name} runs in one process, WORLD_SIZE is {world}: start it without torchrun or srun"
        raise HardwareError(msg)


def report(error: str) -> None:
    """Tell the supervisor, if there is one, what stops this process, or nothing: it has done its work.

    Only the first report of a process counts: later ones are consequences. It goes through a pipe, which no full disk
    can keep from arriving.
    """
    if (pipes := environment.read_reports()) is not None:
        line = json.dumps({"time": time.time(), "error": error[:MAX_REPORT]}) + "\n"
        with suppress(OSError):  # the supervisor was killed
            os.write(pipes[0], line.encode())


@dataclass
class Group:
    """The processes of this node, their pipes, and how they ended: status by rank, in the order of their ends."""

    children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    reports: dict[int, "Pipe"] = field(default_factory=dict)
    pulses: dict[int, "Pipe"] = field(default_factory=dict)
    ended: dict[int, tuple[int, float]] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    stopped: bool = False  # from outside

    def watch(self) -> None:
        """Wait until all processes have ended; after the first failure the rest have a few seconds."""
        ends: queue.Queue[tuple[int, int, float]] = queue.Queue()

        def wait(rank: int, child: subprocess.Popen[bytes]) -> None:
            status = child.wait()
            ends.put((rank, status, time.time()))

        for rank, child in self.children.items():
            threading.Thread(target=wait, args=(rank, child), daemon=True).start()
        failed = 0.0
        while len(self.ended) < len(self.children):
            for pulse in self.pulses.values():
                pulse.read()
            with suppress(queue.Empty):
                rank, status, moment = ends.get(timeout=0.1)
                self.ended[rank] = status, moment
                if not failed and (status not in {0, PREEMPTED} or not self._read(rank)):
                    failed = time.monotonic()
            for rank in self.children.keys() - self.ended.keys() if failed else ():
                if time.monotonic() - failed > (CLOSING if self._read(rank) else SILENCE):
                    self.killed.add(rank)
                    self.children[rank].kill()

    def find_cause(self) -> str:
        """Name the first process that failed and what it said, or nothing if all ended well or were preempted."""
        if all(status == PREEMPTED or (status == 0 and self._read(rank)) for rank, (status, _) in self.ended.items()):
            return ""
        causes: list[tuple[bool, float, str]] = []
        for rank, (status, moment) in self.ended.items():
            found = self._read(rank)
            if status == PREEMPTED or (found and not found["error"]):
                continue  # it had done its work
            if found and status >= 0:
                error = str(found["error"])
                causes.append((bool(LOST.search(error)), float(str(found["time"])), f"rank {rank}: {error}"))
            elif rank not in self.killed:
                causes.append((False, moment, f"rank {rank}: {_describe(status)}"))
        is_lost, _, cause = min(causes, default=(True, 0.0, "no process said why"))
        return f"{self._find_hanging()}{cause}" if is_lost else cause

    def _find_hanging(self) -> str:
        """Return the name of the process that noticed nothing and lagged behind, if there is one."""
        steps = {
            rank: (int(count), int(step))
            for rank, pulse in self.pulses.items()
            for count, step in [line.split() for line in pulse.read()[-1:]]
        }
        silent = [rank for rank in sorted(self.killed) if not self._read(rank) and rank in steps]
        if silent:
            rank = min(silent, key=lambda rank: steps[rank])
            return f"rank {rank} did not answer at step {steps[rank][1]}; "
        if steps:
            return f"no process of this node is behind at step {min(step for _, step in steps.values())}; "
        return ""

    def _read(self, rank: int) -> dict[str, object]:
        lines = self.reports[rank].read()
        return json.loads(lines[0]) if lines else {}

    def close(self) -> None:
        """Close the pipes."""
        for pipe in (*self.reports.values(), *self.pulses.values()):
            pipe.close()


class Pipe:
    """The supervisor's end of a pipe: whole lines, of which the first and the newest are kept; nobody waits for it."""

    def __init__(self) -> None:
        self.descriptor, self.other = os.pipe()
        for end in (self.descriptor, self.other):
            os.set_blocking(end, False)
        self.lines: list[bytes] = []
        self.rest = b""

    def read(self) -> list[bytes]:
        """Return the first and the newest line."""
        with suppress(BlockingIOError):
            while part := os.read(self.descriptor, 1 << 16):
                *lines, self.rest = (self.rest + part).split(b"\n")
                known = self.lines + lines
                self.lines = [*known[:1], *known[1:][-1:]]
        return self.lines

    def close(self) -> None:
        """Close the supervisor's end."""
        os.close(self.descriptor)


def _describe(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status} before its work was done"


class Pulse:
    """Tells the supervisor how far this process is, for the moment when somebody hangs."""

    def __init__(self) -> None:
        self.count = 0
        self.pipes = environment.read_reports()

    def beat(self, step: int) -> None:
        """Count one more place reached, in a step."""
        if self.pipes is not None:
            self.count += 1
            with suppress(OSError):  # the pipe is full, because the supervisor does not read, or it was killed
                os.write(self.pipes[1], f"{self.count} {step}\n".encode())


def supervise(stage: str, key: str, on_failure: Callable[[str], None] = print, *, module: str = STAGES) -> None:
    """Run `python -m <module> <stage> <key>` in this node's processes until all have ended.

    After a failure they are started again, from the last checkpoint, PIPELINE_RELAUNCHES times (0). SIGTERM and Ctrl-C
    are passed on: the processes save together and end with status 75.

    Args:
        stage: the stage that is to run in several processes.
        key: its argument.
        on_failure: called with the cause, on node 0, before any new start.
        module: the module that runs stages.

    Raises:
        HardwareError: with the cause of the last failure.
        PreemptedError: if the processes were stopped from outside.
    """
    layout = read_layout()
    for remaining in range(environment.read_relaunches(), -1, -1):
        group = _start([module, stage, key], layout)
        group.watch()
        cause = group.find_cause()
        group.close()
        if not cause:
            break
        if layout.node == 0:
            on_failure(cause)
        if group.stopped or not remaining:
            raise HardwareError(cause)
        print(f"{cause}; starting again, {remaining - 1} more times after this", file=sys.stderr)
    if any(status for status, _ in group.ended.values()):
        msg = "a signal; see above"
        raise PreemptedError(msg)


def _start(command: Sequence[str], layout: Layout) -> Group:
    address, port = _find_master(layout)
    common = os.environ | {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "NODE_RANK": str(layout.node),
        "WORLD_SIZE": str(layout.world),
        "OMP_NUM_THREADS": environment.read_threads() or str(max(1, (os.cpu_count() or 1) // layout.devices)),
        SUPERVISOR: str(os.getpid()),
    }
    group = Group()

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        group.stopped = True
        for child in group.children.values():
            child.send_signal(number)  # nothing, if it has ended

    preemption.catch(forward)
    for local in range(layout.devices):
        rank = layout.node * layout.devices + local
        group.reports[rank], group.pulses[rank] = pipes = Pipe(), Pipe()
        ends = [pipe.other for pipe in pipes]
        own = {"RANK": str(rank), "LOCAL_RANK": str(local), REPORTS: ",".join(map(str, ends))}
        group.children[rank] = subprocess.Popen([sys.executable, "-m", *command], env=common | own, pass_fds=ends)
        for end in ends:
            os.close(end)
    return group


def _find_master(layout: Layout) -> tuple[str, int]:
    """Return where rank 0 will listen; on one node that is this machine, at a free port.

    Raises:
        HardwareError: if it is not given for several nodes, unknown, or in use.
    """
    if layout.nodes > 1:
        names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
        if missing := [name for name in names if not environment.is_set(name)]:
            msg = f"{layout.nodes} nodes need MASTER_ADDR, MASTER_PORT and NODE_RANK; not set: {missing}"
            raise HardwareError(msg)
        try:
            socket.getaddrinfo(environment.read_text("MASTER_ADDR"), None)
        except OSError as error:
            msg = f"MASTER_ADDR {environment.read_text('MASTER_ADDR')!r} is no known address: {error}"
            raise HardwareError(msg) from None
    address = environment.read_text("MASTER_ADDR") or "127.0.0.1"
    port = environment.read_port()
    if layout.node:
        return address, port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            msg = f"MASTER_PORT {port} cannot be used: {error}"
            raise HardwareError(msg) from None
        return address, probe.getsockname()[1]
