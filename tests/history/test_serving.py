"""The LoggedModel: a sample of each kind, equal for equal seeds, that its format's reader reads."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline import params, plugins
from pipeline.formats.tokenizers import ByteTokenizer
from pipeline.history.serving import Generator
from pipeline.kinds import Fields
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.points import make_fields as point_fields
from pipeline.kinds.text import make_fields as text_fields
from pipeline.weights import save_model
from tests.conftest import ROOT

SAMPLING = {"prompt": "\n", "temperature": 0.8, "top_k": 0, "top_p": 0.95}
SMALL = {"generator_width": 4, "discriminator_width": 4, "layers": 1, "width": 16, "heads": 2, "context": 8}


def make_generator_of(run: str, spec: Fields, folder: Path, tokenizer: Any = None) -> Generator:
    """Save an untrained model of a run of params.yaml, and load it as MLflow does."""
    settings = params.load(ROOT / "params.yaml")
    config = settings.models[run]
    values = config.model_dump()
    config = config.model_validate(values | {name: value for name, value in SMALL.items() if name in values})
    plug_in = settings.runs[run].model
    model = plugins.load("models", plug_in).Model(config, spec, seed=0)
    save_model(folder, plug_in, model, config, spec, tokenizer=tokenizer)
    served = Generator()
    served.load_context(SimpleNamespace(artifacts={"model": str(folder)}, model_config={"sampling": SAMPLING}))  # type: ignore[arg-type]
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
    served = make_generator_of("transformer", text_fields(256), tmp_path, ByteTokenizer("\n").state())
    first, again, other = served.predict(None, [1, 1, 2])
    assert first.startswith("\n")
    assert len(first) > 100
    assert first == again != other


def test_a_prompt_that_the_training_text_lacks_is_a_bad_request_with_one_line(tmp_path: Path) -> None:
    served = make_generator_of("transformer", text_fields(256), tmp_path, ByteTokenizer("abc\n").state())
    served.sampling.prompt = "abcd"
    with pytest.raises(MlflowException) as caught:
        served.predict(None, [1])
    assert caught.value.get_http_status_code() == 400
    assert "sampling.prompt: expected characters of the training text, got U+0064" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.__suppress_context__  # no traceback of ours


@pytest.mark.parametrize("seeds", [[], [7]])
def test_one_sample_a_seed_comes_out(seeds: list[int], tmp_path: Path) -> None:
    served = make_generator_of("gan", image_fields((1, 8, 8), 2), tmp_path)
    assert len(served.predict(None, seeds)) == len(seeds)
