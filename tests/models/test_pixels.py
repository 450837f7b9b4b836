"""Pixels as tokens: probabilities of all images of a few pixels, samples against them, the cache of keys and values."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chisquare

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.batches import Rows
from pipeline.kinds.images import make_fields as image_fields
from pipeline.models import pixels
from pipeline.models.pixels import Config, Model, to_means, to_tokens
from pipeline.training import fit
from tests.models.conftest import fill

FIELDS = image_fields((1, 2, 4), 3)  # two patches


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "conditional": False,
        "layers": 2,
        "heads": 2,
        "width": 16,
        "dropout": 0.0,
        "shift": 0,
        "temperature": 1.0,
        "steps": 5,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "matrix_learning_rate": 1e-2,
        "warmup": 0,
        "final_learning_rate": 0.0,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "ema": 0.0,
    }
    return Config.model_validate(values | changes)


def make_model(fields: Any = FIELDS, **changes: Any) -> Model:
    model = Model(make_config(**changes), fields, seed=0)
    fill(model)
    return model.eval()


def list_images() -> torch.Tensor:
    """All 256 binary images of 2x4 pixels."""
    return torch.tensor(list(itertools.product([0, 255], repeat=8)), dtype=torch.uint8).view(-1, 1, 2, 4)


def number(images: torch.Tensor) -> torch.Tensor:
    """Place of each image in `list_images`."""
    return ((images.flatten(1) > 127).long() << torch.arange(7, -1, -1)).sum(dim=1)


def test_the_probabilities_of_all_images_have_a_sum_of_one(tmp_path: Path) -> None:
    scores = make_model().score(list_images(), 1, torch.Generator(), {})
    assert scores.keys() == {"elbo", "iw"}
    artifacts.write_tensors(tmp_path / "scores.safetensors", scores)  # which refuses two names of one tensor
    assert torch.equal(scores["elbo"], scores["iw"])
    probabilities = (-scores["elbo"]).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert probabilities.max() > 3 * probabilities.min()  # not the uniform model


def test_those_of_all_images_of_all_classes_have_a_sum_of_one() -> None:
    model = make_model(conditional=True)
    labels = torch.arange(3).repeat_interleave(256)
    nats = model.score(list_images().repeat(3, 1, 1, 1), 1, torch.Generator(), {"labels": labels})["elbo"]
    sums = (-nats).exp().view(3, 256).sum(dim=1)
    torch.testing.assert_close(sums, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (nats[:256] - nats[256:512]).abs().max() > 0.05


def test_an_untrained_model_needs_the_nats_of_its_pixels() -> None:
    model = Model(make_config(), image_fields((1, 4, 6), 3), seed=0)
    images = torch.randint(256, (20, 1, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    nats = model.score(images, 1, torch.Generator().manual_seed(0), {})["elbo"]
    torch.testing.assert_close(nats, torch.full((20,), 24 * 0.6931471805599453, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_with_a_cache_occur_as_often_as_the_scores_say(temperature: float) -> None:
    model, count = make_model(), 20_000
    nats = model.score(list_images(), 1, torch.Generator(), {})["elbo"]
    expected = (-nats).exp()
    if temperature < 1:  # each token's distribution is sharpened, not that of the image
        first = expected.view(2, 2, 2, 2, 2, 2, 2, 2).sum(dim=(2, 3, 6, 7))  # of the left patch: pixels 0, 1, 4, 5
        left = first[:, :, None, None, :, :, None, None]
        right = expected.view(2, 2, 2, 2, 2, 2, 2, 2) / left
        sharp = left ** (1 / temperature) / (first ** (1 / temperature)).sum()
        rest = right ** (1 / temperature)
        expected = (sharp * rest / rest.sum(dim=(2, 3, 6, 7), keepdim=True)).flatten()
    uniform = torch.rand(count, 2, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(count, dtype=torch.int64)
    tokens, _ = model.network.generate(zeros, zeros[:, None][:, :0], uniform, temperature)
    pictures = to_means(torch.nn.functional.one_hot(tokens, 16).float(), 2)
    observed = number(pictures).bincount(minlength=256)
    assert chisquare(observed.numpy(), (expected / expected.sum() * count).numpy()).pvalue > 1e-3
    wrong = (expected.flip(0) / expected.sum() * count).numpy()  # the test can fail
    assert chisquare(observed.numpy(), wrong).pvalue < 1e-6


def test_patches_become_tokens_and_pixels_again() -> None:
    images = torch.rand(5, 1, 6, 8, generator=torch.Generator().manual_seed(0)).round()
    tokens = to_tokens(images)
    assert tokens.shape == (5, 12)
    # the second patch of the first row is the pixels of rows 0, 1 and columns 2, 3
    corner = images[:, 0, :2, 2:4].reshape(5, 4)
    assert torch.equal(tokens[:, 1], (corner.long() * torch.tensor([1, 2, 4, 8])).sum(dim=1))
    again = to_means(torch.nn.functional.one_hot(tokens, 16).float(), 6)
    assert torch.equal(again, (images * 255).byte())


def test_a_cache_gives_the_probabilities_of_teacher_forcing() -> None:
    model = make_model(image_fields((1, 6, 8), 3), conditional=True)
    first = torch.tensor([2, 0, 1, 1])
    uniform = torch.rand(4, 12, generator=torch.Generator().manual_seed(0))
    tokens, probabilities = model.network.generate(first, first[:, None][:, :0], uniform)
    with torch.no_grad():
        logits = model.network(torch.cat([first[:, None] + 16, tokens[:, :-1]], dim=1))
    torch.testing.assert_close(probabilities, logits.softmax(dim=-1), rtol=1e-4, atol=1e-6)
    # Each token is where its number falls among the probabilities.
    ends = logits.double().softmax(dim=-1).cumsum(dim=-1)
    expected = (ends < uniform.double()[..., None]).sum(dim=-1)
    assert torch.equal(tokens, expected)
    again, rest = model.network.generate(first, tokens[:, :5], uniform[:, 5:])
    assert torch.equal(again, tokens)
    torch.testing.assert_close(rest, probabilities[:, 5:], rtol=1e-4, atol=1e-6)


def test_a_pixel_depends_on_no_later_patch() -> None:
    model = make_model(image_fields((1, 4, 8), 3))
    images = torch.randint(2, (1, 1, 4, 8), generator=torch.Generator().manual_seed(0)).byte() * 255
    changed = images.clone()
    changed[..., 2:, 4:] = 255 - changed[..., 2:, 4:]  # the last two patches of eight
    with torch.no_grad():
        both = torch.cat([to_tokens(each / 255) for each in (images, changed)])
        one, other = model.network.nats(torch.zeros(2, dtype=torch.int64), both)
    assert torch.equal(one[:6], other[:6])
    assert not torch.equal(one[6:], other[6:])


def test_samples_do_not_depend_on_how_many_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(image_fields((1, 4, 4), 3), conditional=True)
    labels = torch.arange(40) % 3

    def draw(count: int) -> torch.Tensor:
        return model.sample(count, torch.Generator().manual_seed(3), {"labels": labels[:count]})["images"]

    whole = draw(40)
    assert torch.equal(draw(13), whole[:13])
    monkeypatch.setattr(pixels, "AT_ONCE", 7)
    assert torch.equal(draw(40), whole)


def test_a_completion_keeps_the_rows_above_and_fits_them() -> None:
    fields = image_fields((1, 4, 4), 3)
    images = torch.zeros(16, 1, 4, 4, dtype=torch.uint8)
    images[8:] = 255  # white or black as a whole
    config = make_config(steps=40, batch_size=16)
    model = Model(config, fields, seed=0)
    rows = Rows({"images": images, "labels": torch.zeros(16, dtype=torch.int64)})
    fit(model, rows, steps=40, batch_size=16, seed=0, clip_norm=1.0)
    half = images.clone()
    half[:, :, 2:] = 128  # what is below must not count
    again = model.complete(half, 2, torch.Generator().manual_seed(0), {})
    assert torch.equal(again[:, :, :2], images[:, :, :2])
    assert (again[:, :, 2:].float() - images[:, :, 2:].float()).abs().mean() < 25
    with pytest.raises(ValueError, match="a multiple of 2 below 4, got 3"):
        model.complete(half, 3, torch.Generator(), {})


@torch.no_grad()
def test_a_completion_without_a_class_draws_it_by_how_likely_the_known_rows_are() -> None:
    model = make_model(image_fields((1, 4, 4), 3), conditional=True)
    first = torch.tensor([[3, 7], [12, 0]])  # the patches of the two upper rows
    nats = torch.stack([model.network.nats(torch.full((2,), label), first).sum(dim=1) for label in range(3)], dim=1)
    expected = 3000 * torch.distributions.Categorical(logits=-nats).probs
    drawn = model.draw_classes(model.network, first.repeat_interleave(3000, dim=0), torch.Generator().manual_seed(0))
    found = torch.stack([part.bincount(minlength=3) for part in drawn.view(2, 3000)])
    assert (expected - 1000).abs().max() > 100  # the classes are not equally likely
    assert chisquare(found.flatten(), expected.flatten(), ddof=1).pvalue > 1e-4
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    given = {"labels": torch.tensor([2, 2])}
    one, other = (model.complete(images, 2, torch.Generator().manual_seed(0), each) for each in ({}, given))
    assert one.shape == other.shape == images.shape


def test_training_sees_images_that_are_drawn_again_with_the_grey_level_as_chance() -> None:
    model = make_model()
    seen = []
    read = model.read
    model.read = lambda network, x, generator: seen.append(x) or read(network, x, generator)  # type: ignore[method-assign, func-returns-value]
    batch = {"images": torch.full((2000, 1, 2, 4), 51, dtype=torch.uint8)}
    for step in (0, 1):
        model.training_step(batch, step)
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(*seen)
    assert seen[0].mean().item() == pytest.approx(0.2, abs=0.02)  # 16,000 draws: a standard error of 0.003


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 5, 4), "even sides, as patches are 2x2, got 5x4"),
        ((3, 4, 4), "images of 1 channel, .* got 3"),
    ],
)
def test_images_without_whole_patches_are_refused(shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Model(make_config(), image_fields(shape, 3), seed=0)


def test_a_conditional_model_without_labels_is_refused() -> None:
    with pytest.raises(ArtifactError, match="conditional true needs labels"):
        Model(make_config(conditional=True), {"images": FIELDS["images"]}, seed=0)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="width must be a multiple of 2"):
        make_config(heads=3)
