"""The LoggedModel: a sample of each kind, equal for equal seeds, that its format's reader reads."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import requests
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from PIL import Image

from pipeline import artifacts, params, plugins
from pipeline.formats.tokenizers import ByteTokenizer, CharacterTokenizer
from pipeline.history import serving
from pipeline.history.mlflow_files import make_signature
from pipeline.history.serving import Generator
from pipeline.kinds import Fields, Pool
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.points import make_fields as point_fields
from pipeline.kinds.text import make_fields as text_fields
from pipeline.weights import save_model
from tests import forks
from tests.conftest import ROOT
from tests.ports import find_free_port

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


def test_a_class_goes_by_its_name_or_number_and_a_count_takes_the_seeds_after_each(tmp_path: Path) -> None:
    served = make_generator_of("gan", image_fields((1, 8, 8), 3), tmp_path)
    served.classes = ["cat", "dog", "1"]
    dogs = served.predict(None, [4, 5], {"labels": [1]})
    assert served.predict(None, [4], {"label": "dog", "count": 2}) == dogs
    assert served.predict(None, [1], {"label": "dog", "count": 2, "seed": 3}) == dogs
    assert served.predict(None, [4, 5], {"label": "1"}) == served.predict(None, [4, 5], {"labels": [2]}) != dogs
    assert served.predict(None, [4], {"label": "", "count": 2}) == served.predict(None, [4, 5])


def test_details_say_of_each_sample_its_seed_class_and_origin(tmp_path: Path) -> None:
    served = make_generator_of("gan", image_fields((1, 8, 8), 3), tmp_path)
    answers = served.predict(None, [6, 7], {"details": True})
    assert [answer["sample"] for answer in answers] == served.predict(None, [6, 7])  # type: ignore[index]
    for answer in answers:
        assert isinstance(answer, dict)
        assert served.predict(None, [answer["seed"]], {"label": answer["label"]}) == [answer["sample"]]
        assert answer["model_sha256"] == artifacts.digest(tmp_path / "model.safetensors")
        assert answer["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")


def test_a_text_takes_a_prompt_and_a_temperature(tmp_path: Path) -> None:
    served = make_generator_of("transformer", text_fields(256), tmp_path, ByteTokenizer("abc\n").state())
    first, again = served.predict(None, [1, 2], {"prompt": "ab", "temperature": 0.0})
    assert first == again
    assert str(first).startswith("ab")
    assert served.sampling.prompt == "\n"  # of the next request


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"label": "owl"}, "label: expected one of cat, dog, 2, got owl"),
        ({"label": "cat", "labels": [1]}, "label: expected label or labels, got both"),
        ({"prompt": "ax"}, "prompt: expected characters of the training text, 'abc'; got U.0078"),
        ({"count": 0}, "count: expected 1 to 1000, got 0"),
        ({"count": 10**9}, "count: expected 1 to 1000, got 1000000000"),
        ({"temperature": -1.0}, "temperature: expected 0 or a positive number, got -1.0"),
        ({"temperature": float("nan")}, "temperature: expected 0 or a positive number, got nan"),
    ],
)
def test_an_option_out_of_range_is_named(params: dict[str, Any], message: str, tmp_path: Path) -> None:
    served = make_generator_of("gan", image_fields((1, 8, 8), 3), tmp_path)
    served.classes = ["cat", "dog"]
    served.loaded = replace(served.loaded, tokenizer=CharacterTokenizer("abc"))
    with pytest.raises(MlflowException, match=message):
        served.predict(None, [1], params)


def test_the_signature_has_the_options_of_the_model_with_their_defaults() -> None:
    def list_defaults(signature: ModelSignature) -> dict[str, Any]:
        return {spec.name: spec.default for spec in signature.params}

    options = {"count": 1, "seed": 0, "details": False}
    assert list_defaults(make_signature([], {"prompt": "a", "temperature": 0.8, "top_k": 3, "count": 9})) == {
        **options,
        "prompt": "a",
        "temperature": 0.8,
    }
    assert list_defaults(make_signature(["labels"])) == {"labels": [], "label": "", **options}


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


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        assert process.poll() is None
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{address}/ping", timeout=10).ok:
                return
        time.sleep(0.2)
    pytest.fail(f"{address} does not answer")


def ask(address: str) -> None:
    """Send the requests of docs/deploy.md, and compare the answers with those of the page."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    requested = re.findall(r"^    curl (\S+) --header '(\S+): (\S+)' \\\n +--data '(.*)'$", page, re.MULTILINE)
    answered = [json.loads(line) for line in re.findall(r"^    (\{\"predictions\".*)$", page, re.MULTILINE)]
    assert len(requested) == len(answered) == 2
    for (url, header, value, text), shown in zip(requested, answered, strict=True):
        path = url.removeprefix("http://127.0.0.1:8080")
        answer = requests.post(address + path, data=text, headers={header: value}, timeout=60).json()
        samples = [each if isinstance(each, str) else each.pop("sample") for each in answer["predictions"]]
        examples = [each if isinstance(each, str) else each.pop("sample") for each in shown["predictions"]]
        assert len(set(samples)) == len(examples)
        for sample, example in zip(samples, examples, strict=True):
            assert sample.startswith(example.removesuffix("..."))
            assert Image.open(io.BytesIO(base64.b64decode(sample))).size == (8, 8)
        for details, example in zip(answer["predictions"], shown["predictions"], strict=True):
            if isinstance(example, dict):
                assert details.keys() == example.keys()
                assert {key: details[key] for key in ("seed", "label", "DigitalSourceType")} == {
                    key: example[key] for key in ("seed", "label", "DigitalSourceType")
                }
    refused = requests.post(f"{address}/invocations", json={"inputs": [0], "params": {"label": "11"}}, timeout=60)
    assert refused.status_code == 400
    assert "label: expected one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, got 11" in refused.json()["message"]
    refused = requests.post(f"{address}/invocations", json={"inputs": [0], "params": {"labels": [11]}}, timeout=60)
    assert (refused.status_code, "labels: expected one of 0, 1, 2" in refused.json()["message"]) == (400, True)


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """The folder of an untrained model as MLflow stores it, with the signature that a run's model has."""
    make_generator_of("gan", image_fields((1, 8, 8), 10), tmp_path / "model")
    package = plugins.PACKAGE
    mlflow.pyfunc.save_model(
        tmp_path / "logged",
        python_model=str(package / "history" / "serving.py"),
        artifacts={"model": str(tmp_path / "model")},
        code_paths=[str(package)],
        signature=make_signature(["labels"]),
        pip_requirements=[],
    )
    return tmp_path / "logged"


