"""Models by address: weights and config are taken, verified; the code that comes with them stays where it is."""

import base64
import contextlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from safetensors.torch import load_file, save_file

import pipeline
from pipeline import artifacts, code, plugins
from pipeline.artifacts import ArtifactError
from pipeline.formats.tokenizers import ByteTokenizer
from pipeline.history import mlflow_files
from pipeline.history.trained import read_licence
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.points import make_fields as point_fields
from pipeline.kinds.text import make_fields as text_fields
from pipeline.weights import ADAPTER, CONFIG, WEIGHTS
from tests.conftest import ROOT
from tests.history.test_serving import make_generator_of

EVIL = """
from pathlib import Path
Path({marker!r}).touch()
import mlflow
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[int], params=None):
        return model_input
mlflow.models.set_model(Model())
"""
Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of an untrained GAN of digits."""
    make_generator_of("gan", image_fields((1, 8, 8), 3), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("run", "fields", "tokenizer"),
    [
        ("gan", image_fields((3, 8, 8), 2), None),
        ("gan", point_fields(2, 3), None),
        ("vae", image_fields((1, 8, 8), 2), None),
        ("transformer", text_fields(256), ByteTokenizer("\n").state()),
    ],
    ids=["images", "points", "vae", "text"],
)
def test_a_model_is_loaded_and_draws_what_the_served_model_draws(
    tmp_path: Path, run: str, fields: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.kinds.text.PREVIEW_LENGTH", 10)
    served = make_generator_of(run, fields, tmp_path / "model", tokenizer)
    model = pipeline.load(tmp_path / "model")
    kind = model.loaded.kind
    settings = {key: getattr(served.sampling, key) for key in getattr(kind, "SAMPLING", {})}
    drawn = [kind.to_file("", value, model.loaded) for value in model.draw([0, 7], **settings)]
    decode = base64.b64decode if drawn[0].suffix == ".png" else str.encode
    assert [exhibit.content for exhibit in drawn] == [decode(each) for each in served.predict(None, [0, 7])]
    assert drawn[0].content != drawn[1].content


def test_a_run_is_found_by_its_name_its_folder_and_its_models_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (artifacts.RUNS / "gan").mkdir(parents=True)
    folder.rename(artifacts.RUNS / "gan" / "model")
    given = {"values": {"labels": [0, 1, 2]}, "weights": [0.0, 0.0, 1.0]}
    about = {"given": given, "config": {"run": {"data": "digits"}}, "tags": {}}
    artifacts.write_json(artifacts.RUNS / "gan" / "record" / "run.json", about)
    artifacts.write_json(artifacts.PREPARED / "digits" / "manifest.json", dict.fromkeys(artifacts.MANIFEST))
    (expected,) = pipeline.load(artifacts.RUNS / "gan" / "model").draw([5])
    for address in ("gan", "data/runs/gan", artifacts.RUNS / "gan"):
        model = pipeline.load(address)
        assert torch.equal(model.draw([5])[0], expected)
        assert model.loaded.pool.weights == [0, 0, 1]  # as the record says
    with contextlib.chdir(artifacts.RUNS / "gan" / "model"):
        assert pipeline.load(".").loaded.pool.weights == [0, 0, 1]
    with pytest.raises(ArtifactError, match="vae: no model is there; expected a run in data/runs"):
        pipeline.load("vae")


def test_classes_are_given_and_a_model_says_what_it_takes(folder: Path) -> None:
    model = pipeline.load(folder)
    assert model.draw([1], given={"labels": 1})[0].shape == (1, 8, 8)
    with pytest.raises(ArtifactError, match="labels: expected one of 0, 1, 2, got 3"):
        model.draw([1], given={"labels": 3})
    with pytest.raises(ArtifactError, match="the model is given labels, so it takes no caption"):
        model.draw([1], given={"caption": 3})
    with pytest.raises(ArtifactError, match="a sample of this model has no prompt; it has no such setting"):
        model.draw([1], prompt="once")


def edit(**changes: Any) -> Change:
    """Change keys of the config.json."""

    def change(folder: Path) -> None:
        about = artifacts.read_json(folder / CONFIG)
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(about.get(key), dict):
                about[key] |= value
            else:
                about[key] = value
        artifacts.write_json(folder / CONFIG, about)

    return change


def convert(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Change the weights."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return rewrite


def lie(folder: Path) -> None:
    """Announce a tensor of 400 GB in the header of a small file."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


