"""Stage networks: makes one feature network in data/networks/<name>: trains it, fetches it, or takes it from git.

    python -m pipeline.stages networks classifier

Networks with published weights, such as Inception, are fetched. All others are trained, unless git keeps weights of the
same recipe: pipeline/evidence/judges.py. reports/networks/<name>.json holds the SHA-256 of the weights, the accuracies
of trained networks, and those of linear probes with few labels, where the section has `probe`. A training that was
interrupted, or whose weights DVC has not stored, resumes from .state/networks-<name>/.
"""

import contextlib
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import artifacts, code, params, plugins
from pipeline.evidence import judges, probe
from pipeline.history import finished, inputs
from pipeline.history.inputs import Inputs
from pipeline.history.recorder import Recorder
from pipeline.kinds import find_field, read_fields, read_known
from pipeline.runtime import agreement, checkpoints, hardware, processes, sharding
from pipeline.runtime.agreement import Agreement
from pipeline.runtime.processes import get_rank
from pipeline.runtime.requirements import require_network, require_run
from pipeline.training import fingerprint, fit
from pipeline.weights import save_model

HELD_OUT = ("validation", "test")


def main(key: str) -> None:
    """Make the section networks.<key>."""
    hardware.require_available()
    seen = inputs.read("networks", key)
    settings = params.load()
    config: Any = settings.networks[key]
    module = plugins.load("networks", config.network)
    known = {config.data: read_known(config.data)}
    require_network(key, settings, known)
    for run in (name for name, run in settings.runs.items() if run.network == key):  # its features are for their sake
        require_run(run, settings, known)
    folder = artifacts.NETWORKS / key
    probe.require(config.probe, artifacts.read_split(config.data, "train") if config.probe else {})
    is_fetched = hasattr(module, "fetch")
    judge = None if is_fetched else judges.find(judges.describe_recipe(config))
    if not (is_fetched or judge):
        if processes.are_to_be_started():
            if sharding.is_named():  # what it cannot train is refused before the processes start
                sharding.require_divisible(make_model(module, config))
            processes.supervise("networks", key)
            return
        train(key, module, config, code.digest("networks", key, settings), seen)
    if get_rank():
        return
    if is_fetched:
        shutil.rmtree(folder, ignore_errors=True)
        module.fetch(config, folder)
    elif judge:
        judges.take(judge, folder)
        print(f"networks.{key}: took the weights that git keeps in {judge}")
    about: dict[str, float | str] = {} if is_fetched else measure_accuracies(module, config, folder)
    artifacts.seal(folder)
    about |= measure_probes(module, config, folder)
    about["weights_sha256"] = artifacts.digest(artifacts.find_weights(folder))
    artifacts.write_json(artifacts.REPORTS / "networks" / f"{key}.json", about)
    print(f"{key}: {about}")


def measure_accuracies(module: ModuleType, config: Any, folder: Path) -> dict[str, float | str]:
    """Return the accuracy of a trained network on each held-out split."""
    network = module.load_features(folder)
    splits = {split: artifacts.read_split(config.data, split) for split in HELD_OUT}
    return {f"{split}_accuracy": module.measure_accuracy(network, values) for split, values in splits.items()}


def measure_probes(module: ModuleType, config: Any, folder: Path) -> dict[str, float]:
    """Return the test accuracies of linear probes that learn from few labels; nothing if the section names no count."""
    if not config.probe:
        return {}
    network = module.load_features(folder)
    splits = {split: artifacts.read_split(config.data, split) for split in ("train", "test")}
    field = find_field(read_fields(config.data), module.LEARNS)
    return probe.measure_all(network, field, splits, config.probe)


def train(key: str, module: ModuleType, config: Any, digest: str, seen: Inputs) -> None:
    """Train a feature network on the training split, and save it in the first process, if its inputs are the same."""
    config = config.model_copy(update={"probe": []})  # what is measured later changes no weight
    manifest = artifacts.read_manifest(config.data)
    state = checkpoints.locate(f"networks-{key}") / fingerprint(config, manifest, digest)
    facts = agreement.describe("networks", key, networks={key: config}, data={config.data: manifest}, code=digest)
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
            callbacks=[Agreement(facts), Recorder(None, config.steps)],
        )
        if get_rank():
            return
        seen.require_same()
        folder = artifacts.NETWORKS / key
        shutil.rmtree(folder, ignore_errors=True)
        save_model(folder, config.network, model, config, read_fields(config.data))
        finished.end(state, folder)


def make_model(module: ModuleType, config: Any) -> Any:
    """Return a fresh network."""
    return module.Model(config, read_fields(config.data), config.seed)
