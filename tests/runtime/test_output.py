"""What a program says never stops it: closed pipes and files, full disks, signs that a terminal cannot show."""

import errno
import io
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.callbacks import TQDMProgressBar

from pipeline.runtime import output, progress
from pipeline.runtime.output import Output
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), OSError(errno.EIO, "closed"), OSError(errno.ENOSPC, "full"), ValueError("I/O on closed file")],
)
def test_what_cannot_be_written_is_dropped(error: Exception) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise error

        def flush(self) -> None:
            raise error

    with pytest.raises(type(error)):
        print("a line", file=Broken())
    print("a line", file=Output(Broken()), flush=True)
    assert Output(Broken()).write("four") == 4
    assert Output(sys.__stdout__).encoding == sys.__stdout__.encoding


@pytest.mark.parametrize(
    ("redirection", "shown"),
    [("2>&1 | true", ""), (">&-", ""), ("> /dev/full", ""), ("| cat", "\\udcff\n")],
)
def test_a_program_whose_output_goes_nowhere_ends_well(redirection: str, shown: str) -> None:
    program = (
        "import sys, time; from pipeline.runtime import output; output.protect(); output.protect(); time.sleep(0.3)\n"
        "for _ in range(3000): print('-', end='')\n"
        "print(); print('\\udcff', flush=True); print('done', file=sys.stderr)"
    )
    command = f'set -o pipefail; "$PYTHON" -c "$PROGRAM" {redirection}'
    environment = os.environ | {"PYTHON": sys.executable, "PROGRAM": program, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(shown)
    assert done.stderr == ("" if "2>&1" in redirection else "done\n")


def test_a_stream_that_was_protected_is_not_protected_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    output.protect()
    first = sys.stdout
    output.protect()
    assert sys.stdout is first


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    assert isinstance(progress.choose(10), TQDMProgressBar) == is_terminal


def test_a_line_every_half_minute_has_step_losses_pace_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(progress, "time", clock)
    lines, other = progress.ProgressLines(400), progress.ProgressLines(400)
    other.disable()  # a process that is not the first
    nothing: Any = None
    for step in range(100, 231):  # resumed after step 100, two steps a second
        now = 1000.0 + (step - 100) / 2
        for each in (lines, other):
            each.on_train_batch_start(nothing, nothing, nothing, step)
        now += 0.5
        outputs = {"generator_loss": 0.123456, "accuracy": 0.5, "loss": 2.0}
        for each in (lines, other):
            each.on_train_batch_end(nothing, nothing, outputs, nothing, step)
    assert capsys.readouterr().out.splitlines() == [
        "step 160 of 400, generator_loss 0.1235, loss 2, 2 steps/s, 0:02:00 left",
        "step 220 of 400, generator_loss 0.1235, loss 2, 2 steps/s, 0:01:30 left",
    ]
