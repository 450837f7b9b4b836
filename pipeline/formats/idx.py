"""The idx files of MNIST and its kin: arrays of unsigned bytes, images and labels in pairs."""

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.artifacts import ArtifactError

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
CLASSES = 10
SIZE = (28, 28)
LIMIT = 1 << 30  # values
CHUNK = 1 << 20


def read_pair(raw: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images uint8 (N, 28, 28) and labels uint8 (N,) below 10 of one part, "train" or "t10k".

    Raises:
        ArtifactError: naming the file that is not what it should be.
    """
    images_path, labels_path = (raw / name for name in FILES if name.startswith(part))
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape[1:] != SIZE or not len(images):
        msg = f"{images_path}: expected images of shape {SIZE}, found an array of shape {images.shape}"
        raise ArtifactError(msg)
    if labels.shape != images.shape[:1]:
        msg = f"{labels_path}: expected {len(images)} labels, found an array of shape {labels.shape}"
        raise ArtifactError(msg)
    if labels.max() >= CLASSES:
        place = int((labels >= CLASSES).argmax())
        msg = f"{labels_path}: expected labels below {CLASSES}, found {labels[place]} at position {place}"
        raise ArtifactError(msg)
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes: magic 0 0 8 D, D big-endian sizes, then the values.

    Raises:
        ArtifactError: if the header or the length is not what the format says.
    """
    try:
        with path.open("rb") as file:
            return _read_array(path, file)
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror}"
        raise ArtifactError(msg) from error


def _read_array(path: Path, file: BinaryIO) -> np.ndarray:
    magic = file.read(4)
    dimensions = magic[3] if len(magic) == 4 else 0
    sizes = file.read(4 * dimensions)
    if magic[:3] != b"\x00\x00\x08" or not dimensions or len(sizes) != 4 * dimensions:
        msg = f"{path}: not an idx file of unsigned bytes, it begins with {(magic + sizes)[:8].hex()}"
        raise ArtifactError(msg)
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())
    count = math.prod(shape)
    values = bytearray()
    while len(values) <= min(count, LIMIT) and (block := file.read(CHUNK)):
        values += block
    if len(values) != count:
        found = f"{len(values)}{' or more' if len(values) > count else ''}"
        msg = f"{path}: the header says {count} values of shape {shape}, found {found}"
        raise ArtifactError(msg)
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
