"""Tells whether a run copies its training data: images, which FID takes for quality, or secrets of a text.

    pipeline audit                   # every run that has samples
    pipeline audit gan --cells 10

Images: C_T (Meehan et al. 2020): 0 is as far from the training images as test images are, negative nearer. Authenticity
(Alaa et al. 2022): the share of samples that are no copies, beside that of test images: pipeline/metrics/copying.py.

Text: the training split is searched for secrets: keys, tokens, card numbers, IBANs, social security numbers, e-mail
addresses. For each, the exposure in bits (Carlini et al. 2019) says whether the model has memorised it: the rank of its
loss among --others random ones of the same form: pipeline/metrics/exposure.py. Secrets are printed masked.
"""

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline import artifacts, params, plugins, seals
from pipeline.artifacts import ArtifactError
from pipeline.metrics.copying import authenticity, copying_statistic
from pipeline.metrics.exposure import WORDS, Secret, exposure, find_secrets, randomise
from pipeline.metrics.image_evidence import extract
from pipeline.params import Params
from pipeline.randomness import make_generator
from pipeline.weights import Loaded, choose_device, load_model

LOWEST = -3.0  # C_T: three standard deviations nearer than test images
MOST_LOST = 0.1  # authenticity below that of test images
PIECE, OVERLAP = 2**22, 2**10  # tokens of the training text that are searched at once, and that two pieces share
SHOWN = 20  # secrets of a run whose exposure is measured


def main(arguments: list[str]) -> int:
    """Print what was found in each run; status 1 if one copies images or has memorised a secret."""
    parser = argparse.ArgumentParser(
        prog="pipeline audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all that have samples")
    parser.add_argument("--cells", type=int, default=5, help="k-means cells that C_T compares in; default: 5")
    parser.add_argument(
        "--others", type=int, default=1023, help="random secrets that one is compared with; default: 1023"
    )
    options = parser.parse_args(arguments)
    settings = params.load()
    of_images = [name for name, run in settings.runs.items() if run.features and _samples(name).exists()]
    of_text = [name for name in settings.runs if _samples(name, "nats").exists()]
    chosen = options.runs or [*of_images, *of_text]
    if unknown := set(chosen) - {*of_images, *of_text}:
        msg = f"{artifacts.RUNS} has no samples, of images with features or of text, for: {', '.join(sorted(unknown))}"
        raise ArtifactError(msg)
    copying = 0
    if images := [name for name in chosen if name in of_images]:
        print("| run, features | C_T | authenticity | of test images | |\n|---|---:|---:|---:|---|")
        for name in images:
            copying += sum(audit(name, network, settings, options.cells) for network in settings.runs[name].features)
    if texts := [name for name in chosen if name in of_text]:
        print("| run | secret | times | exposure | |\n|---|---|---:|---:|---|")
        copying += sum(audit_text(name, settings, options.others) for name in texts)
    return int(copying > 0)


def audit(name: str, network: str, settings: Params, cells: int) -> bool:
    """Print the row of one run with one feature network; return whether its samples are copies."""
    run = settings.runs[name]
    seals.verify(_samples(name).parent)
    generated = artifacts.read_tensors(_samples(name))["0"]
    module = plugins.load("models", settings.features[network].model_dump()["network"])
    extractor = module.load_features(artifacts.FEATURES / network).to(choose_device())
    train, test = (artifacts.read_split(run.data, split)["images"] for split in ("train", "test"))
    chosen = make_generator(0, "audit").initial_seed()
    count = min(len(generated), len(test))
    features = {
        key: extract(extractor, images).features.cpu()
        for key, images in {"generated": generated[:count], "test": test, "train": train}.items()
    }
    statistic = copying_statistic(features["generated"], features["test"], features["train"], cells=cells, seed=chosen)
    ours, real = (authenticity(features[key], features["train"]) for key in ("generated", "test"))
    copies = statistic < LOWEST or ours < real - MOST_LOST
    print(
        f"| {name}, {network} | {statistic:.2f} | {ours:.3f} | {real:.3f} | {'**copies**' if copies else 'no copy'} |"
    )
    return copies


