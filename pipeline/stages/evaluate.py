"""Stage evaluate: turns samples and scores into numbers, and logs them to the training's MLflow run.

    python -m pipeline.stages evaluate gan

In reports/runs/<run>/: metrics.json (means over the sets of samples), sets.json (the value of each set; of floors, of
each set of training images), protocol.json (what must be equal for the numbers to be comparable, value by value),
headline.json (the few numbers that `dvc metrics show` and `dvc exp show` have columns for).
"""

import math
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pipeline import artifacts, code, params, plugins
from pipeline.evidence.features import describe_network
from pipeline.evidence.protocol import describe_values
from pipeline.evidence.values import find_flaw, list_counts
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record, describe_environment
from pipeline.history.results import list_headlines, read_results
from pipeline.kinds import read_known
from pipeline.params import NONE, Params
from pipeline.runtime.requirements import require_run

LIBRARIES = ("torch", "torch-fidelity", "numpy")  # that the numbers go through


def main(key: str) -> None:
    """Evaluate the run runs.<key>."""
    settings = params.load()
    run = settings.runs[key]
    require_run(key, settings, {run.data: read_known(run.data)})
    module = plugins.load("metrics", run.metric)
    artifacts.verify(artifacts.RUNS / key / "samples")
    circumstances = {**describe_environment(), "code": code.digest_parts(key, settings)}
    found = module.compute(module.gather(key, settings, circumstances), settings.metrics[run.metric])
    values = {name: sum(sets) / len(sets) for name, sets in found.items()}
    broken = {name: value for name, value in values.items() if not math.isfinite(value)}
    if broken:
        msg = f"runs.{key}: metrics are not finite: {broken}"
        raise artifacts.ArtifactError(msg)
    content = describe(key, settings, values)
    folder = artifacts.REPORTS / "runs" / key
    artifacts.write_json(folder / "metrics.json", values)
    artifacts.write_json(
        folder / "headline.json", {name: values[name] for name in list_headlines(module.VALUES, values)}
    )
    artifacts.write_json(folder / "protocol.json", content)
    artifacts.write_json(folder / "sets.json", {name: sets for name, sets in found.items() if len(sets) > 1})
    # The record is not a dependency: its times differ from run to run, but the numbers do not.
    history = artifacts.RUNS / key / "record"
    if (history / "run.json").exists():
        MlflowSync(Record(history)).finish(read_results(key, run.metric))
    for name, value in values.items():
        flaw = find_flaw(module.VALUES, values, name)
        print(f"{key}  {name:36} {value:.6g}{f'  ({flaw})' if flaw else ''}")


def describe(key: str, settings: Params, values: Mapping[str, float]) -> dict[str, Any]:
    """Return the content of protocol.json: the protocol, what each value depends on, and what is the run's own.

    Args:
        key: the run.
        settings: all parameters.
        values: the run's numbers, by name.
    """
    run = settings.runs[key]
    declared = plugins.load("metrics", run.metric).VALUES
    manifest = artifacts.read_manifest(run.data)
    protocol = describe_protocol(key, settings, manifest, list_counts(declared, values))
    model = artifacts.read_json(artifacts.RUNS / key / "model" / "config.json")
    carried = {
        "model": model["model"],
        "config": model["config"],
        "start": run.start,
        "seed": run.seed,
        "trained_on": {"source": manifest["source"], "sha256": manifest["splits"]["train"]["sha256"]},
        "weights": f"averaged, decay {settings.models[key].ema}" if settings.models[key].ema else "last",
    }
    return {"protocol": protocol, "run": carried, "values": describe_values(declared, values, protocol)}


def describe_protocol(
    key: str, settings: Params, manifest: Mapping[str, Any], counts: Mapping[str, int]
) -> dict[str, Any]:
    """Return the fields on which any number of a run may depend.

    Args:
        key: the run.
        settings: all parameters.
        manifest: of the run's data.
        counts: the counts of what was compared, by name.
    """
    run = settings.runs[key]
    metric, model = plugins.load("metrics", run.metric), plugins.load("models", run.model)
    splits = {split: manifest["splits"][split] for split in metric.SPLITS if split in manifest["splits"]}
    content = {split: entry["content_sha256"] for split, entry in splits.items() if "content_sha256" in entry}
    protocol: dict[str, Any] = {
        "metric": {"name": run.metric, **artifacts.encode(settings.metrics[run.metric])},
        "reference": {
            "source": manifest["source"],
            "sha256": {split: entry["sha256"] for split, entry in splits.items()},
            **({"content": content} if content else {}),
        },
        "counts": dict(counts),
        "network": NONE if run.network == NONE else {"name": run.network, **describe_network(run.network, settings)},
        "numbers": metric.NUMBERS,
        "versions": {name: version(name) for name in LIBRARIES},
        "code": code.digest_parts(key, settings),
    }
    if hasattr(model, "describe_scores"):
        protocol["scores"] = model.describe_scores(settings.models[key])
    return protocol
