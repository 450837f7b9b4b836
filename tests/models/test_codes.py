"""Discrete codes and their prior: bounds against sums over all codes, the use of codes, and the start."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from pytorch_lightning import LightningModule
from torch.distributions import Bernoulli, Independent

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.batches import Rows
from pipeline.kinds.images import find_alarms
from pipeline.kinds.images import make_fields as image_fields
from pipeline.layers.likelihoods import binarize
from pipeline.layers.quantization import find_chances, from_codes, join_chances
from pipeline.models import codes, codes_prior
from pipeline.training import fit
from pipeline.weights import load_model, save_model, start_from

FIELDS = image_fields((1, 8, 4), 3)  # two codes
TRAINING: dict[str, Any] = {
    "shift": 0,
    "steps": 5,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "warmup": 0,
    "final_learning_rate": 1.0,
    "weight_decay": 0.0,
    "clip_norm": 10.0,
    "ema": 0.0,
}
CODES: dict[str, Any] = {
    "levels": [3, 2],
    "width": 4,
    "blocks": 1,
    "prior_width": 8,
    "prior_blocks": 1,
    "beta": 1.0,
    "kl_warmup": 0,
    "pixel_temperature": 1.0,
}
PRIOR: dict[str, Any] = {
    "levels": [3, 2],
    "codes_width": 4,
    "codes_blocks": 1,
    "pixel_temperature": 1.0,
    "conditional": True,
    "layers": 1,
    "heads": 2,
    "width": 16,
    "dropout": 0.0,
    "temperature": 1.0,
    "matrix_learning_rate": 1e-2,
}


def fill(model: LightningModule) -> None:
    """Give every weight a value: fresh networks have zeros in them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)


def make_codes(**changes: Any) -> codes.Model:
    values = TRAINING | CODES | changes
    model = codes.Model(codes.Config.model_validate(values), FIELDS, seed=0)
    fill(model)
    return model


def make_prior(**changes: Any) -> codes_prior.Model:
    return codes_prior.Model(codes_prior.Config.model_validate(TRAINING | PRIOR | changes), FIELDS, seed=1)


