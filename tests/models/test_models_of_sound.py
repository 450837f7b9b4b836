"""Models of sound: the contract, equal clips for equal seeds, shifts of the examples, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from pipeline import plugins
from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.batches import Rows
from pipeline.commands.check import Subject, find_problems
from pipeline.kinds.audio import make_fields
from pipeline.kinds.points import make_fields as point_fields
from pipeline.models import codes, codes_prior
from pipeline.randomness import make_generator
from pipeline.training import fit
from pipeline.weights import save_model, start_from
from tests.commands.test_check import MEASURE
from tests.models.test_codes import CODES, PRIOR
from tests.models.test_codes import TRAINING as FEW_STEPS
from tests.models.test_flow_matching import make_config as make_flow_config
from tests.models.test_gan import make_config as make_gan_config
from tests.models.test_vae import make_config as make_vae_config

SAMPLES, RATE = 2048, 8000  # 16 frames
FIELDS = make_fields(SAMPLES, RATE, 2)
CONFIGS = {
    "codes": codes.Config.model_validate(FEW_STEPS | CODES),
    "flow_matching": make_flow_config(sampling_steps=1),
    "gan": make_gan_config(conditional=True),
    "vae": make_vae_config(likelihood="discretized_logistic", conditional=True, flow_blocks=1, flow_width=8),
}

ALL = CONFIGS | {"codes_prior": codes_prior.Config.model_validate(FEW_STEPS | PRIOR)}  # which needs a start


def make_tones(count: int) -> dict[str, torch.Tensor]:
    """Low tones are class 0, high tones are class 1; clips int16 (N, T)."""
    labels = torch.arange(count) % 2
    frequencies = 300 + 1700 * labels + torch.arange(count)
    waves = (2 * torch.pi * frequencies[:, None] * torch.arange(SAMPLES) / RATE).sin()
    return {"clips": (20000 * waves).short(), "labels": labels}


def train(name: str, config: Any) -> Any:
    model = plugins.load("models", name).Model(config, FIELDS, 0)
    fit(model, Rows(make_tones(8)), steps=2, batch_size=8, seed=0, clip_norm=config.clip_norm)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_the_models_of_sound_keep_the_contract(name: str) -> None:
    manifest = {"kind": "audio", "splits": {split: {"count": 24, "per_class": [12, 12]} for split in SPLITS}}
    sampling = MEASURE["images"].sampling.model_copy(update={"count": 4, "sets": 1})
    subject = Subject(name, CONFIGS[name], FIELDS, manifest, lambda _: make_tones(24), sampling)
    assert [line for line in find_problems(subject) if line[1]] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shift_changes_the_training_and_none_changes_nothing(name: str) -> None:
    plain, none, shifted = (
        parameters_to_vector(train(name, CONFIGS[name].model_copy(update=changes)).trained.parameters())
        for changes in ({}, {"shift": 0}, {"shift": 500})
    )
    assert torch.equal(plain, none)
    assert not torch.equal(plain, shifted)


@pytest.mark.parametrize("name", ["gan", "flow_matching"])
def test_points_have_no_place_to_be_shifted_to(name: str) -> None:
    config = {"gan": make_gan_config(shift=3), "flow_matching": make_flow_config(shift=3, backbone="perceptron")}[name]
    with pytest.raises(ArtifactError, match=r"^shift: expected 0 for points, got 3$"):
        plugins.load("models", name).require(config, point_fields(2, 8))


def test_sound_has_no_bits_per_dimension() -> None:
    model = plugins.load("models", "flow_matching").Model(CONFIGS["flow_matching"], FIELDS, 0)
    held_out = make_tones(2)
    with pytest.raises(ArtifactError, match="values that are rounded, and audio has no such values"):
        model.score_levels(held_out["clips"], make_generator(0, "x"), held_out)


@pytest.mark.parametrize("name", ALL)
def test_clips_that_a_model_cannot_cut_up_are_refused_before_anything_is_computed(name: str) -> None:
    with pytest.raises(ArtifactError, match=r"^samples: expected .* got 1900 samples.* would do$"):
        plugins.load("models", name).require(ALL[name], make_fields(1900, RATE, 2))


def test_clips_that_do_not_halve_often_enough_are_refused_with_what_would_do() -> None:
    config = CONFIGS["codes"].model_copy(update={"halvings": 5})
    expected = r"^samples: expected clips with a multiple of 32 frames, got 2048.* 4096 .*, or fewer halvings than 5$"
    with pytest.raises(ArtifactError, match=expected):
        codes.require(config, FIELDS)


def draw_tones(model: Any) -> torch.Tensor:
    """Return which of 40 samples of both classes have the tone of their class, bool (40,)."""
    labels = torch.arange(40) % 2
    clips = model.sample(40, make_generator(0, "x"), {"labels": labels})["clips"].double()
    found = torch.fft.rfft(clips).abs().argmax(dim=1) * RATE / SAMPLES
    return (found > 1150) == (labels > 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow_matching", "gan", "vae"])
def test_the_tone_is_that_of_the_class_that_is_asked_for(name: str) -> None:
    longer = {"gan": {"steps": 300, "r1": 0.1, "gradient_penalty": 0.0, "generator_width": 8, "discriminator_width": 8}}
    longer["vae"] = {"steps": 300, "width": 8, "hidden": 32, "learning_rate": 3e-3, "flow_blocks": 0}
    longer["flow_matching"] = {"steps": 300, "width": 16, "sampling_steps": 4}
    module = plugins.load("models", name)
    config = module.Config.model_validate(CONFIGS[name].model_dump() | longer[name])
    model = module.Model(config, FIELDS, 0)
    fit(model, Rows(make_tones(64)), steps=300, batch_size=16, seed=0, clip_norm=config.clip_norm)
    assert draw_tones(model).double().mean() > 0.9


@pytest.mark.slow
def test_codes_of_sound_and_their_prior_say_the_tone_of_the_class_that_is_asked_for(tmp_path: Path) -> None:
    small = {"steps": 200, "batch_size": 16, "halvings": 3}
    config = codes.Config.model_validate(FEW_STEPS | CODES | small | {"beta": 0.1, "width": 8})
    start = codes.Model(config, FIELDS, 0)
    rows, clips = Rows(make_tones(64)), make_tones(64)["clips"]
    fit(start, rows, steps=config.steps, batch_size=16, seed=0, clip_norm=config.clip_norm)
    again = start.reconstruct(clips, {})
    assert (again.dtype, again.shape) == (torch.int16, clips.shape)
    pictures, others = (start.backbone.to_unit(each, start.spec) for each in (clips, again))
    assert (pictures - others).square().mean() < pictures.var() / 4
    save_model(tmp_path, "codes", start, config, FIELDS)
    longer = codes_prior.Config.model_validate(FEW_STEPS | PRIOR | small | {"codes_width": 8})
    model = codes_prior.Model(longer, FIELDS, 0)
    start_from(model, tmp_path, skip=["prior.*"], freeze=[])
    model.begin(has_start=True)
    assert torch.equal(model.reconstruct(clips, {}), again)
    fit(model, rows, steps=longer.steps, batch_size=16, seed=0, clip_norm=longer.clip_norm)
    assert draw_tones(model).double().mean() > 0.9


def test_codes_of_sound_have_no_temperature_of_pixels() -> None:
    config = CONFIGS["codes"].model_copy(update={"pixel_temperature": 0.5})
    with pytest.raises(ArtifactError, match=r"^pixel_temperature: expected 1 for audio, got 0.5$"):
        codes.require(config, FIELDS)


@pytest.mark.parametrize("name", ALL)
def test_a_model_can_be_built_without_memory_as_the_check_of_its_files_does(name: str) -> None:
    with torch.device("meta"):
        model = plugins.load("models", name).Model(ALL[name], FIELDS, 0)
    assert next(model.parameters()).is_meta


def test_a_vae_of_black_and_white_pictures_learns_no_sound() -> None:
    config = make_vae_config(likelihood="bernoulli")
    with pytest.raises(ArtifactError, match=r"^likelihood: expected discretized_logistic for audio, got bernoulli$"):
        plugins.load("models", "vae").require(config, FIELDS)
