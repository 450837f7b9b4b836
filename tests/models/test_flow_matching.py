"""Flow matching: densities, guidance and mean velocities against closed forms; the contract of a model."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.backbones import images as backbone
from pipeline.batches import Rows
from pipeline.commands.check import find_problems
from pipeline.kinds import images as images_kind
from pipeline.kinds.points import make_fields as point_fields
from pipeline.models.flow_matching import (
    LEARNS,
    Config,
    Model,
    decode,
    describe_scores,
    find_latent,
    require,
    to_bits,
    turn_back,
)
from pipeline.models.vae import describe_scores as describe_vae_scores
from pipeline.randomness import make_generator, normal
from pipeline.training import fit
from tests.commands.test_check import make_images
from tests.models.test_vae import make_config as make_vae_config

FIELDS = images_kind.make_fields((1, 8, 8), 2)
SPEC = FIELDS["images"]


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "backbone": "unet",
        "width": 8,
        "blocks": 1,
        "conditional": True,
        "label_dropout": 0.1,
        "objective": "velocity",
        "times": "logit_normal",
        "late_share": 0.1,
        "guidance": 1.5,
        "sampler": "heun",
        "sampling_steps": 3,
        "likelihood_steps": 2,
        "steps": 5,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup": 0,
        "final_learning_rate": 0.1,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "ema": 0.9,
    }
    return Config.model_validate(values | changes)


def make_model(fields: Any = FIELDS, **changes: Any) -> Model:
    """A model whose weights are none of them zero, as some are in a fresh one."""
    model = Model(make_config(**changes), fields, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in (model.network, model.kept):
            generator.manual_seed(0)
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def make_halves() -> dict[str, Tensor]:
    """White on the left is class 0, white on the right is class 1."""
    images = torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    images[:8, :, :, :4] = 255
    images[8:, :, :, 4:] = 255
    return {"images": images, "labels": torch.arange(16) // 8}


@pytest.mark.parametrize(
    "changes",
    [{}, {"backbone": "dit", "width": 32, "objective": "shortcut", "sampling_steps": 1}],
    ids=["unet", "dit of shortcuts"],
)
def test_the_model_keeps_the_contract_and_resumes_with_the_same_bits(changes: dict[str, Any]) -> None:
    subject = make_images("flow_matching", make_config(**changes, likelihood_steps=1))
    subject.sampling = subject.sampling.model_copy(update={"bits_images": 2})
    assert [line for line in find_problems(subject) if line[1]] == []


def test_it_learns_images_points_and_sound() -> None:
    assert {"audio", "images", "points"} == set(LEARNS)
    model = make_model(point_fields(2, 8), backbone="perceptron", width=16, blocks=2)
    drawn = model.sample(5, make_generator(0, "x"), {"labels": torch.zeros(5, dtype=torch.int64)})
    assert drawn["points"].shape == (5, 2)
    assert drawn["points"].dtype == torch.float32


@pytest.mark.parametrize("objective", [pytest.param("velocity", marks=pytest.mark.slow), "shortcut"])
def test_points_are_of_the_mode_that_is_asked_for(objective: str) -> None:
    values = {"backbone": "perceptron", "width": 32, "blocks": 2, "steps": 180, "objective": objective, "guidance": 1.0}
    model = Model(make_config(sampling_steps=1 if objective == "shortcut" else 4, **values), point_fields(2, 2), 0)
    labels = torch.arange(64) % 2
    centres = torch.tensor([[-0.8, 0.3], [0.8, 0.3]])
    points = centres[labels] + 0.05 * torch.randn(64, 2, generator=make_generator(0, "points"))
    fit(model, Rows({"points": points, "labels": labels}), steps=180, batch_size=64, seed=0)
    drawn = model.sample(200, make_generator(0, "x"), {"labels": torch.arange(200) % 2})["points"]
    distances = (drawn - centres[torch.arange(200) % 2]).norm(dim=1)
    assert distances.median() < 0.25
    assert ((drawn[:, 0] > 0) == (torch.arange(200) % 2 > 0)).double().mean() > 0.98


@pytest.mark.slow
def test_images_are_of_the_class_that_is_asked_for() -> None:
    model = Model(make_config(width=16, steps=300, learning_rate=4e-3), FIELDS, seed=0)
    fit(model, Rows(make_halves()), steps=300, batch_size=16, seed=0)
    drawn = model.sample(40, make_generator(0, "x"), {"labels": torch.tensor([0, 1] * 20)})["images"].float()
    left, right = drawn[..., :4].mean(dim=(1, 2, 3)), drawn[..., 4:].mean(dim=(1, 2, 3))
    assert (left > right).tolist() == [True, False] * 20
    assert (left - right).abs().mean() > 128


def test_the_density_of_points_has_an_integral_of_one() -> None:
    model = make_model(point_fields(2, 8), backbone="perceptron", width=16, blocks=2)
    with torch.no_grad():
        model.kept.leave.weight.mul_(0.3)  # type: ignore[union-attr,operator]
        model.kept.leave.bias.fill_(0.5)  # type: ignore[union-attr,operator]
    line = torch.linspace(-7, 7, 71)
    grid = torch.cartesian_prod(line, line)
    labels = torch.full((len(grid),), 3)
    found = model.find_log_density(grid, labels, 6, None)
    noise = -0.5 * grid.square().sum(dim=1) - math.log(2 * math.pi)
    assert (found - noise)[grid.norm(dim=1) < 2].abs().max() > 0.5  # it is another density than that of the noise
    assert found.exp().sum().item() * (14 / 70) ** 2 == pytest.approx(1, abs=0.01)


def test_a_uniform_density_has_eight_bits_and_the_noise_has_what_its_density_says() -> None:
    assert to_bits(torch.tensor([-64 * math.log(2)]), 64, backbone.CELL).item() == pytest.approx(8, abs=1e-6)
    model = make_model(images_kind.make_fields((1, 12, 12), 2), likelihood_steps=1)
    for parameter in model.kept.parameters():
        nn.init.zeros_(parameter)  # a velocity of zero: values have the density of the noise
    images = torch.randint(256, (4, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scores = model.score_levels(images, make_generator(0, "x"), {"labels": torch.zeros(4, dtype=torch.int64)})
    # The mean over a cell of -log2 of the normal density times the cell's width, by quadrature at its middle.
    middle = (images.double() + 0.5) / 128 - 1
    expected = (0.5 * middle.square() + 0.5 * math.log(2 * math.pi)).flatten(1).mean(dim=1) / math.log(2) + 7
    torch.testing.assert_close(scores["bits_per_dim"], expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(scores["levels_nats"], scores["bits_per_dim"] * 144 * math.log(2))
    assert scores["bits_per_dim_change"].abs().max() < 1e-9


def test_too_few_evaluations_show_in_the_change_that_more_of_them_make() -> None:
    fields = images_kind.make_fields((1, 12, 12), 2)  # of more than 64 dimensions
    images = torch.zeros(4, 1, 12, 12, dtype=torch.uint8)
    changes = {}
    for steps in (1, 16):
        model = make_model(fields, likelihood_steps=steps)
        with torch.no_grad():
            model.kept.network.leave.weight.mul_(8)  # type: ignore[union-attr,operator]
        scores = model.score_levels(images, make_generator(0, "x"), {"labels": torch.zeros(4, dtype=torch.int64)})
        changes[steps] = scores["bits_per_dim_change"].mean().abs().item()
    assert changes[16] < 0.01 < changes[1]


def test_each_grey_level_has_a_cell_of_its_own() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).repeat(1, 1, 8, 8)
    continuous = backbone.to_continuous(levels, SPEC, make_generator(0, "x"))
    assert continuous.min() >= -1
    assert continuous.max() < 1
    assert torch.equal(backbone.from_continuous(continuous, SPEC), levels)
    within = (continuous + 1) / backbone.CELL - levels
    assert within.std().item() == pytest.approx(12**-0.5, abs=0.01)


def test_guidance_moves_away_from_the_velocity_without_a_label() -> None:
    model = make_model()
    x, labels, times, spans = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]), torch.full((4,), 0.3), torch.zeros(4)
    with torch.no_grad():
        found, without = (model.kept(x, times, spans, each) for each in (labels, torch.full_like(labels, 2)))
        guided = model.guide(model.kept, x, times, spans, labels, torch.tensor([1.0, 1.0, 1.5, 0.0]))
    assert (found - without).abs().max() > 1e-3
    assert torch.equal(guided[:2], found[:2])  # a weight of 1 is no guidance
    torch.testing.assert_close(guided[2], (without + 1.5 * (found - without))[2])
    torch.testing.assert_close(guided[3], without[3])
    noise = make_generator(0, "x")
    strong, plain = (make_model(guidance=weight) for weight in (9.0, 1.0))
    drawn = [each.carry(each.kept, normal(4, 1, 8, 8, generator=noise), labels) for each in (plain, strong)]
    assert not torch.equal(*drawn)


def test_more_samples_begin_with_the_same_ones() -> None:
    model = make_model(sampling_steps=1)
    labels = torch.arange(600) % 2
    few, many = (model.sample(count, make_generator(0, "x"), {"labels": labels[:count]}) for count in (500, 600))
    assert torch.equal(few["images"], many["images"][:500])


def test_the_values_of_a_sample_s_noise_are_the_sample() -> None:
    for fields, changes in ((FIELDS, {}), (point_fields(2, 2), {"backbone": "perceptron", "width": 16, "blocks": 2})):
        model = make_model(fields, **changes)
        given = {"labels": torch.tensor([1, 0, 1])}
        drawn = model.sample(3, make_generator(0, "x"), given)[model.makes]
        noise = normal(3, *find_latent(model), generator=make_generator(0, "x"))
        assert torch.equal(decode(model, noise, given), drawn)
        assert not torch.equal(decode(model, -noise, given), drawn)


def test_noise_that_is_added_again_leaves_a_value_on_the_line_to_its_data() -> None:
    noise, again = (normal(200_000, generator=make_generator(0, name)).double() for name in ("noise", "again"))
    for time, earlier in ((0.25, 0.0), (0.5, 0.25), (1.0, 0.9375)):
        x = turn_back((1 - time) * noise + time * 3.0, time, earlier, again)
        assert x.mean().item() == pytest.approx(earlier * 3.0, abs=0.01)
        assert x.std().item() == pytest.approx(1 - earlier, abs=0.01)


class Towards(nn.Module):
    """The velocity whose data is white where the pixels of the column are white in the top row, else black."""

    def forward(self, x: Tensor, times: Tensor, spans: Tensor, labels: Tensor | None) -> Tensor:
        del spans, labels
        t = times.view(-1, 1, 1, 1)
        target = (x[:, :, :1] / t.clamp(min=0.1)).clamp(-1, 1)  # what the top row's way says of its data
        return (target - x) / (1 - t)


def test_a_completion_keeps_the_rows_above_and_the_others_see_them() -> None:
    model = make_model(ema=0.0)
    model.network = Towards()
    images = make_halves()["images"]
    half = images.clone()
    half[:, :, 4:] = 128  # what is below must not count
    given = {"labels": torch.zeros(16, dtype=torch.int64)}
    again = model.complete(half, 4, make_generator(0, "x"), given)
    assert torch.equal(again[:, :, :4], images[:, :, :4])
    assert (again[:, :, 4:].float() - images[:, :, 4:].float()).abs().mean() < 25
    assert torch.equal(again, model.complete(images, 4, make_generator(0, "x"), given))
    assert not torch.equal(again[:, :, 4:], model.complete(255 - images, 4, make_generator(0, "x"), given)[:, :, 4:])
    with pytest.raises(ValueError, match="known: expected rows below 8, got 8"):
        model.complete(images, 8, make_generator(0, "x"), given)


def test_a_completion_is_of_the_class_or_leaves_it_open_where_it_has_been_learnt_without() -> None:
    images, drawn = make_halves()["images"][:2], {}
    for name, given in (("0", torch.zeros(2)), ("1", torch.ones(2)), ("open", None)):
        labels = {} if given is None else {"labels": given.long()}
        drawn[name] = make_model(guidance=3.0).complete(images, 4, make_generator(0, "x"), labels)
    assert not torch.equal(drawn["0"], drawn["1"])
    assert not torch.equal(drawn["0"], drawn["open"])
    model = make_model(label_dropout=0.0, guidance=1.0)
    with pytest.raises(ArtifactError, match="expected a class, as label_dropout 0 leaves nothing"):
        model.complete(images, 4, make_generator(0, "x"), {})
    model = make_model(conditional=False, label_dropout=0.0, guidance=1.0)
    assert model.complete(images, 4, make_generator(0, "x"), {}).shape == images.shape


class Curved(nn.Module):
    """The mean velocity of dx/dt = x from time t over a span s: x (exp(s) - 1) / s, or x for none."""

    def forward(self, x: Tensor, times: Tensor, spans: Tensor, labels: Tensor | None) -> Tensor:
        del times, labels
        s = spans.view(-1, 1, 1, 1).double()
        return torch.where(s > 0, x * torch.expm1(s) / s.clamp(min=1e-9), x)


def test_the_target_of_a_span_is_what_its_halves_make() -> None:
    # The exact mean velocity is its own target; the halves of the shortest span are Euler steps of the velocity.
    model = make_model(objective="shortcut", sampling_steps=1, ema=0.0)
    model.network = Curved()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spans, times = torch.tensor([1.0, 0.5, 0.25, 0.125]), torch.zeros(4)
    target = model.find_shortcut(x, times, spans, torch.zeros(4, dtype=torch.int64))
    exact = model.network(x, times, spans, None)
    torch.testing.assert_close(target[:3], exact[:3])
    torch.testing.assert_close(target[3], x[3] * ((1 + 1 / 16) ** 2 - 1) * 8)


def test_only_the_shortest_spans_are_learnt_from_guided_velocities() -> None:
    x, times, spans = torch.randn(4, 1, 8, 8), torch.zeros(4), torch.tensor([1.0, 0.5, 0.25, 0.125])
    labels = torch.zeros(4, dtype=torch.int64)
    values = {"objective": "shortcut", "sampling_steps": 1}
    plain, guided = (
        make_model(**values, shortcut_guidance=weight).find_shortcut(x, times, spans, labels) for weight in (1.0, 3.0)
    )
    torch.testing.assert_close(guided[:3], plain[:3])
    assert (guided[3] - plain[3]).abs().max() > 1e-3


def test_spans_begin_at_their_multiples_and_end_within_the_time() -> None:
    spans, times = make_model().draw_spans(4000, make_generator(0, "x"))
    assert spans.unique().tolist() == [0.125, 0.25, 0.5, 1.0]
    assert torch.equal((times / spans).round() * spans, times)
    assert (times + spans).max() <= 1
    assert times[spans == 0.125].unique().numel() == 8


def test_times_are_logit_normal_or_uniform_and_a_share_is_late() -> None:
    drawn = {
        (name, late): make_model(times=name, late_share=late).draw_times(20_000, make_generator(0, "x"))
        for name in ("logit_normal", "uniform")
        for late in (0.0, 1.0)
    }
    logits = drawn["logit_normal", 0.0].logit()
    assert logits.mean().item() == pytest.approx(0, abs=0.03)
    assert logits.std().item() == pytest.approx(1, abs=0.03)
    assert drawn["uniform", 0.0].std().item() == pytest.approx(12**-0.5, abs=0.01)
    for name in ("logit_normal", "uniform"):  # half of the late ones are nearer than sqrt(0.002 * 1.002) - 0.002
        assert drawn[name, 1.0].median().item() == pytest.approx(1 - 0.0428, abs=0.003)


@pytest.mark.parametrize(
    ("fields", "changes", "words"),
    [
        (images_kind.make_fields((1, 10, 8), 2), {}, "sides must be multiples of 4, got 10x8; 8 or 12 would do"),
        (FIELDS, {"width": 12}, "width: expected a multiple of 8 with backbone unet, got 12"),
        (FIELDS, {"backbone": "dit"}, "width: expected a multiple of 32 with backbone dit, got 8"),
        (FIELDS, {"backbone": "perceptron"}, "backbone: expected unet or dit for images, got perceptron"),
        (point_fields(2, 2), {}, "backbone: expected perceptron for points, got unet"),
        ({"images": FIELDS["images"]}, {}, "conditional true needs labels, and the data have none"),
    ],
)
def test_data_that_do_not_fit_are_refused_with_what_would(fields: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        require(make_config(**changes), fields)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conditional": False}, "label_dropout and guidance are about classes"),
        ({"conditional": False, "label_dropout": 0.0, "guidance": 1.0, "shortcut_guidance": 2.0}, "about classes"),
        ({"label_dropout": 0.0}, "guidance needs what is learnt without labels"),
        ({"objective": "shortcut"}, "sampling_steps: expected 1, 2, 4 or 8 with objective shortcut, got 3"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_config(**changes)


def test_bits_are_comparable_with_those_of_a_vae_of_grey_levels_and_of_no_binarised_images() -> None:
    flow = describe_scores(make_config())["levels"]
    grey = make_vae_config(likelihood="discretized_logistic", conditional=True)
    assert describe_vae_scores(grey)["levels"] == flow
    assert "levels" not in describe_vae_scores(make_vae_config())
    model = plugins.load("models", "vae").Model(make_vae_config(likelihood="discretized_logistic"), FIELDS, 0)
    images = make_halves()["images"]
    scores = model.score(images, 3, make_generator(0, "x"), {})
    torch.testing.assert_close(scores["bits_per_dim"], scores["iw"] / math.log(2) / 64)


def test_a_preview_has_a_loss_of_validation_images_that_the_velocity_of_the_mean_sets() -> None:
    # A velocity of zero has the mean square of data minus noise: black images have 1 + (1 + 1 / 3 / 128^2 ...).
    model = make_model(ema=0.0)
    for parameter in model.kept.parameters():
        nn.init.zeros_(parameter)
    values = {"images": torch.zeros(64, 1, 8, 8, dtype=torch.uint8), "labels": torch.zeros(64, dtype=torch.int64)}
    found = model.validate(values, make_generator(0, "x"))["validation_loss"]
    assert found == pytest.approx(1 + (1 - backbone.CELL / 2) ** 2, abs=0.05)


@pytest.mark.parametrize("changes", [{}, {"objective": "shortcut", "sampling_steps": 1}])
def test_noise_is_drawn_from_the_generator_only(changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    torch.manual_seed(1)
    first = model.compute_loss(make_halves(), make_generator(0, "x"))
    torch.manual_seed(2)
    assert torch.equal(first, model.compute_loss(make_halves(), make_generator(0, "x")))
