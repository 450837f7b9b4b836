"""VAE: likelihoods and bounds against closed forms."""

import math
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from pipeline.artifacts import ArtifactError
from pipeline.batches import Rows
from pipeline.kinds.images import make_fields as image_fields
from pipeline.layers.blocks import shift_images
from pipeline.layers.likelihoods import gaussian_kl, log_bernoulli, log_discretized_logistic, log_normal
from pipeline.models.vae import Config, Model, describe_scores
from pipeline.training import fit

SPEC = image_fields((1, 8, 8), 2)


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "latent": 4,
        "width": 4,
        "blocks": 1,
        "half_blocks": 0,
        "hidden": 16,
        "prior_couplings": 0,
        "prior_hidden": 8,
        "dropout": 0.0,
        "likelihood": "bernoulli",
        "beta": 1.0,
        "kl_warmup": 0,
        "free_bits": 0.0,
        "importance_samples": 1,
        "shift": 0,
        "steps": 5,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup": 0,
        "final_learning_rate": 1.0,
        "weight_decay": 0.0,
        "clip_norm": 10.0,
        "ema": 0.0,
    }
    return Config.model_validate(values | changes)


def make_images(count: int = 30) -> torch.Tensor:
    return torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_likelihood_says_what_its_scores_are_of() -> None:
    likelihoods = get_args(Config.model_fields["likelihood"].annotation)
    scores = [describe_scores(make_config(likelihood=likelihood)) for likelihood in likelihoods]
    assert scores == [
        {"of": "bernoulli on binarised images"},
        {"of": "discretized_logistic on grey levels", "levels": "256 grey levels"},
    ]


def test_kl_is_that_of_torch_distributions() -> None:
    mean, log_variance = torch.randn(6, 4), torch.randn(6, 4)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected, rtol=1e-4, atol=1e-5)


def test_log_normal_is_that_of_torch_distributions() -> None:
    z, mean, log_variance = torch.randn(3, 6, 4), torch.randn(6, 4), torch.randn(6, 4)
    expected = Independent(Normal(mean, (0.5 * log_variance).exp()), 1).log_prob(z)
    torch.testing.assert_close(log_normal(z, mean, log_variance), expected)


def test_log_bernoulli_is_that_of_torch_distributions() -> None:
    logits, x = torch.randn(5, 1, 8, 8) * 5, torch.rand(5, 1, 8, 8).round()
    torch.testing.assert_close(log_bernoulli(logits, x), Independent(Bernoulli(logits=logits), 3).log_prob(x))


@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
@pytest.mark.parametrize("logit", [-9.0, 0.3, 4.0])
def test_the_discretised_logistic_gives_the_256_levels_a_total_of_one(logit: float, log_scale: float) -> None:
    levels = (torch.arange(256) / 255).view(256, 1, 1, 1)
    logits = torch.full((256, 1, 1, 1), logit)
    probabilities = log_discretized_logistic(logits, torch.tensor(log_scale), levels).double().exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=2e-4)


def test_the_bound_of_one_sample_is_the_elbo_and_more_samples_tighten_it() -> None:
    model = Model(make_config(), SPEC, seed=0)
    one = model.score(make_images(), 1, torch.Generator().manual_seed(0), {})
    torch.testing.assert_close(one["elbo"], one["iw"])
    many = model.score(make_images(), 200, torch.Generator().manual_seed(0), {})
    assert (many["iw"] <= many["elbo"] + 1e-9).all()  # Jensen
    assert many["iw"].mean() < many["elbo"].mean()


