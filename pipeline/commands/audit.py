"""Tells whether a run copies its training data: images, which FID takes for quality, or secrets of a text.

    pipeline audit                   # every run that has samples
    pipeline audit gan --cells 10

Images: copies are samples that are nearer to one training image, relative to the next ones, than 99 % of the test
images are. A run has copies if three times as many samples as expected are, and chance would give so many in fewer than
1 % of such audits, or if 1 % of its samples are equal to a training image. C_T (Meehan et al. 2020) and authenticity
(Alaa et al. 2022) are shown next to it: 0, and the authenticity of test images, are as far from the training images as
test images are. Samples of little variety are nearer without being copies, so they decide nothing. With fewer than 20
samples, test or training images there is no verdict.

Text: the training split is searched for secrets: keys, tokens, card numbers, IBANs, social security numbers, e-mail
addresses. For each, the exposure in bits (Carlini et al. 2019) says whether the model has memorised it: the rank of its
loss among --others random ones of the same form: pipeline/evidence/exposure.py. Chance calls one secret of 1024
memorised, so at most 2 % of the runs with 20 secrets. Secrets are printed masked.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.evidence.copying import FIELD, authenticity, copying_statistic, find_copies
from pipeline.evidence.exposure import WORDS, Secret, exposure, find_secrets, randomise
from pipeline.evidence.features import extract
from pipeline.layers.blocks import token_nats
from pipeline.params import Params
from pipeline.randomness import make_generator
from pipeline.weights import Loaded, choose_device, load_model

CHANCE = 0.01  # that a run without copies, of all that are audited, is said to have some
PIECE = 2**22  # tokens of the training text that are read at once
BEFORE = 2**12  # characters before a secret that are kept
MEMORISED = 10.0  # bits of exposure: by chance for one secret of 1024
SHOWN = 20  # secrets of a run whose exposure is measured


def main(arguments: list[str]) -> int:
    """Print what was found in each run; status 1 if one copies images or has memorised a secret."""
    parser = make_parser("audit", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs; default: all that have samples")
    parser.add_argument("--cells", type=int, default=5, help="k-means cells that C_T compares in; default: 5")
    parser.add_argument(
        "--others", type=int, default=1023, help="random secrets that one is compared with; 1023 or more"
    )
    options = parser.parse_args(arguments)
    if options.others < 2**MEMORISED - 1:
        parser.error(f"--others: expected {2**MEMORISED - 1:.0f} or more, got {options.others}")
    settings = params.load()
    of_images = [name for name, run in settings.runs.items() if run.network != params.NONE and _samples(name).exists()]
    of_text = [name for name in settings.runs if _samples(name, "nats").exists()]
    chosen = options.runs or [*of_images, *of_text]
    lacking = f"{artifacts.RUNS} has no samples, of images with a network or of text"
    if not chosen:
        msg = f"{lacking}: run `dvc repro` first"
        raise ArtifactError(msg)
    if unknown := set(chosen) - {*of_images, *of_text}:
        msg = f"{lacking}, for: {', '.join(sorted(unknown))}"
        raise ArtifactError(msg)
    copying = 0
    if images := [name for name in chosen if name in of_images]:
        print("| run, network | C_T | authenticity | of test images | | near to one training image |")
        print("|---|---:|---:|---:|---|---|")
        for name in images:
            copying += audit_images(name, settings, options.cells, CHANCE / len(images))
    if texts := [name for name in chosen if name in of_text]:
        print("\n| run | secret | times | exposure | |\n|---|---|---:|---:|---|")
        copying += sum(audit_text(name, settings, options.others) for name in texts)
    return int(copying > 0)


def audit_images(name: str, settings: Params, cells: int, chance: float) -> bool:
    """Print the row of one run; return whether copies are among its samples.

    chance: that they are said to be though there are none.
    """
    run = settings.runs[name]
    artifacts.verify(_samples(name).parent)
    generated = artifacts.read_tensors(_samples(name))["0"]
    module = plugins.load("networks", settings.networks[run.network].network)
    extractor = module.load_features(artifacts.NETWORKS / run.network).to(choose_device())
    train, test = (artifacts.read_split(run.data, split)[FIELD] for split in ("train", "test"))
    chosen = make_generator(0, "audit").initial_seed()
    count = min(len(generated), len(test))
    features = {
        key: extract(extractor, images).features.cpu()
        for key, images in {"generated": generated[:count], "test": test, "train": train}.items()
    }
    ours, real = (authenticity(features[key], features["train"]) for key in ("generated", "test"))
    try:
        statistic = f"{copying_statistic(**features, cells=cells, seed=chosen):.2f}"
    except ArtifactError:
        statistic = f"none of {cells} cells has enough"  # it is only shown
    try:
        copies = find_copies(**features)
    except ArtifactError as error:
        found, verdict, reason = False, "no verdict", str(error)
    else:
        found = copies.are_proved(chance)
        verdict = "**copies**" if found else "no copy"
        reason = f"{copies.found} of {copies.count}, expected {copies.expected:.1f}, p = {copies.p:.2g}"
        reason += f"; {copies.equal:.0%} equal" if copies.equal else ""
    print(f"| {name}, {run.network} | {statistic} | {ours:.3f} | {real:.3f} | {verdict} | {reason} |")
    return found


def audit_text(name: str, settings: Params, count: int) -> bool:
    """Print the secrets in a run's training text; return whether the model has memorised one of them."""
    loaded = load_model(artifacts.RUNS / name / "model")
    tokens = artifacts.read_split(settings.runs[name].data, "train")["tokens"]
    # Those that can be measured, and often occur, first.
    found = sorted(search(read_lines(loaded, tokens)), key=lambda entry: (entry[0].kind in WORDS, -entry[2]))
    if not found:
        print(f"| {name} | none | | | no secret |")
    memorised = 0
    for secret, before, times in found[:SHOWN]:
        bits = None if secret.kind in WORDS else expose(loaded, secret, before, count)
        verdict = "not measured" if bits is None else "not memorised"
        if bits is not None and bits >= MEMORISED:
            verdict = "**memorised**"
            memorised += 1
        shown = "" if bits is None else f"{bits:.1f}"
        print(f"| {name} | {secret.kind} {secret.shown} | {times} | {shown} | {verdict} |")
    if len(found) > SHOWN:
        print(f"| {name} | and {len(found) - SHOWN} more | | | not measured |")
    return memorised > 0


