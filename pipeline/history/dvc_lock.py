"""Reads dvc.lock: the hashes of what each stage instance has read and made."""

import contextlib
import copy
import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.artifacts import ArtifactError
from pipeline.runtime import environment

PATH = Path("dvc.lock")


@contextlib.contextmanager
def hold() -> Iterator[None]:
    """Keep other processes of DVC from writing dvc.lock, which they do not do in one piece; only in a stage of DVC."""
    if not environment.is_set("DVC_STAGE"):
        yield
        return
    from dvc.repo import Repo  # half a second, which only stages need

    with Repo(_wait_for_lock=True).lock:
        yield


def read_stages(path: Path = PATH) -> dict[str, Any]:
    """Return the entry of each stage instance; none without the file.

    Raises:
        ArtifactError: if the file is not YAML, for example because of a merge's conflicts.
    """
    return parse_stages(path.read_text(encoding="utf-8"), str(path)) if path.exists() else {}


def parse_stages(text: str, place: str) -> dict[str, Any]:
    """Return the entry of each stage instance in a lock's text; `place` names the text in a message.

    Raises:
        ArtifactError: if the text is not YAML, or not a lock.
    """
    stages = parse_lock(text, place).get("stages") or {}
    if not isinstance(stages, dict):
        msg = f"{place}: stages: expected a mapping, got {stages!r}"
        raise ArtifactError(msg)
    return stages


def parse_lock(text: str, place: str) -> dict[str, Any]:
    """Return the content of a lock's text.

    Raises:
        ArtifactError: if the text is not YAML, or not a mapping.
    """
    try:
        lock = copy.deepcopy(_parse(text)) or {}
    except YAMLError as error:
        msg = f"{place}: not YAML: {error}"
        raise ArtifactError(msg) from error
    if not isinstance(lock, dict):
        msg = f"{place}: expected a mapping, got {lock!r}"
        raise ArtifactError(msg)
    return lock


@functools.lru_cache(maxsize=4)
def _parse(text: str) -> Any:
    """Parse YAML; a training reads the same lock once per split."""
    return YAML(typ="safe", pure=True).load(text)


def hash_file(path: Path) -> str:
    """Return the MD5 that DVC knows a file by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def list_hashes(stages: Mapping[str, Any], instance: str, side: str) -> dict[str, str]:
    """Return the md5 of each path that a stage instance has read (side `deps`) or made (`outs`).

    Empty if the lock does not have the instance. A path without an md5 is left out.
    """
    files = (stages.get(instance) or {}).get(side) or ()
    return {file["path"]: file["md5"] for file in files if "md5" in file}