def make_images(count: int = 30) -> torch.Tensor:
    return torch.randint(256, (count, 1, 8, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def list_codes() -> torch.Tensor:
    """All 36 pairs of codes of an image."""
    return torch.tensor(list(itertools.product(range(6), repeat=2)))


@torch.no_grad()
def sum_out(network: codes.Autoencoder, x: torch.Tensor, prior: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sums over all codes, whose log-probabilities are `prior` (36,), in nats of binary images (N, 1, 8, 4).

    Returns:
        The nats of the images, and the bound on them that the encoder's chances give, float64 (N,).
    """
    logits = network.decode(from_codes(list_codes().view(-1, 2, 1), network.levels)).double()
    both = Independent(Bernoulli(logits=logits[:, None]), 3).log_prob(x.double()) + prior[:, None]  # (36, N)
    chances = join_chances(find_chances(network.encode(x), network.levels, 3), [3, 2]).flatten(1, 2).double()
    first, second = chances.unbind(dim=1)  # (N, 6)
    posterior = (first[:, :, None] * second[:, None]).flatten(1).T  # (36, N)
    return -both.logsumexp(dim=0), (posterior.xlogy(posterior) - posterior * both).sum(dim=0)


def check_mean(draws: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare the mean of draws (N,) with what it should be, by the standard error."""
    assert abs(draws.mean() - expected) < 4 * draws.std() / len(draws) ** 0.5 + 1e-4


@torch.no_grad()
def test_the_bound_is_in_the_mean_over_draws_that_of_a_sum_over_all_codes(tmp_path: Path) -> None:
    model = make_codes()
    network = model.network
    prior = -network.prior.nats(list_codes(), network.levels).sum(dim=1)
    for image in (make_images(3) > 127).byte()[:, None] * 255:  # nothing is drawn but the codes
        scores = model.score(image.expand(4000, -1, -1, -1), 1, torch.Generator().manual_seed(0), {})
        nats, bound = sum_out(network, image / 255, prior)
        assert bound > nats
        check_mean(scores["elbo"], bound[0])
    artifacts.write_tensors(tmp_path / "scores.safetensors", scores)  # which refuses two names of one tensor


def test_the_loss_s_divergence_is_in_the_mean_over_draws_the_kl_of_a_sum_over_all_codes() -> None:
    network = make_codes().network
    x = (make_images(5) > 127).float()
    z = network.encode(x)
    prior = -network.prior.nats(list_codes(), network.levels).sum(dim=1)
    chances = join_chances(find_chances(z, network.levels, 3), [3, 2]).flatten(1, 2)
    values = from_codes(list_codes().view(-1, 2, 1), network.levels)
    for image in range(5):
        posterior = (chances[image, 0][:, None] * chances[image, 1]).flatten()
        expected = (posterior.xlogy(posterior) - posterior * prior).sum()
        found = network.divergence(z[image].expand(36, -1, -1, -1), values) @ posterior
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5)
    assert expected > 0.1


def test_the_gradient_of_the_loss_is_finite_where_a_number_is_a_level() -> None:
    network = make_codes().network
    z = torch.tensor([0.0, 40.0]).expand(3, 2, 1, 2).clone().requires_grad_()  # the middle of 3 levels, the last of 2
    network.divergence(z, z.tanh()).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_beta_weighs_the_codes_nats_and_grows_to_its_value() -> None:
    batch = {"images": make_images(8)}
    losses = {}
    for beta, warmup in ((1.0, 0), (3.0, 0), (3.0, 1), (3.0, 6)):
        model = make_codes(beta=beta, kl_warmup=warmup)
        losses[beta, warmup] = model.compute_loss(batch, torch.Generator().manual_seed(0))
    divergence = (losses[3.0, 0] - losses[1.0, 0]) / 2
    assert divergence > 0.1
    assert losses[3.0, 1] == losses[3.0, 0]
    torch.testing.assert_close(losses[3.0, 6], losses[3.0, 0] - 3 * (1 - 1 / 6) * divergence)


def test_a_training_weighs_the_codes_nats_by_its_step() -> None:
    model = make_codes(beta=2.0, kl_warmup=4, learning_rate=1e-12)
    weights = []
    compute_loss = model.compute_loss

    def note(*arguments: Any) -> torch.Tensor:
        loss = compute_loss(*arguments)
        parts = model.parts
        weights.append(((loss.detach() - parts["reconstruction_nats"]) / parts["kl_nats"]).item())
        return loss

    model.compute_loss = note  # type: ignore[method-assign]
    fit(model, Rows({"images": make_images(4)}), steps=6, batch_size=4, seed=0, clip_norm=10.0)
    assert weights == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0], rel=1e-3)


def test_a_lower_temperature_of_pixels_moves_their_means_to_black_and_white() -> None:
    codes_ = list_codes()[:5]
    for temperature in (1.0, 0.5):
        network = make_codes(pixel_temperature=temperature).network
        with torch.no_grad():
            expected = (network.write(codes_) / temperature).sigmoid() * 255
            assert (network.paint(codes_) - expected).abs().max() <= 0.51


def test_the_use_of_codes_is_that_of_a_count() -> None:
    found = codes.describe_use(torch.tensor([[0, 0], [0, 5]]), 8)
    assert found["codes_used"].item() == 2 / 8
    # exp(H) of 3/4 and 1/4
    assert found["code_perplexity"].item() == pytest.approx(0.75**-0.75 * 0.25**-0.25)
    even = codes.describe_use(torch.arange(8), 8)
    assert [value.item() for value in even.values()] == pytest.approx([1, 8])


