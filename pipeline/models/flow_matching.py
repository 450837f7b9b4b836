"""Flow matching (Lipman et al. 2023; Liu et al. 2023, "rectified flow") of any kind of data that has a backbone.

Run with `dvc repro train@<run>`. A network learns the velocity dx/dt = E[x1 - x0 | x] that carries noise x0 at time 0
to data x1 at time 1, on the straight lines x = (1 - t) x0 + t x1. Times are logit-normal (Esser et al. 2024). Labels
are dropped in a share of the examples, for guidance (Ho and Salimans 2022). `objective: shortcut` also learns mean
velocities over spans of time, so that one step makes a sample (Frans et al. 2025, "shortcut models"); it may start from
a run that has learnt velocities. The likelihood is that of the flow's differential equation: layers/ode.py.

Departures: grey levels are dequantised in the training too; a share of the times is close to the data, where the
likelihood is decided; the shortest spans may be learnt from guided velocities, besides guidance when sampling.

Dimensions: B batch, C H W image, D dimensions of a value.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields, find_field
from pipeline.layers.ode import EXACT, draw_probes, find_log_density, integrate, to_time
from pipeline.models import OneNetwork, OneNetworkConfig, require_shift
from pipeline.randomness import normal

BACKBONE = ("CELL", "find_shape", "from_continuous", "make_velocity", "require_velocity", "to_continuous")
LEARNS = plugins.find_providers("backbones", BACKBONE)
SPANS = (1.0, 0.5, 0.25, 0.125)  # that shortcuts are learnt of
TOGETHER = 100  # values that are scored in one pass
VALIDATED = 500  # examples of a preview's loss
COMPLETING_STEPS, COMPLETING_REPEATS = 16, 4


class Config(OneNetworkConfig):
    """Hyper-parameters of the flow."""

    backbone: Literal["unet", "dit", "perceptron"] = Field(
        description="network: unet or dit, a transformer for GPUs, of images and sound; perceptron of points"
    )
    width: int = Field(ge=1, description="channels of a unet next to its patches; units of dit and perceptron")
    blocks: int = Field(ge=1, description="blocks of a unet in its middle; layers of the others")
    conditional: bool = Field(description="give the class to the network")
    label_dropout: float = Field(ge=0, lt=1, description="share of the examples that are learnt without their label")
    objective: Literal["velocity", "shortcut"] = Field(
        description="what is learnt: velocities, or mean velocities over spans too, for samples in 1, 2, 4 or 8 steps"
    )
    shortcut_share: float = Field(
        default=0.5, gt=0, lt=1, description="share of the examples of a shortcut that have a span"
    )
    shortcut_guidance: float = Field(
        default=1.0, ge=0, description="weight of the class in the velocities that the shortest spans are learnt from"
    )
    times: Literal["logit_normal", "uniform"] = Field(description="distribution of the times in [0, 1]")
    late_share: float = Field(
        ge=0, le=1, description="share of the times that are close to the data instead, for the likelihood"
    )
    guidance: float = Field(ge=0, description="weight of the class when sampling; 1: as learnt, above: more typical")
    shift: int = Field(
        default=0,
        ge=0,
        exclude_if=lambda most: not most,
        description="largest random shift of a training example: pixels of an image, samples of a clip",
    )
    sampler: Literal["euler", "heun"] = Field(description="solver of the samples; heun takes two evaluations per step")
    sampling_steps: int = Field(ge=1, description="steps from noise to sample; few need objective shortcut")
    likelihood_steps: int = Field(
        ge=1, description="steps of the likelihood, of four evaluations each; it is computed with twice as many, too"
    )

    @model_validator(mode="after")
    def _check(self) -> "Config":
        is_guided = self.guidance != 1 or self.shortcut_guidance != 1
        if not self.conditional and (self.label_dropout or is_guided):
            msg = "label_dropout and guidance are about classes: with conditional false they must be 0 and 1"
            raise ValueError(msg)
        if is_guided and not self.label_dropout:
            msg = "guidance needs what is learnt without labels: set label_dropout above 0, or guidance 1"
            raise ValueError(msg)
        if self.objective == "shortcut" and 1 / self.sampling_steps not in SPANS:
            msg = f"sampling_steps: expected 1, 2, 4 or 8 with objective shortcut, got {self.sampling_steps}"
            raise ValueError(msg)
        return self


def describe_scores(config: Config) -> dict[str, Any]:
    """Return what the scores are of, for the protocol; `levels` is equal for all models of such probabilities."""
    given = ", given the class" if config.conditional else ""
    return {
        "of": f"density of the flow on dequantised grey levels{given}",
        "levels": f"256 grey levels{given}",
        "evaluations": 8 * config.likelihood_steps,
    }


def require(config: Config, fields: Fields) -> None:
    """Refuse data that the config does not fit.

    Raises:
        ArtifactError: if a conditional model gets no labels, or the network does not fit the values.
    """
    spec = fields[find_field(fields, LEARNS)]
    if config.conditional and ("labels" not in fields or not fields["labels"].classes):
        msg = "conditional true needs labels, and the data have none: "
        msg += "set conditional false, label_dropout 0 and guidance 1"
        raise ArtifactError(msg)
    backbone = plugins.load("backbones", spec.kind)
    require_shift(config.shift, backbone, spec)
    backbone.require_velocity(config.backbone, config.width, spec)


def find_latent(model: Any) -> tuple[int, ...]:
    """Return the shape of a latent, which is the noise that a value is carried from."""
    shape: tuple[int, ...] = model.backbone.find_shape(model.spec)
    return shape


@torch.inference_mode()
def decode(model: Any, latents: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Return the values of standard normal noise (N, ...), such as images uint8 (N, C, H, W), as `sample` draws them.

    given: labels int64 (N,) when conditional.
    """
    labels = given["labels"].to(model.device) if model.config.conditional else None
    values: Tensor = model.carry(model.kept.eval(), latents, labels)
    return values


