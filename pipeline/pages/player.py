"""Plays with the model of a run: samples by seed and class, walks between two of them, texts, nearest training data."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import artifacts, plugins
from pipeline.evidence.copying import nearness
from pipeline.evidence.features import extract
from pipeline.evidence.looks import decode, draw_latent, find_decoder, walk
from pipeline.kinds import Exhibit
from pipeline.params import NONE, Params
from pipeline.randomness import make_generator
from pipeline.weights import Loaded, choose_device, load_model

COUNT = 12  # samples of a gallery
PIECE, PIECES = 24, 12  # tokens of a text that are sent at once, and pieces of a text
ADJUSTED = ("prompt", "temperature", "top_p")  # keys of the metric's sampling that a page may change


class Choice(NamedTuple):
    """A field that a model is given: its name, and the values that it may have, each with its label."""

    name: str
    values: list[tuple[int, str]]


class Player:
    """A loaded model, and what it can do. Equal arguments give equal answers."""

    def __init__(self, name: str, settings: Params) -> None:
        self.name, self.settings, self.run = name, settings, settings.runs[name]
        self.loaded: Loaded = load_model(artifacts.RUNS / name / "model")
        self.sampling = settings.metrics[self.run.metric].sampling
        self.decoder = find_decoder(self.run.model)
        self.together = getattr(self.loaded.kind, "TOGETHER", 0)

    @property
    def writes(self) -> bool:
        """Whether the samples are texts, which grow piece by piece."""
        return hasattr(self.loaded.kind, "stream")

    @property
    def walks(self) -> bool:
        """Whether there is a way between two samples."""
        return self.decoder is not None and not self.together

    @property
    def compares(self) -> bool:
        """Whether a feature network can find the nearest training example of a sample."""
        return self.run.network != NONE and not self.together

    @property
    def adjusted(self) -> dict[str, Any]:
        """The settings of sampling that a page may change, with their values."""
        return {key: getattr(self.sampling, key) for key in ADJUSTED if hasattr(self.sampling, key)}

    @cached_property
    def choices(self) -> list[Choice]:
        """The fields that the model is given, of those that have a few values."""
        names = artifacts.read_manifest(self.run.data).get("classes") or []
        return [
            Choice(field, [(value, names[value] if value < len(names) else str(value)) for value in values.tolist()])
            for field, values in self.loaded.pool.values.items()
            if values.ndim == 1 and not values.is_floating_point()
        ]

    def give(self, chosen: Mapping[str, int]) -> Loaded:
        """Return the model with a pool that holds only the chosen values.

        Raises:
            ArtifactError: if the training data had no such value.
        """
        pool = self.loaded.pool
        for name, value in chosen.items():
            pool = pool.keep(name, value)
        return replace(self.loaded, pool=pool)

    def sample(self, seed: int, chosen: Mapping[str, int]) -> Tensor:
        """Return the samples of a gallery."""
        loaded = self.give(chosen)
        given = loaded.pool.draw(self.together or COUNT, make_generator(seed, "given"))
        generator = make_generator(seed, "show", device=loaded.model.device)
        if hasattr(loaded.kind, "compose"):
            composed: Tensor = loaded.kind.compose(loaded, COUNT, generator, self.sampling)
            return composed
        return loaded.sample(self.together or COUNT, generator, given)

    def show(self, name: str, values: Tensor) -> list[list[Exhibit]]:
        """Return the exhibits of each value, or those of all where a single one shows nothing."""
        kind = self.loaded.kind
        shows = [kind.show, *([kind.picture] if hasattr(kind, "picture") else [])]
        parts = [values] if self.together else values.split(1)
        return [[each(name, part, self.loaded) for each in shows] for part in parts]

    def walk(self, first: int, last: int, place: float, chosen: Mapping[str, int]) -> list[Exhibit]:
        """Show the value at a place, 0 to 1, on the way from the sample of one seed to that of another."""
        assert self.decoder is not None
        given = self.give(chosen).pool.draw(1, make_generator(first, "given"))
        begin, end = (draw_latent(self.loaded, self.decoder, seed) for seed in (first, last))
        values = decode(self.loaded, self.decoder, walk(begin, end, torch.tensor([place])), given)
        return self.show("walk", values)[0]

    def write(self, seed: int, adjusted: Mapping[str, Any]) -> Iterator[str]:
        """Return the pieces of a text, the prompt first.

        Raises:
            ArtifactError: if the model cannot read the prompt.
        """
        sampling = self.sampling.model_copy(update=dict(adjusted))
        generator = make_generator(seed, "show", device=self.loaded.model.device)
        pieces: Iterator[str] = self.loaded.kind.stream(self.loaded, generator, sampling, PIECE, PIECES)
        return pieces

    def find_nearest(self, sample: Tensor) -> tuple[list[Exhibit], float]:
        """Show the training example nearest to a sample (1, ...), and return how near it is: 0 for a copy."""
        near = nearness(extract(self.extractor, sample).features, self.features)
        [exhibits] = self.show("nearest", self.train[near.indices])
        return exhibits, float(near.values[0])

    @cached_property
    def extractor(self) -> Any:
        """The run's feature network."""
        module = plugins.load("networks", self.settings.networks[self.run.network].network)
        return module.load_features(artifacts.NETWORKS / self.run.network).to(choose_device())

    @cached_property
    def train(self) -> Tensor:
        """The training examples, (N, ...)."""
        return artifacts.read_split(self.run.data, "train")[self.loaded.model.makes]

    @cached_property
    def features(self) -> Tensor:
        """Their features, (N, D)."""
        return extract(self.extractor, self.train).features
