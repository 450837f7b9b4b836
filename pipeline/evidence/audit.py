"""The audit of a run: whether its samples copy training images, and whether it has memorised secrets of its text.

`pipeline audit` says what the verdicts mean; the stage `audit` writes them next to the pictures that show them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline import artifacts, plugins
from pipeline.artifacts import ArtifactError
from pipeline.evidence.copying import Nearness, authenticity, copying_statistic, distance_ratio, find_copies, nearness
from pipeline.evidence.exposure import WORDS, Secret, exposure, find_secrets, randomise
from pipeline.evidence.features import extract
from pipeline.kinds import find_field, read_fields
from pipeline.layers.blocks import token_nats
from pipeline.params import NONE, Params
from pipeline.randomness import make_generator
from pipeline.weights import Loaded, choose_device

CELLS = 5  # of k-means, in which C_T compares
CHANCE = 0.01  # that a run without copies, of all that are audited, is said to have some
OTHERS = 1023  # random secrets that one is compared with
PIECE = 2**22  # tokens of the training text that are read at once
BEFORE = 2**12  # characters before a secret that are kept
MEMORISED = 10.0  # bits of exposure: by chance for one secret of 1024
SHOWN = 20  # secrets of a run whose exposure is measured


@dataclass(frozen=True)
class Copying:
    """Whether samples copy training images.

    statistic: C_T, or why there is none. authenticity: of the samples, and of test images. distance_ratio: from the
    training images, over that of test images. verdict, reason: in words.
    near: how near each of the first samples is to one training image, and to which.
    """

    is_proved: bool
    verdict: str
    reason: str
    statistic: str
    authenticity: float
    authenticity_real: float
    distance_ratio: float | None
    near: Nearness


@dataclass(frozen=True)
class Memory:
    """A secret of a training text, unreadable: how often it occurs, and its exposure in bits, if that was measured."""

    secret: str
    times: int
    bits: float | None

    @property
    def is_proved(self) -> bool:
        """Whether the model has memorised it."""
        return self.bits is not None and self.bits >= MEMORISED

    @property
    def verdict(self) -> str:
        """The same in words."""
        return "not measured" if self.bits is None else "memorised" if self.is_proved else "not memorised"


def list_runs(settings: Params) -> tuple[list[str], list[str]]:
    """Return the runs whose samples a feature network can compare with real ones, and those that scored a text."""
    of_images = [name for name, run in settings.runs.items() if run.network != NONE and find_samples(name).exists()]
    return of_images, [name for name in settings.runs if find_samples(name, "nats").exists()]


def find_samples(name: str, stem: str = "generated") -> Path:
    """Return a file of a run's samples."""
    return artifacts.RUNS / name / "samples" / f"{stem}.safetensors"


def examine_copies(name: str, settings: Params, cells: int = CELLS, chance: float = CHANCE) -> Copying:
    """Say whether copies of training images are among a run's samples.

    chance: that they are said to be though there are none.
    """
    run = settings.runs[name]
    artifacts.verify(find_samples(name).parent)
    generated = artifacts.read_tensors(find_samples(name))["0"]
    module = plugins.load("networks", settings.networks[run.network].network)
    extractor = module.load_features(artifacts.NETWORKS / run.network).to(choose_device())
    field = find_field(read_fields(run.data), plugins.load("models", run.model).LEARNS)
    train, test = (artifacts.read_split(run.data, split)[field] for split in ("train", "test"))
    chosen = make_generator(0, "audit").initial_seed()
    count = min(len(generated), len(test))
    features = {
        key: extract(extractor, images).features.cpu()
        for key, images in {"generated": generated[:count], "test": test, "train": train}.items()
    }
    ours, fresh = (nearness(features[key], features["train"]) for key in ("generated", "test"))
    try:
        statistic = f"{copying_statistic(**features, cells=cells, seed=chosen):.2f}"
    except ArtifactError:
        statistic = f"none of {cells} cells has enough"  # it is only shown
    try:
        copies = find_copies(ours, fresh, len(train))
    except ArtifactError as error:
        found, verdict, reason = False, "no verdict", str(error)
    else:
        found = copies.are_proved(chance)
        verdict = "copies" if found else "no copy"
        reason = f"{copies.found} of {copies.count}, expected {copies.expected:.1f}, p = {copies.p:.2g}"
        reason += f"; {copies.equal:.0%} equal" if copies.equal else ""
    own, real = (authenticity(near, features["train"]) for near in (ours, fresh))
    return Copying(found, verdict, reason, statistic, own, real, distance_ratio(ours, fresh), ours)


def examine_text(loaded: Loaded, data: str, count: int = OTHERS) -> tuple[list[Memory], int]:
    """Return the secrets in a model's training text, and how many more there are than are measured."""
    tokens = artifacts.read_split(data, "train")[loaded.model.makes]
    # Those that can be measured, and often occur, first.
    found = sorted(search(read_lines(loaded, tokens)), key=lambda entry: (entry[0].kind in WORDS, -entry[2]))
    memories = []
    for secret, before, times in found[:SHOWN]:
        bits = None if secret.kind in WORDS else expose(loaded, secret, before, count)
        memories.append(Memory(f"{secret.kind} {secret.shown}", times, bits))
    return memories, len(found) - len(memories)


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
