"""`python -m module` as a fork of a process that has imported the libraries: the same code, some ten seconds earlier.

A fork is a process of its own, which is killed, stopped and counted like any other; but it has the hash seed of its
parent, and ends without what `atexit` holds. Tests of equal bits compare it with a Python that has started by itself;
tests of how stages are started (by `dvc` and its shells, torchrun, the supervisor) start them so.
"""

import atexit
import contextlib
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import NoReturn

LIBRARIES = """
    dvc.repo jinja2 matplotlib.pyplot mlflow mlflow.pyfunc psutil pydantic pytorch_lightning requests ruamel.yaml
    safetensors.torch scipy.linalg scipy.stats tokenizers torch torch._dynamo torch.distributed.fsdp
    torch.distributed.tensor torch_fidelity torchmetrics torchvision.utils
""".split()  # noqa: SIM905
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(LIBRARIES)
SHIM = """#!/bin/sh
exec {python} -IS {script} "$@"
"""
CLIENT = """import json, os, socket, sys
if sys.argv[1] != "-m":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
line = socket.socket(socket.AF_UNIX)
line.connect(os.path.join(os.path.dirname(sys.argv[0]), "socket"))
words = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]) + "\\n"
socket.send_fds(line, [words.encode()], [0, 1, 2])
status = int(line.makefile().readline())
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


class Fork:
    """What subprocess.Popen is to a program; its output goes to the end of a file."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
        arguments = (command, folder, environment, output)
        self.output = output
        self.process = CONTEXT.Process(target=_run, args=arguments, daemon=True)  # a failed test waits for none
        self.process.start()
        assert self.process.pid
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self.output.read_text(encoding="utf-8"), None

    def send_signal(self, number: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Child:
    """A fork of this process, for pipeline/runtime/processes.py in place of subprocess.Popen."""

    __class_getitem__ = classmethod(GenericAlias)

    def __init__(self, command: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = ()) -> None:
        del pass_fds  # a fork has them all
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _end_as(command[2:], Path.cwd(), env)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def environment() -> dict[str, str]:
    """Return the PATH with which `python -m` is a fork: another `python` comes first, beside its server's socket."""
    holder = tempfile.TemporaryDirectory(prefix="forks-")
    atexit.register(holder.cleanup)
    folder = Path(holder.name)
    (folder / "client.py").write_text(CLIENT)
    python, script = shlex.quote(sys.executable), shlex.quote(f"{folder}/client.py")
    (folder / "python").write_text(SHIM.format(python=python, script=script))
    (folder / "python").chmod(0o755)
    address = folder / "socket"
    server = CONTEXT.Process(target=_serve, args=(address,), daemon=True)
    server.start()
    while not address.exists():
        assert server.is_alive(), f"no socket could be made at {address}: is the path longer than 100 characters?"
        time.sleep(0.1)
    bin_folder = Path(sys.executable).parent
    return {"PATH": os.pathsep.join([str(folder), str(bin_folder), os.environ["PATH"]])}


def _serve(address: Path) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    listener = socket.socket(socket.AF_UNIX)
    unheard = address.with_suffix(".new")
    listener.bind(str(unheard))
    listener.listen(64)
    unheard.rename(address)
    parent = multiprocessing.parent_process()
    assert parent
    while parent.sentinel not in multiprocessing.connection.wait([listener, parent.sentinel]):
        line = listener.accept()[0]
        if not os.fork():
            listener.close()
            _answer(line)
        line.close()


def _answer(line: socket.socket) -> None:
    """Run what a client asks for in a process of its own, tell the client its status, and end."""
    text, files, _, _ = socket.recv_fds(line, 1 << 20, 3)
    while not text.endswith(b"\n"):
        part = line.recv(1 << 20)
        if not part:
            os._exit(1)
        text += part
    command, folder, values = json.loads(text)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        line.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        _end_as(command, Path(folder), values)
    for file in files:
        os.close(file)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    line.sendall(f"{status}\n".encode())
    os._exit(0)


def _run(command: Sequence[str], folder: Path, values: Mapping[str, str], output: Path) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    _end_as(command, folder, values)


def _end_as(command: Sequence[str], folder: Path, values: Mapping[str, str]) -> NoReturn:
    """Become `python -m command`, and end with its status."""
    status = 0
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(values)
        if "torch" in sys.modules and "OMP_NUM_THREADS" in values:  # which was read when it was imported
            sys.modules["torch"].set_num_threads(int(values["OMP_NUM_THREADS"]))
        for name in [name for name in sys.modules if name.partition(".")[0] in {"pipeline", "tests"}]:
            del sys.modules[name]
        python = shutil.which("python", path=values.get("PATH"))
        if python and Path(python).with_name("socket").exists():
            sys.executable = python  # what it starts are forks as well
        sys.argv = list(command)
        sys.path.insert(0, str(folder))
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as Python ends
        traceback.print_exc()
        status = 1
    threading._shutdown()  # waits for threads that are no daemons
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
