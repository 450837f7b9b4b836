"""Stage sample: draws from a trained model, and scores held-out data with it, into data/runs/<run>/samples.

    python -m pipeline.stages sample gan

The kind of data says which files it makes: see `draw` in pipeline/kinds/<kind>.py. The evaluation reads these. Exhibits
for the eye and the ear are in reports/runs/<run>/samples; only a metric with READS_EXHIBITS reads them.
"""

import shutil
from dataclasses import replace
from functools import partial

from pipeline import artifacts, params
from pipeline.kinds import make_pool, read_known
from pipeline.runtime.requirements import require_run
from pipeline.weights import load_model


def main(key: str) -> None:
    """Sample the run runs.<key>."""
    settings = params.load()
    run = settings.runs[key]
    sampling, manifest = settings.metrics[run.metric].sampling, artifacts.read_manifest(run.data)
    read = partial(artifacts.read_split, run.data)
    require_run(key, settings, {run.data: read_known(run.data)})
    loaded = load_model(artifacts.RUNS / key / "model")
    loaded = replace(loaded, pool=make_pool(loaded.fields, loaded.model.given, sampling, manifest, read))
    folder, shown = artifacts.RUNS / key / "samples", artifacts.REPORTS / "runs" / key / "samples"
    for old in (folder, shown):
        shutil.rmtree(old, ignore_errors=True)
    drawn = loaded.kind.draw(loaded, sampling, run.seed, manifest, read)
    for name, tensors in drawn.files.items():
        artifacts.write_tensors(folder / f"{name}.safetensors", tensors)
    for exhibit in drawn.exhibits:
        artifacts.write_bytes(shown / f"{exhibit.name}{exhibit.suffix}", exhibit.content)
    artifacts.seal(folder)
