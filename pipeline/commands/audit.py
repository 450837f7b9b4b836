"""Tells whether the samples of a run copy its training data, which FID takes for quality.

    pipeline audit                   # every run of images that has samples and feature networks
    pipeline audit gan --cells 10

C_T (Meehan et al. 2020): 0 is as far from the training images as test images are, negative nearer. Authenticity (Alaa
et al. 2022): the share of samples that are no copies, beside that of test images. See pipeline/metrics/copying.py.
"""

import argparse
from pathlib import Path

from pipeline import artifacts, params, plugins, seals
from pipeline.artifacts import ArtifactError
from pipeline.metrics.copying import authenticity, copying_statistic
from pipeline.metrics.image_evidence import extract
from pipeline.params import Params
from pipeline.randomness import make_generator
from pipeline.weights import choose_device

LOWEST = -3.0  # C_T: three standard deviations nearer than test images
MOST_LOST = 0.1  # authenticity below that of test images


def main(arguments: list[str]) -> int:
    """Print one row a run and feature network; status 1 if one copies."""
    parser = argparse.ArgumentParser(
        prog="pipeline audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all of images that have samples")
    parser.add_argument("--cells", type=int, default=5, help="k-means cells that C_T compares in; default: 5")
    options = parser.parse_args(arguments)
    settings = params.load()
    sampled = [name for name, run in settings.runs.items() if run.features and _samples(name).exists()]
    if unknown := set(options.runs) - set(sampled):
        msg = f"no samples of images in {artifacts.RUNS} and features for: {', '.join(sorted(unknown))}"
        raise ArtifactError(msg)
    print("| run, features | C_T | authenticity | of test images | |\n|---|---:|---:|---:|---|")
    copying = 0
    for name in options.runs or sampled:
        for network in settings.runs[name].features:
            copying += audit(name, network, settings, options.cells)
    return int(copying > 0)


def audit(name: str, network: str, settings: Params, cells: int) -> bool:
    """Print the row of one run with one feature network; return whether its samples are copies."""
    run = settings.runs[name]
    seals.verify(_samples(name).parent)
    generated = artifacts.read_tensors(_samples(name))["0"]
    module = plugins.load("models", settings.features[network].model_dump()["network"])
    extractor = module.load_features(artifacts.FEATURES / network).to(choose_device())
    train, test = (artifacts.read_split(run.data, split)["images"] for split in ("train", "test"))
    chosen = make_generator(0, "audit").initial_seed()
    count = min(len(generated), len(test))
    features = {
        key: extract(extractor, images).features.cpu()
        for key, images in {"generated": generated[:count], "test": test, "train": train}.items()
    }
    statistic = copying_statistic(features["generated"], features["test"], features["train"], cells=cells, seed=chosen)
    ours, real = (authenticity(features[key], features["train"]) for key in ("generated", "test"))
    copies = statistic < LOWEST or ours < real - MOST_LOST
    print(
        f"| {name}, {network} | {statistic:.2f} | {ours:.3f} | {real:.3f} | {'**copies**' if copies else 'no copy'} |"
    )
    return copies


def _samples(name: str) -> Path:
    return artifacts.RUNS / name / "samples" / "generated.safetensors"
