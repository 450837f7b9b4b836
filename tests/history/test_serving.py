"""The LoggedModel: a sample of each kind, equal for equal seeds, that its format's reader reads."""

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline import params, plugins
from pipeline.formats.tokenizers import ByteTokenizer
from pipeline.history import serving
from pipeline.history.serving import Generator
from pipeline.kinds import Fields, Pool
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.points import make_fields as point_fields
from pipeline.kinds.text import make_fields as text_fields
from pipeline.weights import save_model
from tests import forks
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
    classes = spec["labels"].classes if "labels" in spec else 1
    pool = Pool({"labels": torch.arange(classes)}, [1] * (classes - 1) + [0])  # the last class is never drawn
    save_model(folder, plug_in, model, config, spec, tokenizer=tokenizer, pool=pool)
    served = Generator()
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
    with pytest.raises(MlflowException, match=message):
        served.predict(None, [1, 2, 3], {"labels": labels})


def save_served(folder: Path, package: Path, model: Path) -> str:
    """Save a model as MLflow logs it, with the code of a package; return its address."""
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(package / "history" / "serving.py"),
        artifacts={"model": str(model)},
        code_paths=[str(package)],
        pip_requirements=[],
    )
    return str(folder)


@pytest.fixture
def versions(tmp_path: Path) -> dict[str, str]:
    """Two served models of the same weights: one with this package, one whose points are 1 apart from them."""
    make_generator_of("gan", point_fields(3, 4), tmp_path / "model")
    other = tmp_path / "other" / "pipeline"
    shutil.copytree(plugins.PACKAGE, other, ignore=shutil.ignore_patterns("__pycache__"))
    points = (other / "kinds" / "points.py").read_text(encoding="utf-8")
    assert points.count("json.dumps(point.tolist())") == 1
    shifted = points.replace("json.dumps(point.tolist())", "json.dumps((point + 1).tolist())")
    (other / "kinds" / "points.py").write_text(shifted, encoding="utf-8")
    packages = {"this": plugins.PACKAGE, "other": other}
    return {name: save_served(tmp_path / name / "saved", code, tmp_path / "model") for name, code in packages.items()}


def test_a_second_model_with_other_code_is_refused_by_both_versions(versions: dict[str, str]) -> None:
    assert len(mlflow.pyfunc.load_model(versions["this"]).predict([1])) == 1
    here, needed = (
        serving.digest_code(folder) for folder in (plugins.PACKAGE, Path(versions["other"]) / "code" / "pipeline")
    )
    assert here != needed
    with pytest.raises(MlflowException) as error:
        mlflow.pyfunc.load_model(versions["other"])
    (line,) = [line for line in str(error.value).splitlines() if "was logged with" in line]
    assert f"this process has imported pipeline {here} from {plugins.PACKAGE}" in line
    assert f"the model was logged with {needed}: load it in a new Python process" in line


@pytest.mark.slow
def test_whichever_version_comes_first_runs_its_own_code(versions: dict[str, str], tmp_path: Path) -> None:
    def load(first: str, second: str) -> list[str]:
        code = f"""
import json, mlflow
print(mlflow.pyfunc.load_model({versions[first]!r}).predict([1])[0])
try:
    mlflow.pyfunc.load_model({versions[second]!r})
except Exception as error:
    print("was logged with" in str(error))
"""
        (tmp_path / "probe.py").write_text(code, encoding="utf-8")
        command = [sys.executable, "-m", "probe"]  # of a fork that has not imported the package
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True, env=forks.environment()
        )
        return done.stdout.splitlines()[-2:]

    (this, refused), (other, refused_too) = load("this", "other"), load("other", "this")
    assert json.loads(other) == pytest.approx([value + 1 for value in json.loads(this)])
    assert (refused, refused_too) == ("True", "True")
