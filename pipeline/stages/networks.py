"""Stage networks: makes one feature network in data/networks/<name>: trains the classifier, or fetches Inception.

    python -m pipeline.stages networks classifier

reports/networks/<name>.json holds the SHA-256 of its weights and a classifier's accuracies. A training that was
interrupted resumes from .state/networks-<name>/.
"""

import contextlib
import shutil
from types import ModuleType
from typing import Any

from pipeline import artifacts, code, params, plugins
from pipeline.history.recorder import Recorder
from pipeline.kinds import read_fields
from pipeline.runtime import checkpoints, processes, sharding
from pipeline.runtime.processes import get_rank
from pipeline.training import fingerprint, fit
from pipeline.weights import save_model

HELD_OUT = ("validation", "test")


def main(key: str) -> None:
    """Make the section networks.<key>."""
    settings = params.load()
    config: Any = settings.networks[key]
    module = plugins.load("networks", config.network)
    folder = artifacts.NETWORKS / key
    about: dict[str, float | str] = {}
    if hasattr(module, "fetch"):
        shutil.rmtree(folder, ignore_errors=True)
        module.fetch(config, folder)
    elif processes.are_to_be_started():
        if sharding.is_named():  # what it cannot train is refused before the processes start
            sharding.require_divisible(make_model(module, config))
        processes.supervise("networks", key)
        return
    else:
        train(key, module, config, code.digest("networks", key, settings))
        if get_rank():
            return
        network = module.load_features(folder)
        for split in HELD_OUT:
            about[f"{split}_accuracy"] = module.measure_accuracy(network, artifacts.read_split(config.data, split))
    artifacts.seal(folder)
    about["weights_sha256"] = artifacts.digest(artifacts.find_weights(folder))
    artifacts.write_json(artifacts.REPORTS / "networks" / f"{key}.json", about)
    print(f"{key}: {about}")


def train(key: str, module: ModuleType, config: Any, digest: str) -> None:
    """Train a feature network on the training split, and save it in the first process."""
    manifest = artifacts.read_manifest(config.data)
    state = checkpoints.locate(f"networks-{key}") / fingerprint(config, manifest, digest)
    checkpoints.require_writable(artifacts.NETWORKS, artifacts.REPORTS / "networks")
    with checkpoints.hold_run(state) if get_rank() == 0 else contextlib.nullcontext():
        model = make_model(module, config)
        fit(
            model,
            plugins.load("kinds", manifest["kind"]).examples(
                artifacts.read_split(config.data, "train"), config, config.seed
            ),
            steps=config.steps,
            batch_size=config.batch_size,
            seed=config.seed,
            state=state,
            callbacks=[Recorder(None, config.steps)],
        )
        if get_rank():
            return
        folder = artifacts.NETWORKS / key
        shutil.rmtree(folder, ignore_errors=True)
        save_model(folder, config.network, model, config, read_fields(config.data))
        shutil.rmtree(state)


def make_model(module: ModuleType, config: Any) -> Any:
    """Return a fresh network."""
    return module.Model(config, read_fields(config.data), config.seed)