def test_samples_have_the_codes_that_the_small_prior_expects() -> None:
    model = make_codes()
    drawn = []
    model.kept.write = lambda each: drawn.append(each) or torch.zeros(len(each), 1, 8, 4)  # type: ignore[method-assign, func-returns-value]
    images = model.sample(6000, torch.Generator().manual_seed(0), {})["images"]
    assert images.unique().tolist() == [128]
    places = 6 * torch.cat(drawn)[:, 0] + torch.cat(drawn)[:, 1]
    with torch.no_grad():
        expected = 6000 * (-model.network.prior.nats(list_codes(), model.network.levels).sum(dim=1)).exp()
    assert ((places.bincount(minlength=36) - expected).square() / expected).sum() < 70  # chi-square, 35: p = 0.0004


def test_training_lowers_the_nats_and_uses_the_codes() -> None:
    images = torch.zeros(16, 1, 8, 4, dtype=torch.uint8)
    images[::2, :, :4] = 255
    images[::4, :, 4:] = 255
    config = make_codes(steps=150).config
    model = codes.Model(config, FIELDS, seed=0)
    before = model.score(images, 1, torch.Generator(), {})["elbo"].mean()
    fit(model, Rows({"images": images}), steps=150, batch_size=16, seed=0, clip_norm=10.0)
    after = model.score(images, 1, torch.Generator(), {})
    entropy = 1.5 * math.log(2)  # of the images: a half, a quarter and a quarter
    assert entropy < after["elbo"].mean() < entropy + (before - entropy) / 5
    assert (model.reconstruct(images, {}).float() - images.float()).abs().mean() < 20


def test_codes_of_images_that_they_do_not_fit_are_refused() -> None:
    with pytest.raises(ArtifactError, match="multiples of 4, got 10x4"):
        codes.Model(make_codes().config, image_fields((1, 10, 4), 3), seed=0)


# --- prior -------------------------------------------------------------------


@torch.no_grad()
def test_the_prior_gives_all_codes_of_all_classes_a_sum_of_one_and_bounds_the_nats() -> None:
    model = make_prior()
    fill(model)
    network = model.network
    nats = [network.prior.nats(torch.full((36,), label), list_codes()).sum(dim=1) for label in range(3)]
    probabilities = (-torch.stack(nats)).exp() / 3
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-5)
    assert (probabilities[0] - probabilities[1]).abs().max() > 1e-3
    image = (make_images(1) > 127).byte() * 255
    for label in range(3):
        given = {"labels": torch.full((4000,), label)}
        scores = model.score(image.expand(4000, -1, -1, -1), 1, torch.Generator().manual_seed(0), given)
        _, bound = sum_out(network, image / 255, probabilities[label].log())
        check_mean(scores["elbo"], bound[0])
        nats, _ = sum_out(network, image / 255, probabilities.sum(dim=0).log())  # of the image, whatever its class
        assert bound > nats
        rest = scores["elbo"] - scores["kl"]  # the nats given the codes
        logits = network.decode(from_codes(list_codes().view(-1, 2, 1), network.levels)).double()
        each = -Independent(Bernoulli(logits=logits), 3).log_prob(image / 255).double()
        assert (rest[:50, None] - each).abs().amin(dim=1).max() < 1e-4


def test_training_leaves_the_codes_of_the_start_as_they_are_and_one_folder_has_both(tmp_path: Path) -> None:
    start = make_codes()
    save_model(tmp_path / "codes", "codes", start, start.config, FIELDS)
    model = make_prior(steps=10, ema=0.9)
    start_from(model, tmp_path / "codes", skip=["prior.*"], freeze=[])
    model.begin(has_start=True)
    images, labels = make_images(24), torch.arange(24) % 3
    given = {"labels": labels}
    before = model.score(images, 1, torch.Generator().manual_seed(0), given)
    rows = Rows({"images": images, "labels": labels})
    fit(model, rows, steps=10, batch_size=24, seed=0, clip_norm=1.0)
    for name, value in start.network.state_dict().items():
        if name.startswith("prior."):
            continue
        assert torch.equal(model.network.state_dict()[name], value)
        assert torch.equal(model.kept.state_dict()[name], value)
    after = model.score(images, 1, torch.Generator().manual_seed(0), given)
    assert after["kl"].mean() < before["kl"].mean()
    torch.testing.assert_close(after["elbo"] - after["kl"], before["elbo"] - before["kl"])  # given the codes
    save_model(tmp_path / "prior", "codes_prior", model, model.config, FIELDS)
    loaded = load_model(tmp_path / "prior").model
    one, other = (each.sample(24, torch.Generator().manual_seed(0), given)["images"] for each in (model, loaded))
    assert torch.equal(one, other)


