"""Fetched sources on small files of their canonical format, which these tests write and put into a mirror folder."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.artifacts import ArtifactError, read_json
from pipeline.data import cifar10, enwik8, fashion_mnist, mnist, shakespeare, stacked_mnist, usps, wikitext2
from pipeline.formats import archives, idx
from pipeline.kinds import images
from pipeline.kinds.images import ImageSplits, make_fields

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {"path": "data/own", "split_seed": 0, "validation": 0.25}
TEXT = IMAGES | {"test": 0.0, "tokenizer": "character", "vocabulary": 300}
STACKED = stacked_mnist.Config(source="stacked_mnist", **IMAGES, count=2000, test_count=500)
MIRROR = os.environ.get("DATA_MIRROR", "")
needs_mirror = pytest.mark.skipif(
    not (Path(MIRROR or "absent") / "mnist").is_dir(),
    reason="set DATA_MIRROR to a folder that has mnist/*.gz: tests use no network",
)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that downloads come from; the public addresses are out of reach."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("DATA_MIRROR", str(folder))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- addresses and hashes ----------------------------------------------------


def pinned(module: ModuleType) -> list[tuple[str, Iterable[str]]]:
    """Each hash of a source with the addresses of its file."""
    files = getattr(module, "FILES", None) or {module.FILE: module.SHA256}
    addresses = module.ADDRESSES
    return [(files[key], addresses[key] if isinstance(addresses, dict) else addresses) for key in files]


@pytest.mark.parametrize(
    "module", [mnist, fashion_mnist, cifar10, usps, shakespeare, wikitext2, enwik8], ids=lambda module: module.__name__
)
def test_every_file_has_a_pinned_hash_and_two_https_folders(module: ModuleType) -> None:
    entries = pinned(module)
    assert len({digest for digest, _ in entries}) == len(entries)
    for digest, addresses in entries:
        assert len(digest) == 64
        assert int(digest, 16)
        assert len(set(addresses)) >= 2
        assert all(address.startswith("https://") and address.endswith("/") for address in addresses)


# --- fashion_mnist -----------------------------------------------------------


def encode_idx(array: np.ndarray) -> bytes:
    """The idx format: 0 0, type 8 (unsigned byte), number of dimensions, big-endian sizes, values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def make_idx_files() -> dict[str, np.ndarray]:
    """40 training and 20 test images, all different, and their labels."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (60, 28, 28))
    return dict(zip(idx.FILES, (pixels[:40], np.arange(40) % 10, pixels[40:], np.arange(20) % 10), strict=True))


@pytest.fixture
def clothes(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    arrays = make_idx_files()
    (mirror / "fashion_mnist").mkdir()
    for name, array in arrays.items():
        monkeypatch.setitem(fashion_mnist.FILES, f"{name}.gz", sha256(encode_idx(array)))
        (mirror / "fashion_mnist" / f"{name}.gz").write_bytes(gzip.compress(encode_idx(array)))
    return arrays


def assert_foreseen(images: ImageSplits, foreseen: Any) -> None:
    channels, height, width = images.splits["train"][0].shape[1:]
    assert foreseen == make_fields((channels, height, width), images.classes)


def test_fashion_mnist_has_mnists_files_and_zalandos_class_names(clothes: dict[str, np.ndarray], raw: Path) -> None:
    config = fashion_mnist.Config(source="fashion_mnist", **IMAGES)
    fashion_mnist.fetch(raw, config)
    assert {path.name for path in raw.iterdir()} == set(clothes)
    images = fashion_mnist.prepare(raw, config)
    assert_foreseen(images, fashion_mnist.foresee(config))
    assert {name: tuple(pixels.shape) for name, (pixels, _) in images.splits.items()} == {
        "train": (30, 1, 28, 28),
        "validation": (10, 1, 28, 28),
        "test": (20, 1, 28, 28),
    }
    assert np.array_equal(images.splits["test"][0][:, 0].numpy(), clothes["t10k-images-idx3-ubyte"])
    assert np.array_equal(images.splits["test"][1].numpy(), clothes["t10k-labels-idx1-ubyte"])
    assert images.classes == len(images.names) == 10
    assert (images.names[0], images.names[1], images.names[9]) == ("T-shirt/top", "Trouser", "Ankle boot")


def test_fashion_mnist_with_other_bytes_is_refused_with_file_hashes_and_addresses(
    clothes: dict[str, np.ndarray], mirror: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "t10k-labels-idx1-ubyte"
    monkeypatch.setattr(fashion_mnist, "ADDRESSES", ())
    (mirror / "fashion_mnist" / f"{name}.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(ArtifactError) as caught:
        fashion_mnist.fetch(raw, fashion_mnist.Config(source="fashion_mnist", **IMAGES))
    message = str(caught.value)
    parts = (str(mirror / "fashion_mnist" / name), sha256(b"other"), sha256(encode_idx(clothes[name])))
    assert all(part in message for part in parts)
    assert not (raw / name).exists()


# --- cifar10 -----------------------------------------------------------------

CLASSES = b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
CIFAR10 = cifar10.Config(source="cifar10", **IMAGES)


def make_records(count: int, seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    return b"".join(bytes([index % 10]) + generator.bytes(3072) for index in range(count))


def cifar_files() -> dict[str, bytes]:
    files = {"batches.meta.txt": CLASSES, "readme.html": b"<html>"}
    files |= {f"data_batch_{number}.bin": make_records(20, number) for number in range(1, 6)}
    return {
        f"cifar-10-batches-bin/{name}": body for name, body in (files | {"test_batch.bin": make_records(30, 6)}).items()
    }


def write_tar(folder: Path, files: dict[str, bytes]) -> Path:
    """The archive as the authors' tar wrote it: a folder first, its files in no order."""
    tree = folder / "tree"
    for name, body in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(body)
    path = folder / cifar10.FILE
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree / cifar10.FOLDER, cifar10.FOLDER)
    shutil.rmtree(tree)
    return path


