"""Explains what a crash left behind and repairs it, or checks the metrics where the right answer is known.

    pipeline doctor              # interrupted trainings, half-written files, stale locks: what they mean
    pipeline doctor --fix        # the same, and repairs them
    pipeline doctor metrics      # self-test of the metrics with each feature network, on real data; and whether
                                 # another order of the samples changes a value of any metric

Without --fix nothing is changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline import artifacts, code, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.commands import align_table, make_parser
from pipeline.evidence import selftest, selftest_audio
from pipeline.evidence.selftest import Check
from pipeline.history import leftovers
from pipeline.history.record import describe_environment
from pipeline.params import Params
from pipeline.randomness import make_generator

SUITES: dict[str, Any] = {suite.METRIC: suite for suite in (selftest, selftest_audio)}  # by the kind of data


def main(arguments: list[str]) -> int:
    """Print what was found; status 1 if something does not hold or waits for --fix."""
    parser = make_parser("doctor", __doc__)
    parser.add_argument("subject", nargs="?", choices=["metrics"], help="check the metrics instead")
    parser.add_argument("--fix", action="store_true", help="repair what a crash left behind")
    options = parser.parse_args(arguments)
    if options.subject and options.fix:
        parser.error("--fix: repairs what a crash left behind, and nothing of metrics")
    params.require_project()
    return check_metrics() if options.subject else check_leftovers(fix=options.fix)


def check_leftovers(*, fix: bool) -> int:
    """Print and, if asked to, repair what is left behind; return whether something waits for repair."""
    waiting, by_hand = 0, 0
    for found in leftovers.find_all():
        print(f"{found.what}: {found.meaning}")
        if found.repair is not None and fix:
            found.repair()
            print("  repaired")
        elif found.repair is not None:
            waiting += 1
        by_hand += found.by_hand
    if waiting:
        print(f"{waiting} to repair: `pipeline doctor --fix`")
    if by_hand:
        print(f"{by_hand} to repair by hand")
    if not waiting + by_hand:
        print("nothing waits for repair")
    return int(waiting + by_hand > 0)


def check_metrics() -> int:
    """Print the self-test of every feature network and of every metric's order; return whether a check fails.

    Raises:
        ArtifactError: if params.yaml does not say how a kind of data is measured.
    """
    settings = params.load()
    if not settings.networks:
        print(f"{params.PATH} has no feature network: nothing to check")
    failed = 0
    for name, section in settings.networks.items():
        kind = settings.data[section.data].KIND
        if kind not in SUITES:
            print(f"networks.{name}: there is no self-test on {kind}")
            continue
        if kind not in settings.metrics:
            missing = f"metrics.{kind}: missing section; the self-test of networks.{name} takes its settings from it"
            msg = f"{params.PATH}: {missing}"
            raise ArtifactError(msg)
        checks = check_network(name, section.network, section.data, SUITES[kind], settings.metrics[kind])
        failed += sum(not check.holds for check in checks)
        print(format_checks(name, checks), end="")
    if checks := list(check_orders(settings)):
        failed += sum(not check.holds for check in checks)
        print(format_checks("metric, run", checks), end="")
    return int(failed > 0)


def check_orders(settings: Params) -> Iterator[Check]:
    """Check each metric on the samples of a run that has some: another order of them changes no value."""
    for name, section in settings.metrics.items():
        runs = [key for key, run in settings.runs.items() if run.metric == name]
        sampled = [key for key in runs if (artifacts.RUNS / key / "samples" / artifacts.SEAL).exists()]
        if not sampled:
            continue
        module, key = plugins.load("metrics", name), sampled[0]
        circumstances = {**describe_environment(), "code": code.digest("evaluate", key, settings)}  # as `evaluate` has
        evidence = module.gather(key, settings, circumstances)
        if hasattr(evidence, "generated"):  # else its numbers are not of samples
            yield replace(selftest.check_order(module.compute, evidence, section), name=f"{name}, {key}")


def check_network(name: str, plug_in: str, data: str, suite: Any, config: Any) -> list[Check]:
    """Run a self-test with one feature network, on equally many training and test examples."""
    network = plugins.load("networks", plug_in).load_features(artifacts.NETWORKS / name)
    splits = {split: artifacts.read_split(data, split) for split in ("train", "test")}
    count = min(len(split[suite.LABELS]) for split in splits.values())
    chosen = {}
    for split, tensors in splits.items():
        indices = torch.randperm(len(tensors[suite.LABELS]), generator=make_generator(0, "doctor", split))[:count]
        chosen[split] = {key: tensor[indices] for key, tensor in tensors.items()}
    values, labels = ((chosen["train"][key], chosen["test"][key]) for key in (suite.FIELD, suite.LABELS))
    return list(suite.check_all(network, values, labels, config))


def format_checks(name: str, checks: Sequence[Check]) -> str:
    """Return the Markdown table of one network."""
    rows = [[check.name, check.expected, check.found, "ok" if check.holds else "**fails**"] for check in checks]
    return align_table([name, "expected", "found", ""], rows) + "\n"
