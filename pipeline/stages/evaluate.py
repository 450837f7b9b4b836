"""Stage evaluate: turns samples and scores into numbers, and logs them to the training's MLflow run.

    python -m pipeline.stages evaluate gan

In reports/runs/<run>/: metrics.json (means over the sets of samples), sets.json (the value of each set; of floors, of
each set of training images), protocol.json (what must be equal for the numbers to be comparable).
"""

import math
from importlib.metadata import version
from typing import Any

from pipeline import artifacts, code, params, plugins
from pipeline.evidence.features import describe_network
from pipeline.evidence.protocol import hash_protocol
from pipeline.evidence.values import list_counts
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record, describe_environment
from pipeline.params import NONE, Params

LIBRARIES = ("torch", "torch-fidelity", "numpy")  # that the numbers go through


def main(key: str) -> None:
    """Evaluate the run runs.<key>."""
    settings = params.load()
    run = settings.runs[key]
    module = plugins.load("metrics", run.metric)
    artifacts.verify(artifacts.RUNS / key / "samples")
    digest = code.digest("evaluate", key, settings)
    found = module.compute(
        module.gather(key, settings, {**describe_environment(), "code": digest}), settings.metrics[run.metric]
    )
    values = {name: sum(sets) / len(sets) for name, sets in found.items()}
    broken = {name: value for name, value in values.items() if not math.isfinite(value)}
    if broken:
        msg = f"runs.{key}: metrics are not finite: {broken}"
        raise artifacts.ArtifactError(msg)
    protocol = describe(key, settings, list_counts(module.VALUES, values), digest)
    folder = artifacts.REPORTS / "runs" / key
    artifacts.write_json(folder / "metrics.json", values)
    artifacts.write_json(folder / "protocol.json", protocol)
    artifacts.write_json(folder / "sets.json", {name: sets for name, sets in found.items() if len(sets) > 1})
    # The record is not a dependency: its times differ from run to run, but the numbers do not.
    history = artifacts.RUNS / key / "record"
    if (history / "run.json").exists():
        sync = MlflowSync(Record(history))
        sync.finish(values, settings.models[key].steps, tags={"protocol": protocol["hash"]})
    for name, value in values.items():
        print(f"{key}  {name:36} {value:.6g}")


def describe(key: str, settings: Params, counts: dict[str, int], digest: str) -> dict[str, Any]:
    """Return the evaluation protocol with its hash, and the run's own seed, config, data and kept weights.

    Args:
        key: the run.
        settings: all parameters.
        counts: the counts of what was compared, by name.
        digest: of the evaluation's code.
    """
    run = settings.runs[key]
    module = plugins.load("metrics", run.metric)
    manifest = artifacts.read_manifest(run.data)
    hashes = {split: entry["sha256"] for split, entry in manifest["splits"].items()}
    model = artifacts.read_json(artifacts.RUNS / key / "model" / "config.json")
    protocol: dict[str, Any] = {
        "metric": {"name": run.metric, **artifacts.encode(settings.metrics[run.metric])},
        "reference": {
            "source": manifest["source"],
            "sha256": {split: hashes[split] for split in module.SPLITS if split in hashes},
        },
        "counts": counts,
        "network": NONE if run.network == NONE else {"name": run.network, **describe_network(run.network, settings)},
        "numbers": module.NUMBERS,
        "versions": {name: version(name) for name in LIBRARIES},
        "code": digest,
    }
    if "context" in model["config"]:
        protocol["context"] = model["config"]["context"]
    carried = {
        "model": model["model"],
        "config": model["config"],
        "start": run.start,
        "seed": run.seed,
        "trained_on": {"source": manifest["source"], "sha256": hashes["train"]},
        "weights": f"averaged, decay {settings.models[key].ema}" if settings.models[key].ema else "last",
    }
    return {"hash": hash_protocol(protocol), "protocol": protocol, "run": carried}