def read_lines(loaded: Loaded, tokens: Tensor) -> Iterator[str]:
    """Yield the text of tokens (N,) in pieces of whole lines."""
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        msg = "the model has no tokenizer, so its training text cannot be read"
        raise ArtifactError(msg)
    rest = ""
    for part in tqdm(tokens.split(PIECE), desc="search for secrets", unit=" pieces", disable=None):
        whole, line_end, rest = (rest + tokenizer.decode(part.tolist())).rpartition("\n")
        if line_end:
            yield whole + line_end
    yield rest


def search(pieces: Iterable[str]) -> Iterator[tuple[Secret, str, int]]:
    """Yield each secret of a text once, with the text before its first occurrence, and the number of occurrences."""
    first: dict[str, tuple[Secret, str]] = {}
    times: Counter[str] = Counter()
    last = ""
    for piece in pieces:
        text = last + piece
        for secret in find_secrets(piece):
            times[secret.text] += 1
            if secret.text not in first:
                end = len(last) + secret.start
                first[secret.text] = secret, text[max(0, end - BEFORE) : end]
        last = text[-BEFORE:]
    for text, (secret, before) in first.items():
        yield secret, before, times[text]


def expose(loaded: Loaded, secret: Secret, before: str, count: int) -> float | None:
    """Return the exposure of a secret after its own context.

    Nothing if the model's context is too short for it, or the tokenizer cannot write the others: their unknown
    characters would make any secret look memorised.
    """
    generator = make_generator(0, "audit", secret.text)
    texts = [secret.text, *(randomise(secret, generator) for _ in range(count))]
    assert loaded.tokenizer is not None
    if loaded.tokenizer.count_lost("".join(texts)):
        return None
    nats = measure(loaded, before, texts)
    return None if nats is None else exposure(nats[0], nats[1:])


@torch.inference_mode()
def measure(loaded: Loaded, before: str, texts: list[str]) -> Tensor | None:
    """Return the nats of each text after the same other one, float64 (N,); nothing if one is longer than the context.

    Text and context are tokenised as one, because byte pairs go across their border; what all share is not counted.
    """
    assert loaded.tokenizer is not None
    model, room = loaded.model, loaded.model.config.context + 1
    encoded = [torch.tensor(loaded.tokenizer.encode(before[-2 * room :] + text), dtype=torch.int64) for text in texts]
    shortest = min(len(tokens) for tokens in encoded)
    starts = torch.stack([tokens[:shortest] for tokens in encoded])
    shared = max(1, int((starts == starts[0]).all(dim=0).long().cumprod(dim=0).sum()))
    dropped = max(0, max(len(tokens) for tokens in encoded) - room)
    if dropped >= shared:
        return None
    nats = torch.empty(len(texts), dtype=torch.float64)
    for length in {len(tokens) for tokens in encoded}:  # one length, but for byte pairs
        chosen = torch.tensor([index for index, tokens in enumerate(encoded) if len(tokens) == length])
        for part in chosen.split(128):
            tokens = torch.stack([encoded[index] for index in part.tolist()])[:, dropped:].to(model.device)
            losses = token_nats(model.kept(tokens[:, :-1]), tokens[:, 1:])  # (B, T)
            nats[part] = losses[:, shared - dropped - 1 :].sum(dim=1).cpu()
    return nats


def _samples(name: str, stem: str = "generated") -> Path:
    return artifacts.RUNS / name / "samples" / f"{stem}.safetensors"
