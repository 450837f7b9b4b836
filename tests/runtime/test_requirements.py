"""What is refused early is what would fail later, and what is advised instead works."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.formats.tokenizers import train_tokenizer
from pipeline.kinds.images import make_fields
from pipeline.models import gan, vae
from pipeline.params import Known, Params
from pipeline.runtime.requirements import require_network, require_run
from tests.conftest import ROOT

SETTINGS = params.load(ROOT / "params.yaml")
SPLIT = {"minimum": 0, "maximum": 255, "shape": [1000, 1, 28, 28]}
DIGITS = make_fields((1, 28, 28), 10)


def change(section: str, key: str, **values: Any) -> Params:
    """The shipped params with other values of one section."""
    sections = getattr(SETTINGS, section)
    return SETTINGS.model_copy(update={section: {**sections, key: sections[key].model_copy(update=values)}})


def know(fields: Mapping[str, Any] = DIGITS, **counts: int) -> dict[str, Known]:
    splits = {name: {**SPLIT, "count": counts.get(name, 1000)} for name in ("train", "validation", "test")}
    return {"images": Known(fields, splits)}


def test_the_shipped_runs_are_accepted_with_and_without_prepared_data() -> None:
    for known in ({}, know()):
        require_run("gan", SETTINGS, known)
        require_run("vae", SETTINGS, known)
        require_network("classifier", SETTINGS, known)
    require_run("transformer", SETTINGS, {})


@pytest.mark.parametrize("module", [gan, vae])
def test_exactly_the_sides_of_which_the_networks_keep_the_shape_are_accepted(module: Any) -> None:
    config: Any = SETTINGS.models[module.__name__.rpartition(".")[2]]
    sides = range(4, 80)
    accepted = [side for side in sides if accepts(module, config, side)]
    for side in sides:
        if side in accepted:
            assert keeps_shape(module, config, side)
        else:
            with pytest.raises(ArtifactError, match=f"got {side}x{side}; (\\d+)( or (\\d+))? would do") as caught:
                module.require(config, make_fields((1, side, side), 2))
            words = str(caught.value).rpartition(";")[2].split()
            advised = [int(word) for word in words if word.isdigit()]
            assert advised
            assert all(accepts(module, config, near) for near in advised)
    assert {28, 32, 64} <= {*accepted}
    assert 50 not in accepted


def accepts(module: Any, config: Any, side: int) -> bool:
    try:
        module.require(config, make_fields((1, side, side), 2))
    except ArtifactError:
        return False
    return True


def keeps_shape(module: Any, config: Any, side: int) -> bool:
    """Whether what a network makes has the shape of the images; without memory for its weights."""
    with torch.device("meta"):
        model = module.Model(config, make_fields((1, side, side), 2), 0)
        images = torch.empty(2, 1, side, side)
        if module is vae:
            made = model.network.decode(model.network.encode(images)[0])
        else:
            labels = torch.zeros(2, dtype=torch.int64)
            made = model.generator(torch.empty(2, config.latent), labels)
            assert model.discriminator(made, labels).shape == (2,)
    return bool(made.shape == images.shape)


@pytest.mark.parametrize("key", ["kid_subset_size", "isc_splits", "neighbours"])
def test_the_most_that_is_allowed_is_the_most_that_the_library_can_do(key: str) -> None:
    count = 50
    features = torch.rand(count, 3, generator=torch.Generator().manual_seed(0))

    def measure(value: int) -> float:
        if key == "kid_subset_size":
            options = {"kid_subsets": 1, "kid_subset_size": value, "rng_seed": 0, "verbose": False}
            return float(kid_features_to_metric(features, features, **options)["kernel_inception_distance_mean"])
        if key == "isc_splits":
            return float(isc_features_to_metric(features, splits=value)["inception_score_mean"])
        options = {"prc_neighborhood": value, "prc_batch_size": 100, "save_cpu_ram": True, "verbose": False}
        return float(prc_features_to_metric(features, features, **options)["precision"])

    config: Any = SETTINGS.metrics["images"]
    [most] = [value for value in (count - 1, count) if not with_value(config, key, value).find_excess(count)][-1:]
    assert measure(most) == pytest.approx(measure(most), nan_ok=False)
    if key == "isc_splits":
        assert measure(most + 1) != measure(most + 1)  # a split without an image: not a number
    else:
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            measure(most + 1)
    assert with_value(config, key, most + 1).find_excess(count).startswith(f"{key}: expected at most {most} for")


def with_value(config: Any, key: str, value: int) -> Any:
    return config.model_copy(update={"kid_subset_size": 2, "isc_splits": 1, "neighbours": 1, key: value})


def test_a_limit_counts_only_where_a_network_looks() -> None:
    with pytest.raises(ArtifactError, match="kid_subset_size: expected at most 100 for 100 images, got 500"):
        require_run("gan", SETTINGS, know(test=100))
    settings = SETTINGS.model_copy(
        update={"runs": {"vae": SETTINGS.runs["vae"].model_copy(update={"network": "none"})}}
    )
    require_run("vae", settings, know(test=100))
    with pytest.raises(ArtifactError, match=r"data\.images: the test split has 49 of 2049 images"):
        require_run("vae", settings, know(test=49))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (make_fields((1, 28, 28), 1), "networks.classifier.data: .*data.images.*2 or more, the data have 1"),
        (make_fields((1, 7, 28), 2), "networks.classifier.data: .*8 or more"),
    ],
)
def test_a_network_is_refused_by_the_section_of_its_data(fields: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        require_network("classifier", SETTINGS, know(fields))


def test_a_conditional_model_needs_labels() -> None:
    fields = {"images": DIGITS["images"]}
    with pytest.raises(ArtifactError, match=r"runs\.gan\.model: gan cannot learn .*: set conditional false"):
        require_run("gan", SETTINGS, know(fields))
    free = SETTINGS.models["gan"].model_copy(update={"conditional": False})
    gan.require(free, fields)  # type: ignore[arg-type]


def test_a_network_s_name_that_makes_another_value_s_name_is_refused() -> None:
    networks = {"infinity_x": SETTINGS.networks["classifier"]}
    runs = {"gan": SETTINGS.runs["gan"].model_copy(update={"network": "infinity_x"})}
    settings = SETTINGS.model_copy(update={"networks": networks, "runs": runs})
    with pytest.raises(ArtifactError, match=r"infinity_x.*choose another name"):
        require_run("gan", settings, {})


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"test": 1}, "data.text.test: the test split has 1 tokens, expected 2 or more"),
        ({"validation": 0}, "data.text.validation: the validation split has 0 tokens"),
        ({"train": 256}, r"data.text \(source numpy_docs.*256 tokens.*models.transformer.context, which is 128"),
    ],
)
def test_a_text_that_cannot_be_learnt_or_scored_is_refused_by_its_key(
    counts: dict[str, int], message: str, workdir: Path
) -> None:
    tokenizer = train_tokenizer(["\n"], "character", 0)
    artifacts.write_json(workdir / artifacts.PREPARED / "text" / "tokenizer.json", tokenizer.state())
    splits = {name: {"tokens": counts.get(name, 1000)} for name in ("train", "validation", "test")}
    with pytest.raises(ArtifactError, match=message):
        require_run("transformer", SETTINGS, {"text": Known({}, splits)})
    enough = {name: {"tokens": max(2, entry["tokens"])} for name, entry in splits.items()}
    enough["train"] = {"tokens": 257}
    require_run("transformer", SETTINGS, {"text": Known({}, enough)})


def test_modes_beyond_counting_are_refused() -> None:
    stacked = Known(make_fields((3, 28, 28), 1000), {})
    digits = Known(make_fields((1, 28, 28), 101), {})  # 101^3 > 10^6
    run = SETTINGS.runs["gan"].model_copy(update={"metric": "modes", "data": "stacked"})
    settings = SETTINGS.model_copy(
        update={"runs": {"gan": run}, "data": {**SETTINGS.data, "stacked": SETTINGS.data["images"]}}
    )
    with pytest.raises(ArtifactError, match="101 classes in each of 3 channels are more"):
        require_run("gan", settings, {"images": digits, "stacked": stacked})
    require_run("gan", settings, {"images": Known(DIGITS, {}), "stacked": stacked})


@pytest.mark.parametrize("name", plugins.names("data"))
def test_what_a_source_foresees_and_reads_is_said_by_names_of_its_config(name: str) -> None:
    module = plugins.load("data", name)
    assert {*getattr(module, "SHAPED_BY", ())} <= module.Config.model_fields.keys()
