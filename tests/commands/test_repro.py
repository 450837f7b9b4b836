"""pipeline repro: the order of its work, what a failure and a signal leave undone, and the lock of `dvc repro`."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.artifacts import ArtifactError
from pipeline.commands.repro import Queue, describe_end
from pipeline.runtime.preemption import names_repro
from tests import forks
from tests.conftest import ROOT

DIAMOND = {"check": set(), "a": {"check"}, "b": {"check"}, "c": {"check"}, "after_a": {"a"}, "report": {"after_a", "b"}}


def work_through(
    needs: Mapping[str, set[str]], jobs: int, bad: str = "", stale: str = "", large: str = ""
) -> tuple[Queue, list[str]]:
    """Run a plan whose stages end in the order in which they started; return it and each moment's running stages."""
    ended: queue.Queue[tuple[str, str]] = queue.Queue()
    together = []

    def fits(name: str) -> bool:
        return name != large

    def start(name: str) -> None:
        together.append(" ".join(work.running))
        ended.put((name, "it broke" if name == bad else ""))

    def is_stale(name: str) -> bool:
        if name == stale:
            msg = "busy"
            raise ArtifactError(msg)
        assert needs[name] <= work.done.keys()  # DVC can say it only then
        return name != "c"

    work = Queue(needs, jobs, is_stale, start, fits, ended)
    work.run(lambda: None)
    return work, together


def test_a_stage_waits_for_all_that_it_needs_and_for_no_more() -> None:
    work, together = work_through(DIAMOND, jobs=2)
    assert together == ["check", "a", "a b", "b after_a", "report"]
    assert work.done == {"check": True, "a": True, "b": True, "c": False, "after_a": True, "report": True}
    assert list(describe_end(work)) == ["6 stages: 5 ran, 1 were up to date", "next: `pipeline status`"]


def test_a_stage_that_the_memory_is_not_enough_for_waits_until_it_is_alone() -> None:
    work, together = work_through(DIAMOND, jobs=2, large="b")
    assert "b" in together
    assert "a b" not in together
    assert work.done.keys() == DIAMOND.keys()


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_never_more_than_so_many_run(jobs: int) -> None:
    _, together = work_through({"check": set(), **{f"run{number}": {"check"} for number in range(9)}}, jobs)
    assert max(len(names.split()) for names in together) == jobs


def test_after_a_failure_only_what_needs_it_is_left_out_and_is_named() -> None:
    work, _ = work_through(DIAMOND, jobs=2, bad="a")
    assert work.done.keys() == {"check", "b", "c"}
    assert list(describe_end(work)) == [
        "6 stages: 2 ran, 1 were up to date",
        "a failed: it broke",
        "  not started, because they need it: after_a, report",
    ]


def test_a_stage_of_which_dvc_cannot_tell_fails_and_the_others_run() -> None:
    work, _ = work_through(DIAMOND, jobs=2, stale="b")
    assert work.failed == {"b": "busy"}
    assert work.done.keys() == {"check", "a", "c", "after_a"}


def test_nothing_is_started_after_a_signal() -> None:
    started = []

    def start(name: str) -> None:
        started.append(name)
        work.stopped = "SIGINT"
        work.ended.put((name, "exited with 75"))

    work = Queue(DIAMOND, 2, lambda _: True, start)
    work.run(lambda: None)
    assert started == ["check"]
    assert list(describe_end(work))[1] == "stopped by SIGINT, 6 are left; the same command goes on"


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("python -m pipeline repro -j 2", True),
        ("/bin/python /bin/pipeline repro", True),
        ("python -m pipeline reproduce", False),
        ("python -m dvc repro", False),
    ],
)
def test_a_stage_knows_the_command_that_it_ends_with(line: str, is_one: bool) -> None:
    assert names_repro(line.split()) is is_one


# --- with DVC ----------------------------------------------------------------

TOY = """\
stages:
  check:
    cmd: mkdir -p out && cp params.yaml out/check
    deps:
      - params.yaml
    outs:
      - out/check
  work:
    foreach: [a, b]
    do:
      cmd: sleep 0.2 && echo ${item} > out/${item}
      deps:
        - out/check
      outs:
        - out/${item}
  report:
    cmd: cat out/a out/b > report
    deps:
      - out/a
      - out/b
    outs:
      - report
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A project of DVC whose stages take no time."""
    (tmp_path / "dvc.yaml").write_text(TOY)
    (tmp_path / "params.yaml").write_text("x: 1\n")
    for command in ("git init -q", "dvc init -q"):
        subprocess.run(command.split(), cwd=tmp_path, env=os.environ | forks.environment(), check=True)
    return tmp_path


def call(folder: Path, *command: str) -> tuple[int, str]:
    environment = os.environ | forks.environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def repro(folder: Path, *options: str) -> tuple[int, str]:
    return call(folder, "python", "-m", "pipeline", "repro", *options)


@pytest.mark.slow
def test_the_lock_is_that_of_dvc_repro_byte_by_byte_and_a_failure_is_named(toy: Path) -> None:
    status, out = call(toy, "python", "-m", "dvc", "repro")
    assert status == 0, out
    serial = (toy / "dvc.lock").read_bytes()
    for name in ("dvc.lock", ".dvc/cache", ".dvc/tmp", "out", "report"):
        path = toy / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    assert repro(toy, "-j", "3")[0] == 0
    assert (toy / "dvc.lock").read_bytes() == serial
    assert repro(toy)[1] == "4 stages: 0 ran, 4 were up to date\nnext: `pipeline status`\n"
    (toy / "dvc.yaml").write_text(TOY.replace("sleep 0.2", "test ${item} != a"))
    status, out = repro(toy)
    assert status == 1
    assert "work@a failed: failed to reproduce 'work@a': failed to run: test a != a" in out
    assert out.endswith("  not started, because they need it: report\n")
    assert b"test b != a" in (toy / "dvc.lock").read_bytes()  # the other one ran
    status, out = repro(toy, "wrk")
    assert status == 1
    assert out.startswith("error: DVC")
    assert "wrk" in out


@pytest.mark.slow
def test_a_signal_lets_every_stage_save_and_leaves_no_lock(toy: Path) -> None:
    loop = 'trap "touch saved-${item}; exit 75" TERM; touch began-${item}; while true; do sleep 0.05; done'
    # The second name is that of a process which runs a stage: bash takes it for $0.
    (toy / "dvc.yaml").write_text(TOY.replace("sleep 0.2 &&", f"bash -c '{loop}' pipeline.stages &&"))
    # No forks: they are not below the process that asks for them, which is where the stages are looked for.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline", "repro", "-j", "2"]
    with (toy / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=toy, env=environment, stdout=log, stderr=log)
    end = time.monotonic() + 60
    while len(list(toy.glob("began-*"))) < 2:
        assert time.monotonic() < end, (toy / "log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75, (toy / "log").read_text()
    assert sorted(path.name for path in toy.glob("saved-*")) == ["saved-a", "saved-b"]
    assert (toy / "log").read_text().endswith("stopped by SIGTERM, 3 are left; the same command goes on\n")
    assert "work" not in (toy / "dvc.lock").read_text()
    assert json.loads((toy / ".dvc" / "tmp" / "rwlock").read_text()) == {}