class Model(OneNetwork):
    """Trains the network on velocities or mean velocities; the kept one is the average."""

    def build(self, fields: Fields) -> nn.Module:
        """Return the network for data of these fields."""
        config, spec = self.config, fields[self.makes]
        require(config, fields)
        self.spec, self.backbone = spec, plugins.load("backbones", spec.kind)
        self.given = ("labels",) if config.conditional else ()
        self.classes = fields["labels"].classes if config.conditional else 0
        network: nn.Module = self.backbone.make_velocity(
            config.backbone, config.width, config.blocks, spec, self.classes
        )
        return network

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the times of training examples in [0, 1), (B,)."""
        numbers = torch.rand(2, count, generator=generator, device=generator.device)
        times = normal(count, generator=generator).sigmoid() if self.config.times == "logit_normal" else numbers[0]
        return torch.where(numbers[1] < self.config.late_share, to_time(numbers[0]), times)

    def compute_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the velocity or mean velocity, over a batch of stored values and labels."""
        config = self.config
        stored = batch[self.makes]
        if config.shift:
            stored = self.backbone.shift(stored, config.shift, generator)
        data = self.backbone.to_continuous(stored, self.spec, generator)  # (B, ...)
        labels = self._take_labels(batch)
        times, noise = self.draw_times(len(data), generator), normal(*data.shape, generator=generator)
        if labels is not None:
            dropped = torch.rand(len(data), generator=generator, device=data.device) < config.label_dropout
            labels = torch.where(dropped, self.classes, labels)
        x, velocity = torch.lerp(noise, data, _fit(times, data)), data - noise
        spans = torch.zeros_like(times)
        if config.objective == "shortcut":
            count = max(1, round(config.shortcut_share * len(data)))
            own = None if labels is None else labels[:count]
            spans[:count], times[:count] = self.draw_spans(count, generator)
            x[:count] = torch.lerp(noise[:count], data[:count], _fit(times[:count], data))
            velocity[:count] = self.find_shortcut(x[:count], times[:count], spans[:count], own)
        return F.mse_loss(self.network(x, times, spans, labels), velocity)

    def draw_spans(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw spans of SPANS and the times at which they begin, multiples of the span, (B,) each."""
        numbers = torch.rand(2, count, generator=generator, device=generator.device)
        spans = torch.tensor(SPANS, device=generator.device)[(numbers[0] * len(SPANS)).long()]
        return spans, spans * (numbers[1] / spans).floor()

    @torch.no_grad()
    def find_shortcut(self, x: Tensor, times: Tensor, spans: Tensor, labels: Tensor | None) -> Tensor:
        """Return what the mean velocity over spans from times (B,) at x (B, ...) shall be: that of two half spans.

        The kept network makes them. Halves of the shortest span are steps of its velocity, guided by shortcut_guidance.
        """
        shortest = spans == SPANS[-1]
        halves = torch.where(shortest, 0.0, spans / 2)
        weight = torch.where(shortest, self.config.shortcut_guidance, 1.0)
        first = self.guide(self.kept, x, times, halves, labels, weight)
        later = x + _fit(spans / 2, x) * first
        return (first + self.guide(self.kept, later, times + spans / 2, halves, labels, weight)) / 2

    def _take_labels(self, values: Mapping[str, Tensor]) -> Tensor | None:
        return values["labels"].to(self.device) if self.config.conditional else None

    def draw(self, network: nn.Module, count: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
        """Return `count` samples of a network, by the config's sampler, steps and guidance."""
        shape = self.backbone.find_shape(self.spec)
        return self.carry(network, normal(count, *shape, generator=generator), self._take_labels(given))

    def carry(self, network: nn.Module, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Carry noise (B, ...) to values like the data."""
        config, x = self.config, noise
        times = torch.linspace(0, 1, config.sampling_steps + 1, dtype=torch.float64).tolist()
        is_shortcut = config.objective == "shortcut"
        span = 1 / config.sampling_steps if is_shortcut else 0.0
        weight = torch.full((len(x),), config.guidance, device=x.device)

        def rate(state: Tensor, time: float) -> Tensor:
            at = torch.full((len(state),), time, device=state.device)
            return self.guide(network, state, at, torch.full_like(at, span), labels, weight)

        # No velocity is learnt at time 1, where the last step of heun would end.
        x = integrate(rate, x, times[:-1], "euler" if is_shortcut else config.sampler)
        return self.backbone.from_continuous(integrate(rate, x, times[-2:], "euler"), self.spec)

    @torch.inference_mode()
    def complete(self, images: Tensor, known: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> Tensor:
        """Keep the upper `known` rows of uint8 images (N, C, H, W) and draw the others, given them and the class.

        Velocities carry noise to data in COMPLETING_STEPS Euler steps. Before each step, the known rows are put on
        their own line from noise to data. A step is made COMPLETING_REPEATS times, from noise that is added again, so
        that the other rows come to fit the known ones (Lugmayr et al. 2022, "RePaint").

        given: labels int64 (N,) of a conditional model; without them, the class is left open.

        Raises:
            ValueError: if the rows are not some of the image's.
            ArtifactError: if labels are needed, because nothing has been learnt without them.
        """
        if not 0 <= known < images.size(2):
            msg = f"known: expected rows below {images.size(2)}, got {known}"
            raise ValueError(msg)
        config, network = self.config, self.kept.eval()
        data = self.backbone.to_continuous(images.to(self.device), self.spec, generator)
        is_open = config.conditional and "labels" not in given
        if is_open and not config.label_dropout:
            msg = "expected a class, as label_dropout 0 leaves nothing to learn without one"
            raise ArtifactError(msg)
        labels = torch.full((len(data),), self.classes, device=self.device) if is_open else self._take_labels(given)
        weight = torch.full((len(data),), 1.0 if is_open else config.guidance, device=self.device)
        x = normal(*data.shape, generator=generator)
        for start, end in pairwise(torch.linspace(0, 1, COMPLETING_STEPS + 1, dtype=torch.float64).tolist()):
            at = torch.full_like(weight, start)
            for repeat in range(COMPLETING_REPEATS if start else 1):  # at time 0 all is noise
                if repeat:
                    x = turn_back(x, end, start, normal(*data.shape, generator=generator))
                line = torch.lerp(normal(*data.shape, generator=generator), data, start)
                x = torch.cat([line[:, :, :known], x[:, :, known:]], dim=2)
                x = x + (end - start) * self.guide(network, x, at, torch.zeros_like(at), labels, weight)
        drawn = self.backbone.from_continuous(x, self.spec)
        return torch.cat([images.to(self.device)[:, :, :known], drawn[:, :, known:]], dim=2)

    def guide(
        self, network: nn.Module, x: Tensor, times: Tensor, spans: Tensor, labels: Tensor | None, weight: Tensor
    ) -> Tensor:
        """Return guided velocities v0 + w (v - v0) at values x (B, ...), with v0 without labels and weights w (B,)."""
        velocity: Tensor = network(x, times, spans, labels)
        rows = (weight != 1).nonzero().squeeze(1)
        if labels is None or not len(rows):
            return velocity
        without = network(x[rows], times[rows], spans[rows], torch.full_like(labels[rows], self.classes))
        guided = without + _fit(weight[rows], x) * (velocity[rows] - without)
        return velocity.index_copy(0, rows, guided.to(velocity.dtype))  # under autocast, the weights are float32

    @torch.inference_mode()
    def validate(self, values: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, float]:
        """Return the loss of the kept network's velocities on held-out values, for previews."""
        network = self.kept.eval()
        data = self.backbone.to_continuous(values[self.makes][:VALIDATED].to(self.device), self.spec, generator)
        labels = self._take_labels({name: each[:VALIDATED] for name, each in values.items()})
        times, noise = self.draw_times(len(data), generator), normal(*data.shape, generator=generator)
        x = torch.lerp(noise, data, _fit(times, data))
        return {"validation_loss": float(F.mse_loss(network(x, times, torch.zeros_like(times), labels), data - noise))}

    def find_log_density(self, values: Tensor, labels: Tensor | None, steps: int, probes: Tensor | None) -> Tensor:
        """Return log p in nats of continuous values (B, ...), float64 (B,), given the class when conditional."""
        network = self.kept.eval()
        return find_log_density(
            lambda x, times: network(x, times, torch.zeros_like(times), labels), values, steps, probes
        )

    def score_levels(
        self, values: Tensor, generator: torch.Generator, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Score held-out uint8 images (N, C, H, W), with labels int64 (N,) if conditional.

        Returns:
            bits_per_dim: bound of the bits per dimension of the grey levels, float64 (N,); levels_nats: the same in
            nats per image; bits_per_dim_change: how much twice as many evaluations have changed the bits.

        Raises:
            ArtifactError: if the backbone says that its values have no cells.
        """
        if not self.backbone.CELL:
            msg = f"bits per dimension are of values that are rounded, and {self.spec.kind} has no such values"
            raise ArtifactError(msg)
        dimensions = math.prod(self.backbone.find_shape(self.spec))
        data = self.backbone.to_continuous(values.to(self.device), self.spec, generator)
        probes = draw_probes(data.shape, generator) if dimensions > EXACT else None
        labels, steps = self._take_labels(given), self.config.likelihood_steps
        found: dict[int, list[Tensor]] = {steps: [], 2 * steps: []}
        for part in torch.arange(len(data), device=self.device).split(TOGETHER):
            own, probe = None if labels is None else labels[part], None if probes is None else probes[part]
            for count, densities in found.items():
                densities.append(self.find_log_density(data[part], own, count, probe))
        coarse, fine = (to_bits(torch.cat(densities), dimensions, self.backbone.CELL) for densities in found.values())
        return {
            "bits_per_dim": fine,
            "levels_nats": fine * dimensions * math.log(2),
            "bits_per_dim_change": fine - coarse,
        }


def turn_back(x: Tensor, time: float, earlier: float, noise: Tensor) -> Tensor:
    """Return values at an earlier time of values x at a time above 0, by adding standard normal noise of their shape.

    Of x = (1 - t) n + t d with noise n and data d, it makes (1 - s) n' + s d with noise n' that is standard normal too.
    """
    share = earlier / time
    return share * x + math.sqrt((1 - earlier) ** 2 - (share * (1 - time)) ** 2) * noise


def to_bits(log_density: Tensor, dimensions: int, width: float) -> Tensor:
    """Return the bits per dimension of cells of a width, which a log-density in nats of D dimensions gives (bounds)."""
    return -log_density / (dimensions * math.log(2)) - math.log2(width)


def _fit(times: Tensor, values: Tensor) -> Tensor:
    """Return times (B,) in a shape that multiplies values (B, ...)."""
    return times.view(-1, *[1] * (values.ndim - 1))
