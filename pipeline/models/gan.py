"""Deep convolutional GAN (Goodfellow et al. 2014; Radford et al. 2016, "DCGAN"), sized by the image shape.

Run with `dvc repro train@gan`. For 28x28x1: z (100) -> dense 7x7x128 -> two stride-2 transposed 5x5 convolutions ->
tanh; the discriminator mirrors it with strided convolutions. Departures: no batch norm in the discriminator (penalties
and relativistic pairing need per-image gradients), generator weights averaged, the loss chosen in params.

Dimensions: B batch, C H W image, Z latent.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pipeline.artifacts import ImageSpec
from pipeline.models.layers import from_bytes, make_average, to_bytes, warmup_cosine
from pipeline.params import Section
from pipeline.randomness import make_generator, normal, seeded

KIND = "images"


class Config(Section):
    """Hyper-parameters of the GAN."""

    latent: int = Field(ge=1, description="width Z of the normal latent vector")
    generator_width: int = Field(
        ge=1, description="channels next to the image; they double at each halving of its side"
    )
    discriminator_width: int = Field(ge=1, description="the same for the discriminator")
    conditional: bool = Field(description="give the class to generator and discriminator")
    spectral_norm: bool = Field(description="divide each discriminator weight by its largest singular value")
    loss: Literal["non_saturating", "minimax", "least_squares", "hinge", "wasserstein", "relativistic"] = Field(
        description="adversarial loss"
    )
    gradient_penalty: float = Field(ge=0, description="weight of (|gradient| - 1)^2 between real and fake (WGAN-GP)")
    r1: float = Field(ge=0, description="gamma of gamma / 2 |gradient|^2 at real images")
    r2: float = Field(ge=0, description="gamma of gamma / 2 |gradient|^2 at generated images")
    final_penalty: float = Field(gt=0, le=1, description="share of r1 and r2 reached by the cosine's end (R3GAN)")
    penalty_every: int = Field(ge=1, description="steps between penalties, which are scaled up to make up for it")
    discriminator_steps: int = Field(ge=1, description="discriminator updates a generator update")
    steps: int = Field(ge=1, description="generator updates")
    batch_size: int = Field(ge=2, description="images a step, over all processes")
    generator_learning_rate: float = Field(gt=0, description="peak learning rate of Adam")
    discriminator_learning_rate: float = Field(gt=0, description="peak learning rate of Adam")
    beta1: float = Field(ge=0, lt=1, description="Adam's first decay")
    beta2: float = Field(ge=0, lt=1, description="Adam's second decay")
    final_learning_rate: float = Field(ge=0, le=1, description="share of the peak reached by the cosine's end")
    ema: float = Field(ge=0, lt=1, description="decay of the averaged generator that is kept; 0 keeps the last")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.loss == "wasserstein" and not (self.gradient_penalty or self.spectral_norm):
            msg = "loss wasserstein needs gradient_penalty > 0 or spectral_norm: its critic must be Lipschitz"
            raise ValueError(msg)
        return self


def resolutions(spec: ImageSpec) -> tuple[int, int, int]:
    """Return (halvings, height, width) of the smallest feature map: 28 -> 7, 32 -> 8, 64 -> 8.

    Raises:
        ValueError: if a side cannot be halved evenly down to 8 or less.
    """
    height, width = spec.shape[1:]
    halvings = 0
    while not halvings or max(height, width) > 8:
        if height % 2 or width % 2:
            msg = f"image sides must halve evenly, down to 8 or less, got {spec.shape[1]}x{spec.shape[2]}"
            raise ValueError(msg)
        height, width, halvings = height // 2, width // 2, halvings + 1
    return halvings, height, width


class Generator(nn.Module):
    """Maps z (B, Z) and, when conditional, labels (B,) to images in [-1, 1], (B, C, H, W)."""

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        halvings, self.height, self.side = resolutions(spec)
        channels = [config.generator_width * 2**index for index in range(halvings)][::-1]  # 128, 64 for 28x28
        self.latent = config.latent
        self.classes = spec.classes if config.conditional else 0
        self.embedding = nn.Embedding(spec.classes, config.latent) if config.conditional else None
        self.top = channels[0]
        self.dense = nn.Linear(config.latent * (2 if config.conditional else 1), self.top * self.height * self.side)
        self.norm = nn.BatchNorm2d(self.top)
        layers: list[nn.Module] = []
        for index, width in enumerate(channels):
            last = index == len(channels) - 1
            out = spec.shape[0] if last else channels[index + 1]
            layers.append(nn.ConvTranspose2d(width, out, 5, stride=2, padding=2, output_padding=1, bias=last))
            layers += [] if last else [nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1]."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], dim=1)  # (B, Z) -> (B, 2 Z)
        x = self.dense(z).view(-1, self.top, self.height, self.side)  # -> (B, 128, 7, 7)
        return self.layers(F.leaky_relu(self.norm(x), 0.2))  # -> (B, C, H, W)


class Discriminator(nn.Module):
    """Maps images in [-1, 1] (B, C, H, W) to logits (B,); projects the class embedding (Miyato and Koyama 2018)."""

    def __init__(self, config: Config, spec: ImageSpec) -> None:
        super().__init__()
        normalize: Callable[[nn.Module], nn.Module] = spectral_norm if config.spectral_norm else lambda layer: layer
        halvings, height, width = resolutions(spec)
        channels = [spec.shape[0], *(config.discriminator_width * 2**index for index in range(halvings + 1))]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [normalize(nn.Conv2d(before, after, 5, stride=2, padding=2)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        features = channels[-1] * math.ceil(height / 2) * math.ceil(width / 2)  # 4x4 for 28x28
        self.head = normalize(nn.Linear(features, 1))
        self.embedding = normalize(nn.Embedding(spec.classes, features)) if config.conditional else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (B,): positive for real."""
        hidden = self.layers(images)
        logits: Tensor = self.head(hidden).squeeze(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * hidden).sum(dim=1) / hidden.size(1) ** 0.5
        return logits


