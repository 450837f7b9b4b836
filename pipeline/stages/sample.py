"""Stage sample: draws from a trained model, and scores held-out data with it, into data/runs/<run>/samples.

    python -m pipeline.stages.sample gan

Images: generated.safetensors (sets "0", "1", ... of uint8 (N, C, H, W)), a likelihood model's scores.safetensors.
Points: generated.safetensors (sets of float32 (N, D)). Text: nats.safetensors (float64, one number a target, by split)
and windows.safetensors (float64, the mean of each random window).
The evaluation reads these files alone. For the eye, in reports/runs/<run>/samples: samples.png, reconstructions.png,
or samples.yaml, a list of texts (`dvc plots show` shows the pictures of this folder, and stumbles over a .txt in it).
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString
from torch import Tensor

from pipeline import artifacts, params
from pipeline.history.record import draw_points, save_grid
from pipeline.layers.blocks import token_nats
from pipeline.params import Run
from pipeline.randomness import make_generator
from pipeline.stages import run_stage
from pipeline.weights import Loaded, load_model

GRID = 100


def main(key: str) -> None:
    """Sample the run runs.<key>."""
    settings = params.load()
    run = settings.runs[key]
    sampling = settings.metrics[run.metric].model_dump()["sampling"]
    loaded = load_model(artifacts.RUNS / key / "model")
    folder, shown = artifacts.RUNS / key / "samples", artifacts.REPORTS / "runs" / key / "samples"
    for old in (folder, shown):
        shutil.rmtree(old, ignore_errors=True)
    draw = {"images": sample_images, "points": sample_points, "text": sample_text}[loaded.kind]
    draw(run, loaded, sampling, folder, shown)
    artifacts.seal(folder)


def sample_images(run: Run, loaded: Loaded, sampling: dict[str, Any], folder: Path, shown: Path) -> None:
    """Draw as many images as the test and training splits can be compared with, and score the test split."""
    model = loaded.model
    splits = artifacts.read_manifest(run.data)["splits"]
    count = min(sampling["count"], splits["test"]["count"], splits["train"]["count"])
    sets = draw_sets(model, run.seed, count, sampling["sets"])
    artifacts.write_tensors(folder / "generated.safetensors", sets)
    save_grid(shown / "samples.png", sets["0"][:GRID])
    if not hasattr(model, "score"):
        return
    samples = sampling["importance_samples"]
    images = artifacts.read_split(run.data, "test")["images"]
    # All runs face the same binary images, on a GPU, too.
    observed = model.observe(images, make_generator(0, "observe"))
    scores = model.score(observed, samples, make_generator(run.seed, "score", device=model.device))
    named = {
        "elbo_nats": scores["elbo"],
        f"iw{samples}_nats": scores["iw"],
        "kl_nats": scores["kl"],
        "active_units": scores["active_units"],
    }
    artifacts.write_tensors(folder / "scores.safetensors", {name: score.cpu() for name, score in named.items()})
    chosen = images[spread(len(images), GRID // 2)]
    pairs = torch.stack([chosen, model.reconstruct(chosen).cpu()], dim=1).flatten(0, 1)
    save_grid(shown / "reconstructions.png", pairs)


def spread(count: int, chosen: int) -> Tensor:
    """Return `chosen` indices below `count` at even distances, int64: a split may be sorted by class."""
    chosen = min(count, chosen)
    return torch.arange(chosen) * count // chosen


def sample_points(run: Run, loaded: Loaded, sampling: dict[str, Any], folder: Path, shown: Path) -> None:
    """Draw sets of points."""
    sets = draw_sets(loaded.model, run.seed, sampling["count"], sampling["sets"])
    artifacts.write_tensors(folder / "generated.safetensors", sets)
    save_grid(shown / "samples.png", draw_points(sets["0"]))


def draw_sets(model: Any, seed: int, count: int, sets: int) -> dict[str, Tensor]:
    """Draw independent sets of `count` samples, named "0", "1", ..., each from its own generator."""
    generators = [make_generator(seed, "sample", index, device=model.device) for index in range(sets)]
    return {str(index): model.sample(count, generator).cpu() for index, generator in enumerate(generators)}


def sample_text(run: Run, loaded: Loaded, sampling: dict[str, Any], folder: Path, shown: Path) -> None:
    """Write texts, and score every target of validation and test once."""
    model = loaded.model
    names = ("prompt", "length", "temperature", "top_k", "top_p")
    generator = make_generator(run.seed, "sample", device=model.device)
    texts = loaded.write(sampling["count"], generator, **{name: sampling[name] for name in names})
    write_texts(shown / "samples.yaml", texts)
    context = model.config.context
    stride = max(1, round(sampling["stride"] * context))
    manifest = artifacts.read_manifest(run.data)
    nats, windows = {}, {}
    for split in ("validation", "test"):
        if split not in manifest["splits"]:
            continue
        tokens = artifacts.read_split(run.data, split)["tokens"]
        nats[split] = model.score(tokens, stride).cpu()
        if count := sampling["random_windows"]:
            if len(tokens) <= context:
                msg = (
                    f"metrics.{run.metric}.sampling.random_windows: data.{run.data} has {len(tokens)} tokens in split "
                )
                raise artifacts.ArtifactError(msg + f"{split}, expected more than the context of {context}")
            # All runs face the same windows.
            windows[split] = score_windows(model, tokens, count, make_generator(0, "windows", split))
    artifacts.write_tensors(folder / "nats.safetensors", nats)
    if windows:
        artifacts.write_tensors(folder / "windows.safetensors", windows)


@torch.inference_mode()
def score_windows(model: Any, tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the mean nats of `count` windows at random places of tokens (N,), float64 (count,).

    This is nanoGPT's estimate_loss: each window is scored alone, half of its targets have less than half a context.
    """
    tokens = tokens.long().to(model.device)
    span = torch.arange(model.config.context + 1)
    starts = torch.randint(len(tokens) - model.config.context, (count, 1), generator=generator)
    network = model.kept.eval()
    means = []
    for part in (starts + span).split(max(1, 16_384 // len(span))):
        window = tokens[part.to(model.device)]  # (B, T + 1)
        means.append(token_nats(network(window[:, :-1]), window[:, 1:]).mean(dim=1).cpu())
    return torch.cat(means)


def write_texts(path: Path, texts: list[str]) -> None:
    """Write texts as a YAML list; those of printable characters alone as literal blocks, the others quoted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    yaml = YAML(pure=True)
    yaml.width = 2**16
    with path.open("w", encoding="utf-8") as file:
        yaml.dump([LiteralScalarString(text) if is_literal(text) else text for text in texts], file)


def is_literal(text: str) -> bool:
    """Say whether a YAML block can hold a text as it is."""
    return text.translate({ord("\n"): None, ord("\t"): None}).isprintable()


if __name__ == "__main__":
    run_stage(main)
