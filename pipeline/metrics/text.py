"""How well a language model predicts held-out text: nats, bits and perplexity, over whole splits.

Every target counts exactly once; sums are float64 of cross-entropies, never softmax and then log. Bits per character
and per byte divide the same sum by the text's length, so that they compare across tokenizers; perplexity does not.
Perplexity a word does: it is that of word-level papers, which count each line end as a word too.

A character that the tokenizer cannot write costs one token like any other: the text that is scored has less content
than the split. Values per character, byte or word are therefore not reliable with a single one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.evidence.values import Value, fill_name
from pipeline.kinds import text as text_kind
from pipeline.params import Known, Measure, Params, Section

KIND = "text"
BLOCKS = 100
LEAST = 2  # tokens of a split
LONGEST = 100.0  # nats a word: a text that costs more, such as a chain of letters without blanks, has no words
SPLITS = ("validation", "test")
NUMBERS = "logits float32, sums of nats float64"
# Fields of the protocol: of numbers per token, of numbers per character, byte or word, and of random windows.
SCORED = ("scores", "numbers")
TOKENS = (*SCORED, "metric.sampling.stride", "reference.sha256.{split}")
CONTENT = (*SCORED, "metric.sampling.stride", "reference.content.{split}")
WINDOWS = (*SCORED, "metric.sampling.random_windows", "reference.sha256.{split}")


def scale_value(value: float, ratio: float) -> float:
    """Return bits after the nats have become `ratio` times as many: bits = c nats."""
    return value * ratio


def raise_value(value: float, ratio: float) -> float:
    """Return a perplexity after the nats have become `ratio` times as many: exp(c nats)."""
    return value**ratio


def scale_excess(value: float, ratio: float) -> float:
    """Return the excess after the nats have become `ratio` times as many: 100 (c nats / rate - 1).

    The split's own true cost stands for the entropy rate, which is not among the values.
    """
    return (100 + value) * ratio - 100


UNKNOWN = "{split}_unknown_characters"


def _follow(
    rescale: Callable[[float, float], float], depends: tuple[str, ...], spoiled_by: str = UNKNOWN, **others: Any
) -> Value:
    """Declare a function of a split's nats."""
    return Value(
        direction="lower",
        counts="{split}_targets",
        follows="{split}_nats",
        rescale=rescale,
        depends=depends,
        spoiled_by=spoiled_by,
        **others,
    )


def _nats(counts: str, depends: tuple[str, ...], **others: Any) -> Value:
    """Declare a mean over targets or windows."""
    return Value(direction="lower", unit="nats per token", counts=counts, depends=depends, **others)


VALUES = {
    "{split}_bits_per_character": _follow(scale_value, CONTENT, unit="bits per character", headline=True),
    "{split}_nats": _nats("{split}_targets", TOKENS, headline=True),
    "{split}_perplexity": _follow(raise_value, TOKENS, "", unit="per token", headline=True),
    "{split}_bits_per_byte": _follow(scale_value, CONTENT, unit="bits per byte"),
    "{split}_perplexity_per_word": _follow(raise_value, CONTENT, unit="per word"),
    "{split}_excess_percent": _follow(scale_excess, CONTENT, unit="% of the entropy rate"),
    "{split}_window_nats": _nats("{split}_windows", WINDOWS),
    "{split}_targets": Value(role="count", unit="targets"),
    UNKNOWN: Value(role="count", unit="unknown characters"),
    "{split}_windows": Value(role="count", unit="windows"),
    "{split}_nats_se": Value(
        role="error",
        of="{split}_nats",
        unit="nats per token",
        over=f"{BLOCKS} contiguous blocks of the text",
        depends=TOKENS,
    ),
    "{split}_window_nats_se": Value(
        role="error", of="{split}_window_nats", unit="nats per token", over="the random windows", depends=WINDOWS
    ),
}


class Sampling(Section):
    """What the stage `sample` draws."""

    count: int = Field(ge=1, description="texts")
    length: int = Field(ge=1, description="tokens per text, after the prompt")
    prompt: str = Field(
        min_length=1,
        description="text that the samples continue; a line end is any text's, see docs/metrics.md",
    )
    temperature: float = Field(ge=0, description="divides the logits; 0 takes the most likely token")
    top_k: int = Field(ge=0, description="most likely tokens kept; 0 keeps all")
    top_p: float = Field(gt=0, le=1, description="probability mass kept; 1 keeps all")
    stride: float = Field(gt=0, le=1, description="step of the scoring windows, as a share of the context; 1: disjoint")
    random_windows: int = Field(
        ge=0, description="windows of the context's length at random places, scored besides, as nanoGPT does; 0: none"
    )


class Config(Measure):
    """How the text is sampled and scored."""

    sampling: Sampling


