"""A cache of tensors in .state/real, found by the content of everything that they depend on.

Every evaluation of a data set passes the same real images through the same feature network. The result is found by
the content of the images and of its other inputs. A folder is sealed, so that a half-written or damaged one is
made again. The most recently used folders stay; without them, evaluation takes longer and changes no number.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from pipeline import artifacts
from pipeline.artifacts import ArtifactError

FOLDER = artifacts.STATE / "real"
MOST = 4 * 2**30  # bytes


def recall(about: Mapping[str, Any], given: Tensor, make: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the cached tensors of `make(given)`, or make and cache them.

    Args:
        about: all that `make` depends on but its argument: weights, code, versions, processor, threads.
        given: what it is called with, on the CPU.
        make: returns tensors by name.
    """
    content = hashlib.sha256(json.dumps([about, str(given.dtype), list(given.shape)], sort_keys=True).encode())
    content.update(given.contiguous().numpy().data)
    folder = FOLDER / content.hexdigest()
    with suppress(ArtifactError, OSError, ValueError, AttributeError):  # the last ones of a broken seal
        artifacts.verify(folder)
        found = artifacts.read_tensors(folder / "tensors.safetensors")
        folder.touch()
        return found
    shutil.rmtree(folder, ignore_errors=True)
    found = make(given)
    with suppress(OSError, SafetensorError):  # another evaluation was faster, or the disk is full
        _keep(folder, found)
    _forget()
    return found


def _keep(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write a folder in one step: another evaluation may do the same, or read it, at the same time."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=FOLDER, suffix=".tmp"))
    try:
        artifacts.write_tensors(made / "tensors.safetensors", tensors)
        artifacts.seal(made)
        os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _forget() -> None:
    """Evict the least recently used folders until at most MOST bytes remain."""
    sizes: dict[Path, tuple[float, int]] = {}
    for path in FOLDER.glob("*"):
        with suppress(OSError):  # another evaluation removed it
            sizes[path] = path.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir())
    total = 0
    for path, (_, size) in sorted(sizes.items(), key=lambda item: item[1], reverse=True):
        total += size
        if total > MOST:
            shutil.rmtree(path, ignore_errors=True)
