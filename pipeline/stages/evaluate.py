"""Stage evaluate: turns samples and scores into numbers, and logs them to the training's MLflow run.

    python -m pipeline.stages.evaluate gan

In reports/runs/<run>/: metrics.json (means over the sets of samples), sets.json (the value of each set; of floors, of
each set of training images), protocol.json (what must be equal for the numbers to be comparable).
"""

import hashlib
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import artifacts, params, plugins
from pipeline.evidence import real_cache
from pipeline.evidence.features import Make
from pipeline.evidence.protocol import hash_protocol
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record, describe_environment
from pipeline.params import Params, Run
from pipeline.randomness import make_generator
from pipeline.stages import run_stage
from pipeline.weights import choose_device

LIBRARIES = ("torch", "torch-fidelity", "numpy")  # that the numbers go through


def main(key: str) -> None:
    """Evaluate the run runs.<key>."""
    settings = params.load()
    run = settings.runs[key]
    module = plugins.load("metrics", run.metric)
    artifacts.verify(artifacts.RUNS / key / "samples")
    gather = {"images": gather_images, "points": gather_points, "text": gather_text}[module.KIND]
    found = module.compute(gather(module, key, run, settings), settings.metrics[run.metric])
    values = {name: sum(sets) / len(sets) for name, sets in found.items()}
    broken = {name: value for name, value in values.items() if not math.isfinite(value)}
    if broken:
        msg = f"runs.{key}: metrics are not finite: {broken}"
        raise artifacts.ArtifactError(msg)
    counts = {name: round(value) for name, value in values.items() if name.endswith(module.COUNTS)}
    protocol = describe(module, key, run, settings, counts)
    folder = artifacts.REPORTS / "runs" / key
    artifacts.write_json(folder / "metrics.json", values)
    artifacts.write_json(folder / "protocol.json", protocol)
    artifacts.write_json(folder / "sets.json", {name: sets for name, sets in found.items() if len(sets) > 1})
    # The record is no dependency: its times differ from run to run, the numbers do not.
    history = artifacts.RUNS / key / "record"
    if (history / "run.json").exists():
        record = Record(history)
        step = int(record.about["parameters"]["model.steps"])
        MlflowSync(record).finish(values, step, tags={"protocol": protocol["hash"]})
    for name, value in values.items():
        print(f"{key}  {name:36} {value:.6g}")


