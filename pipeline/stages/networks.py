"""Stage features: makes one feature network in data/features/<name>: trains the classifier, or fetches Inception.

    python -m pipeline.stages.features classifier

What is known of it stands in reports/features/<name>.json: the SHA-256 of its weights, a classifier's accuracies. A
training that was interrupted goes on from .state/features-<name>/.
"""

import contextlib
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pipeline import artifacts, params, plugins
from pipeline.batches import LabelledExamples
from pipeline.params import Section
from pipeline.runtime import checkpoints, processes, sharding
from pipeline.runtime.processes import get_rank
from pipeline.stages import run_stage
from pipeline.training import Recorder, fingerprint, fit
from pipeline.weights import choose_device, save_model


def main(key: str) -> None:
    """Make the section features.<key>."""
    config = params.load().features[key]
    module = plugins.load("models", config.model_dump()["network"])
    folder = artifacts.FEATURES / key
    about: dict[str, float | str] = {}
    if hasattr(module, "fetch"):
        shutil.rmtree(folder, ignore_errors=True)
        module.fetch(config, folder)
    elif processes.are_to_be_started():
        if sharding.is_named():  # what it cannot train is refused before the processes start
            sharding.require_divisible(_make_model(module, config))
        processes.supervise("pipeline.stages.features", key)
        return
    else:
        accuracies = train(key, module, config)
        if get_rank():
            return
        about |= accuracies
    artifacts.seal(folder)
    about["weights_sha256"] = artifacts.digest(artifacts.find_weights(folder))
    artifacts.write_json(artifacts.REPORTS / "features" / f"{key}.json", about)
    print(f"{key}: {about}")


def train(key: str, module: ModuleType, config: Section) -> dict[str, float]:
    """Train a feature network on the training split; return its accuracies on the others, in the first process."""
    values = config.model_dump()
    code = plugins.PACKAGE / f"models/{values['network']}.py"
    state = artifacts.STATE / f"features-{key}" / fingerprint(values, artifacts.read_manifest(values["data"]), code)
    checkpoints.require_writable(artifacts.FEATURES, artifacts.REPORTS / "features")
    with checkpoints.hold(state.parent) if get_rank() == 0 else contextlib.nullcontext():
        model = _make_model(module, config)
        fit(
            model,
            LabelledExamples(artifacts.read_split(values["data"], "train")),
            steps=values["steps"],
            batch_size=values["batch_size"],
            seed=values["seed"],
            state=state,
            callbacks=[Recorder(None, values["steps"])],
        )
        if get_rank():
            return {}
        folder = artifacts.FEATURES / key
        shutil.rmtree(folder, ignore_errors=True)
        save_model(folder, values["network"], model, config, artifacts.read_spec(values["data"]))
        shutil.rmtree(state)
    return measure(folder, module, values["data"])


def _make_model(module: ModuleType, config: Section) -> Any:
    values = config.model_dump()
    return module.Model(config, artifacts.read_spec(values["data"]), values["seed"])


def measure(folder: Path, module: ModuleType, data: str) -> dict[str, float]:
    """Return the accuracy of a feature network on the splits that it has not seen."""
    network = module.load_features(folder)
    accuracies = {}
    for name in ("validation", "test"):
        split = artifacts.read_split(data, name)
        with torch.inference_mode():
            parts = [
                network(images.to(choose_device()))[1].argmax(dim=1).cpu() for images in split["images"].split(500)
            ]
        accuracies[f"{name}_accuracy"] = float((torch.cat(parts) == split["labels"]).double().mean())
    return accuracies


if __name__ == "__main__":
    run_stage(main, several=True)
