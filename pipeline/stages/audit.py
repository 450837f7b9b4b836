"""Stage audit: looks into a trained model: copies of its training data, walks between samples, attention.

    python -m pipeline.stages audit gan

The verdicts are in reports/runs/<run>/audit/verdicts.json, the exhibits next to it. `pipeline audit` says what the
verdicts mean.
"""

import shutil
from collections.abc import Iterator
from typing import Any

import torch

from pipeline import artifacts, params
from pipeline.evidence.audit import Copying, examine_copies, examine_text, list_runs
from pipeline.evidence.looks import find_decoder, show_attention, show_walks
from pipeline.kinds import Exhibit
from pipeline.params import Params
from pipeline.weights import Loaded, load_model

PAIRS = 32  # samples next to their nearest training examples


def main(key: str) -> None:
    """Audit the run runs.<key>."""
    settings = params.load()
    run = settings.runs[key]
    loaded = load_model(artifacts.RUNS / key / "model")
    folder = artifacts.REPORTS / "runs" / key / "audit"
    shutil.rmtree(folder, ignore_errors=True)
    verdicts: dict[str, Any] = {}
    exhibits: list[Exhibit | None] = []
    of_images, of_text = list_runs(settings)
    if key in of_images:
        found = examine_copies(key, settings)
        verdicts["copies"] = describe_copies(found)
        exhibits.append(show_neighbours(loaded, key, settings, found))
    if key in of_text:
        memories, more = examine_text(loaded, run.data)
        verdicts["secrets"] = [{"secret": each.secret, "verdict": each.verdict} for each in memories]
        verdicts["more_secrets"] = more
    exhibits += draw_looks(loaded, key, settings)
    for exhibit in filter(None, exhibits):
        artifacts.write_bytes(folder / f"{exhibit.name}{exhibit.suffix}", exhibit.content)
    artifacts.write_json(folder / "verdicts.json", verdicts)


def describe_copies(found: Copying) -> dict[str, Any]:
    """Return what the report says of copies."""
    return {
        "verdict": found.verdict,
        "reason": found.reason,
        "statistic": found.statistic,
        "authenticity": found.authenticity,
        "authenticity_real": found.authenticity_real,
        "distance_ratio": found.distance_ratio,
    }


def show_neighbours(loaded: Loaded, key: str, settings: Params, found: Copying) -> Exhibit:
    """Show the samples that are nearest to one training example only, each before that example."""
    samples = artifacts.read_tensors(artifacts.RUNS / key / "samples" / "generated.safetensors")["0"]
    train = artifacts.read_split(settings.runs[key].data, "train")[loaded.model.makes]
    nearest = found.near.values.argsort(stable=True)[:PAIRS]
    pairs = torch.stack([samples[nearest], train[found.near.indices[nearest]]], dim=1).flatten(0, 1)
    exhibit: Exhibit = loaded.kind.show("neighbours", pairs, loaded)
    return exhibit


def draw_looks(loaded: Loaded, key: str, settings: Params) -> Iterator[Exhibit | None]:
    """Yield the exhibits that the model can give."""
    run = settings.runs[key]
    if decoder := find_decoder(run.model):
        yield show_walks(loaded, decoder)
    if loaded.tokenizer is not None:
        splits = artifacts.read_manifest(run.data)["splits"]
        tokens = artifacts.read_split(run.data, "test" if "test" in splits else "validation")[loaded.model.makes]
        yield show_attention(loaded, tokens)
