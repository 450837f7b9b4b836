"""A VAE whose samples come from a flow of its latents: the flow changes nothing else, and its samples follow seeds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.batches import Rows
from pipeline.kinds.images import make_fields as image_fields
from pipeline.models.vae import Model, decode
from pipeline.training import fit
from pipeline.weights import load_model, save_model, start_from
from tests.models.test_vae import make_config, make_images
from tests.test_training import Crash, describe, differences

FIELDS = image_fields((1, 8, 8), 2)
FLOW: dict[str, Any] = {"flow_blocks": 1, "flow_width": 16}
# Everything that a second network could disturb: dropout's noise, decay, the norm that clips, averages.
DELICATE: dict[str, Any] = {"dropout": 0.3, "weight_decay": 0.1, "clip_norm": 0.5, "ema": 0.9, "steps": 6}


def train(**changes: Any) -> tuple[Model, Any]:
    config = make_config(**changes)
    model, labels = Model(config, FIELDS, seed=3), torch.arange(30) % 2
    options = {"steps": config.steps, "batch_size": 8, "seed": 0, "clip_norm": config.clip_norm}
    return model, fit(model, Rows({"images": make_images(), "labels": labels}), **options)


def draw(model: Model, seed: int = 0) -> torch.Tensor:
    return model.sample(20, torch.Generator().manual_seed(seed), {"labels": torch.arange(20) % 2})["images"]


@pytest.mark.parametrize("changes", [{}, {"importance_samples": 3, "ema": 0.0}, {"conditional": True}])
def test_the_flow_changes_no_bit_of_the_other_weights_and_of_the_bound(changes: dict[str, Any]) -> None:
    (plain, _), (model, _) = train(**DELICATE | changes), train(**DELICATE | changes | FLOW)
    weights = model.kept.state_dict()
    assert differences(plain.kept.state_dict(), {k: v for k, v in weights.items() if not k.startswith("flow.")}) == []
    given = {"labels": torch.arange(30) % 2}
    first, second = (m.score(make_images(), 3, torch.Generator().manual_seed(0), given) for m in (plain, model))
    assert differences(first, second) == []
    fresh = Model(make_config(**DELICATE | changes | FLOW), FIELDS, seed=3).kept.state_dict()
    learnt = [k for k, v in weights.items() if k.startswith("flow.") and not torch.equal(v, fresh[k])]
    assert {"flow.last.weight", "flow.mean", "flow.square"} <= {*learnt}


def test_the_flows_gradient_is_clipped_by_itself() -> None:
    model, _ = train(**DELICATE | FLOW | {"clip_norm": 1e-4})
    for part in (model.network.flow, model.network.encoder):
        assert part is not None
        norm = torch.stack([p.grad.norm() for p in part.parameters() if p.grad is not None]).norm().item()
        assert norm == pytest.approx(1e-4, rel=1e-2) if part is model.network.flow else norm < 1e-4


def test_the_reported_loss_is_that_of_the_bound_and_the_flows_is_apart() -> None:
    batch = {"images": make_images(8), "labels": torch.zeros(8, dtype=torch.int64)}
    plain = Model(make_config(), FIELDS, seed=0).training_step(batch, 0)
    outputs = Model(make_config(**FLOW), FIELDS, seed=0).training_step(batch, 0)
    assert torch.equal(outputs["loss"], plain["loss"])
    assert outputs["flow_loss"].item() == pytest.approx(1.6, abs=0.5)  # of a normal: 1 / (t^2 + (1 - t)^2), 1 to 2


def test_equal_seeds_give_equal_samples_and_walks_pass_through_the_flow() -> None:
    model, _ = train(**DELICATE | FLOW)
    assert torch.equal(draw(model), draw(train(**DELICATE | FLOW)[0]))
    assert not torch.equal(draw(model), draw(model, seed=1))
    noise = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode(model, noise, {}), draw(model))
    network = model.kept
    with torch.no_grad():
        network.flow.mean += 3  # type: ignore[union-attr]
        latents = network.draw_latents(noise)
    assert latents.mean() > 2
    assert torch.equal(draw(model), network.show(latents))


def test_a_crashed_training_with_a_flow_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    config = make_config(**DELICATE | FLOW)
    examples = Rows({"images": make_images(), "labels": torch.arange(30) % 2})
    options: dict[str, Any] = {"steps": 6, "batch_size": 8, "seed": 0, "clip_norm": config.clip_norm}
    with pytest.raises(InterruptedError):
        fit(Model(config, FIELDS, 3), examples, state=tmp_path, callbacks=[Crash(3, tmp_path)], **options)
    resumed = Model(config, FIELDS, 3)
    trainer = fit(resumed, examples, state=tmp_path, **options)
    assert differences(describe(*train(**DELICATE | FLOW)), describe(resumed, trainer)) == []


def test_a_trained_vae_gets_a_flow_and_keeps_its_weights_where_they_are_frozen(tmp_path: Path) -> None:
    first, _ = train(**DELICATE)
    save_model(tmp_path / "a", "vae", first, first.config, FIELDS)
    config = make_config(**DELICATE | FLOW)
    model = Model(config, FIELDS, seed=0)
    start_from(model, tmp_path / "a", skip=["flow.*"], freeze=["encoder.*", "expand.*", "decoder.*"])
    fit(model, Rows({"images": make_images(), "labels": torch.arange(30) % 2}), steps=4, batch_size=8, seed=0)
    found = model.kept.state_dict()
    assert differences(first.kept.state_dict(), {k: v for k, v in found.items() if not k.startswith("flow.")}) == []
    save_model(tmp_path / "b", "vae", model, config, FIELDS)
    loaded = load_model(tmp_path / "b").model.cpu()
    assert torch.equal(draw(loaded), draw(model))


def test_the_pixels_temperature_is_that_of_each_pixels_distribution() -> None:
    logits = torch.tensor([-2.0, -0.5, 0.0, 1.0]).view(1, 1, 2, 2)
    shown = {}
    for temperature in (1.0, 0.5):
        network = Model(make_config(pixel_temperature=temperature), FIELDS, seed=0).network
        network.decode = lambda *_: logits  # type: ignore[method-assign,assignment]
        shown[temperature] = network.show(torch.zeros(1, 4))
        black, white = (-logits.exp().log1p()).exp() ** (1 / temperature), logits.sigmoid() ** (1 / temperature)
        assert torch.equal(shown[temperature], (255 * white / (black + white)).round().byte())
    assert shown[0.5].flatten().tolist() != shown[1.0].flatten().tolist()


def test_a_temperature_of_grey_levels_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected 1 with discretized_logistic"):
        make_config(likelihood="discretized_logistic", pixel_temperature=0.5)


def test_a_config_without_a_flow_is_recorded_as_before() -> None:
    assert not [key for key in make_config().model_dump() if key.startswith(("flow", "pixel"))]
