"""GAN: losses against their formulas, penalties against linear critics, the traps of two optimizers."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pipeline.artifacts import ArtifactError
from pipeline.backbones import images as images_backbone
from pipeline.backbones.images import find_smallest
from pipeline.batches import Rows
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.points import make_fields as point_fields
from pipeline.layers.blocks import from_bytes, make_average, to_bytes
from pipeline.models.gan import LOSSES, Config, Discriminator, Generator, Model, gradient_norms
from pipeline.training import fit

DIGITS = image_fields((1, 28, 28), 10)["images"]


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "latent": 8,
        "generator_width": 4,
        "discriminator_width": 4,
        "conditional": False,
        "flip": False,
        "augment": [],
        "spectral_norm": False,
        "loss": "relativistic",
        "gradient_penalty": 1.0,
        "r1": 0.0,
        "r2": 0.0,
        "final_penalty": 1.0,
        "penalty_every": 1,
        "discriminator_steps": 1,
        "steps": 6,
        "batch_size": 8,
        "generator_learning_rate": 1e-3,
        "discriminator_learning_rate": 1e-3,
        "beta1": 0.0,
        "beta2": 0.99,
        "final_learning_rate": 1.0,
        "ema": 0.9,
        "latent_scale": 1.0,
    }
    return Config.model_validate(values | changes)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("non_saturating", -math.log(sigmoid(2)) - math.log(1 - sigmoid(-1)), -math.log(sigmoid(-1))),
        ("minimax", -math.log(sigmoid(2)) - math.log(1 - sigmoid(-1)), math.log(1 - sigmoid(-1))),
        ("least_squares", 0.5 * ((2 - 1) ** 2 + (-1) ** 2), 0.5 * (-1 - 1) ** 2),
        ("hinge", max(0, 1 - 2) + max(0, 1 - 1), 1),
        ("wasserstein", -1 - 2, 1),
        ("relativistic", -math.log(sigmoid(2 + 1)), -math.log(sigmoid(-1 - 2))),
    ],
)
def test_losses_are_their_formulas_at_logits_two_and_minus_one(
    name: str, discriminator: float, generator: float
) -> None:
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    assert LOSSES[name][0](real, fake).item() == pytest.approx(discriminator, abs=1e-6)
    assert LOSSES[name][1](real, fake).item() == pytest.approx(generator, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_stay_finite_where_a_sigmoid_would_saturate(name: str) -> None:
    real, fake = torch.tensor([-500.0]), torch.tensor([500.0])
    assert LOSSES[name][0](real, fake).isfinite()
    assert LOSSES[name][1](fake, real).isfinite()


def test_gradient_norm_of_a_linear_critic_is_its_weights_norm() -> None:
    weight = torch.randn(3, 4, 4)

    class Linear(nn.Module):
        def forward(self, images: torch.Tensor, labels: None) -> torch.Tensor:
            del labels
            return (images * weight).sum(dim=(1, 2, 3))

    norms = gradient_norms(Linear(), torch.randn(5, 3, 4, 4), None)
    torch.testing.assert_close(norms, weight.square().sum().expand(5))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 8, 8), (1, 16, 32)])
@pytest.mark.parametrize("full_width", [0, 3])
@pytest.mark.parametrize("conditional", [False, True])
def test_networks_follow_the_image_shape(shape: tuple[int, int, int], conditional: bool, full_width: int) -> None:
    spec = image_fields(shape, 3)["images"]
    config = make_config(conditional=conditional, full_width=full_width)
    labels = torch.tensor([0, 2]) if conditional else None
    images = Generator(config, images_backbone, spec, 3)(torch.randn(2, 8), labels)
    assert images.shape == (2, *shape)
    assert images.abs().max() <= 1
    assert Discriminator(config, images_backbone, spec, 3)(images, labels).shape == (2,)


def test_the_dcgan_for_digits_has_the_published_shapes() -> None:
    generator = Generator(make_config(latent=100, generator_width=64), images_backbone, DIGITS, 10)
    assert generator.layers[0].weight.shape == (7 * 7 * 128, 100)
    kernels = [layer.weight.shape for layer in generator.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert kernels == [(128, 64, 5, 5), (64, 1, 5, 5)]
    generator = Generator(make_config(generator_width=64, full_width=16), images_backbone, DIGITS, 10)
    shapes = [layer.weight.shape for layer in generator.layers if isinstance(layer, nn.ConvTranspose2d | nn.Conv2d)]
    assert shapes == [(128, 64, 5, 5), (64, 16, 5, 5), (1, 16, 3, 3)]


def test_odd_sides_are_refused() -> None:
    with pytest.raises(ArtifactError, match="halve evenly, down to 2 to 8, got 30x30"):
        find_smallest(image_fields((1, 30, 30), 2)["images"])


def test_a_wasserstein_critic_without_a_constraint_is_refused() -> None:
    with pytest.raises(ValidationError, match="Lipschitz"):
        make_config(loss="wasserstein", gradient_penalty=0.0)


def test_spectral_norm_makes_the_largest_singular_value_one() -> None:
    discriminator = Discriminator(make_config(spectral_norm=True), images_backbone, DIGITS, 10).train()
    for _ in range(200):  # one power iteration a forward pass
        weight = discriminator.head.weight
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_bytes_survive_the_way_to_minus_one_to_one_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(levels)), levels)


def test_the_average_is_the_warmed_up_exponential_mean() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = make_average(module, 0.5)
    expected = None
    for update in range(8):
        with torch.no_grad():
            module.weight.fill_(update + 1.0)
        average.update_parameters(module)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = update + 1.0 if expected is None else decay * expected + (1 - decay) * (update + 1.0)
    assert average.module.weight.item() == pytest.approx(expected)


def digits(count: int = 40) -> Rows:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Rows({"images": images, "labels": torch.arange(count) % 10})


@pytest.mark.parametrize(
    "changes",
    [{"loss": name} for name in LOSSES]
    + [
        {"conditional": True},
        {"r1": 1.0, "r2": 1.0},
        {"flip": True},
        {"full_width": 3},
        {"spectral_norm": True},
        {"spectral_norm": True, "conditional": True, "r1": 1.0},
        {"augment": ["translation", "cutout", "colour"], "r1": 1.0},
        {"augment": ["affine", "cutout"], "augment_target": 0.6, "augment_images": 100, "r1": 1.0},
    ],
)
def test_every_choice_trains_both_networks_and_the_average(changes: dict[str, Any]) -> None:
    config = make_config(**changes)
    model = Model(config, image_fields((1, 8, 8), 10), seed=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(model, digits(), steps=config.steps, batch_size=config.batch_size, seed=0)
    frozen = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    # The discriminator's last bias shifts real and fake logits alike: pairing and Wasserstein cannot see it.
    assert set(frozen) <= {"discriminator.head.bias"}


def test_a_batch_that_the_discriminator_s_steps_cannot_share_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"batch_size must be a multiple of discriminator_steps.*got 8 and 3"):
        make_config(discriminator_steps=3)


def test_steps_count_batches_and_not_optimizer_steps() -> None:
    # Lightning's global_step counts both optimizers; our average and our schedule must not.
    config = make_config(steps=7, discriminator_steps=2)
    model = Model(config, image_fields((1, 8, 8), 10), seed=0)
    trainer = fit(model, digits(), steps=config.steps, batch_size=config.batch_size, seed=0)
    assert model.average is not None
    assert int(model.average.n_averaged) == 7
    assert trainer.global_step == 7 * 3


def test_equal_seeds_train_to_equal_bits_and_others_do_not() -> None:
    def train(seed: int) -> torch.Tensor:
        model = Model(make_config(), image_fields((1, 8, 8), 10), seed=seed)
        fit(model, digits(), steps=6, batch_size=8, seed=seed)
        return torch.cat([parameter.flatten() for parameter in model.kept.parameters()])

    assert torch.equal(train(3), train(3))
    assert not torch.equal(train(3), train(4))


def test_conditional_samples_are_of_the_classes_that_are_given() -> None:
    model = Model(make_config(conditional=True, ema=0.0), image_fields((1, 8, 8), 2), seed=0)
    with torch.no_grad():  # class 1 fixes the dense layer's input to nothing but its embedding
        model.generator.embedding.weight[1] += 100  # type: ignore[union-attr]
    given = {"labels": torch.arange(10) % 2}
    images = model.sample(10, torch.Generator().manual_seed(0), given)["images"].float()
    even, odd = images[::2], images[1::2]
    assert (odd - odd[0]).abs().mean() < (even - even[0]).abs().mean()


def test_points_train_a_generator_of_points() -> None:
    spec = point_fields(2, 3)
    config = make_config(conditional=True, generator_width=16, discriminator_width=16, r1=1.0)
    model = Model(config, spec, seed=0)
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    fit(model, Rows({"points": points, "labels": torch.arange(30) % 3}), steps=6, batch_size=8, seed=0)
    drawn = model.sample(7, torch.Generator().manual_seed(0), {"labels": torch.arange(7) % 3})["points"]
    assert (drawn.shape, drawn.dtype) == ((7, 2), torch.float32)
    with pytest.raises(ArtifactError, match="flip, augment and full_width are for images"):
        Model(make_config(flip=True), spec, seed=0)
    with pytest.raises(ArtifactError, match="full_width 0 for points"):
        Model(make_config(full_width=4), spec, seed=0)


def test_flipping_mirrors_half_of_the_real_images_and_nothing_else() -> None:
    # With images that are their own mirror, a flip changes nothing; with others it does.
    def train(images: torch.Tensor, *, flip: bool) -> torch.Tensor:
        model = Model(make_config(flip=flip), image_fields((1, 8, 8), 10), seed=0)
        fit(model, Rows({"images": images, "labels": torch.arange(40) % 10}), steps=2, batch_size=8, seed=0)
        return torch.cat([parameter.flatten() for parameter in model.kept.parameters()])

    images = digits().tensors["images"]
    even = torch.cat([images[..., :4], images[..., :4].flip(-1)], dim=-1)
    assert torch.equal(train(even, flip=True), train(even, flip=False))
    assert not torch.equal(train(images, flip=True), train(images, flip=False))


def test_the_latent_scale_widens_z_when_sampling_and_changes_no_training() -> None:
    spec = point_fields(2, 3)
    narrow, wide = (Model(make_config(latent_scale=scale, ema=0.0), spec, seed=0) for scale in (1.0, 2.0))
    z = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    for model, scale in ((narrow, 1), (wide, 2)):
        torch.testing.assert_close(
            model.sample(9, torch.Generator().manual_seed(0), {})["points"], model.generator(scale * z).detach()
        )
