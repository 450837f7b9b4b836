"""What holds for every model of params.yaml, built by the names there; the contract is in commands/test_check.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.batches import Examples, Rows
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.text import Windows
from pipeline.kinds.text import make_fields as text_fields
from pipeline.randomness import make_generator
from pipeline.training import fit
from pipeline.weights import load_model, save_model

SETTINGS = params.load(Path(__file__).parents[2] / "params.yaml")
RUNS = tuple(key for key, run in SETTINGS.runs.items() if run.metric != "audio")  # see test_models_of_sound.py
SPECS: dict[str, Any] = {"images": image_fields((1, 28, 28), 10), "text": text_fields(12)}
SMALL = {
    "generator_width": 8,
    "discriminator_width": 8,
    "width": 16,
    "hidden": 64,
    "layers": 1,
    "heads": 2,
    "context": 16,
    "steps": 60,
    "batch_size": 16,
    "warmup": 0,
    "dropout": 0.0,
    "ema": 0.0,
}


def build(run: str, **changes: Any) -> tuple[Any, Any, Examples, str]:
    plug_in = SETTINGS.runs[run].model
    config = SETTINGS.models[run]
    small = {key: value for key, value in {**SMALL, **changes}.items() if key in config.model_dump()}
    config = config.model_validate(config.model_dump() | small)
    module = plugins.load("models", plug_in)
    examples: Examples
    if module.LEARNS == ("text",):
        examples = Windows(torch.arange(300) % 12, config.context, 0)
    else:  # one batch of 16 images, two shapes that are easy to tell apart
        images = torch.zeros(16, 1, 28, 28, dtype=torch.uint8)
        images[::2, :, 4:24, 8:12] = 255
        images[1::2, :, 12:16, 4:24] = 255
        examples = Rows({"images": images, "labels": torch.arange(16) % 2})
    return (
        module.Model(config, SPECS["text" if module.LEARNS == ("text",) else "images"], seed=0),
        config,
        examples,
        plug_in,
    )


@pytest.mark.parametrize("run", RUNS)
def test_one_batch_is_overfitted(run: str) -> None:
    steps = {"gan": 250, "vae": 75}.get(run, 150)
    model, config, examples, plug_in = build(run, steps=steps, learning_rate=5e-3)
    fit(model, examples, steps=steps, batch_size=16, seed=0, clip_norm=config.clip_norm)
    batch = examples.batch(torch.arange(min(len(examples), 16)), 0)
    if plug_in == "transformer":  # the text is a cycle of 12: the entropy is zero after the first tokens
        assert model.loss(batch).item() < 0.15
    elif hasattr(model, "score"):
        start, _, _, _ = build(run)
        scores = [m.score(batch["images"], 20, make_generator(0, "x"), batch) for m in (start, model)]
        learned = {"codes_prior": lambda score: score["kl"]}  # which leaves the codes as they are
        before, after = (learned.get(plug_in, lambda score: score["elbo"])(score).mean().item() for score in scores)
        assert after < before / 8
    else:  # a generator that knows two pictures draws each pixel as they have it, on the average
        target = batch["images"].float().mean(dim=0) / 255
        start, _, _, _ = build(run)
        before, after = (
            (
                m.sample(200, make_generator(0, "x"), {"labels": torch.arange(200) % 10})["images"].float().mean(dim=0)
                / 255
                - target
            )
            .abs()
            .mean()
            .item()
            for m in (start, model)
        )
        assert after < before / 3


class Norms(Callback):
    """The norm of all gradients as the optimizer got them, after each step; a VAE's flow is clipped by itself."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *arguments: Any) -> None:
        named = pl_module.named_parameters()
        gradients = [p.grad.flatten() for name, p in named if p.grad is not None and ".flow." not in name]
        self.values.append(float(torch.cat(gradients).norm()))


@pytest.mark.parametrize("run", [run for run in RUNS if "clip_norm" in SETTINGS.models[run].model_dump()])
def test_gradients_are_clipped_to_the_norm_of_params_yaml(run: str) -> None:
    found = {}
    for clip in (1e-3, 1e9):
        model, config, examples, _ = build(run, steps=4, clip_norm=clip)
        norms = Norms()
        given = config.model_dump()["clip_norm"]
        fit(model, examples, steps=4, batch_size=16, seed=0, clip_norm=given, callbacks=[norms])
        found[clip] = norms.values
    assert found[1e-3] == pytest.approx([1e-3] * 4, rel=1e-2)
    assert min(found[1e9]) > 1e-2


@pytest.mark.parametrize("run", RUNS)
def test_weights_that_are_not_finite_are_not_saved(run: str, tmp_path: Path) -> None:
    model, config, _, plug_in = build(run)
    with torch.no_grad():
        next(model.kept.parameters()).view(-1)[0] = torch.inf
    with pytest.raises(ArtifactError, match="weights are not finite"):
        save_model(tmp_path, plug_in, model, config, SPECS["text" if plug_in == "transformer" else "images"])
    assert not list(tmp_path.iterdir())


def test_weights_of_another_shape_are_refused_by_file_name(tmp_path: Path) -> None:
    model, config, _, plug_in = build("gan")
    save_model(tmp_path, plug_in, model, config, SPECS["images"])
    other, other_config, _, _ = build("gan", generator_width=4)
    save_model(tmp_path / "other", plug_in, other, other_config, SPECS["images"])
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    artifacts.seal(tmp_path)
    with pytest.raises(ArtifactError, match=r"does not fit pipeline/models/gan\.py"):
        load_model(tmp_path)