def audit_text(name: str, settings: Params, count: int) -> bool:
    """Print the secrets in a run's training text; return whether the model has memorised one of them."""
    loaded = load_model(artifacts.RUNS / name / "model")
    tokens = artifacts.read_split(settings.runs[name].data, "train")["tokens"]
    pieces = decode(loaded, tokens)
    found = list(itertools.islice(search(pieces), SHOWN + 1))
    if not found:
        print(f"| {name} | none | | | no secret |")
    memorised = 0
    for secret, before, times in found[:SHOWN]:
        bits = None if secret.kind in WORDS else expose(loaded, secret, before, count)
        verdict = "not measured" if bits is None else "not memorised"
        if bits is not None and bits >= math.log2(count + 1):  # the first of all: by chance once in count + 1
            verdict = "**memorised**"
            memorised += 1
        shown = "" if bits is None else f"{bits:.1f}"
        print(f"| {name} | {secret.kind} {secret.shown} | {times} | {shown} | {verdict} |")
    if len(found) > SHOWN:
        print(f"| {name} | and more than these {SHOWN} | | | |")
    return memorised > 0


def decode(loaded: Loaded, tokens: Tensor) -> Iterator[str]:
    """Yield the text of tokens (N,) in pieces, each with the end of the one before."""
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        msg = "the model has no tokenizer, so its training text cannot be read"
        raise ArtifactError(msg)
    starts = range(0, max(1, len(tokens) - OVERLAP), PIECE)
    for start in tqdm(starts, desc="search for secrets", unit=" pieces", disable=None):
        yield tokenizer.decode(tokens[start : start + PIECE + OVERLAP].tolist())


def search(pieces: Iterable[str]) -> Iterator[tuple[Secret, str, int]]:
    """Yield each secret of a text once, with the text before it where it stands first, and how often it occurs."""
    first: dict[str, tuple[Secret, str]] = {}
    times: Counter[str] = Counter()
    for number, piece in enumerate(pieces):
        for secret in find_secrets(piece):
            # What lies in the overlap alone was counted with the piece before.
            times[secret.text] += number == 0 or secret.start + len(secret.text) > OVERLAP
            first.setdefault(secret.text, (secret, piece[max(0, secret.start - OVERLAP) : secret.start]))
    for text, (secret, before) in first.items():
        yield secret, before, times[text]


def expose(loaded: Loaded, secret: Secret, before: str, count: int) -> float | None:
    """Return the exposure of a secret after its own context; nothing if it is longer than the model's context."""
    generator = make_generator(0, "audit", secret.text)
    texts = [secret.text, *(randomise(secret.text, generator) for _ in range(count))]
    nats = measure(loaded, before, texts)
    return None if bool(nats.isnan().any()) else exposure(nats[0], nats[1:])


@torch.inference_mode()
def measure(loaded: Loaded, before: str, texts: list[str]) -> Tensor:
    """Return the nats of each text after the same other one, float64 (N,); NaN where the context is too short."""
    assert loaded.tokenizer is not None
    model = loaded.model
    encoded = [torch.tensor(loaded.tokenizer.encode(text), dtype=torch.int64) for text in texts]
    start = torch.tensor(loaded.tokenizer.encode(before), dtype=torch.int64)
    nats = torch.full((len(texts),), math.nan, dtype=torch.float64)
    for length in {len(tokens) for tokens in encoded}:  # one length, but for byte pairs
        context = start[-max(1, model.config.context + 1 - length) :]
        if not len(context) or len(context) + length > model.config.context + 1:
            continue
        chosen = torch.tensor([index for index, tokens in enumerate(encoded) if len(tokens) == length])
        for part in chosen.split(128):
            tails = torch.stack([encoded[index] for index in part.tolist()])  # (B, length)
            tokens = torch.cat([context.expand(len(part), -1), tails], dim=1).to(model.device)
            logits = model.kept(tokens[:, :-1])[:, -length:].float()  # (B, length, V)
            losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, -length:], reduction="none")
            nats[part] = losses.double().sum(dim=1).cpu()
    return nats


def _samples(name: str, stem: str = "generated") -> Path:
    return artifacts.RUNS / name / "samples" / f"{stem}.safetensors"