@dataclass(frozen=True)
class Evidence:
    """Nats of each target by split, float64 (N,); the manifest's entry of the split, with its counts.

    known: of a synthetic source, `entropy_rate_nats` a character, and `<split>_nats`, what the true model pays there.
    windows: mean nats of each random window by split, float64 (W,).
    """

    nats: Mapping[str, Tensor]
    sizes: Mapping[str, Mapping[str, int]]
    known: Mapping[str, float] = field(default_factory=dict)
    windows: Mapping[str, Tensor] = field(default_factory=dict)


def gather(key: str, settings: Params, circumstances: Mapping[str, Any]) -> Evidence:
    """Read the nats of every target and the sizes of the splits."""
    del circumstances
    folder = artifacts.RUNS / key / "samples"
    manifest = artifacts.read_manifest(settings.runs[key].data)
    windows = folder / "windows.safetensors"
    return Evidence(
        artifacts.read_tensors(folder / "nats.safetensors"),
        manifest["splits"],
        manifest["known"],
        artifacts.read_tensors(windows) if windows.exists() else {},
    )


def require(key: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Refuse held-out text without a target, or shorter than a random window, and a prompt that the text lacks.

    Raises:
        ArtifactError: with the key to change.
    """
    run = settings.runs[key]
    sampling = cast("Config", settings.metrics[run.metric]).sampling
    windows = sampling.random_windows
    context = getattr(settings.models[key], "context", 0)
    for split in (name for name in SPLITS if name in known[run.data].splits):
        tokens = known[run.data].splits[split]["tokens"]
        if tokens < LEAST:
            msg = f"data.{run.data}.{split}: the {split} split has {tokens} tokens, expected {LEAST} or more, one to "
            raise ArtifactError(msg + "predict from another; raise the share, or bring more text")
        if windows and tokens <= context:
            name = "metrics.text.sampling.random_windows"
            msg = f"{name}: the {split} split has {tokens} tokens, expected more than the context of {context}; "
            raise ArtifactError(msg + f"0 would do, or a context of {tokens - 1}")
    if known[run.data].splits:
        text_kind.require_prompt(run.data, sampling.prompt)


def compute(evidence: Evidence, config: Config) -> dict[str, list[float]]:
    """Return the metrics of each split, one value each: scoring draws nothing.

    Raises:
        ArtifactError: if a split has no target, a nat is not finite, or targets are missing or counted twice.
    """
    del config
    values: dict[str, list[float]] = {}
    for split, nats in evidence.nats.items():
        sizes = evidence.sizes[split]
        if not len(nats) or not bool(torch.isfinite(nats).all()):
            msg = f"{split}: expected finite nats, got {int((~torch.isfinite(nats)).sum())} of {len(nats)} not finite"
            raise ArtifactError(msg)
        if len(nats) != sizes["tokens"] - 1:
            msg = f"{split}: expected {sizes['tokens'] - 1} targets, each once, got {len(nats)}"
            raise ArtifactError(msg)
        total, mean = float(nats.double().sum()), float(nats.double().mean())
        found: dict[str, float] = {  # by template
            "{split}_targets": len(nats),
            UNKNOWN: sizes["unknown_characters"],
            "{split}_nats": mean,
            "{split}_perplexity": math.exp(mean),
        }
        # The first token has no prediction: its share of the text is left out of the length, too.
        share = len(nats) / sizes["tokens"]
        found["{split}_bits_per_character"] = total / math.log(2) / (sizes["characters"] * share)
        found["{split}_bits_per_byte"] = total / math.log(2) / (sizes["bytes"] * share)
        words = sizes.get("words", 0) * share
        if total < LONGEST * words:
            found["{split}_perplexity_per_word"] = math.exp(total / words)
        if f"{split}_nats" in evidence.known:
            excess = total / (sizes["characters"] * share) - evidence.known[f"{split}_nats"]
            found["{split}_excess_percent"] = 100 * excess / evidence.known["entropy_rate_nats"]
        if len(nats) >= 2 * BLOCKS:
            found["{split}_nats_se"] = estimate_error(nats)
        windows = evidence.windows.get(split, torch.empty(0))
        if len(windows):  # the protocol of nanoGPT's figures, only for comparison: targets count by chance
            found["{split}_windows"] = len(windows)
            found["{split}_window_nats"] = float(windows.double().mean())
            if len(windows) > 1:  # they are drawn independently
                found["{split}_window_nats_se"] = float(windows.double().std() / len(windows) ** 0.5)
        values |= {fill_name(VALUES, template, split=split): [value] for template, value in found.items()}
    return values


def estimate_error(nats: Tensor) -> float:
    """Return the standard error of the mean of nats (N,) from the means of contiguous blocks (batch means).

    Neighbouring targets are alike, so that the plain standard error would be too small; blocks of a hundredth of the
    text are nearly independent.
    """
    size = len(nats) // BLOCKS
    means = nats.double()[: size * BLOCKS].view(BLOCKS, size).mean(dim=1)
    return float(means.std() / BLOCKS**0.5)
