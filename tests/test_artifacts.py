"""Files between stages: written whole or not at all, read only when they are what was written."""

import errno
import hashlib
import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.kinds import dump_fields, parse_fields, read_fields
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.text import make_fields as text_fields

VALUE = {"b": [1, 2.5, None, True], "a": {"text": "Grüße 🙂\n", "tiny": 5e-324, "third": 1 / 3}}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: the write fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ: the write raises EFBIG
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared data set `digits` of one split, with its manifest."""
    monkeypatch.chdir(tmp_path)
    folder = artifacts.PREPARED / "digits"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 1, 4, 4), generator=generator).to(torch.uint8)
    artifacts.write_tensors(folder / "train.safetensors", {"images": images, "labels": torch.arange(20) % 10})
    manifest = {
        "source": "mnist",
        "kind": "images",
        "fields": {"images": {"kind": "images", "shape": [1, 4, 4]}, "labels": {"kind": "labels", "classes": 10}},
        "splits": {"train": {"sha256": hashlib.sha256((folder / "train.safetensors").read_bytes()).hexdigest()}},
    }
    artifacts.write_json(folder / "manifest.json", manifest)
    return folder


def test_json_roundtrip_is_exact(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "new" / "folder" / "value.json", VALUE)
    assert artifacts.read_json(tmp_path / "new" / "folder" / "value.json") == VALUE


def test_equal_json_values_are_equal_bytes_whatever_their_order(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "one.json", {"a": 1, "b": {"c": 2, "d": 3}})
    artifacts.write_json(tmp_path / "two.json", {"b": {"d": 3, "c": 2}, "a": 1})
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_has_not_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(tmp_path / "value.json", {"loss": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.bool]
)
def test_tensor_roundtrip_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 50).abs().to(dtype)
    artifacts.write_tensors(tmp_path / "new" / "value.safetensors", {"x": tensor, "transposed": tensor.T})
    read = artifacts.read_tensors(tmp_path / "new" / "value.safetensors")
    assert set(read) == {"x", "transposed"}
    assert read["x"].dtype == dtype
    assert torch.equal(read["x"], tensor)
    assert torch.equal(read["transposed"], tensor.T)


@pytest.mark.parametrize(
    ("name", "write", "small", "large"),
    [
        ("x.json", artifacts.write_json, {"old": 1}, {"new": "x" * 100_000}),
        ("x.safetensors", artifacts.write_tensors, {"old": torch.ones(3)}, {"new": torch.ones(100_000)}),
    ],
)
def test_a_write_that_fails_in_the_middle_leaves_the_old_file(
    tmp_path: Path, name: str, write: Callable[[Path, Any], None], small: Any, large: Any
) -> None:
    path = tmp_path / name
    write(path, small)
    before = path.read_bytes()
    with pytest.raises(Exception, match=os_error(errno.EFBIG)), full_disk(10_000):
        write(path, large)
    assert path.read_bytes() == before
    write(path, large)  # and what the failure left does not disturb the next attempt
    assert len(path.read_bytes()) > 100_000
    assert [file.name for file in tmp_path.iterdir()] == [name]


def os_error(number: int) -> str:
    return f"[Ee]rrno {number}|os error {number}"


def test_digest_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert artifacts.digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_read_split_returns_what_was_written(prepared: Path) -> None:
    split = artifacts.read_split("digits", "train")
    assert split["images"].shape == (20, 1, 4, 4)
    assert split["labels"].tolist() == [*range(10)] * 2
    assert read_fields("digits") == image_fields((1, 4, 4), 10)
    assert prepared.is_dir()


def test_read_split_refuses_one_flipped_bit_and_names_the_file_and_both_hashes(prepared: Path) -> None:
    path = prepared / "train.safetensors"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    for position in (-1, -100, 20):  # in the labels, in the images, in the header
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            artifacts.read_split("digits", "train")
        content_hash = hashlib.sha256(content).hexdigest()
        assert all(part in str(caught.value) for part in (str(path), expected, content_hash, "dvc repro"))
        content[position] ^= 1
        path.write_bytes(content)
    assert len(artifacts.read_split("digits", "train")) == 2


def test_a_flipped_bit_of_a_tensor_would_load_without_the_hash(prepared: Path) -> None:
    # Why read_split hashes: safetensors has no checksum.
    path = prepared / "train.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(artifacts.read_tensors(path)) == 2


def test_read_split_of_a_missing_file_names_it_and_the_command(prepared: Path) -> None:
    (prepared / "train.safetensors").unlink()
    with pytest.raises(ArtifactError, match="no file") as caught:
        artifacts.read_split("digits", "train")
    assert str(prepared / "train.safetensors") in str(caught.value)
    assert "dvc repro" in str(caught.value)


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_a_truncated_safetensors_file_is_refused_by_name(prepared: Path, length: int) -> None:
    path = prepared / "train.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match="not a complete safetensors file") as caught:
        artifacts.read_tensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", [artifacts.read_json, artifacts.read_tensors])
def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(ArtifactError, match="not found; run `dvc repro`") as caught:
        read(tmp_path / "absent.file")
    assert str(tmp_path / "absent.file") in str(caught.value)


def test_a_missing_data_set_is_named(prepared: Path) -> None:
    for read in (lambda: artifacts.read_manifest("faces"), lambda: artifacts.read_split("faces", "train")):
        with pytest.raises(ArtifactError, match=str(prepared.parent / "faces" / "manifest.json")):
            read()


def test_fields_know_their_kinds(prepared: Path) -> None:
    fields = {"tokens": {"kind": "text", "vocabulary": 65}}
    artifacts.write_json(
        prepared.parent / "words" / "manifest.json", {"source": "own", "kind": "text", "fields": fields, "splits": {}}
    )
    assert read_fields("words") == text_fields(65)


def test_specs_are_frozen_and_survive_json() -> None:
    spec = image_fields((3, 32, 32), 10)
    assert parse_fields(json.loads(json.dumps(dump_fields(spec)))) == spec
    with pytest.raises(ValueError, match="frozen"):
        spec["labels"].classes = 2  # type: ignore[attr-defined]
