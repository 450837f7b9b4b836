"""Plug-ins are found by file name: load("models", "gan") imports pipeline/models/gan.py.

A file is a plug-in when it defines `Config`; every other file in the folder is shared code.
"""

import ast
import functools
import importlib
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
NEEDED = {  # by family, beside Config; what else a plug-in may have, CONTRIBUTING.md tells
    "models": ("KINDS",),
    "data": ("fetch", "prepare"),
    "metrics": ("KIND", "ERRORS", "SPLITS", "COUNTS", "NUMBERS", "Evidence", "compute"),
}
FAMILIES = tuple(NEEDED)


def names(family: str) -> list[str]:
    """List the plug-ins of a family without importing them."""
    return sorted(path.stem for path in (PACKAGE / family).glob("*.py") if _defines_config(path))


@functools.cache
def _defines_config(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.ClassDef) and node.name == "Config" for node in tree.body)


def load(family: str, name: str) -> ModuleType:
    """Import the plug-in `name` of `family`.

    Raises:
        ValueError: if there is no such file, the message lists those that exist; or if it lacks a name that is needed.
    """
    known = names(family)
    if name not in known:
        msg = f"no {family} plug-in {name!r}: pipeline/{family}/ has {', '.join(known)}"
        raise ValueError(msg)
    module = importlib.import_module(f"pipeline.{family}.{name}")
    if absent := [needed for needed in NEEDED[family] if not hasattr(module, needed)]:
        msg = f"pipeline/{family}/{name}.py: expected {', '.join(NEEDED[family])}; it lacks {', '.join(absent)}"
        raise ValueError(msg)
    return module
