"""Stage evaluate: turns samples and scores into reports/runs/<run>/metrics.json, and logs them to the training's run.

python -m pipeline.stages.evaluate gan
"""

import math
from typing import Any

import torch
from torch import Tensor

from pipeline import artifacts, params, plugins
from pipeline.params import Params, Run
from pipeline.randomness import make_generator
from pipeline.record import Record
from pipeline.stages import run_stage
from pipeline.tracking import Mirror
from pipeline.weights import choose_device


def main(key: str) -> None:
    """Evaluate the run runs.<key>."""
    settings = params.load()
    run = settings.runs[key]
    module = plugins.load("metrics", run.metric)
    gather = {"images": gather_images, "points": gather_points, "text": gather_text}[
        artifacts.read_manifest(run.data)["kind"]
    ]
    values = module.compute(gather(module, key, run, settings), settings.metrics[run.metric])
    broken = {name: value for name, value in values.items() if not math.isfinite(value)}
    if broken:
        msg = f"runs.{key}: metrics are not finite: {broken}"
        raise artifacts.ArtifactError(msg)
    artifacts.write_json(artifacts.REPORTS / "runs" / key / "metrics.json", values)
    # The record is no dependency: its times differ from run to run, the numbers do not.
    folder = artifacts.RUNS / key / "record"
    if (folder / "run.json").exists():
        record = Record(folder)
        mirror = Mirror(record)
        mirror.close(values, step=int(record.about["parameters"]["model.steps"]))
    for name, value in values.items():
        print(f"{key}  {name:36} {value:.6g}")


def gather_images(module: Any, key: str, run: Run, settings: Params) -> Any:
    """Read generated, test and as many training images, the feature networks and the model's scores."""
    folder = artifacts.RUNS / key / "samples"
    generated = artifacts.read_tensors(folder / "generated.safetensors")["images"]
    count = len(generated)
    chosen = {}
    for split in ("test", "train"):
        images = artifacts.read_split(run.data, split)["images"]
        order = make_order(len(images), run.data, split)
        chosen[split] = images[order[:count]]
    networks = {
        name: plugins.load("models", settings.features[name].model_dump()["network"])
        .load_features(artifacts.FEATURES / name)
        .to(choose_device())
        for name in run.features
    }
    scores = folder / "scores.safetensors"
    return module.Evidence(
        generated, chosen["test"], chosen["train"], networks, artifacts.read_tensors(scores) if scores.exists() else {}
    )


def gather_points(module: Any, key: str, run: Run, settings: Params) -> Any:
    """Read generated and test points, and the density that they come from."""
    del settings
    generated = artifacts.read_tensors(artifacts.RUNS / key / "samples" / "generated.safetensors")["points"]
    known = artifacts.read_manifest(run.data)["known"]
    test = artifacts.read_split(run.data, "test")["points"]
    return module.Evidence(generated, test, torch.tensor(known["modes"]), known["deviation"])


def make_order(count: int, *purpose: str) -> Tensor:
    """Return a permutation that is the same for every run, so that all face the same reference images."""
    return torch.randperm(count, generator=make_generator(0, "reference", *purpose))


def gather_text(module: Any, key: str, run: Run, settings: Params) -> Any:
    """Read the nats of every target and the sizes of the splits."""
    del settings
    nats = artifacts.read_tensors(artifacts.RUNS / key / "samples" / "nats.safetensors")
    return module.Evidence(nats, artifacts.read_manifest(run.data)["splits"])


if __name__ == "__main__":
    run_stage(main)