KEY = "layers.0.bias"
HARM = {
    "nan": (convert(lambda each: each[KEY].fill_(float("nan"))), f"weights are not finite: {KEY}"),
    "dtype": (convert(lambda each: each.update({KEY: each[KEY].half()})), f"{KEY}: expected .* F32, found .* F16"),
    "shape": (convert(lambda each: each.update({KEY: each[KEY][:-1].clone()})), f"1 weights do not fit .*{KEY}"),
    "absent": (convert(lambda each: each.pop(KEY)), f"{KEY}: expected .* found nothing"),
    "more": (convert(lambda each: each.update({"x": torch.ones(1)})), "x: expected nothing, found"),
    "header": (lie, "no model of this package: SafetensorError"),
    "wide": (edit(config={"generator_width": 10**6}), "7 weights do not fit config.json"),
    "hidden": (edit(config={"discriminator_width": 10**6}), "the model has .* parts or more with .* bytes"),
    "endless": (edit(config={"generator_width": 10**8}), "the model has .* parts or more with .* bytes"),
    "model": (edit(model="../../evil"), "no models plug-in '../../evil'"),
    "kind": (edit(kind="os"), "no kinds plug-in 'os'"),
    "spec": (edit(spec=[1]), "no model of this package"),
    "key": (edit(config={"evil": 1}), "no model of this package: ValidationError"),
    "list": (lambda folder: artifacts.write_json(folder / CONFIG, []), "no model of this package: TypeError"),
    "deep": (lambda folder: (folder / CONFIG).write_text("[" * 10**5), "no model of this package: RecursionError"),
    "cut": (lambda folder: (folder / CONFIG).write_text("{"), "not a complete JSON file"),
    "given": (edit(given={"values": {"labels": [0, 1]}, "weights": [1.0]}), "expected a weight for each value"),
    "words": (edit(given={"values": {"labels": ["a"]}, "weights": [1.0]}), "no model of this package"),
    "link": (lambda folder: (folder / "more").symlink_to("/dev/zero"), None),
}


