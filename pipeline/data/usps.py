"""usps: 9,298 handwritten digits from envelopes (LeCun et al. 1989), in the split of Hastie, Tibshirani and Friedman.

16x16 grey levels, enlarged to 20x20 in the middle of 28x28, as MNIST has its digits: a model of MNIST can go on with
them. The canonical 7,291 training images, of which `validation` are held out, and 2,007 test images. The source states
no licence.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.artifacts import ArtifactError
from pipeline.formats.digits import frame
from pipeline.formats.download import Source, fetch_all
from pipeline.kinds import FieldSpec
from pipeline.kinds.images import ImageConfig, ImageSplits, hold_out, make_fields

LICENCE = "not stated by the makers"
ADDRESSES = (
    "https://hastie.su.domains/ElemStatLearn/datasets/",
    "https://web.stanford.edu/~hastie/ElemStatLearn/datasets/",
)
FILES = {  # SHA-256 of the decompressed content
    "zip.train.gz": "abc9f5c75b997cabe66b5d01727d5a681c69298e1641a8d37b55433a52129dc0",
    "zip.test.gz": "6bde17b4f1cd68e0630cd2751d6495b5795d9165ab2dc4a0be8b7002b732f4cc",
}


class Config(ImageConfig):
    """How the digits are split."""

    source: Literal["usps"]


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the digits."""
    del config
    return make_fields((1, 28, 28), 10)


def fetch(folder: Path, config: Config) -> None:
    """Download the two files."""
    del config
    fetch_all("usps", [Source(name, sha256, ADDRESSES, gunzip=True) for name, sha256 in FILES.items()], folder)


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Read the two files and hold out the validation images."""
    return hold_out(read(raw / "zip.train"), read(raw / "zip.test"), config)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (N, 28, 28) and labels int64 (N,) of a file with a label and 256 values -1 to 1 a line.

    Raises:
        ArtifactError: if a line has another number of values.
    """
    try:
        table = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        msg = f"{path}: expected 257 numbers a line, {error}"
        raise ArtifactError(msg) from error
    if table.shape[1] != 257:
        msg = f"{path}: expected 257 numbers a line, got {table.shape[1]}"
        raise ArtifactError(msg)
    return frame((table[:, 1:].reshape(-1, 16, 16) + 1) / 2), table[:, 0].astype(np.int64)
