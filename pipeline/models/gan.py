"""Generative adversarial network (Goodfellow et al. 2014) of any kind of data that has a backbone.

Run with `dvc repro train@gan`. Images, and sound as spectra, get the convolutions of DCGAN (Radford et al. 2016),
points get perceptrons: pipeline/backbones/<kind>.py. For 28x28x1: z (100) -> dense 7x7x128 -> two stride-2 transposed
5x5 convolutions -> tanh, or, with full_width, one more convolution after features at full resolution; the discriminator
is three stride-2 4x4 convolutions. Departures: no batch norm in the discriminator (penalties and relativistic pairing
need per-image gradients), generator weights averaged, the loss chosen in params. The generator's relativistic loss
(R3GAN) takes the logits that the real images had before the discriminator's update, not after it, which saves one pass.

Dimensions: B batch, C H W image, Z latent.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields, find_field
from pipeline.layers.augmentation import AdaptiveAugmentation, pick_augmentation
from pipeline.layers.blocks import make_average, warmup_cosine
from pipeline.models import require_shift
from pipeline.params import Trainable
from pipeline.randomness import Part, make_generator, normal, seeded, share, this_part

BACKBONE = ("PICTORIAL", "from_unit", "make_discriminator", "make_generator", "require_generator", "to_unit")
LEARNS = plugins.find_providers("backbones", BACKBONE)


class Config(Trainable):
    """Hyper-parameters of the GAN."""

    latent: int = Field(ge=1, description="width Z of the normal latent vector")
    generator_width: int = Field(
        ge=1, description="channels next to the image, doubled at each halving of its side; units per layer for points"
    )
    discriminator_width: int = Field(ge=1, description="the same for the discriminator")
    full_width: int = Field(
        default=0, ge=0, description="generator's channels at full resolution, before a last 3x3 convolution; 0: none"
    )
    conditional: bool = Field(description="give the class to generator and discriminator")
    flip: bool = Field(description="mirror half of the real images, left to right")
    augment: list[Literal["translation", "cutout", "colour", "affine"]] = Field(
        description="differentiable augmentation of what the discriminator sees, real and generated"
    )
    augment_target: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        exclude_if=lambda target: not target,
        description="overfitting of the discriminator that the augmentation's probability keeps, 0.6 in ADA; 0: always",
    )
    augment_images: int = Field(
        default=500_000,
        ge=1,
        exclude_if=lambda images: images == 500_000,
        description="real images over which that probability rises from 0 to 1 at most",
    )
    shift: int = Field(
        default=0,
        ge=0,
        exclude_if=lambda most: not most,
        description="largest random shift of a training example: pixels of an image, samples of a clip",
    )
    spectral_norm: bool = Field(description="divide each discriminator weight by its largest singular value")
    loss: Literal["non_saturating", "minimax", "least_squares", "hinge", "wasserstein", "relativistic"] = Field(
        description="adversarial loss"
    )
    gradient_penalty: float = Field(ge=0, description="weight of (|gradient| - 1)^2 between real and fake (WGAN-GP)")
    r1: float = Field(ge=0, description="gamma of gamma / 2 |gradient|^2 at real images")
    r2: float = Field(ge=0, description="gamma of gamma / 2 |gradient|^2 at generated images")
    final_penalty: float = Field(gt=0, le=1, description="share of r1 and r2 reached by the cosine's end (R3GAN)")
    penalty_every: int = Field(ge=1, description="steps between penalties, which are scaled up to make up for it")
    discriminator_steps: int = Field(ge=1, description="discriminator updates per generator update")
    steps: int = Field(ge=0, description="generator updates; 0 keeps the weights of a start as they are")
    batch_size: int = Field(ge=2, description="images per step, over all processes")
    generator_learning_rate: float = Field(gt=0, description="peak learning rate of Adam")
    discriminator_learning_rate: float = Field(gt=0, description="peak learning rate of Adam")
    beta1: float = Field(ge=0, lt=1, description="Adam's first decay")
    beta2: float = Field(ge=0, lt=1, description="Adam's second decay")
    final_learning_rate: float = Field(ge=0, le=1, description="share of the peak reached by the cosine's end")
    ema: float = Field(ge=0, lt=1, description="decay of the averaged generator that is kept; 0 keeps the last")
    latent_scale: float = Field(
        gt=0, description="width of z when sampling; below 1 trades recall for precision (truncation trick)"
    )

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.loss == "wasserstein" and not (self.gradient_penalty or self.spectral_norm):
            msg = "loss wasserstein needs gradient_penalty > 0 or spectral_norm: its critic must be Lipschitz"
            raise ValueError(msg)
        if self.augment_target and not self.augment:
            msg = "augment_target is about the policies of augment, which has none; augment_target must be 0"
            raise ValueError(msg)
        if self.batch_size % self.discriminator_steps:
            msg = "batch_size must be a multiple of discriminator_steps, which share a batch, "
            raise ValueError(msg + f"got {self.batch_size} and {self.discriminator_steps}")
        return self


def require(config: Config, fields: Fields) -> None:
    """Refuse data that the config does not fit.

    Raises:
        ArtifactError: if the values have sides that cannot be halved, are no pictures though the config augments them,
            or have no labels though it is conditional.
    """
    spec = fields[find_field(fields, LEARNS)]
    backbone = plugins.load("backbones", spec.kind)
    if not backbone.PICTORIAL and (config.flip or config.augment or config.full_width):
        msg = "flip, augment and full_width are for images: set flip false, augment [] and full_width 0 for "
        raise ArtifactError(msg + spec.kind)
    if config.conditional and ("labels" not in fields or not fields["labels"].classes):
        msg = "conditional true needs labels, and the data have none: set conditional false"
        raise ArtifactError(msg)
    require_shift(config.shift, backbone, spec)
    backbone.require_generator(spec)


class Generator(nn.Module):
    """Maps z (B, Z) and, when conditional, labels (B,) to values in the backbone's range: images (B, C, H, W), ..."""

    def __init__(self, config: Config, backbone: Any, spec: Any, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, config.latent) if config.conditional else None
        inputs = config.latent * (2 if config.conditional else 1)
        self.layers = backbone.make_generator(spec, inputs, config.generator_width, config.full_width)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return values, such as images (B, C, H, W) in [-1, 1]."""
        return self.layers(z if self.embedding is None else torch.cat([z, self.embedding(labels)], dim=1))


class Discriminator(nn.Module):
    """Maps values in the backbone's range to logits (B,); projects the class embedding (Miyato and Koyama 2018)."""

    def __init__(self, config: Config, backbone: Any, spec: Any, classes: int) -> None:
        super().__init__()
        normalize: Callable[[nn.Module], nn.Module] = spectral_norm if config.spectral_norm else lambda layer: layer
        self.layers, features = backbone.make_discriminator(spec, config.discriminator_width, normalize)
        self.head = normalize(nn.Linear(features, 1))
        self.embedding = normalize(nn.Embedding(classes, features)) if config.conditional else None

    def forward(self, values: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (B,): positive for real."""
        hidden = self.layers(values)
        logits: Tensor = self.head(hidden).squeeze(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * hidden).sum(dim=1) / hidden.size(1) ** 0.5
        return logits


def cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy of the discriminator; it works on logits, so that no sigmoid saturates."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


Loss = Callable[[Tensor, Tensor], Tensor]
# Losses of the discriminator and of the generator, for logits of real and fake images, (B,) each.
LOSSES: dict[str, tuple[Loss, Loss]] = {
    # Goodfellow et al. 2014: the generator maximises E[log D(G(z))], or minimises E[log(1 - D(G(z)))]
    "non_saturating": (cross_entropy, lambda _, fake: F.softplus(-fake).mean()),
    "minimax": (cross_entropy, lambda _, fake: -F.softplus(fake).mean()),
    # Mao et al. 2017, with targets 1 and 0
    "least_squares": (
        lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
        lambda _, fake: 0.5 * (fake - 1).square().mean(),
    ),
    # Lim and Ye 2017
    "hinge": (lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda _, fake: -fake.mean()),
    # Arjovsky et al. 2017
    "wasserstein": (lambda real, fake: fake.mean() - real.mean(), lambda _, fake: -fake.mean()),
    # Jolicoeur-Martineau 2019; Huang et al. 2024, "R3GAN": pairs
    "relativistic": (
        lambda real, fake: F.softplus(fake - real).mean(),
        lambda real, fake: F.softplus(real - fake).mean(),
    ),
}


def gradient_norms(
    discriminator: Callable[[Tensor, Tensor | None], Tensor], images: Tensor, labels: Tensor | None
) -> Tensor:
    """Squared norm of the logit's gradient at each image, (B,), differentiable."""
    images = images.detach().requires_grad_(True)
    logits = discriminator(images, labels)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1)