def test_what_the_likelihood_observes_is_black_or_white_with_the_grey_level_as_chance() -> None:
    model = Model(make_config(), SPEC, seed=0)
    levels = torch.tensor([0, 51, 204, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    observed = model.observe(levels.expand(10_000, 1, 2, 2), torch.Generator().manual_seed(0))
    assert set(observed.unique().tolist()) == {0, 255}
    means = observed.float().mean(dim=0).flatten() / 255  # the standard errors of the second and third are 0.004
    torch.testing.assert_close(means, torch.tensor([0.0, 0.2, 0.8, 1.0]), rtol=0, atol=0.02)
    # Once more changes nothing: `score` may draw again.
    assert torch.equal(model.observe(observed, torch.Generator().manual_seed(1)), observed)
    grey = Model(make_config(likelihood="discretized_logistic"), SPEC, seed=0)
    every = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    assert torch.equal(grey.observe(every, torch.Generator()), every)


def test_the_bound_approaches_the_exact_likelihood_by_quadrature() -> None:
    # One latent unit: p(x) is an integral over a line, which a fine grid gives to many digits.
    model = Model(make_config(latent=1), SPEC, seed=0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(2)  # a decoder that depends on z
    images = (make_images(6) > 127).byte() * 255  # binary already: nothing is drawn
    z = torch.linspace(-10, 10, 8001)
    with torch.no_grad():
        logits = model.network.decode(z[:, None])
        x = images.float() / 255
        joint = torch.stack([log_bernoulli(logits, one.expand_as(logits)) for one in x]).double()
        prior = Normal(0.0, 1.0).log_prob(z).double()
        exact = -((joint + prior).logsumexp(dim=1) + math.log(20 / 8000))
    bound = model.score(images, 3000, torch.Generator().manual_seed(0), {})["iw"]
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.05)


def test_a_learned_prior_keeps_the_bound_below_the_likelihood_and_enters_kl_and_samples() -> None:
    # As above, with the flow's density in the integral.
    model = Model(make_config(latent=1, prior_couplings=4, half_blocks=1), SPEC, seed=0)
    with torch.no_grad():
        for parameter in model.network.prior.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    images = (make_images(6) > 127).byte() * 255
    z = torch.linspace(-10, 10, 8001)
    x = images.float() / 255
    with torch.no_grad():
        joint = torch.stack([log_bernoulli(model.network.decode(z[:, None]), one.expand(8001, 1, 8, 8)) for one in x])
        prior = model.network.prior.log_density(z[:, None])
        exact = -((joint + prior).double().logsumexp(dim=1) + math.log(20 / 8000))
    scores = model.score(images, 3000, torch.Generator().manual_seed(0), {})
    torch.testing.assert_close(scores["iw"], exact, rtol=0, atol=0.05)
    mean, log_variance = (part.double() for part in model.network.encode(x))
    posterior = Normal(mean, (0.5 * log_variance).exp())
    density = posterior.log_prob(z.double()[:, None, None]).exp()[..., 0]  # (grid, B)
    kl = (density * (density.clamp(min=1e-300).log() - prior.double()[:, None])).sum(dim=0) * 20 / 8000
    torch.testing.assert_close(scores["kl"], kl, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("couplings", [0, 4])
def test_the_bound_of_a_conditional_model_is_that_of_its_class(couplings: int) -> None:
    # As above, given the class: its prior, its vector, its plane.
    model = Model(make_config(latent=1, conditional=True, prior_couplings=couplings), SPEC, seed=0)
    network = model.network
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for size, part in ((0.1, network.prior), (0.3, network.centre), (2.0, network.vector)):
            for parameter in part.parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    images = (make_images(6) > 127).byte() * 255
    z, x = torch.linspace(-12, 12, 4001)[:, None], images.float() / 255
    bounds = {}
    for label in (0, 1):
        labels = torch.full((4001,), label)
        with torch.no_grad():
            logits = network.decode(z, labels)
            prior = network.log_prior(z, labels)
            assert prior.double().exp().sum().item() * 24 / 4000 == pytest.approx(1, abs=1e-3)
            joint = torch.stack([log_bernoulli(logits, one.expand_as(logits)) for one in x])
            exact = -((joint + prior).double().logsumexp(dim=1) + math.log(24 / 4000))
        given = {"labels": labels[:6]}
        scores = model.score(images, 3000, torch.Generator().manual_seed(0), given)
        torch.testing.assert_close(scores["iw"], exact, rtol=0, atol=0.05)
        mean, log_variance = network.encode(x, labels[:6])
        kl = model.divergence(mean, mean, log_variance, labels[:6])
        if not couplings:
            centre, spread = network.find_prior(mean, labels[:6])
            normals = (Normal(mean, (0.5 * log_variance).exp()), Normal(centre, (0.5 * spread).exp()))
            torch.testing.assert_close(kl, kl_divergence(*normals), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(scores["kl"].float(), kl.detach().sum(dim=1), rtol=0.1, atol=0.05)
        bounds[label] = scores["iw"]
    assert (bounds[0] - bounds[1]).abs().max() > 0.02


def test_a_conditional_model_learns_which_class_it_is_asked_for() -> None:
    config = make_config(conditional=True, steps=150, learning_rate=1e-2, latent=2)
    images = torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    images[:8, :, :, :4] = 255  # class 0 is white on the left, class 1 on the right
    images[8:, :, :, 4:] = 255
    model = Model(config, SPEC, seed=0)
    fit(model, Rows({"images": images, "labels": torch.arange(16) // 8}), steps=150, batch_size=16, seed=0)
    given = {"labels": torch.tensor([0, 1] * 20)}
    drawn = model.sample(40, torch.Generator().manual_seed(0), given)["images"].float().mean(dim=(1, 2))  # (N, W)
    left = drawn[:, :4].mean(dim=1) > drawn[:, 4:].mean(dim=1)
    assert left.tolist() == [True, False] * 20
    again = model.reconstruct(images, {"labels": torch.arange(16) // 8})
    assert (again.float() - images.float()).abs().mean() < 30


def test_a_conditional_model_without_labels_is_refused_and_its_scores_say_that_they_are_given_the_class() -> None:
    with pytest.raises(ArtifactError, match="conditional true needs labels, and the data have none"):
        Model(make_config(conditional=True), {"images": SPEC["images"]}, seed=0)
    assert describe_scores(make_config(conditional=True))["of"].endswith("binarised images, given the class")


def test_a_learned_prior_refuses_free_bits() -> None:
    with pytest.raises(ValidationError, match="free_bits must be 0"):
        make_config(prior_couplings=2, free_bits=0.5)


def test_units_that_ignore_the_image_are_not_active() -> None:
    model = Model(make_config(), SPEC, seed=0)
    last = model.network.encoder[-1]
    with torch.no_grad():
        last.weight.zero_()
        assert model.score(make_images(), 1, torch.Generator(), {})["active_units"] == 0
        last.weight[:2].normal_(0, 100)  # the first two of four means see the image
        assert model.score(make_images(), 1, torch.Generator(), {})["active_units"] == 2


def test_free_bits_give_the_kl_term_no_gradient_below_the_threshold() -> None:
    model = Model(make_config(free_bits=50.0, beta=1.0), SPEC, seed=0)
    outputs = model.training_step({"images": make_images(4), "labels": torch.zeros(4)}, 0)
    assert (outputs["loss"] - outputs["reconstruction_nats"]).item() == pytest.approx(4 * 50.0)


def test_beta_warms_up_from_its_first_share() -> None:
    model = Model(make_config(beta=2.0, kl_warmup=10), SPEC, seed=0)
    for step, beta in ((0, 0.2), (4, 1.0), (9, 2.0), (30, 2.0)):
        outputs = model.training_step({"images": make_images(4), "labels": torch.zeros(4)}, step)
        kl_part = outputs["loss"] - outputs["reconstruction_nats"]
        assert kl_part.item() == pytest.approx(beta * outputs["kl_nats"].item(), rel=1e-3, abs=1e-4)


def test_importance_samples_with_a_weighted_kl_are_refused() -> None:
    with pytest.raises(ValidationError, match="beta must be 1"):
        make_config(importance_samples=5, beta=0.5)


@pytest.mark.parametrize(
    "changes", [{"importance_samples": 4}, {"likelihood": "discretized_logistic"}, {"prior_couplings": 2}]
)
def test_other_objectives_give_finite_losses_and_gradients(changes: dict[str, Any]) -> None:
    model = Model(make_config(**changes), SPEC, seed=0)
    model.training_step({"images": make_images(4), "labels": torch.zeros(4)}, 0)["loss"].backward()
    gradients = [parameter.grad for parameter in model.network.encoder.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_binarisation_keeps_the_mean_grey_level() -> None:
    model = Model(make_config(), SPEC, seed=0)
    levels = torch.full((1000, 1, 8, 8), 51, dtype=torch.uint8)  # 0.2
    drawn = model._observe(levels, torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(0.2, abs=0.005)


def test_shifts_move_whole_images_by_at_most_the_stated_pixels() -> None:
    images = torch.zeros(200, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 4] = 7
    moved = shift_images(images, 2, torch.Generator().manual_seed(0))
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    assert len(rows) == 200
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}
    assert moved.sum() == images.sum()
