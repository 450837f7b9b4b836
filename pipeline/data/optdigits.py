"""optdigits: 1,797 handwritten digits of 43 writers that scikit-learn carries; needs no network.

8x8 pixels of 17 grey levels, enlarged to 20x20 in the middle of 28x28, as MNIST has its digits: a model of MNIST can go
on with them. A fifth of each class is the test split. Source: E. Alpaydin, C. Kaynak, UCI Machine Learning Repository,
CC BY 4.0, the test part of "Optical Recognition of Handwritten Digits", packed by scikit-learn.
"""

import shutil
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.artifacts import ArtifactError, digest
from pipeline.formats.digits import frame
from pipeline.kinds import FieldSpec
from pipeline.kinds.images import ImageConfig, ImageSplits, hold_out, make_fields, split_stratified
from pipeline.randomness import make_generator

LICENCE = "Creative Commons Attribution 4.0, E. Alpaydin and C. Kaynak"
FILE = "digits.csv.gz"
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
LEVELS = 16
TEST_SHARE = 0.2


class Config(ImageConfig):
    """How the digits are split."""

    source: Literal["optdigits"]


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
    with resources.as_file(resources.files("sklearn.datasets.data") / FILE) as path:
        if (found := digest(path)) != SHA256:
            msg = f"{path}: expected SHA-256 {SHA256}, found {found}; install the locked version of scikit-learn"
            raise ArtifactError(msg)
        shutil.copyfile(path, folder / FILE)


def prepare(raw: Path, config: Config) -> ImageSplits:
    """Read the CSV file (64 grey levels from 0 to 16 and the label a line) and split it."""
    table = np.loadtxt(raw / FILE, delimiter=",")
    images, labels = frame(table[:, :-1].reshape(-1, 8, 8) / LEVELS), table[:, -1].astype(np.int64)
    rest, test = split_stratified(torch.from_numpy(labels), TEST_SHARE, make_generator(config.split_seed, "test"))
    return hold_out((images[rest], labels[rest]), (images[test], labels[test]), config)