def describe(module: Any, key: str, run: Run, settings: Params, counts: dict[str, int]) -> dict[str, Any]:
    """Return the evaluation protocol with its hash, and beside it what belongs to the run itself.

    Args:
        module: the metric's plug-in.
        key: the run's name.
        run: what is evaluated.
        settings: all parameters.
        counts: how many of what was compared.
    """
    manifest = artifacts.read_manifest(run.data)
    hashes = {split: entry["sha256"] for split, entry in manifest["splits"].items()}
    model = artifacts.read_json(artifacts.RUNS / key / "model" / "config.json")
    protocol: dict[str, Any] = {
        "metric": {"name": run.metric, **settings.metrics[run.metric].model_dump()},
        "reference": {
            "source": manifest["source"],
            "sha256": {split: hashes[split] for split in module.SPLITS if split in hashes},
        },
        "counts": counts,
        "features": {name: describe_network(name, settings) for name in run.features},
        "numbers": module.NUMBERS,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    if "context" in model["config"]:
        protocol["context"] = model["config"]["context"]
    carried = {
        "model": model["model"],
        "config": model["config"],
        "seed": run.seed,
        "trained_on": {"source": manifest["source"], "sha256": hashes["train"]},
        "weights": f"averaged, decay {model['config']['ema']}" if model["config"].get("ema") else "last",
    }
    return {"hash": hash_protocol(protocol), "protocol": protocol, "run": carried}


def describe_network(name: str, settings: Params) -> dict[str, str]:
    """Return what makes a feature network's numbers comparable: its kind, its weights, what it does to an image."""
    plug_in = settings.features[name].model_dump()["network"]
    folder = artifacts.FEATURES / name
    return {
        "network": plug_in,
        "weights_sha256": artifacts.digest(artifacts.find_weights(folder)),
        "config_sha256": artifacts.digest(folder / "config.json"),
        "preprocessing": plugins.load("models", plug_in).PREPROCESSING,
    }


def gather_images(module: Any, key: str, run: Run, settings: Params) -> Any:
    """Read generated and test images, a set of training images for each generated one, networks and scores."""
    folder = artifacts.RUNS / key / "samples"
    generated = list(artifacts.read_tensors(folder / "generated.safetensors").values())
    (test,) = read_real(run.data, "test", len(generated[0]), 1)
    train = read_real(run.data, "train", len(generated[0]), len(generated)) if "train" in module.SPLITS else []
    shape = tuple(generated[0].shape[1:])
    shown = (1, *shape[1:]) if getattr(module, "CHANNELWISE", False) else shape  # to a feature network
    networks, circumstances, labelled = {}, {}, set()
    machine = {**describe_environment(), "code": digest_code()}
    for name in run.features:
        section = settings.features[name].model_dump()
        plug_in = plugins.load("models", section["network"])
        learnt = artifacts.read_json(artifacts.FEATURES / name / "config.json").get("spec")
        if learnt and tuple(learnt["shape"]) != shown:
            msg = f"runs.{key}.features: {name} has learnt images {tuple(learnt['shape'])} of data.{section['data']}, "
            raise artifacts.ArtifactError(msg + f"data.{run.data} has {shown}")
        networks[name] = plug_in.load_features(artifacts.FEATURES / name).to(choose_device())
        circumstances[name] = {**describe_network(name, settings), **machine}
        if section["data"] == run.data and not hasattr(plug_in, "fetch"):  # trained on the labels of these images
            labelled.add(name)
    scores = read_optional(folder / "scores.safetensors")

    def recall(about: Mapping[str, Any], given: Tensor, make: Make) -> dict[str, Tensor]:
        return real_cache.recall({**about, **circumstances[about["network"]]}, given, make)

    return module.Evidence(generated, test, train, networks, scores, labelled, recall)


def read_real(name: str, split: str, count: int, most: int) -> list[Tensor]:
    """Read up to `most` disjoint sets of `count` images, in an order by the split's content; a short split as it is."""
    images = artifacts.read_split(name, split)["images"]
    order = make_order(len(images), artifacts.read_manifest(name)["splits"][split]["sha256"])
    parts = [part for part in order.split(count)[:most] if len(part) == count]
    return [images[part] for part in parts or [order]]


def digest_code() -> str:
    """Return the SHA-256 of the code of all models, which feature networks are among, and of all metrics."""
    paths = [path for family in ("models", "metrics") for path in sorted((plugins.PACKAGE / family).glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def gather_points(module: Any, key: str, run: Run, settings: Params) -> Any:
    """Read generated and test points, and the density that they come from."""
    del settings
    generated = artifacts.read_tensors(artifacts.RUNS / key / "samples" / "generated.safetensors")
    known = artifacts.read_manifest(run.data)["known"]
    test = artifacts.read_split(run.data, "test")["points"]
    return module.Evidence(list(generated.values()), test, torch.tensor(known["modes"]), known["deviation"])


def make_order(count: int, content: str) -> Tensor:
    """Return a permutation of `count` images by their content, so that all runs face the same reference images."""
    return torch.randperm(count, generator=make_generator(0, "reference", content))


def gather_text(module: Any, key: str, run: Run, settings: Params) -> Any:
    """Read the nats of every target and the sizes of the splits."""
    del settings
    folder = artifacts.RUNS / key / "samples"
    nats = artifacts.read_tensors(folder / "nats.safetensors")
    manifest = artifacts.read_manifest(run.data)
    windows = read_optional(folder / "windows.safetensors")
    return module.Evidence(nats, manifest["splits"], manifest["known"], windows)


def read_optional(path: Path) -> dict[str, Tensor]:
    """Read tensors that not every run has; none without the file."""
    return artifacts.read_tensors(path) if path.exists() else {}


if __name__ == "__main__":
    run_stage(main)
