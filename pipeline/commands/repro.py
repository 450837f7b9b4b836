"""Runs every stage that is not up to date, as `dvc repro` does, but independent ones side by side.

    pipeline repro -j 2                     # all stages, at most two at a time
    pipeline repro -j 2 evaluate@gan        # what this target needs
    pipeline repro -j 3 train               # all trainings, and what they need

Outputs, their bits and dvc.lock are those of `dvc repro`. Every stage runs with the number of threads that it would
have on its own, because the bits of a training depend on it; set OMP_NUM_THREADS to choose another one. The records of
trainings have the times at which they ran, as always.

If a stage fails, the stages that need it are not started and all others are; the status is 1. Ctrl-C or SIGTERM lets
the trainings save their state and ends with status 75: the same command resumes them. -j is not a parameter, so it
makes nothing stale.
"""

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType

import psutil

from pipeline.artifacts import ArtifactError
from pipeline.commands import DVC, find_python, make_parser
from pipeline.history import costs
from pipeline.history.dvc_plan import Plan
from pipeline.runtime import preemption

SECONDS_BETWEEN_LOOKS = 0.5
HINTS = (  # of DVC after each stage; they are about the whole
    *("Running stage", "Generating lock", "Updating lock", "Use `dvc push`"),
    *("To track the changes with git", "\tgit add", "To enable auto staging", "\tdvc config"),
)


