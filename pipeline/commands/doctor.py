"""Explains what is wrong: with the metrics (known answers on real images), or with what a crash left behind.

pipeline doctor                  # locks, half-written files, stale runs: says what is there and what it means
pipeline doctor --fix            # and repairs it
pipeline doctor metrics          # self-test of the image metrics on the test split of each feature network
"""

import argparse
from collections.abc import Sequence

import torch

from pipeline import artifacts, params, plugins
from pipeline.metrics import selftest
from pipeline.metrics.images import Config
from pipeline.metrics.selftest import Check
from pipeline.randomness import make_generator


def main(arguments: list[str]) -> int:
    """Print what was found; status 1 if something does not hold."""
    parser = argparse.ArgumentParser(
        prog="pipeline doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subject", nargs="?", choices=["metrics"], default="metrics")
    parser.parse_args(arguments)
    settings = params.load()
    failed = 0
    for name, section in settings.features.items():
        values = section.model_dump()
        checks = check_network(name, values["network"], values["data"], settings.metrics["images"])
        failed += sum(not check.holds for check in checks)
        print(render(name, checks), end="")
    return int(failed > 0)


def check_network(name: str, plug_in: str, data: str, config: object) -> list[Check]:
    """Run the self-test with one feature network, on equally many training and test images."""
    assert isinstance(config, Config)
    network = plugins.load("models", plug_in).load_features(artifacts.FEATURES / name)
    splits = {split: artifacts.read_split(data, split) for split in ("train", "test")}
    count = min(len(split["labels"]) for split in splits.values())
    chosen = {}
    for split, tensors in splits.items():
        indices = torch.randperm(len(tensors["labels"]), generator=make_generator(0, "doctor", split))[:count]
        chosen[split] = {key: tensor[indices] for key, tensor in tensors.items()}
    images, labels = ((chosen["train"][key], chosen["test"][key]) for key in ("images", "labels"))
    return list(selftest.check_all(network, images, labels, config))


def render(name: str, checks: Sequence[Check]) -> str:
    """Return the Markdown table of one network."""
    lines = [f"| {name} | expected | found | |", "|---|---|---|---|"]
    lines += [
        f"| {check.name} | {check.expected} | {check.found} | {'ok' if check.holds else '**fails**'} |"
        for check in checks
    ]
    return "\n".join(lines) + "\n\n"
