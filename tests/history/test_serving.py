"""The LoggedModel: a sample of each kind, equal for equal seeds, that its format's reader reads."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline import params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.formats.tokenizers import ByteTokenizer
from pipeline.history.serving import Generator
from pipeline.kinds import Fields, Pool
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.points import make_fields as point_fields
from pipeline.kinds.text import make_fields as text_fields
from pipeline.weights import save_model
from tests.conftest import ROOT

SAMPLING = {"prompt": "\n", "temperature": 0.8, "top_k": 0, "top_p": 0.95}
SMALL = {"generator_width": 4, "discriminator_width": 4, "layers": 1, "width": 16, "heads": 2, "context": 8}


def make_generator_of(
    run: str, spec: Fields, folder: Path, tokenizer: Any = None, *, ignore_noise: bool = False
) -> Generator:
    """Save an untrained model of a run of params.yaml, and load it as MLflow does.

    ignore_noise: whether a sample depends on its class only.
    """
    settings = params.load(ROOT / "params.yaml")
    config = settings.models[run]
    values = config.model_dump()
    config = config.model_validate(values | {name: value for name, value in SMALL.items() if name in values})
    plug_in = settings.runs[run].model
    model = plugins.load("models", plug_in).Model(config, spec, seed=0)
    if ignore_noise:
        with torch.no_grad():
            model.kept.layers[0].weight[:, : config.latent] = 0
    save_model(folder, plug_in, model, config, spec, tokenizer=tokenizer)
    served = Generator()
    classes = spec["labels"].classes if "labels" in spec else 1
    pool = Pool({"labels": torch.arange(classes)}, [1] * (classes - 1) + [0])  # the last class is never drawn
    about = {"sampling": SAMPLING, "given": pool.dump()}
    served.load_context(SimpleNamespace(artifacts={"model": str(folder)}, model_config=about))  # type: ignore[arg-type]
    return served


def test_an_image_is_a_png_of_the_models_size(tmp_path: Path) -> None:
    served = make_generator_of("gan", image_fields((3, 16, 16), 2), tmp_path)
    first, again, other = served.predict(None, [1, 1, 2])
    picture = Image.open(io.BytesIO(base64.b64decode(first)))
    assert (picture.size, picture.mode, picture.format) == ((16, 16), "RGB", "PNG")
    assert first == again != other


def test_a_point_is_a_list_of_its_coordinates(tmp_path: Path) -> None:
    served = make_generator_of("gan", point_fields(3, 4), tmp_path)
    first, again, other = served.predict(None, [1, 1, 2])
    assert len(json.loads(first)) == 3
    assert all(isinstance(value, float) for value in json.loads(first))
    assert first == again != other


def test_a_text_is_written_with_the_models_tokenizer(tmp_path: Path) -> None:
    served = make_generator_of("transformer", text_fields(256), tmp_path, ByteTokenizer().state())
    first, again, other = served.predict(None, [1, 1, 2])
    assert first.startswith("\n")
    assert len(first) > 100
    assert first == again != other


@pytest.mark.parametrize("seeds", [[], [7]])
def test_one_sample_a_seed_comes_out(seeds: list[int], tmp_path: Path) -> None:
    served = make_generator_of("gan", image_fields((1, 8, 8), 2), tmp_path)
    assert len(served.predict(None, seeds)) == len(seeds)


def test_forty_seeds_are_of_every_class_that_is_drawn_and_classes_can_be_asked_for(tmp_path: Path) -> None:
    served = make_generator_of("gan", image_fields((1, 8, 8), 10), tmp_path, ignore_noise=True)
    pictures = served.predict(None, list(range(10)), {"labels": list(range(10))})
    assert len(set(pictures)) == 10
    assert set(served.predict(None, list(range(40)))) == set(pictures[:9])
    assert served.predict(None, [5, 6], {"labels": []}) == served.predict(None, [5, 6])
    assert served.predict(None, [5, 6], {"labels": [3]}) == [pictures[3]] * 2
    assert served.predict(None, [5], {"labels": [9]}) == [pictures[9]]


def test_equal_seeds_have_equal_noise_whatever_the_class(tmp_path: Path) -> None:
    served = make_generator_of("gan", point_fields(2, 10), tmp_path)
    drawn = served.predict(None, [4])
    assert drawn[0] in {served.predict(None, [4], {"labels": [label]})[0] for label in range(10)}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2], "labels: expected one value, or one for each of 3 seeds, got 2"),
        ([10], "labels: expected one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, got 10"),
    ],
)
def test_classes_that_do_not_fit_are_refused(labels: list[int], message: str, tmp_path: Path) -> None:
    served = make_generator_of("gan", image_fields((1, 8, 8), 10), tmp_path)
    with pytest.raises(ArtifactError, match=message):
        served.predict(None, [1, 2, 3], {"labels": labels})
