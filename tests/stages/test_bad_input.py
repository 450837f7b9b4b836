"""Bad input of every stage ends with status 1 and one line that names the key or the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.kinds import read_fields
from pipeline.models import gan
from pipeline.networks import classifier
from pipeline.stages import __main__ as runner
from pipeline.weights import save_model
from tests.conftest import ROOT, TINY, leave_out_runs, set_value, write_pictures

OWN = {
    **TINY,
    "data.images": {
        "source": "image_folder",
        "path": "pictures",
        "size": 8,
        "channels": 1,
        "split_seed": 0,
        "validation": 0.1,
        "test": 0.35,
    },
    "data.text": {
        "source": "text_file",
        "path": "novel.txt",
        "split_seed": 0,
        "validation": 0.1,
        "test": 0.1,
        "tokenizer": "byte",
        "vocabulary": 300,
    },
    "metrics.images.sampling.count": 60,
    "metrics.images.kid_subset_size": 20,
}
IMAGES, TEXT, GAN = Path("data/prepared/images"), Path("data/prepared/text"), Path("data/runs/gan")
CLASSIFIER = Path("data/networks/classifier")


def change_params(changes: dict[str, Any]) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(Path("params.yaml"))
    for key, value in changes.items():
        set_value(values, key, value)
    with Path("params.yaml").open("w") as file:
        yaml.dump(values, file)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose data are prepared, with an untrained model and network, and samples of the model's shape."""
    folder = tmp_path_factory.mktemp("prepared")
    before = Path.cwd()
    os.chdir(folder)
    text = leave_out_runs((ROOT / "params.yaml").read_text(encoding="utf-8"))
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    write_pictures(folder / "pictures", 240)
    (folder / "novel.txt").write_text("It was a dark and stormy night. " * 100, encoding="utf-8")
    change_params(OWN)
    for stage in ("fetch", "prepare"):
        for data in ("images", "text"):
            runner.main([stage, data])
    settings = params.load()
    config: Any = settings.models["gan"]
    save_model(GAN / "model", "gan", gan.Model(config, read_fields("images"), 0), config, read_fields("images"))
    network: Any = settings.networks["classifier"]
    model = classifier.Model(network, read_fields("images"), 0)
    save_model(CLASSIFIER, "classifier", model, network, read_fields("images"))
    write_samples(torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8))
    os.chdir(before)
    return folder


def write_samples(images: torch.Tensor) -> None:
    artifacts.write_tensors(GAN / "samples" / "generated.safetensors", {"0": images})
    artifacts.seal(GAN / "samples")


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def set_params(**changes: Any) -> Callable[[], None]:
    """Dots in names are double underscores."""
    return lambda: change_params({key.replace("__", "."): value for key, value in changes.items()})


def write(path: str | Path, content: bytes | str) -> Callable[[], None]:
    def do() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return do