@torch.inference_mode()
def decode(model: Any, latents: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Return the values of standard normal latents (N, Z), such as images uint8 (N, C, H, W), as `sample` draws them.

    given: labels int64 (N,) when conditional.
    """
    labels = given["labels"].to(model.device) if model.config.conditional else None
    return model.backbone.from_unit(model.kept.eval()(model.config.latent_scale * latents, labels), model.spec)


def find_features(model: Any, values: Tensor) -> Tensor:
    """Return what the discriminator's last layer sees of stored values (N, ...), float32 (N, D)."""
    hidden: Tensor = model.discriminator.layers(model.backbone.to_unit(values, model.spec))
    return hidden


class Model(LightningModule):
    """Trains generator and discriminator by manual optimization; keeps the averaged generator."""

    unkept = ("discriminator",)  # parts that a start gives too, though no sample needs them

    def __init__(self, config: Config, fields: Fields, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.makes = find_field(fields, LEARNS)
        self.given = ("labels",) if config.conditional else ()
        self.spec = fields[self.makes]
        self.backbone = plugins.load("backbones", self.spec.kind)
        require(config, fields)
        classes = fields["labels"].classes if config.conditional else 0
        self.automatic_optimization = False
        self.discriminator_loss, self.generator_loss = LOSSES[config.loss]
        self.augment = (
            AdaptiveAugmentation(config.augment, config.augment_target, config.augment_images)
            if config.augment_target
            else pick_augmentation(config.augment)
        )
        with seeded(seed, "weights"):
            self.generator = Generator(config, self.backbone, self.spec, classes)
            self.discriminator = Discriminator(config, self.backbone, self.spec, classes)
        self.average = make_average(self.generator, config.ema) if config.ema else None

    @property
    def trained(self) -> Generator:
        """The weights that a start gives."""
        return self.generator

    @property
    def kept(self) -> Generator:
        """The weights that are saved and sampled."""
        return self.generator if self.average is None else cast("Generator", self.average.module)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the generator and for the discriminator."""
        betas = (self.config.beta1, self.config.beta2)
        pairs = (
            (self.generator, self.config.generator_learning_rate),
            (self.discriminator, self.config.discriminator_learning_rate),
        )
        return [torch.optim.Adam(part.parameters(), rate, betas, fused=True) for part, rate in pairs]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Update the discriminator on each part of the batch, then the generator; returns detached losses."""
        config = self.config
        generator_optimizer, discriminator_optimizer = self.optimizers()  # type: ignore[attr-defined]
        factor = warmup_cosine(batch_idx, steps=config.steps, warmup=0, final=config.final_learning_rate)
        generator_optimizer.param_groups[0]["lr"] = config.generator_learning_rate * factor
        discriminator_optimizer.param_groups[0]["lr"] = config.discriminator_learning_rate * factor
        part = this_part()
        source = make_generator(self.seed, "noise", batch_idx, 0, device=self.device)

        def draw_latents(count: int) -> Tensor:
            return normal(count, config.latent, generator=source)

        values: dict[str, Tensor] = {}
        stored = batch[self.makes]
        if config.shift:
            source_of_shifts = make_generator(self.seed, "shift", batch_idx, 0, device=self.device)
            stored = self.backbone.shift(stored, config.shift, source_of_shifts, part)
        shown = self.backbone.to_unit(stored, self.spec)
        if config.flip:
            coin = make_generator(self.seed, "flip", batch_idx, 0, device=self.device)
            coins = share(lambda count: torch.rand(count, generator=coin, device=self.device), len(shown), part) < 0.5
            shown = torch.where(coins.view(-1, 1, 1, 1), shown.flip(-1), shown)
        classes = batch["labels"].chunk(config.discriminator_steps) if config.conditional else itertools.repeat(None)
        for real, labels in zip(shown.chunk(config.discriminator_steps), classes, strict=False):
            fake = self.generator(share(draw_latents, len(real), part), labels)
            self.toggle_optimizer(discriminator_optimizer)
            loss, extra = self._discriminator_loss(real, fake.detach(), labels, batch_idx, source, part)
            discriminator_optimizer.zero_grad()
            self.manual_backward(loss)
            discriminator_optimizer.step()
            self.untoggle_optimizer(discriminator_optimizer)
            values |= extra
        # The last fakes, and the logits that the real images had, serve both updates: two passes less.
        self.toggle_optimizer(generator_optimizer)
        loss = self.generator_loss(values.pop("real_logits"), self._judge(fake, labels, source, part))
        generator_optimizer.zero_grad()
        self.manual_backward(loss)
        generator_optimizer.step()
        self.untoggle_optimizer(generator_optimizer)
        if self.average is not None:
            self.average.update_parameters(self.generator)
        if isinstance(self.augment, AdaptiveAugmentation):
            overfitting = 2 * values["discriminator_real_accuracy"] - 1
            if part.world > 1:  # the probability is the same in all processes
                overfitting = self.trainer.strategy.reduce(overfitting, reduce_op="mean")
            values["augment_probability"] = self.augment.adapt(overfitting, len(shown) * part.world)
        return values | {"generator_loss": loss.detach()}

    def _discriminator_loss(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, step: int, source: torch.Generator, part: Part
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config

        def judge(images: Tensor, labels: Tensor | None) -> Tensor:
            return self._judge(images, labels, source, part)

        real_logits = judge(real, labels)
        fake_logits = judge(fake, labels)
        loss = self.discriminator_loss(real_logits, fake_logits)
        values = {
            "real_logits": real_logits.detach(),
            "discriminator_loss": loss.detach(),
            "discriminator_real_accuracy": (real_logits > fake_logits).float().mean(),
        }
        if step % config.penalty_every == 0:
            penalty = torch.zeros((), device=real.device)
            if config.gradient_penalty:

                def draw(count: int) -> Tensor:
                    return torch.rand(count, *[1] * (real.ndim - 1), generator=source, device=real.device)

                mix = share(draw, len(real), part)
                norms = gradient_norms(judge, torch.lerp(fake, real, mix), labels)
                penalty = penalty + config.gradient_penalty * ((norms + 1e-12).sqrt() - 1).square().mean()
            fraction = warmup_cosine(step, steps=config.steps, warmup=0, final=config.final_penalty)
            for gamma, images in ((config.r1, real), (config.r2, fake)):
                if gamma:
                    penalty = penalty + fraction * gamma / 2 * gradient_norms(judge, images, labels).mean()
            if penalty.requires_grad:
                loss = loss + config.penalty_every * penalty
                values["penalty"] = penalty.detach()
        return loss, values

    def _judge(self, values: Tensor, labels: Tensor | None, source: torch.Generator, part: Part) -> Tensor:
        """Return the discriminator's logits (B,) of augmented images, or of points."""
        logits: Tensor = self.discriminator(self.augment(values, source, part), labels)
        return logits

    @torch.inference_mode()
    def sample(self, count: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw `count` values from the kept generator, such as images uint8 (N, C, H, W), by the field's name.

        Args:
            count: N.
            generator: source of z, on the model's device.
            given: labels int64 (N,) when conditional.
        """
        network = self.kept.eval()
        drawn = []
        for indices in torch.arange(count, device=self.device).split(500):
            z = self.config.latent_scale * normal(len(indices), self.config.latent, generator=generator)
            labels = given["labels"].to(self.device)[indices] if self.config.conditional else None
            drawn.append(self.backbone.from_unit(network(z, labels), self.spec))
        return {self.makes: torch.cat(drawn)}
