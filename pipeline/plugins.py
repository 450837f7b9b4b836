"""Plug-ins are found by file name: load("models", "gan") imports pipeline/models/gan.py.

Every file in the folder of a family is a plug-in of that family.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
NEEDED = {  # the names that each family must define; docs/extend.md says what they mean
    "kinds": ("Spec",),  # and, of what is prepared by itself: see pipeline/kinds
    "backbones": (),
    "data": ("Config", "fetch", "prepare"),
    "models": ("Config", "LEARNS", "Model", "require"),
    "networks": ("Config", "LEARNS", "PREPROCESSING", "load_features", "require"),
    "metrics": ("Config", "KIND", "SPLITS", "NUMBERS", "VALUES", "Evidence", "gather", "compute", "require"),
}
FAMILIES = tuple(NEEDED)


def names(family: str) -> list[str]:
    """List the plug-ins of a family without importing them."""
    return sorted(path.stem for path in (PACKAGE / family).glob("*.py") if path.stem != "__init__")


def find_providers(family: str, needed: Sequence[str]) -> tuple[str, ...]:
    """Return the plug-ins of a family whose files define every name of `needed`."""
    return tuple(name for name in names(family) if set(needed) <= vars(load(family, name)).keys())


def load(family: str, name: str) -> ModuleType:
    """Import the plug-in `name` of `family`.

    Raises:
        ValueError: if there is no such file, the message lists those that exist; or if it lacks a name that is needed.
            A model that scores needs `describe_scores`.
    """
    known = names(family)
    if name not in known:
        msg = f"no {family} plug-in {name!r}: pipeline/{family}/ has {', '.join(known)}"
        raise ValueError(msg)
    module = importlib.import_module(f"pipeline.{family}.{name}")
    if absent := [needed for needed in NEEDED[family] if not hasattr(module, needed)]:
        msg = f"pipeline/{family}/{name}.py: expected {', '.join(NEEDED[family])}; it lacks {', '.join(absent)}"
        raise ValueError(msg)
    if hasattr(getattr(module, "Model", None), "score") and not hasattr(module, "describe_scores"):
        msg = f"pipeline/{family}/{name}.py: its Model has score, expected describe_scores: what the scores are of"
        raise ValueError(msg)
    return module