@pytest.mark.fault(66)
@pytest.mark.parametrize("harm", HARM)
def test_a_model_whose_files_lie_is_refused_with_one_error_of_one_line(folder: Path, harm: str) -> None:
    change, message = HARM[harm]
    change(folder)
    artifacts.seal(folder) if message else None
    begin = time.monotonic()
    if not message:
        pipeline.load(folder)  # a device is no file of the folder, and never read
        return
    with pytest.raises(ArtifactError, match=message) as caught:
        pipeline.load(folder)
    assert time.monotonic() - begin < 5
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.fault(66)
def test_a_deep_model_is_refused_before_its_layers_are_made(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_generator_of("transformer", text_fields(256), folder, ByteTokenizer("\n").state())
    edit(config={"layers": 10**9})(folder)
    artifacts.seal(folder)
    begin = time.monotonic()
    with pytest.raises(ArtifactError, match=r"the model has .* parts or more"):
        pipeline.load(folder)
    assert time.monotonic() - begin < 5


def test_a_table_that_is_not_stored_counts_too(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_generator_of("transformer", text_fields(256), folder, ByteTokenizer("\n").state())
    edit(config={"context": 10**13})(folder)
    artifacts.seal(folder)
    with pytest.raises(ArtifactError, match=r"the model has .* parts or more with .* bytes"):
        pipeline.load(folder)


@pytest.mark.fault(66)
def test_an_unsealed_model_is_refused(folder: Path) -> None:
    artifacts.write_json(folder / artifacts.SEAL, {})
    with pytest.raises(ArtifactError, match=r"config\.json: expected SHA-256 none, as the manifest does not name it"):
        pipeline.load(folder)


@pytest.fixture
def logged(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LoggedModel with code that makes the file `ran`, and the place where MLflow has it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    (tmp_path / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "ran")), encoding="utf-8")
    mlflow.pyfunc.save_model(
        tmp_path / "saved",
        python_model=str(tmp_path / "evil.py"),
        artifacts={"model": str(folder)},
        model_config={"given": {"values": {"labels": [0, 1, 2]}, "weights": [1.0, 0.0, 0.0]}},
        metadata={code.TAG: "another"},
        pip_requirements=[],
    )
    (tmp_path / "ran").unlink(missing_ok=True)
    place = LocalArtifactRepository((tmp_path / "saved").as_uri())
    monkeypatch.setattr(mlflow_files, "get_artifact_repository", lambda _: place)
    return tmp_path / "saved"


@pytest.mark.fault(65)
def test_the_code_of_a_logged_model_does_not_run(
    logged: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = pipeline.load("models:/digits@best")
    assert model.loaded.pool.weights == [1, 0, 0]  # as the LoggedModel says
    assert torch.equal(model.draw([3])[0], pipeline.load(folder).draw([3], given={"labels": 0})[0])
    assert not (tmp_path / "ran").exists()
    here = code.digest_model("gan", "images")
    assert f"trained with other code of pipeline/models/gan.py (another) than this package has ({here})" in caplog.text
    mlflow.pyfunc.load_model(str(logged))
    assert (tmp_path / "ran").exists()  # so the model is as evil as it says


@pytest.mark.fault(65)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("flavors: {python_function: {config: {given: 3}}}", "no model of this package"),
        ("flavors: {python_function: 3}", "no model of this package"),
        ("a: &a {b: *a}", "contains itself"),
        ("a: " + "[" * 40, "at most 32 levels"),
    ],
)
def test_a_logged_model_that_describes_itself_wrongly_is_refused(logged: Path, content: str, message: str) -> None:
    (logged / "MLmodel").write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        pipeline.load("models:/digits/1")


@pytest.mark.parametrize("name", [CONFIG, artifacts.SEAL, WEIGHTS])
def test_a_logged_model_without_a_file_is_refused(logged: Path, name: str) -> None:
    (logged / "artifacts" / "model" / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        pipeline.load("models:/digits/1")


def test_a_logged_model_brings_the_adapter_that_its_seal_names(logged: Path, folder: Path) -> None:
    model = logged / "artifacts" / "model"
    save_file({"blocks.0.qkv.up": torch.ones(1)}, model / ADAPTER)
    artifacts.seal(model)
    assert torch.equal(
        pipeline.load("models:/digits/1").draw([3], given={"labels": 0})[0],
        pipeline.load(folder).draw([3], given={"labels": 0})[0],
    )


def test_every_source_states_the_licence_that_the_page_names() -> None:
    page = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8").partition("## Data sources")[2]
    rows = re.findall(r"^\| (`.*?) \| .*? \| (.*?) \|$", page, re.MULTILINE)
    terms = {name: text for names, text in rows for name in re.findall(r"`(\w+)`", names)}
    known = re.compile(
        r"MIT|BSD 3-Clause|CC BY-SA 3\.0|Creative Commons [\w-]+|GPL 3\.0|GNU Free \w+|Apache 2\.0|public domain"
    )
    for name in plugins.names("data"):
        licence, text = read_licence(name), terms[name]
        assert (licence == "not stated") == (text == "yours")
        text += terms["mnist"] if "`mnist`" in text else ""
        assert set(known.findall(licence)) <= set(known.findall(text)), name
    assert read_licence("../../evil") == "not stated"
