"""Collects NumPy's public docstrings in a fresh interpreter; numpy_docs.py runs it.

python -I pipeline/formats/docstrings.py docstrings.json
"""

import importlib
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

# Left out: numpy.distutils (not in every Python), and the polynomial families that reword chebyshev's docstrings.
MODULES = """char ctypeslib dtypes exceptions fft lib lib.array_utils lib.format lib.introspect lib.mixins lib.npyio
    lib.recfunctions lib.scimath lib.stride_tricks linalg ma ma.extras ma.mrecords polynomial polynomial.chebyshev
    polynomial.polynomial random rec strings typing""".split()  # noqa: SIM905


def collect() -> dict[str, str]:
    """Return qualified name to docstring, in a fixed order, without exact duplicates."""
    documents: dict[str, str] = {}
    seen: set[str] = set()

    def add(name: str, value: object) -> None:
        text = getattr(value, "__doc__", None)
        # Scalar types describe their alias "on this platform"; constants would show the docstring of float.
        documented = callable(value) or isinstance(value, ModuleType) or inspect.isdatadescriptor(value)
        if not documented or not isinstance(text, str) or (isinstance(value, type) and issubclass(value, np.generic)):
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


if __name__ == "__main__":
    documents = json.dumps(collect(), indent=0, ensure_ascii=False)
    Path(sys.argv[1]).write_text(documents + "\n", encoding="utf-8")