def test_the_frozen_codes_cost_no_gradient_and_no_update() -> None:
    model = make_prior()
    batch = {"images": make_images(4), "labels": torch.zeros(4, dtype=torch.int64)}
    model.training_step(batch, 0)["loss"].backward()
    with_gradient = {name.split(".")[0] for name, p in model.network.named_parameters() if p.grad is not None}
    assert with_gradient == {"prior"}
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(
        p.numel() for p in model.network.prior.parameters()
    )


def test_a_prior_without_a_start_or_with_other_levels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="start: expected a run of the model codes or codes_prior, got none"):
        make_prior().begin(has_start=False)
    start = make_codes(levels=[2, 3])  # weights of the same shapes, which mean other codes
    save_model(tmp_path / "codes", "codes", start, start.config, FIELDS)
    model = make_prior()
    start_from(model, tmp_path / "codes", skip=["prior.*"], freeze=[])
    with pytest.raises(ArtifactError, match=r"levels: expected \[2, 3\] as in the start, got \[3, 2\]"):
        model.begin(has_start=True)


def test_codes_with_other_levels_than_their_start_are_refused(tmp_path: Path) -> None:
    start = make_codes(levels=[2, 3])  # weights of the same shapes, which mean other codes
    save_model(tmp_path / "codes", "codes", start, start.config, FIELDS)
    model = make_codes()
    model.begin(has_start=False)
    start_from(model, tmp_path / "codes", skip=[], freeze=[])
    with pytest.raises(ArtifactError, match=r"levels: expected \[2, 3\] as in the start, got \[3, 2\]"):
        model.begin(has_start=True)


def test_samples_of_the_prior_have_the_codes_that_it_expects() -> None:
    model = make_prior()
    fill(model)
    labels = torch.ones(4000, dtype=torch.int64)
    drawn = []
    model.paint = lambda _, tokens, __: drawn.append(tokens) or torch.zeros(len(tokens), 1)  # type: ignore[method-assign, func-returns-value]
    model.sample(4000, torch.Generator().manual_seed(0), {"labels": labels})
    places = 6 * torch.cat(drawn)[:, 0] + torch.cat(drawn)[:, 1]
    with torch.no_grad():
        expected = 4000 * (-model.network.prior.nats(labels[:36], list_codes()).sum(dim=1)).exp()
    assert ((places.bincount(minlength=36) - expected).square() / expected).sum() < 70  # chi-square, 35: p = 0.0004


def test_a_completion_keeps_the_rows_above_and_their_codes_and_sees_nothing_below() -> None:
    model = make_prior()
    fill(model)
    images, given = make_images(40), {"labels": torch.arange(40) % 3}
    with torch.no_grad():  # so that the codes of the images differ
        encoder = model.network.encoder
        encoder[-1].bias -= encoder(2 * (images > 127).float() - 1).mean(dim=(0, 2, 3))
    other = images.clone()
    other[:, :, 5:] = 0
    written = []
    paint = model.network.paint
    model.network.paint = lambda codes: written.append(codes) or paint(codes)  # type: ignore[method-assign, func-returns-value]
    one, same = (model.complete(each, 5, torch.Generator().manual_seed(0), given) for each in (images, other))
    assert torch.equal(one, same)
    assert torch.equal(one[:, :, :5], images[:, :, :5])
    assert torch.equal(one[:, :, 5:], paint(written[0])[:, :, 5:])
    assert written[0][:, 0].unique().numel() > 2
    # Below the known rows, the last of them is repeated.
    seen = images[:, :, [0, 1, 2, 3, 4, 4, 4, 4]]
    seen = binarize(seen, torch.Generator().manual_seed(0))
    assert torch.equal(written[0][:, 0], model.network.read(seen)[:, 0])
    kept: list[int] = []
    go_on = model.go_on
    model.go_on = lambda network, tokens, *rest: kept.append(tokens.size(1)) or go_on(network, tokens, *rest)  # type: ignore[method-assign, func-returns-value]
    for known in range(8):
        model.complete(images, known, torch.Generator(), given)
    assert kept == [0, 0, 1, 1, 1, 1, 1, 1]  # half of four rows suffices; one of the two codes at least is drawn
    with pytest.raises(ValueError, match="known: expected rows below 8, got 8"):
        model.complete(images, 8, torch.Generator(), given)