@pytest.mark.slow
def test_the_server_of_the_page_answers_the_requests_of_the_page(logged: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^ +(mlflow models serve .*)$", page, re.MULTILINE)
    port = find_free_port()
    command = line.replace("models:/<model id>", str(logged)).replace("8080", str(port)).split()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        ask(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def find_docker() -> str:
    """Return why no container can be started; empty where one can."""
    if not shutil.which("docker"):
        return "docker is not installed"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False, timeout=60)
    return "" if done.returncode == 0 else f"docker does not run: {done.stderr.strip().splitlines()[-1]}"


@pytest.mark.slow
def test_the_container_of_the_page_answers_the_requests_of_the_page(logged: Path, tmp_path: Path) -> None:
    if problem := find_docker():
        pytest.skip(problem)
    shutil.copytree(logged, tmp_path / "project" / "mlartifacts" / "model")
    shutil.copy(ROOT / "requirements.lock", tmp_path / "project")
    shutil.copytree(ROOT / "examples", tmp_path / "project" / "examples")
    build = "docker build --file examples/Dockerfile --build-arg MODEL=mlartifacts/model --tag generator-of-a-test ."
    subprocess.run(build.split(), cwd=tmp_path / "project", check=True)
    port = find_free_port()
    command = f"docker run --rm --publish 127.0.0.1:{port}:8080 --name generator-of-a-test generator-of-a-test".split()
    process = subprocess.Popen(command)
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        ask(f"http://127.0.0.1:{port}")
    finally:
        subprocess.run(["docker", "stop", "generator-of-a-test"], check=False)
        process.wait(timeout=60)
