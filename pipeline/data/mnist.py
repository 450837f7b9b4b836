"""mnist: the 70,000 handwritten digits of LeCun, Cortes and Burges, idx files, CC BY-SA 3.0.

60,000 training images, of which `validation` are held out, and the canonical 10,000 test images.
"""

import gzip
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.data.download import Source, fetch_all
from pipeline.data.image_sets import ImageConfig, ImageSplits, hold_out

ADDRESSES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FILES = {  # SHA-256 of the decompressed content: gzip headers differ between mirrors
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class Config(ImageConfig):
    """How the digits are split."""

    source: Literal["mnist"]


def fetch(folder: Path, config: Config) -> None:
    """Download the four idx files."""
    del config
    fetch_all("mnist", [Source(name, sha256, ADDRESSES) for name, sha256 in FILES.items()], folder)


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Read the idx files and hold out the validation images."""
    train, test = (
        (read_idx(raw / f"{part}-images-idx3-ubyte.gz"), read_idx(raw / f"{part}-labels-idx1-ubyte.gz"))
        for part in ("train", "t10k")
    )
    return hold_out(train, test, config)


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes: magic 0 0 8 D, D big-endian sizes, then the values.

    Raises:
        ValueError: if the header or the length is not what the format says.
    """
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3] if len(content) > 3 else 0
    if content[:3] != b"\x00\x00\x08" or not dimensions:
        msg = f"{path}: not an idx file of unsigned bytes, it begins with {content[:4].hex()}"
        raise ValueError(msg)
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], dtype=">u4").astype(int)
    if len(content) - start != shape.prod():
        msg = f"{path}: the header says {shape.prod()} values of shape {tuple(shape)}, found {len(content) - start}"
        raise ValueError(msg)
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
