"""Stage features: makes one feature network in data/features/<name>: trains the classifier, or fetches Inception.

    python -m pipeline.stages.features classifier

What is known of it stands in reports/features/<name>.json: the SHA-256 of its weights, a classifier's accuracies.
"""

import shutil
from types import ModuleType

import torch

from pipeline import artifacts, params, plugins
from pipeline.data.loading import LabelledExamples
from pipeline.params import Section
from pipeline.stages import run_stage
from pipeline.training import Recorder, fit
from pipeline.weights import choose_device, save_model


def main(key: str) -> None:
    """Make the section features.<key>."""
    config = params.load().features[key]
    folder = artifacts.FEATURES / key
    shutil.rmtree(folder, ignore_errors=True)
    module = plugins.load("models", config.model_dump()["network"])
    about: dict[str, float | str] = {}
    if hasattr(module, "fetch"):
        module.fetch(config, folder)
    else:
        about |= train(key, module, config)
    about["weights_sha256"] = artifacts.digest(artifacts.find_weights(folder))
    artifacts.write_json(artifacts.REPORTS / "features" / f"{key}.json", about)
    print(f"{key}: {about}")


def train(key: str, module: ModuleType, config: Section) -> dict[str, float]:
    """Train a feature network on the training split; return its accuracies on the others."""
    values = config.model_dump()
    spec = artifacts.read_spec(values["data"])
    model = module.Model(config, spec, values["seed"])
    split = artifacts.read_split(values["data"], "train")
    fit(
        model,
        LabelledExamples(split),
        steps=values["steps"],
        batch_size=values["batch_size"],
        seed=values["seed"],
        callbacks=[Recorder(None, values["steps"])],
    )
    folder = artifacts.FEATURES / key
    save_model(folder, values["network"], model, config, spec)
    network = module.load_features(folder)
    accuracies = {}
    for name in ("validation", "test"):
        split = artifacts.read_split(values["data"], name)
        with torch.inference_mode():
            parts = [
                network(images.to(choose_device()))[1].argmax(dim=1).cpu() for images in split["images"].split(500)
            ]
        accuracies[f"{name}_accuracy"] = float((torch.cat(parts) == split["labels"]).double().mean())
    return accuracies


if __name__ == "__main__":
    run_stage(main)
