"""A model's folder: what was kept is what loads, and what is broken is named."""

import json
from pathlib import Path

import pytest
import torch

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.formats.tokenizers import CharacterTokenizer
from pipeline.kinds.points import make_fields as point_fields
from pipeline.kinds.text import make_fields as text_fields
from pipeline.randomness import make_generator
from pipeline.weights import load_model, save_model
from tests.conftest import ROOT


def save(run: str, folder: Path, **changes: object) -> torch.nn.Module:
    """Save an untrained model of a run of params.yaml; return what it keeps."""
    settings = params.load(ROOT / "params.yaml")
    plug_in, config = settings.runs[run].model, settings.models[run]
    config = config.model_validate(config.model_dump() | changes)
    tokenizer = CharacterTokenizer("\nab")
    spec = text_fields(tokenizer.size) if run == "transformer" else point_fields(2, 3)
    model = plugins.load("models", plug_in).Model(config, spec, seed=5)
    state = tokenizer.state() if run == "transformer" else None
    save_model(folder, plug_in, model, config, spec, tokenizer=state)
    kept: torch.nn.Module = model.kept
    return kept


def test_a_text_model_comes_back_with_its_weights_config_and_tokenizer(tmp_path: Path) -> None:
    kept = save("transformer", tmp_path, layers=1, width=16, heads=2, context=8)
    loaded = load_model(tmp_path)
    assert loaded.kind.__name__ == "pipeline.kinds.text"
    assert not loaded.model.training
    assert loaded.config.model_dump()["width"] == 16
    found = loaded.model.cpu().kept.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in kept.state_dict().items())
    text = loaded.write(1, make_generator(0, "test"), prompt="ab", length=20)[0]
    assert text.startswith("ab")
    assert len(text) == 22
    assert set(text) <= set("\nab")


def test_only_a_text_model_writes(tmp_path: Path) -> None:
    save("gan", tmp_path, generator_width=4, discriminator_width=4)
    loaded = load_model(tmp_path)
    assert loaded.kind == "points"
    with pytest.raises(TypeError, match="this model writes no text"):
        loaded.write(1, make_generator(0, "test"))


def test_only_the_averaged_weights_are_kept_where_there_are_some(tmp_path: Path) -> None:
    save("gan", tmp_path, generator_width=4, discriminator_width=4, ema=0.5)
    names = artifacts.read_tensors(tmp_path / "model.safetensors")
    assert names
    assert not [name for name in names if "discriminator" in name or "average" in name]


def test_a_config_that_was_changed_after_the_training_is_refused(tmp_path: Path) -> None:
    save("gan", tmp_path, generator_width=4, discriminator_width=4)
    path = tmp_path / "config.json"
    about = json.loads(path.read_text())
    about["config"]["generator_width"] = 8
    artifacts.write_json(path, about)
    with pytest.raises(ArtifactError, match=r"config.json: expected SHA-256 \w{64}, found \w{64}"):
        load_model(tmp_path)
    artifacts.seal(tmp_path)  # whoever seals it again still has other shapes than the weights
    with pytest.raises(ArtifactError, match=r"does not fit pipeline/models/gan\.py"):
        load_model(tmp_path)
