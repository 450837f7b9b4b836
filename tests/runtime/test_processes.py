"""Several processes on one machine (gloo, CPU): the result of one, and an end together whatever happens to one."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline import artifacts
from pipeline.history.mlflow_store import connect
from pipeline.history.record import Record
from pipeline.runtime import checkpoints, processes
from pipeline.runtime.environment import HardwareError
from pipeline.runtime.processes import Layout
from pipeline.stages import fetch, prepare
from pipeline.stages.__main__ import main
from pipeline.stages.train import close_failed
from pipeline.weights import load_model
from tests.conftest import ROOT
from tests.forks import Fork
from tests.ranks import train

HARDWARE = {"PIPELINE_ACCELERATOR": "cpu", "PIPELINE_DEVICES": "2", "PIPELINE_TIMEOUT": "10", "OMP_NUM_THREADS": "1"}
SHARDED = {"PIPELINE_STRATEGY": "fsdp"}


def is_running(pid: int) -> bool:
    """Say whether a process is there, and more than a dead one whose parent has not asked how it ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Ranks:
    """A supervisor and its processes: two, or those of one node."""

    def __init__(
        self,
        out: Path,
        names: list[str],
        environment: dict[str, str],
        *,
        steps: int = 10,
        within: tuple[str, ...] = (),
        **fault: Any,
    ) -> None:
        out.mkdir(exist_ok=True)
        self.out = out
        self.ranks = (int(environment["NODE_RANK"]),) if "NODE_RANK" in environment else (0, 1)
        spec = json.dumps({"out": str(out), "names": names, "steps": steps, "fault": fault or None})
        self.output = (out / f"output-{environment.get('NODE_RANK', environment.get('SLURM_PROCID', 0))}").open(
            "w+", encoding="utf-8"
        )
        environment = os.environ | HARDWARE | environment
        self.process: Fork | subprocess.Popen[bytes]
        if within:
            command = [*within, sys.executable, "-m", "tests.ranks", spec]
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=self.output, stderr=subprocess.STDOUT
            )
        else:
            forked = {"TEST_FORKED_RANKS": "1"}
            self.process = Fork(["tests.ranks", spec], ROOT, environment | forked, Path(self.output.name))

    def wait_for(self, pattern: str) -> None:
        """Wait until a file is there."""
        end = time.monotonic() + 120
        while not list(self.out.glob(pattern)):
            assert self.process.poll() is None, self.read()
            assert time.monotonic() < end, f"waited for {pattern} in vain"
            time.sleep(0.02)

    def pid(self, rank: int) -> int:
        return int((self.out / f"{rank}.pid").read_text())

    def finish(self) -> int:
        """Wait for the end, of every process that this supervisor started."""
        status = self.process.wait(timeout=180)
        assert not [rank for rank in self.ranks if is_running(self.pid(rank))]
        return status

    def read(self) -> str:
        self.output.seek(0)
        return self.output.read().replace("\r", "\n")

    def weights(self, rank: int) -> dict[str, dict[str, torch.Tensor]]:
        return torch.load(self.out / f"{rank}.pt", weights_only=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Start processes, and leave none behind."""
    started: list[Ranks] = []

    def begin(
        names: list[str], environment: dict[str, str] | None = None, *, out: Path = tmp_path / "ranks", **options: Any
    ) -> Ranks:
        started.append(Ranks(out, names, environment or {}, **options))
        return started[-1]

    yield begin
    for ranks in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(ranks.process.pid).children(recursive=True):
                process.kill()
        ranks.process.kill()
        ranks.process.wait()


def uninterrupted(names: list[str], folder: Path, steps: int = 10) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of one process."""
    return {name: train(name, folder, None, steps) for name in names}


# Two halves of a batch are summed in another order than the whole, and Adam divides by the root of squared gradients: a
# weight whose gradients are all but zero magnifies the rounding. Of the 3,200 weights of the GAN of points one differs
# by 4e-6 after 10 steps on an AMD EPYC, none by more than 1e-6 on a Xeon.
MAGNIFIED = {"points": 1e-5}


def require_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for name, weights in expected.items():
        tolerance = max(tolerance, MAGNIFIED.get(name, 0.0)) if tolerance else 0.0
        for key, tensor in weights.items():
            torch.testing.assert_close(
                found[name][key],
                tensor,
                rtol=0,
                atol=tolerance,
                msg=lambda text, place=f"{name} {key}": f"{place}: {text}",
            )


@pytest.mark.slow
@pytest.mark.fault(30)
def test_one_and_two_processes_give_the_same_weights_and_ranks_equal_bits(start: Any, tmp_path: Path) -> None:
    names = ["transformer", "vae", "points"]
    ranks = start(names)
    assert ranks.finish() == 0, ranks.read()
    require_close(ranks.weights(0), uninterrupted(names, tmp_path), 1e-6)
    require_close(ranks.weights(0), ranks.weights(1), 0.0)


@pytest.mark.slow
@pytest.mark.fault(29)
def test_two_processes_with_batch_norm_on_cpu_are_warned(start: Any) -> None:
    ranks = start(["gan"])
    assert ranks.finish() == 0, ranks.read()
    assert "batch normalization uses the statistics of each process's part of a batch" in ranks.read()


@pytest.mark.slow
@pytest.mark.fault(16, 32)
@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("kill", "rank 1: killed by SIGKILL"),
        ("raise", "rank 1: ValueError: an error of rank 1"),
        ("leave", "rank 1: ended with status 0 before its work was done"),
        ("hang", "rank 1 did not answer at step 5; rank 0: "),
    ],
)
def test_a_rank_that_fails_ends_all_and_is_named_first(start: Any, kind: str, cause: str) -> None:
    ranks = start(["points"], kind=kind, rank=1, step=5)
    assert ranks.finish() == 1, ranks.read()
    seconds = time.time() - float((ranks.out / "accident").read_text())
    assert seconds < (10 if kind == "hang" else 0) + 15
    report = next(line for line in ranks.read().splitlines() if line.startswith("told: "))
    assert report.startswith(f"told: {cause}")


