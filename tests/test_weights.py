"""A model's folder: what was kept is what loads, and what is broken is named."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.batches import Rows
from pipeline.formats.tokenizers import CharacterTokenizer
from pipeline.kinds import Pool
from pipeline.kinds.points import make_fields as point_fields
from pipeline.kinds.text import compose
from pipeline.kinds.text import make_fields as text_fields
from pipeline.randomness import make_generator
from pipeline.training import fit
from pipeline.weights import load_model, save_model, start_from
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
    pool = Pool({"labels": torch.arange(3)}, [8, 0, 2])
    save_model(folder, plug_in, model, config, spec, tokenizer=state, pool=pool if model.given else None)
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
    sampling = SimpleNamespace(prompt="ab", temperature=0.8, top_k=0, top_p=0.95)
    [text] = compose(loaded, 1, make_generator(0, "test"), sampling, 20)
    assert text.startswith("ab")
    assert len(text) == 22
    assert set(text) <= set("\nab")


def test_a_stored_conditional_model_draws_its_classes_and_takes_them(tmp_path: Path) -> None:
    save("gan", tmp_path, generator_width=4, discriminator_width=4)
    loaded = load_model(tmp_path)
    assert loaded.kind.__name__ == "pipeline.kinds.points"
    device = loaded.model.device
    given = {"labels": torch.arange(7) % 3}
    expected = loaded.model.sample(7, make_generator(0, "test", device=device), given)["points"]
    assert torch.equal(loaded.sample(7, make_generator(0, "test", device=device), given), expected.cpu())
    drawn = loaded.pool.draw(1000, make_generator(0, "test"))["labels"].bincount(minlength=3).tolist()
    assert drawn[1] == 0
    assert drawn[0] == pytest.approx(800, abs=60)
    assert len(loaded.sample(7, make_generator(0, "test", device=device)).unique(dim=0)) == 7


def start(folder: Path, *, skip: Sequence[str] = (), freeze: Sequence[str] = (), **changes: object) -> Any:
    """Start a new GAN of points from the one in a folder."""
    settings = params.load(ROOT / "params.yaml").models["gan"]
    config = settings.model_validate(settings.model_dump() | {"generator_width": 4, "discriminator_width": 4} | changes)
    model = plugins.load("models", "gan").Model(config, point_fields(2, 3), seed=9)
    fresh = {name: value.clone() for name, value in model.trained.state_dict().items()}
    start_from(model, folder, skip=skip, freeze=freeze)
    return model, fresh


def test_a_run_starts_from_the_weights_of_another_in_what_is_trained_and_what_is_kept(tmp_path: Path) -> None:
    source = save("gan", tmp_path, generator_width=4, discriminator_width=4).state_dict()
    model, fresh = start(tmp_path, skip=["embedding.*"], freeze=["layers.0.*"])
    assert model.average is not None
    for module in (model.trained, model.kept):
        for name, value in module.state_dict().items():
            expected = fresh if name.startswith("embedding.") else source
            assert torch.equal(value, expected[name]), name
    trained = {name for name, parameter in model.trained.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in model.trained.named_parameters()} - trained == {"layers.0.weight", "layers.0.bias"}


def test_a_gan_starts_from_both_networks_and_patterns_are_about_both(tmp_path: Path) -> None:
    save("gan", tmp_path, generator_width=4, discriminator_width=4)
    settings = params.load(ROOT / "params.yaml").models["gan"]
    config = settings.model_validate(settings.model_dump() | {"generator_width": 4, "discriminator_width": 4})
    source, model = (plugins.load("models", "gan").Model(config, point_fields(2, 3), seed=seed) for seed in (1, 2))
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    others = {name: value for name, value in source.state_dict().items() if name.split(".")[0] in model.unkept}
    skip = ["discriminator.head.*"]
    start_from(model, tmp_path, skip=skip, freeze=["discriminator.layers.0.*"], others=others)
    for name, value in model.discriminator.state_dict(prefix="discriminator.").items():
        assert torch.equal(value, (fresh if "head" in name else others)[name]), name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name for name in frozen if not name.startswith("average.")} == {
        "discriminator.layers.0.weight",
        "discriminator.layers.0.bias",
    }
    del others["discriminator.embedding.weight"]
    with pytest.raises(ArtifactError, match=r"discriminator.embedding.weight: the start has nothing, the model has"):
        start_from(model, tmp_path, skip=[], freeze=[], others=others)


def test_frozen_weights_do_not_move_and_the_others_do(tmp_path: Path) -> None:
    source = save("gan", tmp_path, generator_width=4, discriminator_width=4).state_dict()
    model, _ = start(tmp_path, freeze=["layers.0.*"], ema=0.0, steps=3, batch_size=4, flip=False)
    points = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    fit(model, Rows({"points": points, "labels": torch.arange(12) % 3}), steps=3, batch_size=4, seed=0)
    same = {name for name, value in model.kept.state_dict().items() if torch.equal(value, source[name])}
    assert same == {"layers.0.weight", "layers.0.bias"}


def test_weights_of_the_start_that_do_not_fit_are_named_with_both_shapes(tmp_path: Path) -> None:
    save("gan", tmp_path, generator_width=4, discriminator_width=4)
    with pytest.raises(ArtifactError, match=r"layers.2.weight: the start has \(4, 4\), the model has \(5, 5\)"):
        start(tmp_path, generator_width=5)
    with pytest.raises(ArtifactError, match=r"skip: head.\* matches no weight; the model has embedding.weight, layers"):
        start(tmp_path, skip=["head.*"])


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