def discriminator_loss(name: str, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the discriminator for logits of real and fake images, (B,) each.

    Cross-entropies work on logits, so that no sigmoid saturates. Sources: Goodfellow et al. 2014 (cross-entropies),
    Mao et al. 2017 with targets 1 and 0 (least squares), Lim and Ye 2017 (hinge), Arjovsky et al. 2017 (Wasserstein),
    Jolicoeur-Martineau 2019 and Huang et al. 2024, "R3GAN" (relativistic pairing).
    """
    match name:
        case "non_saturating" | "minimax":
            return F.softplus(-real).mean() + F.softplus(fake).mean()
        case "least_squares":
            return 0.5 * ((real - 1).square().mean() + fake.square().mean())
        case "hinge":
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        case "wasserstein":
            return fake.mean() - real.mean()
        case _:
            return F.softplus(fake - real).mean()


def generator_loss(name: str, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the generator; `real` (B,) matters to the relativistic pairing alone."""
    match name:
        case "non_saturating":
            return F.softplus(-fake).mean()
        case "minimax":
            return -F.softplus(fake).mean()  # minimise E[log(1 - D(G(z)))]
        case "least_squares":
            return 0.5 * (fake - 1).square().mean()
        case "hinge" | "wasserstein":
            return -fake.mean()
        case _:
            return F.softplus(real - fake).mean()


def gradient_norms(discriminator: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
    """Squared norm of the logit's gradient at each image, (B,), differentiable."""
    images = images.detach().requires_grad_(True)
    logits = discriminator(images, labels)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


class Model(LightningModule):
    """Trains generator and discriminator by manual optimization; keeps the averaged generator."""

    def __init__(self, config: Config, spec: ImageSpec, seed: int) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.seed = seed
        self.automatic_optimization = False
        with seeded(seed, "weights"):
            self.generator = Generator(config, spec)
            self.discriminator = Discriminator(config, spec)
        self.average = make_average(self.generator, config.ema) if config.ema else None

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
        source = make_generator(self.seed, "noise", batch_idx, self.global_rank, device=self.device)
        values: dict[str, Tensor] = {}
        parts = [batch[key].chunk(config.discriminator_steps) for key in ("images", "labels")]
        for images, classes in zip(*parts, strict=True):
            real = from_bytes(images)
            labels = classes if config.conditional else None
            fake = self.generator(normal(len(real), config.latent, generator=source), labels)
            self.toggle_optimizer(discriminator_optimizer)
            loss, extra = self._discriminator_loss(real, fake.detach(), labels, batch_idx, source)
            discriminator_optimizer.zero_grad()
            self.manual_backward(loss)
            discriminator_optimizer.step()
            self.untoggle_optimizer(discriminator_optimizer)
            values |= extra
        # The last fakes, and the logits that the real images had, serve both updates: two passes less.
        self.toggle_optimizer(generator_optimizer)
        loss = generator_loss(config.loss, values.pop("real_logits"), self.discriminator(fake, labels))
        generator_optimizer.zero_grad()
        self.manual_backward(loss)
        generator_optimizer.step()
        self.untoggle_optimizer(generator_optimizer)
        if self.average is not None:
            self.average.update_parameters(self.generator)
        return values | {"generator_loss": loss.detach()}

    def _discriminator_loss(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, step: int, source: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        real_logits = self.discriminator(real, labels)
        fake_logits = self.discriminator(fake, labels)
        loss = discriminator_loss(config.loss, real_logits, fake_logits)
        values = {
            "real_logits": real_logits.detach(),
            "discriminator_loss": loss.detach(),
            "discriminator_real_accuracy": (real_logits > fake_logits).float().mean(),
        }
        if step % config.penalty_every == 0:
            penalty = torch.zeros((), device=real.device)
            if config.gradient_penalty:
                mix = torch.rand(len(real), 1, 1, 1, generator=source, device=real.device)
                norms = gradient_norms(self.discriminator, torch.lerp(fake, real, mix), labels)
                penalty = penalty + config.gradient_penalty * ((norms + 1e-12).sqrt() - 1).square().mean()
            share = warmup_cosine(step, steps=config.steps, warmup=0, final=config.final_penalty)
            for gamma, images in ((config.r1, real), (config.r2, fake)):
                if gamma:
                    penalty = penalty + share * gamma / 2 * gradient_norms(self.discriminator, images, labels).mean()
            if penalty.requires_grad:
                loss = loss + config.penalty_every * penalty
                values["penalty"] = penalty.detach()
        return loss, values

    @torch.inference_mode()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` images, uint8 (N, C, H, W), from the kept generator; classes in turn when conditional."""
        network = self.kept.eval()
        images = []
        for indices in torch.arange(count, device=self.device).split(500):
            z = normal(len(indices), self.config.latent, generator=generator)
            labels = indices % self.spec.classes if self.config.conditional else None
            images.append(to_bytes(network(z, labels)))
        return torch.cat(images)
