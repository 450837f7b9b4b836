"""How well a model predicts held-out music: nats per note, per frame and per piece, next to a baseline that copies.

Each note is scored once, given those before it in its own piece; a rest counts as a note, and padding never counts.
Nats per piece are those of all its notes and of its end: no choice of tokens changes what they mean.

Most notes of a grid repeat the last pitch of their voice. `copy` is what a predictor pays that knows only this: it
repeats with the training split's probability, and else draws from the voice's pitches there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.evidence.values import Value, fill_name
from pipeline.kinds.music import END, check
from pipeline.params import Known, Measure, Params, Section

KIND = "music"
SPLITS = ("train", "validation", "test")
SCORED = SPLITS[1:]
NUMBERS = "logits float32, sums of nats float64"
SCORES = ("scores", "numbers", "metric.sampling.stride", "reference.sha256.{split}")
BASELINE = ("reference.sha256.{split}", "reference.sha256.train")


def scale_value(value: float, ratio: float) -> float:
    """Return the nats per frame after those per note have become `ratio` times as many."""
    return value * ratio


VALUES = {
    "{split}_nats_a_note": Value(
        direction="lower", unit="nats per note", headline=True, counts="{split}_pieces", depends=SCORES
    ),
    "{split}_nats_a_frame": Value(
        direction="lower",
        unit="nats per frame",
        counts="{split}_pieces",
        follows="{split}_nats_a_note",
        rescale=scale_value,
        depends=SCORES,
    ),
    "{split}_nats_a_chorale": Value(direction="lower", unit="nats per piece", counts="{split}_pieces", depends=SCORES),
    "{split}_copy_nats_a_note": Value(role="description", unit="nats per note", depends=BASELINE),
    "{split}_pieces": Value(role="count", unit="pieces"),
    "{split}_notes": Value(role="count", unit="notes"),
    "{split}_nats_a_note_se": Value(
        role="error", of="{split}_nats_a_note", unit="nats per note", over="pieces", depends=SCORES
    ),
    "{split}_nats_a_chorale_se": Value(
        role="error", of="{split}_nats_a_chorale", unit="nats per piece", over="pieces", depends=SCORES
    ),
}


class Sampling(Section):
    """What the stage `sample` draws, and how it scores."""

    count: int = Field(ge=1, description="pieces")
    frames: int = Field(ge=1, description="sixteenths of a piece that does not end before")
    temperature: float = Field(ge=0, description="divides the logits; 0 takes the most likely note")
    top_k: int = Field(ge=0, description="most likely notes kept; 0 keeps all")
    top_p: float = Field(gt=0, le=1, description="probability mass kept; 1 keeps all")
    stride: float = Field(gt=0, le=1, description="step of the scoring windows, as a share of the context; 1: disjoint")


class Config(Measure):
    """How the music is sampled and scored."""

    sampling: Sampling


@dataclass(frozen=True)
class Evidence:
    """Nats by split, float64 (T,): of each piece in turn its notes and its end. Pieces by split, uint8 (N, F, V).

    The pieces of the training split are not transposed.
    """

    nats: Mapping[str, Tensor]
    pieces: Mapping[str, Tensor]


def gather(key: str, settings: Params, circumstances: Mapping[str, Any]) -> Evidence:
    """Read the nats of every note, and the pieces."""
    del circumstances
    nats = artifacts.read_tensors(artifacts.RUNS / key / "samples" / "note_nats.safetensors")
    splits = {split: artifacts.read_split(settings.runs[key].data, split) for split in SPLITS}
    pieces = {split: tensors["notes"][tensors["shifts"] == 0] for split, tensors in splits.items()}
    return Evidence(nats, pieces)


def require(key: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Accept all music: a split without a piece is not prepared."""
    del key, settings, known


def compute(evidence: Evidence, config: Config) -> dict[str, list[float]]:
    """Return the metrics of each split, one value each: scoring draws nothing.

    Raises:
        ArtifactError: if the pieces are none, a nat is not finite, or notes are missing or counted twice.
    """
    del config
    values: dict[str, list[float]] = {}
    for name, pieces in evidence.pieces.items():
        check(name, pieces)
    for split, nats in evidence.nats.items():
        pieces = evidence.pieces[split]
        sizes = (pieces != END).sum(dim=(1, 2))  # notes of each piece, (N,)
        expected = int((sizes + 1).sum())
        if len(nats) != expected:
            msg = f"{split}: expected {expected} nats, of each note and each end, got {len(nats)}"
            raise ArtifactError(msg)
        if not bool(torch.isfinite(nats).all()):
            msg = f"{split}: expected finite nats, got {int((~torch.isfinite(nats)).sum())} of {len(nats)} not finite"
            raise ArtifactError(msg)
        parts = nats.double().split((sizes + 1).tolist())
        notes = torch.stack([part[:-1].sum() for part in parts])  # nats of the notes of each piece, (N,)
        whole = torch.stack([part.sum() for part in parts])
        count, voices = len(pieces), pieces.size(2)
        found: dict[str, float] = {  # by template
            "{split}_pieces": count,
            "{split}_notes": int(sizes.sum()),
            "{split}_nats_a_note": float(notes.sum() / sizes.sum()),
            "{split}_nats_a_frame": voices * float(notes.sum() / sizes.sum()),
            "{split}_nats_a_chorale": float(whole.mean()),
            "{split}_copy_nats_a_note": score_copying(evidence.pieces["train"], pieces),
        }
        if count > 1:
            found["{split}_nats_a_note_se"] = estimate_error(notes, sizes)
            found["{split}_nats_a_chorale_se"] = estimate_error(whole, torch.ones_like(sizes))
        values |= {fill_name(VALUES, template, split=split): [value] for template, value in found.items()}
    return values


def estimate_error(nats: Tensor, counts: Tensor) -> float:
    """Return the standard error of sum(nats) / sum(counts) over pieces (N,) that are drawn independently.

    This is the linearised error of a ratio of sums (Cochran 1977, section 2.11), which a bootstrap over pieces would
    give as well. Notes of one piece are alike, so an error over notes would be too small.
    """
    rest = nats - nats.sum() / counts.sum() * counts  # (N,)
    number = len(nats)
    return float((number / (number - 1) * rest.square().sum()).sqrt() / counts.sum())


def score_copying(train: Tensor, pieces: Tensor) -> float:
    """Return the nats per note of pieces uint8 (N, F, V) under a predictor that is fitted on training pieces.

    In each voice it repeats the last note with a probability p, and else draws another one by the voice's pitches; so
    it does for a piece's first note, with nothing to repeat. Each probability is a share of the training pieces, with
    one count added for each of its outcomes.
    """
    total, count = 0.0, 0
    for voice in range(train.size(2)):
        known, line = train[..., voice].long(), pieces[..., voice].long()  # (N, F)
        shares = known[known != END].bincount(minlength=END).double() + 1
        shares /= shares.sum()
        same, inside = known[:, 1:] == known[:, :-1], known[:, 1:] != END
        repeats = (float((same & inside).sum()) + 1) / (float(inside.sum()) + 2)
        begins = line[:, 0]
        last, now = line[:, :-1], line[:, 1:]
        last, now = last[now != END], now[now != END]  # (T,)
        other = shares[now] / (1 - shares[last]) * (1 - repeats)
        chances = torch.where(now == last, torch.full_like(other, repeats), other)
        total -= float(chances.log().sum() + shares[begins].log().sum())
        count += len(now) + len(begins)
    return total / count
