"""pipeline compare on written runs: verdicts that are known, refusals that name their reason."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.commands.reproduce import read_claims
from pipeline.evidence import trainings
from pipeline.evidence.protocol import describe_values
from pipeline.evidence.values import load_values, match_name
from tests.conftest import squeeze

PROTOCOL: dict[str, Any] = {
    "code": {"metric": "1", "network": "2"},
    "counts": {"samples": 1000, "floor_sets": 3},
    "metric": {
        "name": "images",
        "kid_subsets": 100,
        "kid_subset_size": 500,
        "neighbours": 3,
        "isc_splits": 10,
        "sampling": {"count": 1000, "sets": 3, "importance_samples": 500, "labels": "test"},
    },
    "network": {"name": "x", "weights_sha256": "ab" * 32},
    "numbers": dict.fromkeys(("features", "fid", "kid", "distances", "isc", "scores"), "float32"),
    "reference": {"sha256": {"test": "t", "train": "u"}},
    "scores": {"of": "bernoulli on binarised images"},
    "versions": {"torch": "2.14.0", "numpy": "2.4.6", "torch-fidelity": "0.4.0"},
}


def write(
    name: str,
    *,
    seed: int = 0,
    fid: tuple[float, ...] = (5.0, 5.2),
    config: int = 1,
    others: Mapping[str, float] | None = None,
    **changes: Any,
) -> None:
    """Write an evaluated run; changes: parts of its protocol."""
    folder = artifacts.REPORTS / "runs" / name
    protocol = {**PROTOCOL, **changes}
    metrics = {"samples": 1000, "fid_x": sum(fid) / len(fid), "fid_x_floor": 4.0, **(others or {})}
    artifacts.write_json(folder / "metrics.json", metrics)
    artifacts.write_json(folder / "sets.json", {"fid_x": list(fid)})
    run = {"model": "gan", "config": {"steps": config}, "seed": seed}
    values = load_values("images")
    described = describe_values(values, [metric for metric in metrics if match_name(values, metric)], protocol)
    artifacts.write_json(folder / "protocol.json", {"protocol": protocol, "run": run, "values": described})


def write_lock(**runs: dict[str, str]) -> None:
    """Write dvc.lock; runs: by name the hashes of its inputs, which its training and its sampling share."""
    stages = {
        f"{stage}@{name}": {"cmd": "true", "deps": [{"path": path, "md5": md5} for path, md5 in hashes.items()]}
        for name, hashes in runs.items()
        for stage in ("train", "sample")
    }
    artifacts.write_json(Path("dvc.lock"), {"schema": "2.0", "stages": stages})  # JSON is YAML


def git(*arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


def commit() -> None:
    git("add", "-A")
    git("commit", "-qm", "one")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["compare", *arguments])
    shown = capsys.readouterr()
    return status, squeeze(shown.out), shown.err


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
    for seed in range(3):
        write(f"a{seed}", seed=seed, fid=(5.0 + seed, 5.0 + seed))
        write(f"b{seed}", seed=seed, fid=(5.4 + seed, 5.4 + seed), config=2)
    _, out, _ = compare(capsys, "a0", "a1", "a2", "b0", "b1", "b2")
    assert "inconclusive: about" in out
    assert "better" not in out


@pytest.mark.usefixtures("folder")
def test_two_sets_and_two_seeds_are_too_few_for_an_interval_or_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    write("a", fid=(-171.0, 311.0))
    assert "| fid_x | 70 (2 sets: too few for an interval; 3 are needed); sampling" in compare(capsys, "a")[1]
    for seed in range(2):
        write(f"a{seed}", seed=seed, fid=(5.0 + seed / 100,))
        write(f"b{seed}", seed=seed, fid=(9.0 + seed / 100,), config=2)
    _, out, _ = compare(capsys, "a0", "a1", "b0", "b1")
    assert "| 5.005 (2 seeds: too few for an interval; 3 are needed); training" in out
    assert "| +4, inconclusive: 2 training seeds: too few for an interval; 3 are needed |" in out


@pytest.mark.usefixtures("folder")
def test_one_seed_each_is_inconclusive_however_far_apart(capsys: pytest.CaptureFixture[str]) -> None:
    write("a")
    write("b", fid=(50.0, 51.0), config=2)
    assert "inconclusive: one training seed" in compare(capsys, "a", "b")[1]


@pytest.mark.usefixtures("folder")
def test_with_another_classifier_bounds_are_compared_and_what_looks_through_it_is_refused_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bound = {"iw500_nats": 90.0}
    write("a", others=bound)
    write("b", config=2, others=bound, network={"name": "x", "weights_sha256": "cd" * 32})
    status, out, _ = compare(capsys, "a", "b")
    assert status == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("| ")] == ["metric", "iw500_nats"]
    (line,) = [line for line in out.splitlines() if line.startswith("Not comparable")]
    assert line.startswith("Not comparable: fid_x: network.weights_sha256 is 'abab")
    assert line.endswith("cdcd' in b")
    status, out, err = compare(capsys, "a", "b", "--metric", "fid_x", "--metric", "iw500_nats")
    assert (status, out, err) == (1, "", f"error: {line}\n")
    assert "| fid_x |" in compare(capsys, "a", "b", "--metric", "fid_x", "--allow", "network")[1]


@pytest.mark.usefixtures("folder")
def test_bounds_of_two_likelihoods_are_no_better_or_worse(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        write(f"a{seed}", seed=seed, others={"iw500_nats": 90.0 + 0.1 * seed, "elbo_nats": 95.0})
        logistic = {"iw500_nats": 900.0 + 0.1 * seed, "elbo_nats": 950.0}
        write(f"b{seed}", seed=seed, config=2, others=logistic, scores={"of": "discretized_logistic on grey levels"})
    status, out, _ = compare(capsys, "a0", "a1", "a2", "b0", "b1", "b2")
    assert status == 0
    assert "| fid_x " in out
    assert "worse" not in out
    assert (
        "\n\nNot comparable: elbo_nats, iw500_nats: scores.of is 'bernoulli on binarised images' in a0 "
        "and 'discretized_logistic on grey levels' in b0\n\n"
    ) in out


@pytest.mark.usefixtures("folder")
def test_runs_of_which_no_value_is_comparable_are_refused_with_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    write("a", others={"kid_x": 1.0})
    metric = {**PROTOCOL["metric"], "kid_subset_size": 100}
    write("b", config=2, others={"kid_x": 1.0}, metric=metric, counts={"samples": 500, "floor_sets": 3})
    status, out, err = compare(capsys, "a", "b")
    assert (status, out) == (1, "")
    assert err == "error: Not comparable: fid_x, kid_x: counts.samples is 1000 in a and 500 in b\n"


@pytest.mark.usefixtures("folder")
def test_a_protocol_of_an_older_form_is_refused_by_the_run_s_name(capsys: pytest.CaptureFixture[str]) -> None:
    write("a")
    artifacts.write_json(artifacts.REPORTS / "runs" / "a" / "protocol.json", {"hash": "1", "protocol": {}, "run": {}})
    status, _, err = compare(capsys, "a")
    assert status == 1
    assert err.startswith("error: a: protocol.json: expected the keys protocol, run, values, got hash, protocol, run;")


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
    assert "no run 'none', and none begins with none_; there are a" in compare(capsys, "a", "none")[2]
    assert "no metric kid_x; there are" in compare(capsys, "a", "--metric", "kid_x")[2]


@pytest.mark.usefixtures("folder")
def test_metrics_that_a_run_lacks_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    write("vae", others={"elbo_nats": 95.0, "iw500_nats": 90.0, "active_units": 30.0})
    write("gan", config=2, others={"recall_x": 0.5})
    status, out, _ = compare(capsys, "vae", "gan")
    assert status == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("| ")] == ["metric", "fid_x"]
    assert "\n\nOnly in vae: elbo_nats, iw500_nats\n\nOnly in gan: recall_x\n\n" in out
    status, out, err = compare(capsys, "vae", "gan", "--metric", "elbo_nats")
    assert (status, out) == (1, "")
    expected = "no metric elbo_nats; there are fid_x, fid_x_floor, samples; elbo_nats is not in gan"
    assert expected in err
    assert "Only in" not in compare(capsys, "vae", "gan", "--metric", "fid_x")[1]


@pytest.mark.usefixtures("folder")
def test_metrics_that_one_seed_lacks_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    write("a0", others={"recall_x": 0.5})
    write("a1", seed=1)
    write("a2", seed=2, others={"recall_x": 0.5})
    assert "Only in a0, a2: recall_x" in compare(capsys, "a0", "a1", "a2")[1]
    assert "recall_x is not in a1" in compare(capsys, "a0", "a1", "a2", "--metric", "recall_x")[2]


@pytest.mark.usefixtures("folder")
def test_runs_without_a_common_metric_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write("a")
    write("b", config=2)
    artifacts.write_json(artifacts.REPORTS / "runs" / "b" / "metrics.json", {"samples": 1000, "kid_x": 0.1})
    artifacts.write_json(artifacts.REPORTS / "runs" / "b" / "sets.json", {"kid_x": [0.1]})
    status, out, err = compare(capsys, "a", "b")
    assert (status, out) == (1, "")
    assert "no metric that all runs have: a has fid_x; b has kid_x" in err


@pytest.mark.usefixtures("folder")
def test_equal_constants_are_the_same_and_equal_noisy_means_are_never_decided(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed in range(3):
        write(f"a{seed}", seed=seed, fid=(5.0 + seed,), others={"isc_x": 1000.0})
        write(f"b{seed}", seed=seed, fid=(7.0 - seed,), others={"isc_x": 1000.0}, config=2)
    _, out, _ = compare(capsys, "a0", "a1", "a2", "b0", "b1", "b2")
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("| ")}
    assert rows["isc_x"].endswith("| +0, p = 1, the same |")
    assert rows["fid_x"].endswith("p = 1, inconclusive: not even 1,000 seeds each would decide |")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("changed", ["pipeline/models/gan.py", "data/prepared/images"])
def test_other_code_or_data_is_another_experiment(changed: str, capsys: pytest.CaptureFixture[str]) -> None:
    hashes = {"pipeline/models/gan.py": "1", "data/prepared/images": "2"}
    write("a")
    write("b", seed=1)
    write_lock(a={**hashes, "data/runs/a/model": "3"}, b={**hashes, "data/runs/b/model": "4"})
    assert "| metric | a (2 seeds) |" in compare(capsys, "a", "b")[1]
    write_lock(a=hashes, b={**hashes, changed: "5"})
    assert "| metric | a (1 seed) | b (1 seed) | b against a |" in compare(capsys, "a", "b")[1]


@pytest.mark.usefixtures("folder")
def test_the_code_of_a_revision_is_that_of_its_own_lock(capsys: pytest.CaptureFixture[str]) -> None:
    git("init", "-q")
    write("a")
    write_lock(a={"pipeline/models/gan.py": "1"})
    commit()
    assert "the same training counts twice" in compare(capsys, "a", "HEAD:a")[2]
    write_lock(a={"pipeline/models/gan.py": "2"})
    assert "| metric | a (1 seed) | HEAD:a (1 seed) |" in compare(capsys, "a", "HEAD:a")[1]
    write("a", seed=1)
    assert "| metric | a (1 seed) | HEAD:a (1 seed) |" in compare(capsys, "a", "HEAD:a")[1]
    write_lock(a={"pipeline/models/gan.py": "1"})
    assert "| metric | a (2 seeds) |" in compare(capsys, "a", "HEAD:a")[1]


@pytest.mark.usefixtures("folder")
def test_a_run_is_compared_with_itself_on_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    # Equal code, data and seed; the machine has trained another classifier, and rounds the bound another way.
    git("init", "-q")
    for seed in range(2):
        write(f"a{seed}", seed=seed, others={"iw500_nats": 90.0 + seed})
    commit()
    for seed in range(2):
        write(f"a{seed}", seed=seed, others={"iw500_nats": 90.001 + seed}, network={"weights_sha256": "cd"})
    status, out, _ = compare(capsys, "a0", "a1", "HEAD:a0", "HEAD:a1")
    assert status == 0
    assert "| metric | a0 (2 seeds) | HEAD:a0 (2 seeds) | HEAD:a0 against a0 |" in out
    assert "| iw500_nats (nats per image) | 90.5 " in out
    assert "inconclusive" in out
    assert "\n\nNot comparable: fid_x: network.name is None in a0 and 'x' in HEAD:a0\n\n" in out


@pytest.mark.usefixtures("folder")
def test_a_lock_with_conflicts_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    write("a")
    Path("dvc.lock").write_text("schema: '2.0'\n<<<<<<< HEAD\nstages:\n", encoding="utf-8")
    status, _, err = compare(capsys, "a")
    assert status == 1
    assert "error: dvc.lock: not YAML" in err


def test_a_project_in_a_subfolder_reads_its_own_revisions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git("init", "-q")
    write("ring", fid=(5.0, 5.0))
    (folder / "benchmarks").mkdir()
    monkeypatch.chdir(folder / "benchmarks")
    write("ring", fid=(7.0, 7.0))
    write_lock(ring={"pipeline/models/gan.py": "1"})
    commit()
    assert "| fid_x | 7 (2 sets: too few" in compare(capsys, "HEAD:ring")[1]
    write("again", seed=1)
    assert "| metric | HEAD:ring (1 seed) | again (1 seed) |" in compare(capsys, "HEAD:ring", "again")[1]
    write_lock(again={"pipeline/models/gan.py": "1"})
    assert "| metric | HEAD:ring (2 seeds) |" in compare(capsys, "HEAD:ring", "again")[1]


@pytest.mark.usefixtures("folder")
def test_runs_of_other_revisions_and_experiments_are_read_from_git(capsys: pytest.CaptureFixture[str]) -> None:
    git("init", "-q")
    write("a", seed=0)
    commit()
    git("tag", "first")
    write("a", seed=1, fid=(7.0, 7.1))
    git("commit", "-qam", "two")
    git("update-ref", "refs/exps/ab/cdef/brave-fox", "HEAD")
    git("reset", "-q", "--hard", "first")
    _, out, _ = compare(capsys, "a", "brave-fox:a")
    assert "| metric | a (2 seeds) |" in out
    assert "6.075 (2 seeds: too few" in out
    assert "brave-wolf:reports/runs/a/metrics.json: not found" in compare(capsys, "brave-wolf:a")[2]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["nonsense"]) == 2


@pytest.mark.usefixtures("folder")
def test_floors_counts_and_spreads_are_not_compared_and_units_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    aside = {"kid_subset_std_x": 1.0, "class_share_min_x": 0.1, "isc_x_real": 2.0, "fid_x_reliable": 1.0}
    write("a", others=aside | {"elbo_nats": 95.0, "elbo_nats_se": 0.5, "active_units": 30.0})
    rows = [line.split(" | ")[0] for line in compare(capsys, "a")[1].splitlines() if line.startswith("| ")]
    assert rows == ["| metric", "| elbo_nats (nats per image)", "| fid_x"]


@pytest.mark.usefixtures("folder")
def test_values_that_are_not_reliable_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    write("a", others={"fid_x_reliable": 0.0})
    write("b", others={"fid_x_reliable": 1.0}, config=2)
    (row,) = [line for line in compare(capsys, "a", "b")[1].splitlines() if line.startswith("| fid_x ")]
    first, second = row.split(" | ")[1:3]
    assert first.endswith(" (not reliable)")
    assert "reliable" not in second


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("metric", "shift", "verdict"),
    [
        ("precision_x", 1, "better"),
        ("precision_x", -1, "worse"),
        ("elbo_nats", -1, "better"),
        ("elbo_nats", 1, "worse"),
        ("kl_nats", 1, "higher"),
        ("kl_nats", -1, "lower"),
    ],
)
def test_the_verdict_follows_the_declared_direction(
    metric: str, shift: float, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        write(f"a{seed}", seed=seed, others={metric: 5.0 + 0.01 * seed})
        write(f"b{seed}", seed=seed, others={metric: 5.0 + shift + 0.01 * seed}, config=2)
    out = compare(capsys, "a0", "a1", "a2", "b0", "b1", "b2", "--metric", metric)[1]
    assert f", {verdict} |" in out


@pytest.mark.usefixtures("folder")
def test_what_the_metric_no_longer_declares_is_named_and_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    write("a", others={"former": 1.0})
    out = compare(capsys, "a")[1]
    assert "| former" not in out
    assert "\n\nNot declared by the metric: former\n\n" in out
    assert "former: the metric's VALUES declare no such value" in compare(capsys, "a", "--metric", "former")[2]
    write("b", metric={**PROTOCOL["metric"], "name": "former"})
    assert "error: no metrics plug-in 'former'" in compare(capsys, "b")[2]


@pytest.mark.usefixtures("folder")
def test_seeds_share_their_code_though_its_file_is_named_after_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    write("a")
    write("b", seed=1)
    write_lock(a={"data/code/train/a.json": "1"}, b={"data/code/train/b.json": "1"})
    assert "| metric | a (2 seeds) |" in compare(capsys, "a", "b")[1]
    write_lock(a={"data/code/train/a.json": "1"}, b={"data/code/train/b.json": "2"})
    assert "| metric | a (1 seed) | b (1 seed) |" in compare(capsys, "a", "b")[1]


def write_grid() -> None:
    for seed in range(3):
        write(f"gan_{seed}" if seed else "gan", seed=seed, fid=(5.0 + 0.1 * seed,))
        write(f"gan_hinge_{seed}", seed=seed, fid=(3.0 - 0.1 * seed,), config=2)
    write("vae", config=3)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "titles"),
    [
        (["gan", "gan_hinge"], ["gan (3 seeds)", "gan_hinge (3 seeds)"]),
        (["gan_hinge_1", "gan"], ["gan_hinge_1 (3 seeds)", "gan (3 seeds)"]),
        (["gan*"], ["gan (3 seeds)", "gan_hinge_0 (3 seeds)"]),
        (["gan", "vae"], ["gan (3 seeds)", "vae (1 seed)"]),
        (["gan", "gan_hinge_0", "--only"], ["gan (1 seed)", "gan_hinge_0 (1 seed)"]),
    ],
)
def test_the_other_seeds_of_a_run_come_along(
    words: list[str], titles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_grid()
    _, out, _ = compare(capsys, *words)
    assert out.startswith(f"| metric | {' | '.join(titles)} | {titles[1].rpartition(' (')[0]} against ")


@pytest.mark.usefixtures("folder")
def test_seeds_that_come_along_obey_the_rules_of_named_ones(capsys: pytest.CaptureFixture[str]) -> None:
    write_grid()
    named = compare(capsys, "gan", "gan_1", "gan_2", "gan_hinge_0", "gan_hinge_1", "gan_hinge_2")[1]
    assert compare(capsys, "gan", "gan_hinge")[1] == named.replace("gan_hinge_0", "gan_hinge")
    assert "better" in named
    write("gan_hinge_2", seed=2, fid=(9.0,), config=2)  # now the noise is larger than the difference
    assert "inconclusive" in compare(capsys, "gan", "gan_hinge")[1]
    write("twin", seed=1, fid=(5.1,))  # equal to gan_1: a training counts once
    assert "| gan (3 seeds) |" in compare(capsys, "gan", "gan_hinge")[1]
    assert "the same training counts twice" in compare(capsys, "gan_1", "twin")[2]
    hashes = {"pipeline/models/gan.py": "1"}
    write_lock(**dict.fromkeys(("gan", "gan_1", "gan_hinge_0"), hashes), gan_2={"pipeline/models/gan.py": "2"})
    out = compare(capsys, "gan")[1]
    assert "| metric | gan (2 seeds) |" in out
    assert out.endswith("\n\nNot counted as seeds: gan_2, twin: other code or data in dvc.lock\n")


@pytest.mark.usefixtures("folder")
def test_trainings_of_pipeline_spread_count_as_seeds_of_the_run_whose_numbers_they_belong_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    means = {"gan": (5.0, 5.1, 5.2), "vae": (3.0, 3.1, 3.2)}
    for config, (name, trained) in enumerate(means.items()):
        spread: dict[str, Any] = {}
        for seed in (2, 1, 0):
            write(name, seed=seed, fid=(trained[seed] - 0.1, trained[seed] + 0.1), config=config)
            own = trainings.describe(read_claims(Path(), name))
            spread = trainings.add(spread or own, own)
        artifacts.write_json(artifacts.REPORTS / "runs" / name / trainings.NAME, spread)
    status, out, _ = compare(capsys, "gan", "vae")
    assert status == 0
    (row,) = [line for line in out.splitlines() if line.startswith("| fid_x ")]
    half = 4.302653 * 0.1 / 3**0.5  # Student's t(0.975, 2) and the deviation of three means
    assert row.startswith(f"| fid_x | 5.1 [{5.1 - half:.4g}, {5.1 + half:.4g}]; training sd 0.1 | 3.1 [")
    assert row.endswith("better |")
    assert "| metric | gan (3 seeds) | vae (3 seeds) |" in out
    assert "| metric | gan (1 seed) | vae (1 seed) |" in compare(capsys, "gan", "vae", "--only")[1]
    write("twin", seed=1, fid=(5.1,), config=0)  # a run of the same training counts once
    assert "| metric | gan (3 seeds) | vae (3 seeds) |" in compare(capsys, "gan", "vae")[1]
    shutil.rmtree(artifacts.REPORTS / "runs" / "twin")
    git("init", "-q")
    commit()
    assert "| metric | gan (3 seeds) | HEAD:vae (3 seeds) |" in compare(capsys, "gan", "HEAD:vae")[1]
    write("gan", seed=1, fid=(5.0, 5.2), config=0)  # a seed per revision; both have the same trainings
    assert "| metric | HEAD:gan (3 seeds) |" in compare(capsys, "HEAD:gan", "gan")[1]
    write("gan", fid=(5.3,), config=0)  # another machine: the trainings belong to the committed numbers
    assert "| metric | gan (1 seed) | HEAD:gan (3 seeds) |" in compare(capsys, "gan", "HEAD:gan")[1]
    write("vae", fid=(3.3,), config=1)
    assert "vae (1 seed) |" in compare(capsys, "gan", "vae")[1]


@pytest.mark.usefixtures("folder")
def test_the_seeds_of_a_revision_come_along_too(capsys: pytest.CaptureFixture[str]) -> None:
    git("init", "-q")
    write_grid()
    commit()
    for seed in range(3):
        write(f"gan_{seed}" if seed else "gan", seed=seed, fid=(6.0 + 0.1 * seed,))
    assert "| metric | gan (3 seeds) | HEAD:gan (3 seeds) |" in compare(capsys, "gan", "HEAD:gan")[1]
    assert "| metric | HEAD:gan_hinge (3 seeds) |" in compare(capsys, "HEAD:gan_hinge")[1]
    assert "| metric | gan (3 seeds) |" in compare(capsys, "gan", "HEAD:gan_2")[1]
    for seed in (1, 2):
        shutil.rmtree(artifacts.REPORTS / "runs" / f"gan_{seed}")  # only the revision has these seeds
    assert "| metric | gan (1 seed) | HEAD:gan (3 seeds) |" in compare(capsys, "gan", "HEAD:gan")[1]
    write("gan_1", seed=1, fid=(5.1,))  # unchanged: it belongs to both
    assert "| metric | gan (2 seeds) | HEAD:gan (3 seeds) |" in compare(capsys, "gan", "HEAD:gan")[1]


@pytest.mark.usefixtures("folder")
def test_an_unchanged_seed_of_two_revisions_counts_once(capsys: pytest.CaptureFixture[str]) -> None:
    git("init", "-q")
    write("gan")
    write("gan_2", seed=2, fid=(5.3,))
    commit()
    write("gan", seed=1, fid=(5.1,))  # each revision has another seed under this name
    status, out, _ = compare(capsys, "gan", "HEAD:gan")
    assert status == 0
    assert "| metric | gan (3 seeds) |" in out


@pytest.mark.usefixtures("folder")
def test_a_name_twice_counts_once_and_an_unknown_field_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_grid()
    once = compare(capsys, "gan*")[1]
    assert compare(capsys, "gan*", "gan", "gan*")[1] == once
    error = compare(capsys, "gan", "--allow", "network.nam")[2]
    assert "--allow: no protocol has the field 'network.nam'; there are code, counts, metric, network, " in error
    assert compare(capsys, "gan", "vae", "--allow", "network")[0] == 0
    assert "no run 'ga', and none begins with ga_, did you mean 'gan'?" in compare(capsys, "ga", "vae")[2]
