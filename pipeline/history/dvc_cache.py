"""Checks that DVC's cache holds the outputs that dvc.lock names.

On a full disk DVC prints a line, ends with status 0, and writes hashes of objects that it has not stored. An object
with changed content counts as the right one for DVC. Both are found here: the first before the next stage uses the
output, the second by `pipeline verify`.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.artifacts import ArtifactError


@dataclass(frozen=True)
class Entry:
    """One file of an output, or a folder's list of files: where it belongs and the object that holds its content."""

    name: str
    md5: str
    path: Path

    def explain(self, *, hashed: bool) -> str:
        """Return what is wrong with the object, or nothing; `hashed` reads its content too."""
        if not self.path.is_file():
            return f"{self.name}: its object {self.md5} is not in DVC's cache ({self.path})"
        if not hashed:
            return ""
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        return (
            "" if found == self.md5 else f"{self.name}: {self.path} is broken: expected md5 {self.md5}, found {found}"
        )


def list_entries(outs: list[Any]) -> Iterator[Entry]:
    """List the objects of DVC's outputs; of those that dvc.lock does not name yet, and those without cache, none."""
    for out in outs:
        value = out.hash_info.value
        if not out.use_cache or not value:
            continue
        md5 = value.removesuffix(".dir")
        top = Entry(out.def_path, md5, Path(out.cache.oid_to_path(value)))
        yield top
        if value.endswith(".dir") and not top.explain(hashed=True):
            for file in json.loads(top.path.read_text(encoding="utf-8")):
                yield Entry(f"{out.def_path}/{file['relpath']}", file["md5"], Path(out.cache.oid_to_path(file["md5"])))


def open_repository() -> Any:
    """Return DVC's view of the working folder's project."""
    from dvc.repo import Repo  # half a second, which only those need who ask

    logging.getLogger("dvc").setLevel(logging.WARNING)
    return Repo()


def list_outputs() -> list[Any]:
    """List every output of the project."""
    return list(open_repository().index.outs)


def require_inputs(stage: str) -> None:
    """Stop a stage that DVC runs if an output that it reads was made, but is not stored.

    Args:
        stage: its name as in DVC_STAGE.

    Raises:
        ArtifactError: with the files whose objects are missing.
    """
    if any("--no-commit" in parent.cmdline() for parent in psutil.Process().parents()):
        return  # asked for: nothing is stored
    index = open_repository().index
    name = stage.rpartition(":")[2]
    inputs = [Path(dep.fs_path) for each in index.stages if each.name == name for dep in each.deps]
    outs = [
        out
        for out in index.outs
        if any(path.is_relative_to(out.fs_path) or Path(out.fs_path).is_relative_to(path) for path in inputs)
    ]
    missing = [
        (out.stage.addressing, wrong)
        for out in outs
        for entry in list_entries([out])
        if (wrong := entry.explain(hashed=False))
    ]
    if missing:
        makers = sorted({maker for maker, _ in missing})
        lines = "\n  ".join(wrong for _, wrong in missing[:10])
        msg = f"DVC has not stored the inputs of {stage}; free space, then `dvc commit {' '.join(makers)}`:\n  {lines}"
        raise ArtifactError(msg)