def truncate(path: Path) -> Callable[[], None]:
    return lambda: os.truncate(path, path.stat().st_size // 2)


def remove(path: str | Path) -> Callable[[], None]:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def put_file_for_folder(path: str | Path) -> Callable[[], None]:
    """What root, too, cannot write into."""

    def do() -> None:
        shutil.rmtree(path, ignore_errors=True)
        write(path, "")()

    return do


def edit_json(path: Path, change: Callable[[Any], Any], *, seal: bool = False) -> Callable[[], None]:
    def do() -> None:
        artifacts.write_json(path, change(json.loads(path.read_text())))
        if seal:
            artifacts.seal(path.parent)

    return do


def again(*stages: str) -> Callable[[], None]:
    def do() -> None:
        for line in stages:
            runner.main(line.split())

    return do


class Case(NamedTuple):
    """The stage with its key, what is done before, and parts of the one line."""

    stage: str
    does: tuple[Callable[[], None], ...]
    says: tuple[str, ...]


def few_pictures(count: int) -> Callable[[], None]:
    def do() -> None:
        shutil.rmtree("pictures")
        write_pictures(Path("pictures"), count)
        again("fetch images", "prepare images")()

    return do


def one_class() -> None:
    shutil.rmtree("pictures/b")
    again("fetch images", "prepare images")()


def break_seal() -> None:
    Path("data/raw/images/files.json").write_text("[]")


def start_that_does_not_fit() -> None:
    change_params({"runs.vae.start": "gan"})


CASES = {
    # check: what params.yaml shows
    "no params": Case("check", (remove("params.yaml"),), ("params.yaml", "not found")),
    "params folder": Case("check", (remove("params.yaml"), lambda: Path("params.yaml").mkdir()), ("params.yaml",)),
    "side of 50": Case("check", (set_params(data__images__size=50),), ("data.images.size 50", "48 or 56 would do")),
    "kid of params": Case("check", (set_params(metrics__images__kid_subset_size=61),), ("metrics.images", "60")),
    "vae side": Case(
        "check",
        (set_params(data__images__size=18, runs__gan__model="vae"),),
        ("data.images.size 18", "16 or 20 would do"),
    ),
    "small for the classifier": Case("check", (set_params(data__images__size=4),), ("networks.classifier.data", "8")),
    "network of another shape": Case(
        "check",
        (
            set_params(data__digits={"source": "mnist5k", "path": "x", "split_seed": 0, "validation": 0.1}),
            set_params(networks__classifier__data="digits"),
        ),
        ("networks.classifier", "(1, 28, 28)", "data.digits", "data.images", "(1, 8, 8)"),
    ),
    # fetch
    "unknown key": Case("fetch nothing", (), ("params.yaml", "'nothing'")),
    "no folder": Case("fetch images", (remove("pictures"),), ("pictures", "nothing")),
    "file for a folder": Case("fetch images", (put_file_for_folder("pictures"),), ("pictures", "a file")),
    "empty folder": Case(
        "fetch images", (remove("pictures"), lambda: Path("pictures").mkdir()), ("pictures", "no file found")
    ),
    "no text": Case("fetch text", (remove("novel.txt"),), ("novel.txt",)),
    "no room for raw files": Case("fetch text", (put_file_for_folder("data/raw"),), ("data/raw",)),
    # prepare
    "not fetched": Case("prepare images", (remove("data/raw/images"),), ("data/raw/images", "dvc repro")),
    "raw file changed": Case("prepare images", (break_seal,), ("data/raw/images/files.json", "SHA-256")),
    "raw seal cut off": Case("prepare text", (truncate(Path("data/raw/text/manifest.json")),), ("data/raw/text",)),
    "picture changed": Case("prepare images", (write("pictures/a/0.png", b"x"),), ("a/0.png", "changed")),
    "no picture": Case(
        "prepare images",
        (remove("pictures"), write("pictures/a/0.png", b"no picture"), again("fetch images")),
        ("pictures", "1 of 1 files"),
    ),
    "no room for a test split": Case(
        "prepare images",
        (remove("pictures"), lambda: write_pictures(Path("pictures"), 4), again("fetch images")),
        ("every split", "test"),
    ),
    "text of a character": Case(
        "prepare text", (write("novel.txt", "a"), again("fetch text")), ("split", "validation", "data/prepared/text")
    ),
    "text that is none": Case("prepare text", (write("novel.txt", b"\xc3(" * 50), again("fetch text")), ("novel.txt",)),
    # networks
    "not prepared": Case("networks classifier", (remove(IMAGES),), ("data/prepared/images", "dvc repro")),
    "one class": Case(
        "networks classifier", (one_class,), ("networks.classifier.data", "2 or more", "the data have 1", "none")
    ),
    "kid": Case(
        "networks classifier",
        (set_params(metrics__images__sampling__count=200, metrics__images__kid_subset_size=150),),
        ("metrics.images.kid_subset_size", "at most"),
    ),
    "no manifest": Case("networks classifier", (write(IMAGES / "manifest.json", "{}"),), ("manifest.json", "fields")),
    "manifest cut off": Case(
        "networks classifier", (truncate(IMAGES / "manifest.json"),), (f"{IMAGES}/manifest.json",)
    ),
    "manifest of bytes": Case(
        "networks classifier", (write(IMAGES / "manifest.json", b"\xff\xfe"),), (f"{IMAGES}/manifest.json",)
    ),
    "split cut off": Case("networks classifier", (truncate(IMAGES / "train.safetensors"),), ("train.safetensors",)),
    "no room for networks": Case(
        "networks classifier", (put_file_for_folder("data/networks"),), ("data/networks", "cannot be written")
    ),
    # train
    "few test pictures": Case("train gan", (few_pictures(100),), ("data.images", "test split", "50 or more")),
    "few test pictures of many": Case(
        "train gan",
        (set_params(data__images__test=0.05), again("fetch images", "prepare images")),
        ("data.images.test", "would do"),
    ),
    "neighbours": Case(
        "train gan", (set_params(metrics__images__sampling__count=50, metrics__images__neighbours=50),), ("neighbours",)
    ),
    "splits of the score": Case(
        "train gan",
        (set_params(metrics__images__sampling__count=300, metrics__images__isc_splits=200),),
        ("metrics.images.isc_splits", "at most"),
    ),
    "context": Case(
        "train transformer",
        (set_params(models__transformer__context=2048),),
        ("data.text", "novel.txt", "models.transformer.context"),
    ),
    "random windows": Case(
        "train transformer",
        (set_params(models__transformer__context=512, metrics__text__sampling__random_windows=3),),
        ("metrics.text.sampling.random_windows", "512"),
    ),
    "test split of one token": Case(
        "train transformer",
        (edit_json(TEXT / "manifest.json", lambda about: set_value(about, "splits.test.tokens", 1) or about),),
        ("data.text.test", "1 tokens", "2 or more"),
    ),
    "black pictures": Case(
        "train gan",
        (edit_json(IMAGES / "manifest.json", lambda about: set_value(about, "splits.test.maximum", 0) or about),),
        ("data.images", "test split", "0"),
    ),
    "start not trained": Case("train vae", (set_params(runs__vae__start="transformer"),), ("data/runs/transformer",)),
    "start of another model": Case("train vae", (start_that_does_not_fit,), ("data/runs/gan/model", "do not fit")),
    "no room for the run": Case("train gan", (put_file_for_folder(GAN),), ("data/runs/gan", "cannot be written")),
    "no split": Case("train gan", (remove(IMAGES / "train.safetensors"),), ("train.safetensors", "no file")),
    # sample
    "no model": Case("sample gan", (remove(GAN / "model"),), ("data/runs/gan/model", "dvc repro")),
    "weights cut off": Case("sample gan", (truncate(GAN / "model/model.safetensors"),), ("model.safetensors",)),
    "sealed weights cut off": Case(
        "sample gan",
        (truncate(GAN / "model/model.safetensors"), lambda: artifacts.seal(GAN / "model")),
        ("model.safetensors", "not a complete"),
    ),
    "model of other code": Case(
        "sample gan",
        (edit_json(GAN / "model/config.json", lambda about: set_value(about, "config.old", 1) or about, seal=True),),
        ("data/runs/gan/model/config.json", "config.old"),
    ),
    "weights of another shape": Case(
        "sample gan",
        (edit_json(GAN / "model/config.json", lambda about: set_value(about, "config.latent", 7) or about, seal=True),),
        ("model.safetensors", "does not fit"),
    ),
    # evaluate
    "no samples": Case("evaluate gan", (remove(GAN / "samples"),), ("data/runs/gan/samples", "dvc repro")),
    "sample file changed": Case(
        "evaluate gan", (truncate(GAN / "samples/generated.safetensors"),), ("generated.safetensors", "SHA-256")
    ),
    "samples of one value": Case(
        "evaluate gan",
        (lambda: write_samples(torch.full((60, 1, 8, 8), 9, dtype=torch.uint8)),),
        ("generated set 0", "every pixel"),
    ),
    "samples of another type": Case(
        "evaluate gan", (lambda: write_samples(torch.rand(60, 1, 8, 8)),), ("generated set 0", "float32")
    ),
    "no network": Case("evaluate gan", (remove(CLASSIFIER),), ("data/networks/classifier",)),
    "network cut off": Case("evaluate gan", (truncate(CLASSIFIER / "model.safetensors"),), ("model.safetensors",)),
    # report
    "no metrics": Case("report", (), ("reports/runs", "metrics.json", "dvc repro")),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line_that_names_it(project: Path, name: str) -> None:
    case = CASES[name]
    for do in case.does:
        do()
    with pytest.raises(SystemExit) as caught:
        runner.main(case.stage.split())
    message = str(caught.value.code)  # what Python prints before it ends with status 1
    assert message.startswith("error: ")
    for part in case.says:
        assert part in message
    assert [line for line in message.split("\n")[1:] if not line.startswith("  ")] == []  # or a list of problems
    assert not list(project.glob(".state/train-*/*/record"))
