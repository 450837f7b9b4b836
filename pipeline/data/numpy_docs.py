"""numpy_docs: the docstrings of NumPy's public functions, classes and methods; needs no network.

Technical English with code. Deterministic: modules and names in a fixed order, exact duplicates dropped,
`inspect.cleandoc`. All docstrings of one name (`sum` of numpy, numpy.ma, ndarray, ...) go to one split, because NumPy
repeats itself: RandomState.normal nearly equals Generator.normal, and a split by docstring alone would leak.
The data are what the locked NumPy says, on Linux; dvc.lock tells a difference. Licence: BSD 3-clause.
"""

import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from pipeline.data.splits import TextConfig, Texts, split_documents

FILE = "docstrings.json"
# Left out: numpy.distutils (not in every Python), and the polynomial families that reword chebyshev's docstrings.
MODULES = """char ctypeslib dtypes exceptions fft lib lib.array_utils lib.format lib.introspect lib.mixins lib.npyio
    lib.recfunctions lib.scimath lib.stride_tricks linalg ma ma.extras ma.mrecords polynomial polynomial.chebyshev
    polynomial.polynomial random rec strings typing""".split()


class Config(TextConfig):
    """How the docstrings are split and tokenised."""

    source: Literal["numpy_docs"]


def fetch(folder: Path) -> None:
    """Write the docstrings as a JSON object: qualified name to text."""
    text = json.dumps(_collect(), indent=0, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def prepare(raw: Path, config: Config) -> Texts:
    """Group the docstrings by the last part of their name, and split the groups."""
    groups: dict[str, list[str]] = {}
    for name, text in json.loads((raw / FILE).read_text(encoding="utf-8")).items():
        groups.setdefault(name.rpartition(".")[2], []).append(text)
    return split_documents(groups, config)


def _collect() -> dict[str, str]:
    documents: dict[str, str] = {}
    seen: set[str] = set()

    def add(name: str, value: object) -> None:
        text = getattr(value, "__doc__", None)
        # Scalar types describe their alias "on this platform".
        if not isinstance(text, str) or (isinstance(value, type) and issubclass(value, np.generic)):
            return
        text = inspect.cleandoc(text)
        if text and text not in seen:
            seen.add(text)
            documents[name] = text

    for module in [np, *(importlib.import_module(f"numpy.{name}") for name in MODULES)]:
        add(module.__name__, module)
        for name in sorted(vars(module)):
            value = vars(module)[name]
            if name.startswith("_") or not _is_numpys(value):
                continue
            add(f"{module.__name__}.{name}", value)
            if inspect.isclass(value):
                for member in sorted(vars(value)):
                    if not member.startswith("_"):
                        add(f"{module.__name__}.{name}.{member}", vars(value)[member])
    return documents


def _is_numpys(value: object) -> bool:
    owner = getattr(value, "__module__", None) or "numpy"
    return not isinstance(value, ModuleType) and str(owner).startswith("numpy")
