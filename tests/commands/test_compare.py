"""pipeline compare on written runs: verdicts that are known, refusals that name their reason."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.commands.compare import is_compared
from pipeline.protocol import hash_protocol

PROTOCOL = {"metric": {"sampling": {"count": 1000}}, "versions": {"torch": "2.14.0"}}


def write(name: str, *, seed: int = 0, fid: tuple[float, ...] = (5.0, 5.2), config: int = 1, **protocol: Any) -> None:
    folder = artifacts.REPORTS / "runs" / name
    used = {**PROTOCOL, **protocol}
    artifacts.write_json(folder / "metrics.json", {"samples": 1000, "fid_x": sum(fid) / len(fid), "fid_x_floor": 4.0})
    artifacts.write_json(folder / "sets.json", {"fid_x": list(fid)})
    run = {"model": "gan", "config": {"steps": config}, "seed": seed}
    artifacts.write_json(folder / "protocol.json", {"hash": hash_protocol(used), "protocol": used, "run": run})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["compare", *arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.mark.usefixtures("folder")
def test_seeds_of_one_experiment_are_averaged_and_a_large_difference_is_decided(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed in range(3):
        write(f"a{seed}", seed=seed, fid=(5.0 + 0.1 * seed, 5.2 + 0.1 * seed))
        write(f"b{seed}", seed=seed, fid=(3.0 - 0.1 * seed, 3.2 - 0.1 * seed), config=2)
    status, out, _ = compare(capsys, "a0", "a1", "a2", "b0", "b1", "b2")
    assert status == 0
    assert "| metric | a0 (3 seeds) | b0 (3 seeds) | b0 against a0 |" in out
    (row,) = [line for line in out.splitlines() if line.startswith("| fid_x ")]
    assert "5.2 [" in row
    assert "sampling sd 0.14" in row
    assert row.endswith("better |")
    assert "fid_x_floor" not in out


@pytest.mark.usefixtures("folder")
@pytest.mark.fault(48)
def test_a_difference_within_the_noise_is_inconclusive_and_says_how_many_seeds_would_decide(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed in range(2):
        write(f"a{seed}", seed=seed, fid=(5.0 + seed, 5.0 + seed))
        write(f"b{seed}", seed=seed, fid=(5.4 + seed, 5.4 + seed), config=2)
    _, out, _ = compare(capsys, "a0", "a1", "b0", "b1")
    assert "inconclusive: about" in out
    assert "better" not in out


@pytest.mark.usefixtures("folder")
def test_one_seed_each_is_inconclusive_however_far_apart(capsys: pytest.CaptureFixture[str]) -> None:
    write("a")
    write("b", fid=(50.0, 51.0), config=2)
    assert "inconclusive: one training seed" in compare(capsys, "a", "b")[1]


@pytest.mark.usefixtures("folder")
def test_different_protocols_are_refused_with_the_field(capsys: pytest.CaptureFixture[str]) -> None:
    write("a")
    write("b", metric={"sampling": {"count": 500}})
    status, out, err = compare(capsys, "a", "b")
    assert (status, out) == (1, "")
    assert "metric.sampling.count is 1000 and 500" in err


@pytest.mark.usefixtures("folder")
def test_one_training_never_counts_as_two_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    write("a")
    write("b")
    status, _, err = compare(capsys, "a", "b")
    assert status == 1
    assert "the same training counts twice: a (seed 0), b (seed 0)" in err


@pytest.mark.usefixtures("folder")
def test_absent_runs_and_metrics_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    write("a")
    assert "reports/runs/none/metrics.json: not found" in compare(capsys, "a", "none")[2]
    assert "no metric kid_x; there are" in compare(capsys, "a", "--metric", "kid_x")[2]


def test_runs_of_other_revisions_and_experiments_are_read_from_git(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True, cwd=folder).stdout

    git("init", "-q")
    write("a", seed=0)
    git("add", "-A")
    git("commit", "-qm", "one")
    git("tag", "first")
    write("a", seed=1, fid=(7.0, 7.1))
    git("commit", "-qam", "two")
    git("update-ref", "refs/exps/ab/cdef/brave-fox", "HEAD")
    git("reset", "-q", "--hard", "first")
    _, out, _ = compare(capsys, "a", "brave-fox:a")
    assert "| metric | a (2 seeds) |" in out
    assert "6.075 [" in out
    assert "brave-wolf:reports/runs/a/metrics.json: not found" in compare(capsys, "brave-wolf:a")[2]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["nonsense"]) == 2


def test_counts_and_spreads_are_not_compared() -> None:
    beside = ("test_windows", "test_targets", "kid_subset_std_mnist_classifier", "fid_x_floor", "class_share_min_x")
    assert not any(is_compared(name) for name in beside)
    assert all(is_compared(name) for name in ("test_window_nats", "fid_x", "modes_covered_mnist_classifier"))
