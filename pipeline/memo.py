"""Tensors that are the same whenever they are made, kept in .state/real, so that they are made once.

Every evaluation of a data set passes the same real images through the same feature network. What that gave is found by
the content of the images and by all else that it depends on. A folder is sealed, so that one that was half written or
has rotten is made anew. The MOST last used ones stay; deleting them all costs time and nothing else.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline import artifacts, seals
from pipeline.artifacts import ArtifactError

FOLDER = artifacts.STATE / "real"
MOST = 32


def recall(about: Mapping[str, Any], given: Tensor, make: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return what `make` returned for an equal tensor under equal circumstances before, or make it now.

    Args:
        about: all that `make` depends on but its argument: weights, code, versions, processor, threads.
        given: what it is called with, on the CPU.
        make: returns tensors by name.
    """
    content = hashlib.sha256(json.dumps([about, str(given.dtype), list(given.shape)], sort_keys=True).encode())
    content.update(given.contiguous().numpy().data)
    folder = FOLDER / content.hexdigest()
    try:
        seals.verify(folder)
        found = artifacts.read_tensors(folder / "tensors.safetensors")
        folder.touch()
    except (ArtifactError, OSError):
        found = make(given)
        _keep(folder, found)
    return found


def _keep(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write a folder in one step: another evaluation may do the same, or read it, at the same time."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=FOLDER, suffix=".tmp"))
    artifacts.write_tensors(made / "tensors.safetensors", tensors)
    seals.seal(made)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(made, folder)
    except OSError:  # the other one was faster
        shutil.rmtree(made)
    for old in sorted(FOLDER.iterdir(), key=os.path.getmtime)[:-MOST]:
        shutil.rmtree(old, ignore_errors=True)
