"""Checks that DVC's cache holds the outputs that dvc.lock and .dvc files name.

On a full disk DVC prints a line, ends with status 0, and writes hashes of objects that it has not stored. An object
with changed content counts as the right one for DVC. Both are found here: the first before the next stage uses the
output, the second by `pipeline verify`.
"""

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
    kind: str = "md5"  # md5-dos2unix in a .dvc file of DVC 2, which hashed a text as if its lines ended in LF

    def explain(self, *, hashed: bool) -> str:
        """Return what is wrong with the object, or nothing; `hashed` reads its content too."""
        if not self.path.is_file():
            return f"{self.name}: its object {self.md5} is not in DVC's cache ({self.path})"
        if not hashed:
            return ""
        from dvc_data.hashfile.hash import file_md5

        found = file_md5(str(self.path), name=self.kind)
        return (
            "" if found == self.md5 else f"{self.name}: {self.path} is broken: expected md5 {self.md5}, found {found}"
        )


def list_entries(outs: list[Any]) -> Iterator[Entry]:
    """List the objects of DVC's outputs; of those that dvc.lock does not name yet, and those without cache, none."""
    for out in outs:
        value = out.hash_info.value
        if not out.use_cache or not value or not out.is_in_repo:
            continue
        top = Entry(out.def_path, value.removesuffix(".dir"), Path(out.cache.oid_to_path(value)), out.hash_name)
        yield top
        if value.endswith(".dir") and not top.explain(hashed=True):
            for file in json.loads(top.path.read_text(encoding="utf-8")):
                path = Path(out.cache.oid_to_path(file["md5"]))
                yield Entry(f"{out.def_path}/{file['relpath']}", file["md5"], path, out.hash_name)


def read_index() -> Any:
    """Return what DVC reads of the working folder's project: its stages, those of .dvc files too, and their outputs.

    DVC's lock is held meanwhile: another stage may end, and its dvc does not write dvc.lock in one piece.

    Raises:
        ArtifactError: if DVC cannot read it: no project, no git repository, a dvc.yaml or .dvc file that is not valid.
    """
    from dvc.exceptions import DvcException  # half a second, which only those need who ask
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    try:
        repo = Repo(_wait_for_lock=True)
        with repo.lock:
            return repo.index
    except DvcException as error:
        msg = f"DVC cannot read the project in {Path.cwd()}: {error}"
        raise ArtifactError(msg) from error


def list_outputs() -> list[Any]:
    """List every output of the project."""
    return list(read_index().outs)


def require_inputs(stage: str) -> None:
    """Stop a stage that DVC runs if an output that it reads was made, but is not stored.

    Args:
        stage: its name as in DVC_STAGE.

    Raises:
        ArtifactError: with the files whose objects are missing.
    """
    if any("--no-commit" in parent.cmdline() for parent in psutil.Process().parents()):
        return  # asked for: nothing is stored
    index = read_index()
    name = stage.rpartition(":")[2]  # seen from this folder, where its dvc.yaml is
    inputs = [Path(dep.fs_path) for each in index.stages if each.addressing == name for dep in each.deps]
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
