"""Every path, and the only readers and writers of what stages exchange: prepared tensors, weights, samples, metrics.

All paths are relative to the working folder, which DVC sets to the repository or, in `dvc exp run --temp`, to a copy.
Tensors are safetensors, everything else is JSON: reading a file never runs code. torch is imported by the functions
that need it, because it takes half a gigabyte of memory, and the stages of a text need none of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
NETWORKS = Path("data/networks")
RUNS = Path("data/runs")
REPORTS = Path("reports")
STATE = Path(".state")  # hidden from git and DVC: resume state, partial downloads, reports of stages that stopped
SPLITS = ("train", "validation", "test")
ZEROS = 2**20  # bytes that an empty tensor file grows by
SEAL = "manifest.json"
MANIFEST = ("source", "kind", "fields", "splits")  # keys of every prepared manifest
MEND = "`pipeline verify` says whether DVC's cache is broken too; if not, `dvc checkout --force` brings the file back"


class ArtifactError(RuntimeError):
    """A file between stages is missing or broken; the message names it and the stage that makes it."""


def encode(value: Any) -> Any:
    """Return plain JSON values: sections of params.yaml become mappings."""
    return json.loads(json.dumps(value, default=_encode_section))


def _encode_section(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    msg = f"expected plain values (numbers, texts, lists, mappings), got {type(value).__name__}: {value!r}"
    raise TypeError(msg)


@contextmanager
def replace(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which takes its place at the end: complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, complete or not at all."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, default=_encode_section) + "\n"
    with replace(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, complete or not at all."""
    with replace(path) as partial:
        partial.write_bytes(content)


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage wrote.

    Raises:
        ArtifactError: if it is missing or broken.
    """
    if not path.exists():
        msg = f"{path}: not found; run `dvc repro` to make it"
        raise ArtifactError(msg)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        msg = f"{path}: not a complete JSON file ({error}); delete it and run `dvc repro`"
        raise ArtifactError(msg) from error


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file, complete or not at all."""
    from safetensors.torch import save_file

    with replace(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


@contextmanager
def create_tensors(path: Path, layout: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> Iterator[dict[str, Tensor]]:
    """Yield tensors of zeros that are the content of a new safetensors file, for sets larger than memory.

    The file holds what is written to them within the context, in the same bytes as `write_tensors` writes. It
    gets its name at the end of the context, and is removed if that fails.

    Args:
        path: the file.
        layout: dtype (int64, float32, int32 or uint8) and shape of each tensor; at least one has elements.
    """
    import torch

    kinds = {torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}  # the format's order
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: (list(kinds).index(item[1][0]), item[0])):
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replace(path) as partial:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, end, ZEROS):  # a file of holes would end in SIGBUS on a full disk
                file.write(bytes(min(ZEROS, end - start)))
        start = 8 + len(text)
        content = torch.from_file(str(partial), shared=True, size=start + end, dtype=torch.uint8)[start:]
        yield {
            name: content[slice(*header[name]["data_offsets"])].view(dtype).view(*shape)
            for name, (dtype, shape) in layout.items()
        }


@contextmanager
def append_tensor(path: Path, name: str) -> Iterator[Callable[[NDArray[np.int32]], None]]:
    """Write an int32 tensor (N,) of unknown length to a safetensors file, part by part, complete or not at all.

    The context's value appends an array int32 (n,). An error inside the context leaves no file behind.
    """
    space = 248  # bytes: the header is filled in at the end, and spaces are allowed behind it
    count = 0
    with replace(path) as partial, partial.open("wb") as file:
        file.write(bytes(8 + space))

        def append(values: NDArray[np.int32]) -> None:
            nonlocal count
            file.write(np.ascontiguousarray(values, dtype="<i4").data)
            count += len(values)

        yield append
        header = json.dumps({name: {"dtype": "I32", "shape": [count], "data_offsets": [0, 4 * count]}})
        file.seek(0)
        file.write(space.to_bytes(8, "little") + header.encode().ljust(space))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file that a stage wrote."""
    if not path.exists():
        msg = f"{path}: not found; run `dvc repro` to make it"
        raise ArtifactError(msg)
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        msg = f"{path}: not a complete safetensors file ({error}); delete it and run `dvc repro`"
        raise ArtifactError(msg) from error


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(folder: Path) -> Path:
    """Return the one file of a feature network's folder that is no JSON: its weights."""
    found = [path for path in sorted(folder.glob("*")) if path.suffix != ".json"]
    if len(found) != 1:
        msg = f"{folder}: expected one file of weights, found {[path.name for path in found]}; run `dvc repro`"
        raise ArtifactError(msg)
    return found[0]


def read_manifest(name: str) -> dict[str, Any]:
    """Read the manifest of the prepared data set `name`.

    Raises:
        ArtifactError: if it is missing or broken, or lacks a key.
    """
    path = PREPARED / name / "manifest.json"
    manifest: Any = read_json(path)
    if absent := [key for key in MANIFEST if not isinstance(manifest, dict) or key not in manifest]:
        msg = f"{path}: expected the keys {', '.join(MANIFEST)}, it lacks {', '.join(absent)}; "
        raise ArtifactError(msg + f"delete {path.parent} and run `dvc repro`")
    return dict(manifest)


def read_split(name: str, split: str) -> dict[str, Tensor]:
    """Read one split of a prepared data set, after checking its SHA-256 against the manifest.

    Raises:
        ArtifactError: if the file is missing or is not the one that the manifest describes.
    """
    path = PREPARED / name / f"{split}.safetensors"
    splits = read_manifest(name)["splits"]
    if split not in splits:
        msg = f"{path}: data.{name} has no {split} split, it has {', '.join(splits)}"
        raise ArtifactError(msg)
    expected = splits[split]["sha256"]
    if not path.exists() or (found := digest(path)) != expected:
        got = found if path.exists() else "no file"
        msg = f"{path}: expected SHA-256 {expected}, found {got}; delete {path.parent} and run `dvc repro`"
        raise ArtifactError(msg)
    return read_tensors(path)


def seal(folder: Path) -> None:
    """Write the manifest of a complete folder; equal files give equal bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    write_json(folder / SEAL, {path.relative_to(folder).as_posix(): digest(path) for path in paths})


def verify(folder: Path) -> None:
    """Check that a folder holds what was sealed, and nothing else but hidden files: an unsealed file proves nothing.

    A seal is against rot, not against forgery: who can write a folder can seal it again.

    Raises:
        ArtifactError: if the manifest or a file is missing, or a file is not the sealed one, or not sealed.
    """
    sealed = read_json(folder / SEAL)
    if not isinstance(sealed, dict):
        msg = f"{folder / SEAL}: expected a hash for each file, got {type(sealed).__name__}"
        raise ArtifactError(msg)
    paths = [path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL]
    present = {path.relative_to(folder).as_posix(): path for path in paths if not path.name.startswith(".")}
    for name in sorted(sealed.keys() | present.keys()):  # a name of the manifest never becomes a path
        expected = sealed.get(name, "none, as the manifest does not name it")
        found = digest(present[name]) if name in present else "no file"
        if found != expected:
            msg = f"{folder / name}: expected SHA-256 {expected}, found {found}; {MEND}"
            raise ArtifactError(msg)