def test_cifar10_is_read_from_the_archive(mirror: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mirror / "cifar10").mkdir()
    path = write_tar(mirror / "cifar10", cifar_files())
    monkeypatch.setattr(cifar10, "SHA256", sha256(path.read_bytes()))  # of the file, although its name ends in .gz
    cifar10.fetch(raw, CIFAR10)
    images = cifar10.prepare(raw, CIFAR10)
    assert_foreseen(images, cifar10.foresee(CIFAR10))
    assert {name: tuple(pixels.shape) for name, (pixels, _) in images.splits.items()} == {
        "train": (80, 3, 32, 32),
        "validation": (20, 3, 32, 32),  # 2 of the 10 of each class
        "test": (30, 3, 32, 32),
    }
    assert images.classes == 10
    assert list(images.names) == CLASSES.decode().split()
    assert [path.name for path in raw.iterdir()] == [cifar10.FILE]  # nothing is unpacked
    records = b"".join(body for name, body in sorted(cifar_files().items()) if "data_batch" in name)
    expected = sorted(records[start : start + 3073] for start in range(0, len(records), 3073))
    found = [
        bytes([int(label)]) + pixels.numpy().tobytes()
        for name in ("train", "validation")
        for pixels, label in zip(*images.splits[name], strict=True)
    ]
    assert sorted(found) == expected
    assert images.splits["test"][0].numpy().tobytes() == b"".join(
        record[1:] for record in (make_records(30, 6)[start : start + 3073] for start in range(0, 30 * 3073, 3073))
    )


def test_cifar10_pixels_are_where_the_format_says(raw: Path) -> None:
    # "The first 1024 bytes are the red channel values, the next 1024 the green, and the final 1024 the blue. The values
    # are stored in row-major order, so the first 32 bytes are the red channel values of the first row of the image."
    record = bytearray(3073)
    record[0] = 7
    record[1 + 32 * 2 + 5], record[1 + 1024 + 31], record[1 + 2048 + 32 * 31] = 11, 22, 33
    write_tar(raw, cifar_files() | {cifar10.TEST: bytes(record)})
    images, labels = cifar10.prepare(raw, CIFAR10).splits["test"]
    assert labels.tolist() == [7]
    assert (images[0, 0, 2, 5], images[0, 1, 0, 31], images[0, 2, 31, 0]) == (11, 22, 33)
    assert int(images.sum()) == 66


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("data_batch_3.bin", None, "missing: cifar-10-batches-bin/data_batch_3.bin"),
        ("data_batch_3.bin", bytes(3073 * 2 + 1), "data_batch_3.bin: expected records of 3073 bytes, found 6147 bytes"),
        ("data_batch_3.bin", b"", "data_batch_3.bin: expected records of 3073 bytes, found 0 bytes"),
        (
            "test_batch.bin",
            bytes(3073) + b"\x0a" * 3073,
            "test_batch.bin: expected labels below 10, found 10 in record 1",
        ),
        (
            "batches.meta.txt",
            b"airplane\n",
            "expected 10 class names in cifar-10-batches-bin/batches.meta.txt, found 1",
        ),
    ],
)
def test_cifar10_names_the_file_that_does_not_fit(raw: Path, name: str, body: bytes | None, message: str) -> None:
    files: dict[str, Any] = cifar_files() | {f"{cifar10.FOLDER}/{name}": body}
    write_tar(raw, {name: body for name, body in files.items() if body is not None})
    with pytest.raises(ArtifactError) as caught:
        cifar10.prepare(raw, CIFAR10)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(raw / cifar10.FILE))


