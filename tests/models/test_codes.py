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
from pipeline.layers.quantization import from_codes
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
PRIOR: dict[str, Any] = {
    "levels": [3, 2],
    "codes_width": 4,
    "codes_blocks": 1,
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
    values = TRAINING | {"levels": [3, 2], "width": 4, "blocks": 1} | changes
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


def sum_out(network: codes.Network, x: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Return the nats of binary images (N, 1, 8, 4), summed over all codes with log-probabilities (36,)."""
    logits = network.decode(from_codes(list_codes().view(-1, 2, 1), network.levels)).double()
    each = Independent(Bernoulli(logits=logits[:, None]), 3).log_prob(x.double())  # (36, N)
    return -(each + prior[:, None]).logsumexp(dim=0)


@torch.no_grad()
def test_the_bound_is_above_the_nats_summed_over_all_codes_by_what_the_encoder_leaves_out(
    tmp_path: Path,
) -> None:
    model = make_codes()
    images = (make_images() > 127).byte() * 255  # nothing is drawn
    scores = model.score(images, 1, torch.Generator(), {})
    artifacts.write_tensors(tmp_path / "scores.safetensors", scores)  # which refuses two names of one tensor
    x, network = images / 255, model.network
    exact = sum_out(network, x, torch.full((36,), -math.log(36), dtype=torch.float64))
    assert (scores["elbo"] > exact).all()
    torch.testing.assert_close(scores["kl"], torch.full((30,), math.log(36), dtype=torch.float64))
    logits = network.write(network.read(x))
    given = -Independent(Bernoulli(logits=logits), 3).log_prob(x).double()
    torch.testing.assert_close(scores["elbo"], given + math.log(36), rtol=1e-6, atol=1e-4)
    # With the best codes in the place of the encoder's, the bound is nearer, and still one.
    best = torch.stack([-Independent(Bernoulli(logits=network.write(c[None])), 3).log_prob(x) for c in list_codes()])
    assert (best.amin(dim=0) + math.log(36) > exact - 1e-4).all()


def test_the_use_of_codes_is_that_of_a_count() -> None:
    found = codes.describe_use(torch.tensor([[0, 0], [0, 5]]), 8)
    assert found["codes_used"].item() == 2 / 8
    # exp(H) of 3/4 and 1/4
    assert found["code_perplexity"].item() == pytest.approx(0.75**-0.75 * 0.25**-0.25)
    even = codes.describe_use(torch.arange(8), 8)
    assert [value.item() for value in even.values()] == pytest.approx([1, 8])


def test_samples_without_a_prior_have_every_code_with_equal_chances() -> None:
    model = make_codes()
    drawn = []
    model.kept.write = lambda each: drawn.append(each) or torch.zeros(len(each), 1, 8, 4)  # type: ignore[method-assign, func-returns-value]
    images = model.sample(6000, torch.Generator().manual_seed(0), {})["images"]
    assert images.unique().tolist() == [128]
    counts = torch.cat(drawn).flatten().bincount(minlength=6)
    assert (counts - 2000).abs().max() < 5 * 41  # standard deviation of a count: 41


def test_training_lowers_the_nats_and_uses_the_codes() -> None:
    images = torch.zeros(16, 1, 8, 4, dtype=torch.uint8)
    images[::2, :, :4] = 255
    images[::4, :, 4:] = 255
    config = make_codes(steps=60).config
    model = codes.Model(config, FIELDS, seed=0)
    before = model.score(images, 1, torch.Generator(), {})["elbo"].mean()
    fit(model, Rows({"images": images}), steps=60, batch_size=16, seed=0, clip_norm=10.0)
    after = model.score(images, 1, torch.Generator(), {})
    assert after["elbo"].mean() - math.log(36) < (before - math.log(36)) / 5
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
    images = (make_images() > 127).byte() * 255
    labels = torch.arange(30) % 3
    scores = model.score(images, 1, torch.Generator(), {"labels": labels})
    x = images / 255
    exact = sum_out(network, x, probabilities.sum(dim=0).log())  # of the image alone, whatever its class
    assert (scores["elbo"] > exact).all()
    own = network.read(x)
    place = 6 * own[:, 0] + own[:, 1]
    expected = -probabilities[labels, place].log()
    torch.testing.assert_close(scores["kl"], expected, rtol=1e-4, atol=1e-4)
    rest = -Independent(Bernoulli(logits=network.write(own)), 3).log_prob(x).double()
    torch.testing.assert_close(scores["elbo"], expected + rest, rtol=1e-5, atol=1e-3)


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
        assert torch.equal(model.network.state_dict()[name], value)
        assert torch.equal(model.kept.state_dict()[name], value)
    after = model.score(images, 1, torch.Generator().manual_seed(0), given)
    assert after["kl"].mean() < before["kl"].mean()
    torch.testing.assert_close(after["elbo"] - after["kl"], before["elbo"] - before["kl"])  # the reconstruction
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
    start = codes.Model(make_codes(steps=60).config, FIELDS, seed=0)
    fit(start, Rows({"images": images}), steps=60, batch_size=16, seed=0, clip_norm=10.0)
    model = make_prior(steps=40, conditional=False)
    model.network.load_state_dict(start.kept.state_dict(), strict=False)
    fit(model, Rows({"images": images}), steps=40, batch_size=16, seed=0, clip_norm=1.0)
    half = images.clone()
    half[:, :, 4:] = 128  # what is below must not count
    again = model.complete(half, 4, torch.Generator().manual_seed(0), {})
    assert (again.float() - images.float()).abs().mean() < 25


def test_one_code_for_nearly_everything_is_an_alarm() -> None:
    assert find_alarms({"code_perplexity": (100, 9.0)}, {}) == []
    assert "step 100: collapse of the codes" in find_alarms({"code_perplexity": (100, 1.1)}, {})[0]


def test_more_codes_than_a_prior_can_have_are_refused() -> None:
    with pytest.raises(ValidationError, match="product of at most 65536, got 1073741824"):
        TypeAdapter(codes.Levels).validate_python([8] * 10)
    assert TypeAdapter(codes.Levels).validate_python([256, 256]) == [256, 256]


def test_two_codes_of_equal_frequency_are_no_collapse() -> None:
    assert find_alarms({"code_perplexity": (10, 1.99)}, {}) == []