@torch.no_grad()
def test_the_codes_of_a_completion_have_the_chances_that_the_prior_gives_them() -> None:
    model = make_prior()
    fill(model)
    images = (make_images(1) > 127).byte() * 255
    written = []
    model.network.paint = lambda codes: written.append(codes) or torch.zeros(len(codes), 1, 8, 4)  # type: ignore[method-assign, func-returns-value]
    labels = torch.full((4000,), 2)
    model.complete(images.expand(4000, -1, -1, -1), 4, torch.Generator().manual_seed(0), {"labels": labels})
    first = written[0][0, 0]
    assert (written[0][:, 0] == first).all()
    pairs = list_codes()[list_codes()[:, 0] == first]
    expected = 4000 * (-model.network.prior.nats(labels[:6], pairs)[:, 1]).exp()
    found = written[0][:, 1].bincount(minlength=6)
    assert ((found - expected).square() / expected).sum() < 26  # chi-square, 5: p = 0.0001


def test_a_completion_fits_the_rows_above_after_a_training() -> None:
    images = torch.zeros(16, 1, 8, 4, dtype=torch.uint8)
    images[8:] = 255  # white or black as a whole
    start = codes.Model(make_codes(steps=120, kl_warmup=60).config, FIELDS, seed=0)
    fit(start, Rows({"images": images}), steps=120, batch_size=16, seed=0, clip_norm=10.0)
    model = make_prior(steps=40, conditional=False)
    model.network.encoder.load_state_dict(start.kept.encoder.state_dict())
    model.network.decoder.load_state_dict(start.kept.decoder.state_dict())
    fit(model, Rows({"images": images}), steps=40, batch_size=16, seed=0, clip_norm=1.0)
    half = images.clone()
    half[:, :, 4:] = 128  # what is below must not count
    again = model.complete(half, 4, torch.Generator().manual_seed(0), {})
    assert (again.float() - images.float()).abs().mean() < 25


def test_codes_that_do_not_depend_on_the_image_are_an_alarm() -> None:
    model = make_codes()
    with torch.no_grad():
        last = model.network.encoder[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 0.2]))
        model.network.prior.head.weight.zero_()
        chances = join_chances(find_chances(last.bias[None], model.network.levels, 3), [3, 2])
        model.network.prior.head.bias.copy_(chances[0].clamp(min=1e-9).log())
    values = model.training_step({"images": make_images(8)}, 0)
    assert values["kl_nats"].item() == pytest.approx(0, abs=1e-4)
    assert values["loss"].item() == pytest.approx((values["reconstruction_nats"] + values["kl_nats"]).item())
    newest = {name: (100, float(value)) for name, value in values.items()} | {"code_perplexity": (100, 4.0)}
    told = f"{values['kl_nats'].item():.2g}"  # nothing, up to rounding, which differs between machines
    assert find_alarms(newest, {}) == [f"step 100: posterior collapse: the codes of an image tell {told} nats of it"]
    assert find_alarms(newest | {"kl_nats": (100, 24.0)}, {}) == []


def test_more_codes_than_a_prior_can_have_are_refused() -> None:
    with pytest.raises(ValidationError, match="product of at most 4096, got 1073741824"):
        TypeAdapter(codes.Levels).validate_python([8] * 10)
    assert TypeAdapter(codes.Levels).validate_python([64, 64]) == [64, 64]