def test_cifar10_with_a_link_in_the_archive_is_refused(raw: Path) -> None:
    path = write_tar(raw, cifar_files())
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(cifar10.META)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ArtifactError, match="is a link"):
        cifar10.prepare(raw, CIFAR10)


# --- stacked_mnist -----------------------------------------------------------


@pytest.fixture
def digits(raw: Path) -> dict[str, np.ndarray]:
    arrays = make_idx_files()
    for name, array in arrays.items():
        (raw / name).write_bytes(encode_idx(array))
    return arrays


def known_digits(arrays: dict[str, np.ndarray], part: str) -> dict[bytes, int]:
    images, labels = (arrays[name] for name in idx.FILES if name.startswith(part))
    return {image.astype(np.uint8).tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


def test_stacked_mnist_channels_are_digits_of_their_split_and_the_class_is_their_number(
    raw: Path, digits: dict[str, np.ndarray]
) -> None:
    stacked = stacked_mnist.prepare(raw, STACKED)
    assert_foreseen(stacked, stacked_mnist.foresee(STACKED))
    used: dict[str, set[bytes]] = {}
    for name, part in (("train", "train"), ("validation", "train"), ("test", "t10k")):
        images, labels = stacked.splits[name]
        known = known_digits(digits, part)
        used[name] = {channel.numpy().tobytes() for image in images for channel in image}
        for image, label in zip(images[:100], labels, strict=False):
            red, green, blue = (known[channel.numpy().tobytes()] for channel in image)
            assert int(label) == 100 * red + 10 * green + blue
    assert {name: len(images) for name, (images, _) in stacked.splits.items()} == {
        "train": 1500,
        "validation": 500,
        "test": 500,
    }
    assert not used["train"] & used["validation"]  # no digit stands in two splits
    assert (len(used["train"]), len(used["validation"]), len(used["test"])) == (30, 10, 20)  # and all are used
    assert stacked.classes == 1000
    assert stacked.names[7] == "007"


def test_stacked_mnist_is_a_function_of_the_seed(raw: Path, digits: dict[str, np.ndarray], tmp_path: Path) -> None:
    del digits
    config = images.ImageConfig.model_validate({"source": "test"} | IMAGES)
    manifests = [images.write(tmp_path / str(index), stacked_mnist.prepare(raw, STACKED), config) for index in range(2)]
    assert manifests[0] == manifests[1]
    for name in ("train", "validation", "test"):
        first, second = ((tmp_path / folder / f"{name}.safetensors").read_bytes() for folder in "01")
        assert first == second
    other = stacked_mnist.prepare(raw, STACKED.model_copy(update={"split_seed": 1}))
    assert not torch.equal(other.splits["test"][1], stacked_mnist.prepare(raw, STACKED).splits["test"][1])


def test_stacked_mnist_draws_every_digit_equally_often_in_every_channel() -> None:
    count = 30_000
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    stacked, labels = stacked_mnist.stack(images, torch.arange(10), count, torch.Generator().manual_seed(0))
    assert stacked.shape == (count, 3, 1, 1)
    assert torch.equal(labels, (stacked.flatten(1).long() * torch.tensor([100, 10, 1])).sum(dim=1))
    seen = labels.bincount(minlength=1000)
    # chi-squared with 999 degrees of freedom has mean 999 and deviation 44.7
    assert float(((seen - count / 1000) ** 2 / (count / 1000)).sum()) == pytest.approx(999, abs=5 * 44.7)


def test_stacked_mnist_downloads_mnist(mirror: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mirror / "mnist").mkdir()
    for name, array in make_idx_files().items():
        monkeypatch.setitem(mnist.FILES, f"{name}.gz", sha256(encode_idx(array)))
        (mirror / "mnist" / f"{name}.gz").write_bytes(gzip.compress(encode_idx(array)))
    stacked_mnist.fetch(raw, STACKED)
    assert {path.name for path in raw.iterdir()} == set(idx.FILES)


@needs_mirror
def test_stacked_mnist_from_the_mirror_has_all_of_its_1000_classes(raw: Path) -> None:
    config = stacked_mnist.Config(source="stacked_mnist", **(IMAGES | {"validation": 0.125}))
    stacked_mnist.fetch(raw, config)
    stacked = stacked_mnist.prepare(raw, config)
    counts = {name: labels.bincount(minlength=1000) for name, (_, labels) in stacked.splits.items()}
    assert {name: int(count.sum()) for name, count in counts.items()} == {
        "train": 52_500,
        "validation": 7500,
        "test": 10_000,
    }
    assert int(counts["train"].min()) > 0
    # Each channel has MNIST's mean, by which every example normalises; 157,500 digits are drawn of 52,500.
    mean = stacked.splits["train"][0].double().mean(dim=(0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.1307] * 3, abs=1e-3)


# --- wikitext2 ---------------------------------------------------------------

WORDS = {
    "train": " \n = Valkyria Chronicles III = \n \n Senjō no <unk> 3 : @-@ \r\n" * 40,
    "valid": " \n = Homarus gammarus = \n \n\ufeff The lobster \u2028 .\x85\n",
    "test": " \n = Robert <unk> = \n \n naïve 三 😀 \n",
}


def write_wikitext(folder: Path, changes: dict[str, bytes | None] | None = None) -> None:
    for variant, name in wikitext2.FOLDERS.items():
        files: dict[str, Any] = {f"wiki.{part}.{variant}": (variant + text).encode() for part, text in WORDS.items()}
        with zipfile.ZipFile(folder / f"{name}-v1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}/", b"")
            for member, body in (files | (changes or {})).items():
                if body is not None:
                    archive.writestr(f"{name}/{member}", body)


@pytest.mark.parametrize("variant", ["raw", "tokens"])
def test_wikitext2_keeps_the_canonical_splits_and_every_byte(
    mirror: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    (mirror / "wikitext2").mkdir()
    write_wikitext(mirror / "wikitext2")
    for path in (mirror / "wikitext2").iterdir():
        key = "raw" if "raw" in path.name else "tokens"
        monkeypatch.setitem(wikitext2.FILES, key, sha256(path.read_bytes()))
    config = wikitext2.Config(source="wikitext2", variant=variant, **TEXT)
    wikitext2.fetch(raw, config)
    assert {path.name for path in raw.iterdir()} == {"wikitext-2-raw-v1.zip", "wikitext-2-v1.zip"}
    texts = wikitext2.prepare(raw, config)
    expected = {"train": WORDS["train"], "validation": WORDS["valid"], "test": WORDS["test"]}
    for _ in range(2):  # pieces can be read again
        assert {name: "".join(pieces) for name, pieces in texts.splits.items()} == {
            name: variant + text for name, text in expected.items()
        }


def test_wikitext2_is_raw_unless_said_otherwise() -> None:
    assert wikitext2.Config(source="wikitext2", **TEXT).variant == "raw"
    with pytest.raises(ValueError, match="variant"):
        wikitext2.Config(source="wikitext2", variant="words", **TEXT)


@pytest.mark.parametrize(
    ("member", "body", "message"),
    [
        ("wiki.valid.raw", None, "missing: wikitext-2-raw/wiki.valid.raw"),
        ("wiki.test.raw", "naïve".encode("latin-1"), "wikitext-2-raw/wiki.test.raw: expected UTF-8"),
        ("wiki.train.raw", b"", "wikitext-2-raw/wiki.train.raw: expected text, found an empty file"),
    ],
)
def test_wikitext2_names_the_file_that_does_not_fit(raw: Path, member: str, body: bytes | None, message: str) -> None:
    write_wikitext(raw, {member: body})
    with pytest.raises(ArtifactError) as caught:
        wikitext2.prepare(raw, wikitext2.Config(source="wikitext2", **TEXT))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(raw / "wikitext-2-raw-v1.zip"))


# --- enwik8 ------------------------------------------------------------------

ENWIK8 = enwik8.Config(source="enwik8", **TEXT)
PATTERN = "aé三😀"  # characters of 1, 2, 3 and 4 bytes


def write_enwik8(folder: Path, content: bytes, name: str = "enwik8") -> Path:
    path = folder / enwik8.FILE
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def test_enwik8_is_split_90_5_5_million_bytes() -> None:
    assert list(enwik8.SIZES.items()) == [("train", 90_000_000), ("validation", 5_000_000), ("test", 5_000_000)]


@pytest.mark.parametrize("first", range(30, 41))
@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_enwik8_keeps_a_character_on_a_border_in_the_split_in_which_it_begins(
    raw: Path, monkeypatch: pytest.MonkeyPatch, first: int, chunk: int
) -> None:
    content = (PATTERN * 6).encode()
    sizes = {"train": first, "validation": 7, "test": len(content) - first - 7}
    monkeypatch.setattr(enwik8, "SIZES", sizes)
    monkeypatch.setattr(enwik8, "PIECE", 4)
    monkeypatch.setattr(archives, "CHUNK", chunk)
    write_enwik8(raw, content)
    texts = enwik8.prepare(raw, ENWIK8)
    expected = dict.fromkeys(sizes, "")
    position = 0
    for character in PATTERN * 6:
        name = "train" if position < first else "validation" if position < first + 7 else "test"
        expected[name] += character
        position += len(character.encode())
    for _ in range(2):  # pieces can be read again
        assert {name: "".join(pieces) for name, pieces in texts.splits.items()} == expected


def test_enwik8_is_fetched_and_read_in_pieces_without_changing_a_byte(
    mirror: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(0).integers(0, 128, 3_000_000, dtype=np.uint8).tobytes()  # with \r, \n, \0
    monkeypatch.setattr(enwik8, "SIZES", {"train": 2_700_000, "validation": 150_000, "test": 150_000})
    (mirror / "enwik8").mkdir()
    path = write_enwik8(mirror / "enwik8", content)
    monkeypatch.setattr(enwik8, "SHA256", sha256(path.read_bytes()))
    enwik8.fetch(raw, ENWIK8)
    pieces = {name: list(text) for name, text in enwik8.prepare(raw, ENWIK8).splits.items()}
    assert "".join(pieces["train"]).encode() == content[:2_700_000]
    assert "".join(pieces["validation"]).encode() == content[2_700_000:2_850_000]
    assert "".join(pieces["test"]).encode() == content[2_850_000:]
    assert [len(piece) >> 20 for piece in pieces["train"]] == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "content"),
    [("enwik8", bytes(99)), ("enwik8", bytes(101)), ("enwik9", bytes(100))],
    ids=["short", "long", "other name"],
)
def test_enwik8_refuses_another_file_or_size(
    raw: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.setattr(enwik8, "SIZES", {"train": 90, "validation": 5, "test": 5})
    path = write_enwik8(raw, content, name)
    with pytest.raises(ArtifactError) as caught:
        enwik8.prepare(raw, ENWIK8)
    assert f"{path}: expected a file enwik8 of 100 bytes, found {{{name!r}: {len(content)}}}" in str(caught.value)


@pytest.mark.parametrize(("place", "split"), [(50, "train"), (92, "validation"), (99, "test")])
def test_enwik8_names_the_place_that_is_no_utf_8(
    raw: Path, monkeypatch: pytest.MonkeyPatch, place: int, split: str
) -> None:
    monkeypatch.setattr(enwik8, "SIZES", {"train": 90, "validation": 5, "test": 5})
    content = bytearray(b"x" * 100)
    content[place] = 0xE9  # latin-1; at the end a character that is cut off
    path = write_enwik8(raw, content)
    texts = enwik8.prepare(raw, ENWIK8)
    with pytest.raises(ArtifactError, match=f"{path}: expected UTF-8, enwik8 has .* shortly after byte "):
        list(texts.splits[split])


# --- a source of one's own ---------------------------------------------------


def test_the_example_of_a_source_works_when_it_is_put_into_the_folder(mirror: Path, tmp_path: Path) -> None:
    # docs/extend.md links to example_source.py. It is put into a copy of the package, as a user would do, and the two
    # stages are run on it; only the hash is changed, because the real archive is not here.
    text = "the quick brown fox jumps over the lazy dog " * 100
    (mirror / "text8").mkdir()
    with zipfile.ZipFile(mirror / "text8" / "text8.zip", "w") as archive:
        archive.writestr("text8", text)
    example = Path(__file__).with_name("example_source.py").read_text(encoding="utf-8")
    hashed = re.sub("[0-9a-f]{64}", sha256((mirror / "text8" / "text8.zip").read_bytes()), example)
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pipeline" / "data" / "text8.py").write_text(hashed, encoding="utf-8")
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml")
    values["data"]["text"] |= {"source": "text8", "characters": 4000, "validation": 0.05, "test": 0.05}
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    code = "from pipeline.stages import fetch, prepare; fetch.main('text'); prepare.main('text')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    splits = read_json(tmp_path / "data" / "prepared" / "text" / "manifest.json")["splits"]
    assert [entry["tokens"] for entry in splits.values()] == pytest.approx([200, 3600, 200], abs=1)  # test, train, ...
    assert len(example.splitlines()) <= 40
