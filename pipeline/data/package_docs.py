"""package_docs: docstrings of installed Python packages, read from their files; needs no network.

Technical English with code: several million characters to pre-train on. No package is imported: `ast` finds the
docstrings of modules, classes and functions, in the order of the files' names; exact duplicates are dropped, and files
of tests left out. All docstrings of one file go to one split. The data are what the locked packages say; dvc.lock tells
a difference. Licences: BSD 3-clause of scikit-learn and of pandas.
"""

import ast
import importlib.util
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.artifacts import ArtifactError
from pipeline.kinds.text import TextConfig, Texts, split_documents

LICENCE = "BSD 3-Clause of scikit-learn and of pandas"
FILE = "docstrings.json"
DISTRIBUTIONS = {"sklearn": "scikit-learn", "pandas": "pandas"}
Package = Literal["sklearn", "pandas"]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Config(TextConfig):
    """Which packages, and how their docstrings are split and tokenised."""

    source: Literal["package_docs"]
    packages: list[Package] = Field(default=["sklearn"], min_length=1, description="packages whose docstrings are read")


def fetch(folder: Path, config: Config) -> None:
    """Write the docstrings of all known packages as a JSON object: package, its file, its docstrings.

    All of them, so that changing `packages` suffices to change the data.
    """
    del config
    found = {name: {"version": version(DISTRIBUTIONS[name]), "files": collect(name)} for name in DISTRIBUTIONS}
    text = json.dumps(found, indent=0, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def collect(package: str) -> dict[str, list[str]]:
    """Return the docstrings of a package by the file that they are in.

    Raises:
        ArtifactError: if the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        msg = f"package {package}: not installed; install the locked environment"
        raise ArtifactError(msg)
    root = Path(spec.submodule_search_locations[0])
    seen: set[str] = set()
    files = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if "tests" in name.parts:
            continue
        fresh = list(dict.fromkeys(text for text in read_docstrings(path) if text not in seen))
        seen.update(fresh)
        if fresh:
            files[name.as_posix()] = fresh
    return files


def read_docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a Python file in the order of its lines, without their indentation."""
    nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, DOCUMENTED)]
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        if text := ast.get_docstring(node):
            yield text


def prepare(raw: Path, config: Config) -> Texts:
    """Group the docstrings by their file, and split the files."""
    found = json.loads((raw / FILE).read_text(encoding="utf-8"))
    groups = {f"{name}/{file}": texts for name in config.packages for file, texts in found[name]["files"].items()}
    known = {"versions": {name: found[name]["version"] for name in config.packages}}
    return Texts(split_documents(groups, config).splits, known=known)
