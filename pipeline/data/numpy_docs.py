"""numpy_docs: the docstrings of NumPy's public functions, classes and methods; needs no network.

Technical English with code. Deterministic: modules and names in a fixed order, exact duplicates dropped,
`inspect.cleandoc`. All docstrings of one name (`sum` of numpy, numpy.ma, ndarray, ...) go to one split, because NumPy
repeats itself: RandomState.normal nearly equals Generator.normal, and a split by single docstrings would leak.
The data are what the locked NumPy says, on Linux; dvc.lock tells a difference. Licence: BSD 3-clause.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

from pipeline.formats import docstrings
from pipeline.kinds.text import TextConfig, Texts, split_documents

LICENCE = "BSD 3-Clause, copyright the NumPy developers"
FILE = "docstrings.json"


class Config(TextConfig):
    """How the docstrings are split and tokenised."""

    source: Literal["numpy_docs"]


def fetch(folder: Path, config: Config) -> None:
    """Write the docstrings as a JSON object: qualified name to text.

    A fresh interpreter collects them: torchmetrics and others change the numpy module when they are imported.
    """
    del config
    script = docstrings.__file__
    subprocess.run([sys.executable, "-I", str(script), str(folder / FILE)], check=True)


def prepare(raw: Path, config: Config) -> Texts:
    """Group the docstrings by the last part of their name, and split the groups."""
    groups: dict[str, list[str]] = {}
    for name, text in json.loads((raw / FILE).read_text(encoding="utf-8")).items():
        groups.setdefault(name.rpartition(".")[2], []).append(text)
    return split_documents(groups, config)