@pytest.mark.slow
@pytest.mark.fault(53)
def test_a_rank_that_would_train_something_else_is_refused_by_name_on_every_rank(start: Any) -> None:
    ranks = start(["points"], kind="other", rank=1, step=-1)
    assert ranks.finish() == 1, ranks.read()
    said = "the processes would train different things: models.points.learning_rate is 0.1 on rank 0 and 0.5 on rank 1"
    assert re.search(f"told: rank [01]: HardwareError: {said}\n", ranks.read())
    assert ranks.read().count(f"error: {said}\n") == 2
    assert not list(ranks.out.glob("*.pt"))


@pytest.mark.slow
@pytest.mark.fault(56)
def test_processes_whose_disk_is_full_at_their_end_have_done_their_work(start: Any, tmp_path: Path) -> None:
    ranks = start(["points"], kind="full", rank=-1, step=-1)
    assert ranks.finish() == 0, ranks.read()
    require_close(ranks.weights(0), uninterrupted(["points"], tmp_path), 1e-6)


@pytest.mark.fault(56)
def test_a_report_arrives_where_no_file_can_be_written_and_nobody_waits_for_its_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = processes.Group()
    group.reports[0], group.pulses[0] = report, pulse = processes.Pipe(), processes.Pipe()
    monkeypatch.setenv("PIPELINE_REPORTS", f"{report.other},{pulse.other}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        beats = processes.Pulse()
        for step in range(10_000):  # more than a pipe holds
            beats.beat(step)
        assert pulse.read()[-1] != b"10000 9999"
        beats.beat(10_000)
        processes.report("OSError: " + "x" * 100_000)
        processes.report("a consequence")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert pulse.read() == [b"1 0", b"10001 10000"]
    group.ended = {0: (1, 0.0)}
    assert group.find_cause().startswith("rank 0: OSError: xxx")
    group.close()
    for pipe in (report, pulse):
        os.close(pipe.other)


@pytest.mark.slow
@pytest.mark.fault(11)
@pytest.mark.parametrize("whom", ["rank 0", "rank 1", "all"])
def test_a_signal_to_one_or_all_saves_together_and_ends_with_75_within_5_seconds(start: Any, whom: str) -> None:
    ranks = start(["points"], {"PIPELINE_CHECKPOINT_SECONDS": "1"}, steps=100_000, kind="slow", rank=-1, step=-1)
    ranks.wait_for("points/step-*.ckpt")
    before = {path.name for path in ranks.out.glob("points/step-*.ckpt")}
    os.kill(ranks.process.pid if whom == "all" else ranks.pid(int(whom[-1])), signal.SIGTERM)
    sent = time.monotonic()
    assert ranks.finish() == 75, ranks.read()
    assert time.monotonic() - sent < 5
    assert {path.name for path in ranks.out.glob("points/step-*.ckpt")} - before
    assert ranks.read().count("the state is saved; the same command goes on from there") == 2


@pytest.mark.slow
@pytest.mark.fault(6, 11)
def test_a_killed_supervisor_leaves_no_process_and_a_saved_state(start: Any) -> None:
    ranks = start(["points"], {"PIPELINE_CHECKPOINT_SECONDS": "1"}, steps=100_000, kind="slow", rank=-1, step=-1)
    ranks.wait_for("points/step-*.ckpt")
    before = {path.name for path in ranks.out.glob("points/step-*.ckpt")}
    ranks.process.kill()
    end = time.monotonic() + 10
    while any(psutil.pid_exists(ranks.pid(rank)) for rank in (0, 1)):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert {path.name for path in ranks.out.glob("points/step-*.ckpt")} - before
    assert ranks.read().count("the state is saved; the same command goes on from there") == 2


@pytest.mark.slow
@pytest.mark.fault(16)
def test_processes_started_again_after_a_kill_end_with_the_uninterrupted_weights(start: Any, tmp_path: Path) -> None:
    environment = {"PIPELINE_RELAUNCHES": "1", "PIPELINE_CHECKPOINT_SECONDS": "1e-6"}
    ranks = start(["points"], environment, kind="kill", rank=1, step=6)
    assert ranks.finish() == 0, ranks.read()
    assert "rank 1: killed by SIGKILL; starting again" in ranks.read()
    assert "resuming at step" in ranks.read()
    require_close(ranks.weights(0), uninterrupted(["points"], tmp_path), 1e-6)


@pytest.mark.slow
@pytest.mark.fault(16)
def test_sharded_processes_go_on_from_a_whole_checkpoint_and_after_a_kill_from_their_own(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = uninterrupted(["transformer"], tmp_path)
    monkeypatch.setenv("PIPELINE_CHECKPOINT_SECONDS", "1e-6")
    out = tmp_path / "ranks"
    out.mkdir()
    with pytest.raises(ValueError, match="an error of rank 1"):
        train("transformer", out, {"kind": "raise", "rank": 0, "step": 4}, 10)
    (out / "accident").unlink()
    ranks = start(["transformer"], SHARDED | {"PIPELINE_RELAUNCHES": "1"}, kind="kill", rank=1, step=7)
    assert ranks.finish() == 0, ranks.read()
    assert "rank 1: killed by SIGKILL; starting again" in ranks.read()
    assert "resuming at step 3" in ranks.read()
    assert re.search("resuming at step [456]", ranks.read())
    require_close(ranks.weights(0), expected, 1e-6)
    whole = sum(tensor.numel() for key, tensor in expected["transformer"].items() if "n_averaged" not in key)
    shares = [int((out / f"{rank}.held").read_text()) for rank in (0, 1)]
    assert sum(shares) == whole
    assert max(shares) < 0.6 * whole


@pytest.mark.slow
def test_one_process_goes_on_from_a_checkpoint_of_sharded_ones_and_they_from_its_last_one(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_CHECKPOINT_SECONDS", "1e-6")
    ranks = start(["transformer"], SHARDED, kind="raise", rank=0, step=6)
    assert ranks.finish() == 1
    assert checkpoints.find(ranks.out / "transformer")
    found = {"transformer": train("transformer", ranks.out, None, 10)}
    require_close(found, uninterrupted(["transformer"], tmp_path), 1e-6)
    ranks = start(["transformer"], SHARDED)
    assert ranks.finish() == 0, ranks.read()
    assert "resuming at step 10 of 10" in ranks.read()
    require_close(ranks.weights(0), found, 0.0)


@pytest.mark.slow
def test_sharded_processes_train_the_adapters_of_one_process(start: Any, tmp_path: Path) -> None:
    expected = uninterrupted(["adapters"], tmp_path)
    ranks = start(["adapters"], SHARDED)
    assert ranks.finish() == 0, ranks.read()
    require_close(ranks.weights(0), expected, 1e-6)
    zero_at_first = [tensor for name, tensor in expected["adapters"].items() if name.endswith(".up")]
    assert zero_at_first
    assert all(tensor.any() for tensor in zero_at_first)


def prepare_text() -> tuple[list[str], dict[str, str]]:
    """Return the command that trains a small language model by two processes, and its environment."""
    fetch.main("text")
    prepare.main("text")
    command = [sys.executable, "-m", "pipeline.stages", "train", "transformer"]
    return command, os.environ | HARDWARE | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_two_processes_that_share_the_weights_score_and_save_all_of_them(workdir: Path) -> None:
    command, environment = prepare_text()
    done = subprocess.run(command, cwd=workdir, env=environment | SHARDED, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    record = Record(artifacts.RUNS / "transformer" / "record")
    measured = [line["values"]["validation_nats"] for line in record.read() if "validation_nats" in line["values"]]
    model = load_model(artifacts.RUNS / "transformer" / "model").model
    tokens = artifacts.read_split("text", "validation")["tokens"][:20_000]
    assert model.score(tokens, model.config.context).mean() == pytest.approx(measured[-1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_two_processes_train_one_model_in_one_run_and_a_killed_one_is_recorded_as_failed(
    workdir: Path, edit_params: Any
) -> None:
    command, environment = prepare_text()
    done = subprocess.run(command, cwd=workdir, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    client, experiment = connect()
    assert len(client.search_runs([experiment])) == 1
    assert (artifacts.RUNS / "transformer" / "model" / "model.safetensors").exists()

    edit_params({"models.transformer.steps": 100_000})
    process = subprocess.Popen(command, cwd=workdir, env=environment, stderr=subprocess.PIPE, text=True)
    while not (records := list((workdir / ".state").rglob("metrics.jsonl"))) or not records[0].stat().st_size:
        assert process.poll() is None
        time.sleep(0.1)
    first = min(psutil.Process(process.pid).children(), key=lambda child: int(child.environ()["RANK"]))
    first.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "error: rank 0: killed by SIGKILL"
    about = json.loads((records[0].parent / "run.json").read_text())
    assert (about["status"], about["tags"]["failure"]) == ("FAILED", "rank 0: killed by SIGKILL")
    newest = client.search_runs([experiment])[0]
    assert (newest.info.status, newest.data.tags["failure"]) == ("FAILED", "rank 0: killed by SIGKILL")


@pytest.mark.slow
@pytest.mark.fault(11, 16)
def test_torchrun_starts_the_processes_as_well_and_a_stop_by_it_is_resumed(start: Any, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")
    environment = {"PIPELINE_CHECKPOINT_SECONDS": "1e-6", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    options = {"within": (sys.executable, *launcher), "steps": 60, "kind": "slow", "rank": -1, "step": -1}
    ranks = start(["points"], environment, **options)
    ranks.wait_for("points/step-*.ckpt")
    ranks.process.send_signal(signal.SIGTERM)
    assert ranks.finish() != 0
    assert ranks.read().count("the state is saved; the same command goes on from there") == 2
    ranks = start(["points"], environment, **options)
    assert ranks.finish() == 0, ranks.read()
    assert "resuming at step" in ranks.read()
    require_close(ranks.weights(0), uninterrupted(["points"], tmp_path, 60), 1e-6)


@pytest.mark.slow
def test_processes_that_slurm_starts_find_each_other(start: Any, tmp_path: Path) -> None:
    """There is no SLURM here: the test sets what `srun --ntasks-per-node=2` sets."""
    common = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "4711"}
    common |= {"SLURM_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "PIPELINE_DEVICES": "auto"}
    both = [start(["points"], common | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in ("0", "1")]
    assert [ranks.process.wait(timeout=180) for ranks in both] == [0, 0], both[1].read()
    require_close(both[0].weights(0), uninterrupted(["points"], tmp_path), 1e-6)
    require_close(both[0].weights(0), both[0].weights(1), 0.0)


@pytest.mark.slow
def test_nodes_that_do_not_share_their_state_are_refused(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_CHECKPOINT_SECONDS", "1e-6")
    with pytest.raises(ValueError, match="an error of rank 1"):
        train("points", tmp_path, {"kind": "raise", "rank": 0, "step": 5}, 10)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"PIPELINE_NODES": "2", "PIPELINE_DEVICES": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = []
    for node in ("0", "1"):
        folder = tmp_path / f"node{node}"
        folder.mkdir()
        if node == "0":
            shutil.copytree(tmp_path / "points", folder / "points")
        both.append(start(["points"], common | {"NODE_RANK": node}, out=folder))
    assert [ranks.process.wait(timeout=180) for ranks in both] == [1, 1]
    for ranks in both:
        assert "processes would resume at steps 0 to 4: all nodes must see one .state" in ranks.read()


def ip(*words: str) -> None:
    """Run `ip`, or skip the test with its reason."""
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"two nodes need network namespaces: {error}")
    if done.returncode:
        pytest.skip(f"two nodes need network namespaces: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def nodes() -> Iterator[list[dict[str, str]]]:
    """Two network namespaces with a cable between them, as the environments of two nodes."""
    names = [f"node{number}-{os.getpid()}" for number in range(2)]
    made: list[str] = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        common = {"PIPELINE_NODES": "2", "PIPELINE_DEVICES": "1", "GLOO_SOCKET_IFNAME": "cable"}
        common |= {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29511"}
        yield [common | {"NODE_RANK": str(number), "NAMESPACE": name} for number, name in enumerate(names)]
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


def start_nodes(start: Any, nodes: list[dict[str, str]], **options: Any) -> list[Ranks]:
    enter = ("ip", "netns", "exec")
    return [start(["points"], node, within=(*enter, node["NAMESPACE"]), **options) for node in nodes]


@pytest.mark.slow
def test_two_nodes_give_the_weights_of_one_process(start: Any, nodes: list[dict[str, str]], tmp_path: Path) -> None:
    both = start_nodes(start, nodes)
    assert [ranks.finish() for ranks in both] == [0, 0], both[0].read() + both[1].read()
    require_close(both[0].weights(0), uninterrupted(["points"], tmp_path), 1e-6)
    require_close(both[0].weights(0), both[0].weights(1), 0.0)


@pytest.mark.slow
@pytest.mark.fault(32)
@pytest.mark.parametrize("loss", ["node", "cable"])
def test_a_killed_node_or_a_cut_cable_ends_both_sides_within_the_timeout(
    start: Any, nodes: list[dict[str, str]], loss: str
) -> None:
    options = {"kind": "slow", "rank": -1, "step": -1}
    both = start_nodes(start, [node | {"PIPELINE_CHECKPOINT_SECONDS": "1"} for node in nodes], steps=100_000, **options)
    both[0].wait_for("points/step-*.ckpt")
    if loss == "node":
        for pid in (both[1].process.pid, both[1].pid(1)):
            os.kill(pid, signal.SIGKILL)
    else:
        ip("-n", nodes[1]["NAMESPACE"], "link", "set", "cable", "down")
    before = time.monotonic()
    statuses = [ranks.finish() for ranks in both]
    assert time.monotonic() - before < int(HARDWARE["PIPELINE_TIMEOUT"]) + 15
    assert statuses == [1, -signal.SIGKILL if loss == "node" else 1]
    assert "told: no process of this node is behind at step" in both[0].read()


def test_the_supervisor_closes_the_record_of_its_own_processes_alone(workdir: Path) -> None:
    state = workdir / ".state" / "train-x" / "0"
    about = {"name": "x", "tags": {}, "parameters": {}, "config": {}, "datasets": [], "environment": {}}
    Record(state / "record", about)
    with checkpoints.hold(state.parent):  # a trainer that was there before, and refused ours
        close_failed(state, "rank 0: ArtifactError: another process is training this run")
    assert Record(state / "record").about["status"] == "RUNNING"
    close_failed(state, "rank 1: killed by SIGKILL")
    closed = Record(state / "record").about
    assert (closed["status"], closed["tags"]["failure"]) == ("FAILED", "rank 1: killed by SIGKILL")


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, 3),  # torchrun
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_NAME": "train"}, 2),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_JOB_NAME": "bash"}, 0),  # a shell, not `srun`
        ({"PIPELINE_NODES": "2", "PIPELINE_DEVICES": "2", "NODE_RANK": "1", "LOCAL_RANK": "0"}, 2),
    ],
)
def test_the_rank_is_known_before_lightning_has_started(
    environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert processes.get_rank() == rank


@pytest.mark.parametrize(
    ("environment", "layout"),
    [
        ({"PIPELINE_ACCELERATOR": "cpu"}, Layout(1, 1, 0)),
        ({"PIPELINE_DEVICES": "0,2,3"}, Layout(3, 1, 0)),
        ({"PIPELINE_DEVICES": "2", "PIPELINE_NODES": "3", "NODE_RANK": "2"}, Layout(2, 3, 2)),
        ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4", "GROUP_RANK": "1"}, Layout(2, 2, 1)),  # torchrun
        ({"SLURM_NTASKS_PER_NODE": "4", "SLURM_NTASKS": "8", "SLURM_PROCID": "5"}, Layout(4, 2, 0)),
    ],
)
def test_devices_and_nodes_come_from_the_environment(
    environment: dict[str, str], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert processes.read_layout() == layout


def test_one_device_has_no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_DEVICES", "1")
    assert not processes.are_to_be_started()
    monkeypatch.setenv("PIPELINE_DEVICES", "2")
    assert processes.are_to_be_started()
    monkeypatch.setenv("LOCAL_RANK", "0")  # one of several already
    assert not processes.are_to_be_started()


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PIPELINE_DEVICES": "0"}, "PIPELINE_DEVICES: expected auto, a number above 0 or a list such as 0,2, got '0'"),
        ({"PIPELINE_NODES": "two"}, "PIPELINE_NODES: expected a whole number, 1 or more, got 'two'"),
        ({"PIPELINE_NODES": "2"}, r"2 nodes need MASTER_ADDR, MASTER_PORT and NODE_RANK; not set: \['MASTER_ADDR'"),
        ({"PIPELINE_NODES": "2", "NODE_RANK": "2"}, "NODE_RANK: expected 0 to 1, got 2"),
        ({"WORLD_SIZE": "3"}, "WORLD_SIZE is 3, but PIPELINE_DEVICES x PIPELINE_NODES is 2 x 1: expected 2 processes"),
        (
            {"PIPELINE_NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "no.such.invalid", "MASTER_PORT": "29500"},
            "MASTER_ADDR 'no.such.invalid' is no known address",
        ),
    ],
)
def test_contradictions_are_refused_at_once(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (HARDWARE | environment).items():
        monkeypatch.setenv(key, value)
    before = time.monotonic()
    with pytest.raises(HardwareError, match=message):
        processes.supervise("train", "{}")
    assert time.monotonic() - before < 10


@pytest.mark.fault(50)
def test_a_port_in_use_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for key, value in (HARDWARE | {"MASTER_PORT": str(port)}).items():
            monkeypatch.setenv(key, value)
        with pytest.raises(HardwareError, match=f"MASTER_PORT {port} cannot be used"):
            processes.supervise("train", "{}")


@pytest.mark.fault(22)
@pytest.mark.parametrize("stage", ["sample", "evaluate"])
def test_stages_of_one_process_are_refused_in_several(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several processes samples would be drawn and counted twice."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=f"error: {stage} runs in one process, WORLD_SIZE is 2"):
        main([stage, "gan"])