@dataclass
class Queue:
    """Starts each instance when those that it needs are done, at most `jobs` at a time.

    needs: by instance the instances that it needs, in an order in which they could run one after another.
    is_stale: whether an instance has to run; asked when all that it needs is done.
    start: begins an instance. Its name comes in `ended` when it ends, with the reason if it has failed.
    fits: whether the memory is enough for one more.
    stopped: the signal that stopped the work; nothing is started any more.
    running: when each one was started. done: whether it has run, or was up to date. failed: the reasons.
    skipped: the failed instance that each one needs.
    """

    needs: Mapping[str, set[str]]
    jobs: int
    is_stale: Callable[[str], bool]
    start: Callable[[str], None]
    fits: Callable[[str], bool] = lambda _: True
    ended: queue.Queue[tuple[str, str]] = field(default_factory=queue.Queue)
    stopped: str = ""
    running: dict[str, float] = field(default_factory=dict)
    done: dict[str, bool] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def run(self, look: Callable[[], None]) -> None:
        """Run everything that can run; `look` is called about twice a second."""
        self.begin()
        while self.running:
            try:
                name, reason = self.ended.get(timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                look()
                continue
            seconds = time.monotonic() - self.running.pop(name)
            if reason:
                self.failed[name] = reason
            else:
                self.done[name] = True
                print(f"{name}: done in {seconds:.0f} s, {len(self.done)} of {len(self.needs)} stages", flush=True)
            self.begin()

    def begin(self) -> None:
        """Start what can start; an instance that is up to date is done at once."""
        for name, needed in self.needs.items():
            if self.stopped or name in self.running or name in {*self.done, *self.failed, *self.skipped}:
                continue
            if bad := next((other for other in needed if other in self.failed or other in self.skipped), None):
                self.skipped[name] = self.skipped.get(bad, bad)
            elif needed - self.done.keys() or len(self.running) >= self.jobs:
                continue
            elif not self.running or self.fits(name):
                self._begin_one(name)

    def _begin_one(self, name: str) -> None:
        try:
            is_stale = self.is_stale(name)
        except ArtifactError as error:
            self.failed[name] = str(error)
            return
        if is_stale:
            self.running[name] = time.monotonic()
            self.start(name)
        else:
            self.done[name] = False


@dataclass
class Processes:
    """The `dvc repro` of each running instance; their lines are shown with the instance's name."""

    width: int
    ended: Callable[[tuple[str, str]], None]
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    asked: set[psutil.Process] = field(default_factory=set)

    def start(self, name: str) -> None:
        """Run one instance in a process, with the environment of this one."""
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | find_python() | {"PYTHONUNBUFFERED": "1"}  # idle threads sleep
        process = subprocess.Popen(
            [*DVC, "--wait-for-lock", "repro", "--single-item", name],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            start_new_session=True,  # the terminal's Ctrl-C must not reach a `dvc` that stores a finished training
        )
        self.started.append(process)
        threading.Thread(target=self._follow, args=(name, process)).start()

    def _follow(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        reasons = []
        for line in process.stdout:
            if line.strip() and not line.startswith(HINTS):
                say(name.ljust(self.width), line.rstrip())
                reasons += [line.strip()[len("error: ") :]] if line.lower().startswith("error: ") else []
        status = process.wait()
        self.ended((name, (reasons or [f"status {status}"])[0] if status else ""))

    def stop(self) -> None:
        """Ask each stage to save and end; its `dvc` sees that it did not finish, and ends too."""
        for process in find_stages(self.started):
            if process not in self.asked:
                self.asked.add(process)
                process.terminate()


def find_stages(started: list[subprocess.Popen[str]]) -> Iterator[psutil.Process]:
    """Yield the processes of stages below those that were started, without the ones that a stage has started."""
    for process in started:
        try:
            below = psutil.Process(process.pid).children(recursive=True)
            stages = {each.pid: each for each in below if preemption.names_stage(each.cmdline())}
            yield from (each for each in stages.values() if each.ppid() not in stages)
        except psutil.NoSuchProcess:
            continue


def has_memory(name: str) -> bool:
    """Say whether as much memory is free as an instance needed when it ran the last time; yes if that is not known."""
    needed = costs.read_known()["stages"].get(name, {}).get("peak_memory_mib", 0)
    return bool(psutil.virtual_memory().available >= needed * 2**20)


def say(name: str, line: str) -> None:
    """Print a line in one piece: several threads print."""
    sys.stdout.write(f"{name} | {line}\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Run the stages; return 0, 1 if one failed, or 75 after a signal."""
    parser = make_parser("repro", __doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stages or instances; default: all of them")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="number of stages that run at a time; default: 2")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"-j: expected a number of 1 or more, got {options.jobs}")
    plan = Plan(options.targets)
    return run(plan.needs, options.jobs, plan.is_stale, plan.sort_lock)


def run(
    needs: Mapping[str, set[str]], jobs: int, is_stale: Callable[[str], bool], finish: Callable[[], None] = lambda: None
) -> int:
    """Run instances, and `finish` at the end; return 0, 1 if one failed, or 75 after a signal."""
    ended: queue.Queue[tuple[str, str]] = queue.Queue()
    processes = Processes(max(map(len, needs), default=0), ended.put)
    work = Queue(needs, jobs, is_stale, processes.start, has_memory, ended)

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        work.stopped = signal.Signals(number).name

    former = preemption.catch(stop)
    try:
        work.run(lambda: processes.stop() if work.stopped else None)
    finally:
        finish()
        for number, handler in former.items():
            signal.signal(number, handler)
    print("\n".join(describe_end(work)))
    return preemption.PREEMPTED if work.stopped and len(work.done) < len(needs) else int(bool(work.failed))


def describe_end(work: Queue) -> Iterator[str]:
    """Yield the sentences that say what ran, what failed, and what was not started because of it."""
    ran = sum(work.done.values())
    yield f"{len(work.needs)} stages: {ran} ran, {len(work.done) - ran} were up to date"
    if len(work.done) == len(work.needs):
        yield "next: `pipeline status`"
    elif work.stopped:
        left = [name for name in work.needs if name not in work.done]
        yield f"stopped by {work.stopped}, {len(left)} are left; the same command goes on"
        return
    for name, reason in work.failed.items():
        yield f"{name} failed: {reason}"
        if waiting := [other for other, cause in work.skipped.items() if cause == name]:
            yield f"  not started, because they need it: {', '.join(waiting)}"
