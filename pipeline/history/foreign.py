"""Checks a record that may be somebody else's before anything of it is sent to a server, where others can read it.

A record comes with `dvc pull`, or in a folder that was copied. Its files are what their author wrote: a link would send
a file of this machine, and a picture of a few kilobytes can take all memory.
"""

import math
import os
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.params import NAME

MAX_ABOUT_BYTES = 16 << 20  # of run.json, where a list of class weights may be long
MAX_LINES_BYTES = 1 << 30  # of metrics.jsonl
MAX_EXHIBIT_BYTES = 64 << 20
MAX_PIXELS = 64 << 20
CACHED = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}")  # where DVC with cache.type symlink lets its links lead
PICTURE = ".png"
Time = Annotated[float, Field(ge=0, le=2**40, allow_inf_nan=False)]


class DataSet(BaseModel):
    """One split that a run learnt from."""

    name: str
    path: str
    context: str
    md5: str
    sha256: str
    examples: int


class About(BaseModel):
    """What run.json must have for MLflow; it may have more."""

    model_config = ConfigDict(strict=True)

    id: str = Field(pattern="^[0-9a-f]{32}$")
    name: str = Field(pattern=f"^{NAME.pattern}$")
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    started: Time
    ended: Time | None = None
    parameters: dict[str, Any]
    config: dict[str, Any]
    tags: dict[str, str]
    environment: dict[str, str]
    datasets: list[DataSet]
    totals: dict[str, float] = {}


def require_harmless(record: Path) -> None:
    """Refuse a record, or a model next to it, that could harm this machine or send what is no part of it.

    Args:
        record: its folder.

    Raises:
        ArtifactError: if a file is a link or no file, is too large, or says what no record says.
    """
    for path, status in _list_files(record):
        if path == record / "state.ckpt":
            continue  # of a training that may go on, as large as three models; it is never sent nor read here
        limit = {".json": MAX_ABOUT_BYTES, ".jsonl": MAX_LINES_BYTES}.get(path.suffix, MAX_EXHIBIT_BYTES)
        if status.st_size > limit:
            msg = f"{path}: expected at most {limit} bytes, got {status.st_size}"
            raise ArtifactError(msg)
        if path.suffix == PICTURE:
            _require_small_picture(path)
    try:
        about = About.model_validate(artifacts.read_json(record / "run.json"))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        msg = f"{record / 'run.json'}: {where or 'content'}: {problem['msg']}"
        raise ArtifactError(msg) from error
    if not isinstance(about.parameters.get("model.steps"), int):
        msg = f"{record / 'run.json'}: parameters.model.steps: expected a whole number"
        raise ArtifactError(msg)
    model = record.with_name("model")
    if model.exists():
        list(_list_files(model))
        artifacts.verify(model)


def _list_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files below a folder, each with its status.

    Raises:
        ArtifactError: if one is a link that leads out of DVC's cache, or is neither file nor folder.
    """
    for place in (folder, folder.parent):
        if place.is_symlink():
            msg = f"{place}: a link, expected a folder"
            raise ArtifactError(msg)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not CACHED.search(f"{path.resolve()}"):
            msg = f"{path}: a link to {os.fsdecode(path.readlink())!r}, expected a file"
            raise ArtifactError(msg)
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            yield path, status
        elif not stat.S_ISDIR(status.st_mode) or path.is_symlink():
            msg = f"{path}: neither a file nor a folder"
            raise ArtifactError(msg)


def _require_small_picture(path: Path) -> None:
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            size = Image.open(path, formats=["PNG"]).size  # of the header
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        msg = f"{path}: no PNG picture within bounds ({error})"
        raise ArtifactError(msg) from error
    if math.prod(size) > MAX_PIXELS:
        msg = f"{path}: expected at most {MAX_PIXELS} pixels, got {size[0]} x {size[1]}"
        raise ArtifactError(msg)
