"""Variational autoencoder (Kingma and Welling 2014) with the importance-weighted bound (Burda et al. 2016, "IWAE").

Run with `dvc repro train@vae`. Convolutional encoder to mean and log-variance, reparameterisation, convolutional
decoder. The Bernoulli likelihood binarises each training image again at every step (dynamic binarisation); the
discretised logistic likelihood models the 256 grey levels (Kingma et al. 2016, appendix). The prior is a standard
normal, or a flow that is learned (flow.py). Samples come from the prior, or from a flow of the latents
(latent_flow.py), which changes no bit of the rest. Departures: SiLU, residual blocks, averaged weights.

It learns every kind whose backbone turns values into pictures of grey levels, and back: images, and sound as spectra.

Dimensions: B batch, K importance samples, C H W picture, Z latent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.kinds import Fields, find_field
from pipeline.layers.blocks import Residual, make_average, warmup_cosine
from pipeline.layers.flow import Flow
from pipeline.layers.latent_flow import LatentFlow, find_moments
from pipeline.layers.likelihoods import gaussian_kl, log_bernoulli, log_discretized_logistic, log_normal
from pipeline.params import Trainable
from pipeline.randomness import WHOLE, Part, derive_seed, make_generator, normal, seed_global, seeded, share, this_part

BACKBONE = ("BINARY", "find_shape", "from_levels", "require_multiple", "shift", "to_levels")
LEARNS = plugins.find_providers("backbones", BACKBONE)
OBSERVED = {"bernoulli": "binarised images", "discretized_logistic": "grey levels"}  # by likelihood


class Config(Trainable):
    """Hyper-parameters of the VAE."""

    latent: int = Field(ge=1, description="width Z of the latent vector")
    width: int = Field(ge=1, description="channels at half resolution; twice as many at a quarter")
    blocks: int = Field(ge=1, description="residual blocks at a quarter of the resolution, of encoder and of decoder")
    half_blocks: int = Field(ge=0, description="residual blocks at half the resolution, of encoder and of decoder")
    hidden: int = Field(ge=1, description="width of the dense layers around the latent")
    prior_couplings: int = Field(ge=0, description="affine couplings of the learned prior; 0: a standard normal")
    prior_hidden: int = Field(ge=1, description="width of the couplings' dense layers")
    flow_blocks: int = Field(
        default=0,
        ge=0,
        exclude_if=lambda blocks: not blocks,
        description="residual blocks of the flow that samples latents; 0: samples come from the prior",
    )
    flow_width: int = Field(
        default=128, ge=1, exclude_if=lambda width: width == 128, description="width of the flow's dense layers"
    )
    flow_draws: int = Field(
        default=4, ge=1, exclude_if=lambda draws: draws == 4, description="latents per image and step that it learns"
    )
    flow_learning_rate: float = Field(
        default=4e-3, gt=0, exclude_if=lambda rate: rate == 4e-3, description="peak learning rate of the flow"
    )
    flow_steps: int = Field(
        default=4, ge=1, exclude_if=lambda steps: steps == 4, description="steps of Heun's method when sampling"
    )
    pixel_temperature: float = Field(
        default=1.0,
        gt=0,
        exclude_if=lambda temperature: temperature == 1,
        description="divides the pixels' logits in samples and reconstructions; 1 shows the pixels' means",
    )
    conditional: bool = Field(
        default=False,
        exclude_if=lambda conditional: not conditional,
        description="give the class to encoder, decoder and prior",
    )
    dropout: float = Field(ge=0, lt=1, description="share of dense activations dropped, against overfitting")
    likelihood: Literal["bernoulli", "discretized_logistic"] = Field(description="distribution of the pixels")
    beta: float = Field(ge=0, description="weight of the KL term (Higgins et al. 2017)")
    kl_warmup: int = Field(ge=0, description="steps over which beta grows from 0")
    free_bits: float = Field(ge=0, description="nats of KL per latent unit that cost nothing (Kingma et al. 2016)")
    importance_samples: int = Field(ge=1, description="K of the training bound; 1 is the evidence lower bound")
    shift: int = Field(
        ge=0, description="largest random shift of a training example: pixels of an image, samples of a clip"
    )
    steps: int = Field(ge=0, description="optimizer steps; 0 keeps the weights of a start as they are")
    batch_size: int = Field(ge=1, description="images per step, over all processes")
    learning_rate: float = Field(gt=0, description="peak learning rate of AdamW")
    warmup: int = Field(ge=0, description="steps of linear warm-up")
    final_learning_rate: float = Field(ge=0, le=1, description="share of the peak reached by the cosine's end")
    weight_decay: float = Field(ge=0, description="decoupled weight decay")
    clip_norm: float = Field(gt=0, description="largest global norm of the gradient")
    ema: float = Field(ge=0, lt=1, description="decay of the averaged weights that are kept; 0 keeps the last")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.importance_samples > 1 and (self.beta != 1 or self.free_bits or self.kl_warmup):
            msg = "importance_samples > 1 has no separate KL term: beta must be 1, free_bits 0 and kl_warmup 0"
            raise ValueError(msg)
        if self.prior_couplings and self.free_bits:
            msg = "a learned prior has no KL of each unit: free_bits must be 0 with prior_couplings > 0"
            raise ValueError(msg)
        if self.pixel_temperature != 1 and self.likelihood != "bernoulli":
            msg = f"pixel_temperature is of the bernoulli likelihood: expected 1 with {self.likelihood}"
            raise ValueError(msg)
        return self


def describe_scores(config: Any) -> dict[str, Any]:
    """Return what the scores are of, for the protocol: bounds of two likelihoods are not comparable.

    `levels` is equal for all models of such probabilities, whose bits per dimension are comparable.
    """
    given = ", given the class" if config.conditional else ""
    levels = {"levels": f"256 grey levels{given}"} if config.likelihood == "discretized_logistic" else {}
    return {"of": f"{config.likelihood} on {OBSERVED[config.likelihood]}{given}", **levels}


def require(config: Config, fields: Fields) -> None:
    """Refuse data that the config does not fit.

    Raises:
        ArtifactError: if the sides are no multiples of 4, with the nearest that are, if a conditional model gets no
            labels, or if the likelihood does not suit the kind.
    """
    if config.conditional and ("labels" not in fields or not fields["labels"].classes):
        msg = "conditional true needs labels, and the data have none: set conditional false"
        raise ArtifactError(msg)
    spec = fields[find_field(fields, LEARNS)]
    backbone = plugins.load("backbones", spec.kind)
    if config.likelihood == "bernoulli" and not backbone.BINARY:
        msg = f"likelihood: expected discretized_logistic for {spec.kind}, got bernoulli"
        raise ArtifactError(msg)
    backbone.require_multiple(spec, 4)


class Network(nn.Module):
    """Encoder and decoder. A conditional one has, by class, a plane for the encoder, a vector, and a normal prior."""

    def __init__(self, config: Config, shape: Sequence[int], classes: int = 0) -> None:
        super().__init__()
        channels, height, width = shape
        self.plane = nn.Embedding(classes, height * width) if classes else None
        self.vector = nn.Embedding(classes, config.latent) if classes else None
        self.centre = nn.Embedding(classes, 2 * config.latent) if classes else None  # of the prior: mean, log-variance
        if self.centre is not None:
            nn.init.zeros_(self.centre.weight)
        self.small = (2 * config.width, height // 4, width // 4)
        flat = math.prod(self.small)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels + bool(classes), config.width, 5, stride=2, padding=2),
            *(Residual(config.width) for _ in range(config.half_blocks)),
            nn.SiLU(),
            nn.Conv2d(config.width, 2 * config.width, 5, stride=2, padding=2),
            *(Residual(2 * config.width) for _ in range(config.blocks)),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(flat, config.hidden),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, 2 * config.latent),
        )
        self.expand = nn.Sequential(
            nn.Linear(config.latent * (2 if classes else 1), config.hidden),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, flat),
        )
        self.decoder = nn.Sequential(
            *(Residual(2 * config.width) for _ in range(config.blocks)),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * config.width, config.width, 5, stride=2, padding=2, output_padding=1),
            *(Residual(config.width) for _ in range(config.half_blocks)),
            nn.SiLU(),
            nn.ConvTranspose2d(config.width, channels, 5, stride=2, padding=2, output_padding=1),
        )
        # Of the logistic, image range [0, 1]. Several processes wait for the gradient of all that could have one.
        is_used = config.likelihood == "discretized_logistic"
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), -2.0), requires_grad=is_used)
        self.prior = Flow(config.latent, config.prior_couplings, config.prior_hidden)
        # The last part: the random weights of all others are those of a network without it.
        self.flow = (
            LatentFlow(config.latent, config.flow_width, config.flow_blocks, classes) if config.flow_blocks else None
        )
        self.flow_steps, self.pixel_temperature = config.flow_steps, config.pixel_temperature

    def encode(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images in [0, 1] (B, C, H, W) to mean and log-variance (B, Z) of q(z | x)."""
        x = 2 * x - 1
        if self.plane is not None:
            x = torch.cat([x, self.plane(labels).view(-1, 1, *x.shape[2:])], dim=1)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 8)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map latents (B, Z) to pixel logits (B, C, H, W)."""
        if self.vector is not None:
            z = torch.cat([z, self.vector(labels)], dim=1)
        return self.decoder(self.expand(z).view(-1, *self.small))

    def find_prior(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of each class's prior before its flow, broadcast to z (..., B, Z)."""
        if self.centre is None:
            return torch.zeros_like(z), torch.zeros_like(z)
        mean, log_variance = self.centre(labels).chunk(2, dim=-1)
        return mean.expand_as(z), log_variance.expand_as(z)

    def log_prior(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log p(z) in nats of z (..., B, Z), or log p(z | class)."""
        if self.centre is None:
            return self.prior.log_density(z)
        mean, log_variance = self.find_prior(z, labels)
        return self.prior.log_density((z - mean) * (-0.5 * log_variance).exp()) - 0.5 * log_variance.sum(dim=-1)

    def draw_prior(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Turn standard normal noise (B, Z) into draws of the prior."""
        z = self.prior.draw(noise)
        if self.centre is None:
            return z
        mean, log_variance = self.find_prior(z, labels)
        return mean + z * (0.5 * log_variance).exp()

    def draw_latents(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Turn standard normal noise (B, Z) into the latents of samples: draws of the flow, or of the prior."""
        if self.flow is None:
            return self.draw_prior(noise, labels)
        return self.flow.draw(noise, self.flow_steps, labels)

    def show(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the pixels' means of latents (B, Z), uint8 (B, C, H, W); below temperature 1 those of p^(1 / T)."""
        logits = self.decode(z, labels)
        return ((logits / self.pixel_temperature).sigmoid() * 255).round().byte()


@torch.inference_mode()
def decode(model: Any, latents: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Return values, such as images uint8 (N, C, H, W), of standard normal latents (N, Z), as `sample` draws them."""
    labels = given["labels"].to(model.device) if model.config.conditional else None
    network: Network = model.kept.eval()
    values: Tensor = model.backbone.from_levels(network.show(network.draw_latents(latents, labels), labels), model.spec)
    return values


def find_features(model: Any, values: Tensor) -> Tensor:
    """Return the posterior means of stored values (N, ...), float32 (N, Z).

    Raises:
        ArtifactError: if the encoder is told the class.
    """
    if model.given:
        msg = "expected a VAE with conditional false: a conditional one tells its encoder the class"
        raise ArtifactError(msg)
    mean, _ = model.kept.encode(model.backbone.to_levels(values, model.spec).float() / 255)
    return cast("Tensor", mean)


class Model(LightningModule):
    """Trains the network on the evidence lower bound or its importance-weighted form."""

    def __init__(self, config: Config, fields: Fields, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        require(config, fields)
        self.makes = find_field(fields, LEARNS)
        self.spec = fields[self.makes]
        self.backbone = plugins.load("backbones", self.spec.kind)
        self.given = ("labels",) if config.conditional else ()
        classes = fields["labels"].classes if config.conditional else 0
        with seeded(seed, "weights"):
            self.network = Network(config, self.backbone.find_shape(self.spec), classes)
        self.average = make_average(self.network, config.ema) if config.ema else None

    @property
    def trained(self) -> Network:
        """The weights that a start gives."""
        return self.network

    @property
    def kept(self) -> Network:
        """The weights that are saved, scored and sampled."""
        return self.network if self.average is None else cast("Network", self.average.module)

    def _observe(self, images: Tensor, generator: torch.Generator, part: Part = WHOLE) -> Tensor:
        """Turn uint8 images into what the likelihood sees: binary draws, or grey levels in [0, 1]."""
        levels = images.float() / 255
        if self.config.likelihood == "bernoulli":
            size, device = levels.shape[1:], levels.device
            noise = share(lambda count: torch.rand(count, *size, generator=generator, device=device), len(levels), part)
            return (noise < levels).float()
        return levels

    def _take_labels(self, values: Mapping[str, Tensor]) -> Tensor | None:
        return values["labels"].to(self.device) if self.config.conditional else None

    def _log_likelihood(self, network: Network, z: Tensor, x: Tensor, labels: Tensor | None) -> Tensor:
        logits = network.decode(z, labels)
        if self.config.likelihood == "bernoulli":
            return log_bernoulli(logits, x)
        return log_discretized_logistic(logits, network.log_scale, x)

    def draw(
        self,
        network: Network,
        x: Tensor,
        samples: int,
        generator: torch.Generator,
        part: Part = WHOLE,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return log p(x | z) and log q(z | x) - log p(z) of `samples` draws of z, (K, B) each."""
        mean, log_variance = network.encode(x, labels)
        latent = self.config.latent
        noise = share(lambda count: normal(samples, count, latent, generator=generator), len(x), part, dim=1)
        z = mean + noise * (0.5 * log_variance).exp()  # (K, B, Z)
        repeated = None if labels is None else labels.repeat(samples)
        likelihood = self._log_likelihood(network, z.flatten(0, 1), x.repeat(samples, 1, 1, 1), repeated)
        return likelihood.view(samples, -1), log_normal(z, mean, log_variance) - network.log_prior(z, labels)

    def divergence(self, z: Tensor, mean: Tensor, log_variance: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the KL of posteriors from the prior, in nats: exact, of each unit (B, Z), or at z of all (B, 1)."""
        if self.config.prior_couplings:
            return (log_normal(z, mean, log_variance) - self.network.log_prior(z, labels))[:, None]
        if labels is not None:  # the KL is that of the two normals in the prior's units
            centre, spread = self.network.find_prior(mean, labels)
            mean, log_variance = (mean - centre) * (-0.5 * spread).exp(), log_variance - spread
        return gaussian_kl(mean, log_variance)

    def _learn_flow(self, x: Tensor, labels: Tensor | None, step: int, part: Part) -> dict[str, Tensor]:
        """Return a loss of value 0 with the gradient of the flow's loss, and that loss; the encoder gets no gradient.

        The latents are those of the kept encoder without dropout, with noise of their own: no other number changes.
        """
        flow = self.network.flow
        if flow is None:
            return {}
        with torch.no_grad():
            mean, log_variance = self.kept.eval().encode(x, labels)
            self.network.train()
            moments = find_moments(mean, log_variance)
            flow.observe(self.trainer.strategy.reduce(moments, reduce_op="mean") if part.world > 1 else moments)
        generator = make_generator(self.seed, "flow", step, 0, device=self.device)
        draws, latent = self.config.flow_draws, self.config.latent
        noise = share(lambda count: normal(2, count, draws, latent, generator=generator), len(x), part, dim=1)
        t = share(lambda count: normal(count, generator=generator), len(x), part).sigmoid()
        z = mean[:, None] + noise[0] * (0.5 * log_variance).exp()[:, None]  # (B, K, Z)
        loss = flow.loss(z, noise[1], t, labels)
        return {"loss": loss - loss.detach(), "flow_loss": loss.detach()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss in nats an image, and its parts."""
        part = this_part()
        seed_global(derive_seed(self.seed, "noise", batch_idx, part.rank))  # dropout has no generator argument
        generator = make_generator(self.seed, "noise", batch_idx, 0, device=self.device)
        stored = self.backbone.shift(batch[self.makes], self.config.shift, generator, part)
        x = self._observe(self.backbone.to_levels(stored, self.spec), generator, part)
        labels = self._take_labels(batch)
        values = self._compute_bound(x, labels, batch_idx, generator, part)
        learnt = self._learn_flow(x, labels, batch_idx, part)
        return values | learnt | ({"loss": values["loss"] + learnt["loss"]} if learnt else {})

    def _compute_bound(
        self, x: Tensor, labels: Tensor | None, step: int, generator: torch.Generator, part: Part
    ) -> dict[str, Tensor]:
        config = self.config
        if config.importance_samples > 1:
            likelihood, divergence = self.draw(self.network, x, config.importance_samples, generator, part, labels)
            weights = likelihood - divergence
            return {"loss": (math.log(len(weights)) - weights.logsumexp(dim=0)).mean()}
        mean, log_variance = self.network.encode(x, labels)
        noise = share(lambda count: normal(count, config.latent, generator=generator), len(x), part)
        z = mean + noise * (0.5 * log_variance).exp()
        reconstruction = -self._log_likelihood(self.network, z, x, labels).mean()
        kl = self.divergence(z, mean, log_variance, labels).mean(dim=0)  # (Z,)
        beta = config.beta * min(1.0, (step + 1) / max(1, config.kl_warmup))
        loss = reconstruction + beta * kl.clamp(min=config.free_bits).sum()
        return {"loss": loss, "reconstruction_nats": reconstruction.detach(), "kl_nats": kl.sum().detach()}

    def optimizer_step(self, *arguments: Any, **settings: Any) -> None:
        """Update the averaged weights with each step, before any callback can save the two apart."""
        super().optimizer_step(*arguments, **settings)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the flow's gradient by itself: its norm must not change the update of the rest."""
        del gradient_clip_algorithm
        if gradient_clip_val:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay; the flow is a group with a learning rate of its own."""
        config = self.config
        named = [*self.network.named_parameters()]
        flow = [parameter for name, parameter in named if name.startswith("flow.")]
        groups: list[dict[str, Any]] = [{"params": [p for name, p in named if not name.startswith("flow.")]}]
        groups += [{"params": flow, "lr": config.flow_learning_rate}] if flow else []
        optimizer = torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: warmup_cosine(
                step, steps=config.steps, warmup=config.warmup, final=config.final_learning_rate
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.inference_mode()
    def sample(self, count: int, generator: torch.Generator, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw `count` latents and return the values of their pixels' means, by the field's name.

        `given` holds labels int64 (N,) when conditional.
        """
        network, labels = self.kept.eval(), self._take_labels(given)
        noise = torch.randn(count, self.config.latent, generator=generator, device=self.device)
        drawn = []
        for part in torch.arange(count, device=self.device).split(500):
            own = None if labels is None else labels[part]
            drawn.append(network.show(network.draw_latents(noise[part], own), own))
        return {self.makes: self.backbone.from_levels(torch.cat(drawn), self.spec)}

    @torch.inference_mode()
    def reconstruct(self, values: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Encode stored values (N, ...), with labels int64 (N,) if conditional, and decode the posterior means."""
        network, labels = self.kept.eval(), self._take_labels(given)
        levels = self.backbone.to_levels(values.to(self.device), self.spec)
        mean, _ = network.encode(levels.float() / 255, labels)
        made: Tensor = self.backbone.from_levels(network.show(mean, labels), self.spec)
        return made

    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return uint8 images (N, C, H, W) as the likelihood sees them: drawn black or white, or as they are.

        `score` draws nothing more of what this returns.
        """
        return (self._observe(images, generator) * 255).round().byte()

    @torch.inference_mode()
    def score(
        self, images: Tensor, samples: int, generator: torch.Generator, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Score held-out uint8 images (N, C, H, W), in nats an image; with labels int64 (N,) if conditional.

        Returns:
            elbo, iw: the evidence lower bound (mean over `samples` draws) and the importance-weighted bound of Burda
            et al. (2016, eq. 8), float64 (N,), both as negative log-likelihoods (lower is better); kl: KL of the
            posterior from the prior, mean over the draws, float64 (N,); active_units: number of units with
            Var_x E[z | x] > 0.01, a scalar; bits_per_dim: iw of grey levels in bits per dimension, float64 (N,).
        """
        network = self.kept.eval()
        elbo: list[Tensor] = []
        bound: list[Tensor] = []
        kl: list[Tensor] = []
        means: list[Tensor] = []
        labels = self._take_labels(given)
        for indices in torch.arange(len(images)).split(20):
            x = self._observe(images[indices].to(self.device), generator)
            own = None if labels is None else labels[indices]
            drawn = [self.draw(network, x, k, generator, labels=own) for k in _chunks(samples, 50)]
            likelihood, divergence = (torch.cat(parts).double() for parts in zip(*drawn, strict=True))  # (K, B)
            weights = likelihood - divergence
            elbo.append(-weights.mean(dim=0))
            bound.append(math.log(samples) - weights.logsumexp(dim=0))
            kl.append(divergence.mean(dim=0))
            means.append(network.encode(x, own)[0])
        active = (torch.cat(means).var(dim=0) > 0.01).sum()
        found = {"elbo": torch.cat(elbo), "iw": torch.cat(bound), "kl": torch.cat(kl), "active_units": active}
        if self.config.likelihood == "discretized_logistic":
            found["bits_per_dim"] = found["iw"] / (images[0].numel() * math.log(2))
        return found


def _chunks(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]
