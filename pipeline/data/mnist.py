"""mnist: the 70,000 handwritten digits of LeCun, Cortes and Burges, idx files, CC BY-SA 3.0.

60,000 training images, of which `validation` are held out, and the canonical 10,000 test images.
"""

from pathlib import Path
from typing import Literal

from pipeline.formats.download import Source, fetch_all
from pipeline.formats.idx import read_pair
from pipeline.kinds import FieldSpec
from pipeline.kinds.images import ImageConfig, ImageSplits, hold_out, make_fields

LICENCE = "not stated by the makers; Keras names CC BY-SA 3.0"
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


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the digits."""
    del config
    return make_fields((1, 28, 28), 10)


def fetch(folder: Path, config: Config) -> None:
    """Download the four idx files."""
    del config
    download(folder)


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Read the idx files and hold out the validation images."""
    return read(raw, config)


def download(folder: Path) -> None:
    """Bring the four idx files to `folder`."""
    fetch_all("mnist", [Source(name, sha256, ADDRESSES, gunzip=True) for name, sha256 in FILES.items()], folder)


def read(raw: Path, config: ImageConfig) -> ImageSplits:
    """Return the splits by the seed and share of `config`, which may be that of a source made from these digits."""
    return hold_out(read_pair(raw, "train"), read_pair(raw, "t10k"), config)
