"""Plug-ins are found by file name: load("models", "gan") imports pipeline/models/gan.py.

Every file in the folder of a family is a plug-in of that family. Another installed package adds modules of its own by
entry points of the group `generative_pipeline.<family>`, such as `generative_pipeline.models`.
"""

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
OWN = "pipeline"
GROUP = "generative_pipeline"
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
    return sorted({*_list_files(family), *find_installed(family)})


def _list_files(family: str) -> list[str]:
    return [path.stem for path in (PACKAGE / family).glob("*.py") if path.stem != "__init__"]


def find_installed(family: str) -> dict[str, str]:
    """Return the modules that other installed packages add to a family, by the names of the plug-ins."""
    if family not in NEEDED:
        return {}
    return {entry.name: entry.module for entry in _read_entry_points().select(group=f"{GROUP}.{family}")}


@functools.cache
def _read_entry_points() -> EntryPoints:
    """Return the entry points of the families: one pass over a hundred packages takes a tenth of a second."""
    found = entry_points()
    return EntryPoints(entry for family in FAMILIES for entry in found.select(group=f"{GROUP}.{family}"))


def find_module(family: str, name: str) -> str:
    """Return the module of a plug-in, or of a file in another folder of the package."""
    return find_installed(family).get(name, f"{OWN}.{family}.{name}")


def find_package(module: str) -> Path:
    """Return the folder of the package that a module is in; of a module without a package its file, without ending.

    Raises:
        ValueError: if there is none.
    """
    top = module.partition(".")[0]
    if top == OWN:
        return PACKAGE
    spec = importlib.util.find_spec(top)
    if spec is None:
        msg = f"no module named {top!r}, which an entry point of the group {GROUP} names; install its package again"
        raise ValueError(msg)
    if spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    return Path(str(spec.origin)).with_suffix("")


def find_providers(family: str, needed: Sequence[str]) -> tuple[str, ...]:
    """Return the plug-ins of a family whose files define every name of `needed`."""
    return tuple(name for name in names(family) if set(needed) <= vars(load(family, name)).keys())


def load(family: str, name: str) -> ModuleType:
    """Import the plug-in `name` of `family`.

    Raises:
        ValueError: if there is no such file, the message lists those that exist; if it cannot be imported; or if it
            lacks a name that is needed. A model that scores needs `describe_scores`.
    """
    known = names(family)
    if name not in known:
        msg = f"no {family} plug-in {name!r}: {OWN}/{family}/ has {', '.join(known)}"
        raise ValueError(msg)
    target, file = find_module(family, name), f"{OWN}/{family}/{name}.py"
    if name in find_installed(family):
        if name in _list_files(family):
            msg = f"two {family} plug-ins {name!r}: {file} and {target} of another package; rename one"
            raise ValueError(msg)
        file = f"{target} ({GROUP}.{family})"
    try:
        module = importlib.import_module(target)
    except (ImportError, SyntaxError) as error:
        msg = f"{file}: cannot be imported: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    if absent := [needed for needed in NEEDED[family] if not hasattr(module, needed)]:
        msg = f"{file}: expected {', '.join(NEEDED[family])}; it lacks {', '.join(absent)}"
        raise ValueError(msg)
    scores = [each for each in ("score", "score_levels") if hasattr(getattr(module, "Model", None), each)]
    if scores and not hasattr(module, "describe_scores"):
        msg = f"{file}: its Model has {scores[0]}, expected describe_scores: what the scores are of"
        raise ValueError(msg)
    return module
