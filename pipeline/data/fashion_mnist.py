"""fashion_mnist: 70,000 grey 28x28 pictures of clothes (Xiao, Rasul and Vollgraf 2017), idx files, MIT licence.

60,000 training images, of which `validation` are held out, and the canonical 10,000 test images.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pipeline.formats.download import Source, fetch_all
from pipeline.formats.idx import CLASSES, read_pair
from pipeline.kinds import FieldSpec
from pipeline.kinds.images import ImageConfig, ImageSplits, hold_out, make_fields

LICENCE = "MIT, copyright 2017 Zalando SE"
ADDRESSES = (
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
FILES = {  # SHA-256 of the decompressed content, from archives that have the authors' MD5
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class Config(ImageConfig):
    """How the pictures are split."""

    source: Literal["fashion_mnist"]


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the pictures."""
    del config
    return make_fields((1, 28, 28), CLASSES)


def fetch(folder: Path, config: Config) -> None:
    """Download the four idx files."""
    del config
    sources = [Source(name, sha256, ADDRESSES, gunzip=True) for name, sha256 in FILES.items()]
    fetch_all("fashion_mnist", sources, folder)


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Read the idx files and hold out the validation images."""
    splits = hold_out(read_pair(raw, "train"), read_pair(raw, "t10k"), config)
    return replace(splits, classes=CLASSES, names=NAMES)
