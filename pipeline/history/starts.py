"""Brings the weights that a run starts from: those of another run, or of an address outside of this project.

    runs:
      tuned: {..., start: none, weights: {address: models:/gan@best, sha256: 3f2a...}}

An address is a model of MLflow (models:/..., runs:/...), the folder of a model or a run, such as that of another
checkout, or a .safetensors file of your own. The hash says which weights are meant, so that DVC needs no dependency: a
training whose result is there needs the address no more. Numbers and a tokenizer are read; no pickle and no code is.

.state/starts/<digest>     the weights and the tokenizer, sealed; brought once, and verified each time
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.history import trained
from pipeline.params import NONE, Run
from pipeline.runtime import checkpoints
from pipeline.weights import CONFIG, WEIGHTS

OWN = ".safetensors"


def find(run: Run) -> Path | None:
    """Return the folder of the model that a run starts from."""
    if run.weights:
        name = hashlib.sha256(f"{run.weights.sha256} {run.weights.address}".encode()).hexdigest()[:16]
        return checkpoints.locate("starts") / name
    return None if run.start == NONE else artifacts.RUNS / run.start / "model"


def list_hashes(run: Run) -> list[str]:
    """Return the SHA-256 of the weights that a run starts from, or none; of brought ones also that of the tokenizer."""
    folder = find(run)
    names = (WEIGHTS, CONFIG) if run.weights else (WEIGHTS,)
    return [artifacts.digest(folder / name) for name in names] if folder else [NONE]


def name_lineage(run: Run) -> dict[str, str]:
    """Return the tags that lead from a run to weights from outside: address, hash, and the run that made them."""
    folder = find(run)
    if not run.weights or not folder:
        return {}
    origin = artifacts.read_json(folder / CONFIG)["origin"]
    return {
        "start.address": run.weights.address,
        "start.sha256": run.weights.sha256,
        **{f"start.{key}": origin[key] for key in ("run", "commit") if key in origin},
    }


def bring(name: str, run: Run) -> None:
    """Fetch the weights that a run starts from, unless they are another run's, or here.

    Raises:
        ArtifactError: naming the key, if nothing usable is at the address, or the hash is another one.
    """
    folder = find(run)
    if not run.weights or not folder:
        return
    address, key = run.weights.address, f"runs.{name}.weights"
    own = artifacts.PREPARED / run.data / "tokenizer.json"
    if address.endswith(OWN) and own.exists() and artifacts.read_json(own)["tokenizer"] != "byte":
        msg = f"{key}.address: {address}: a file of weights does not say which token a row is of; "
        raise ArtifactError(msg + "name the folder of the model, or set the data's tokenizer to byte")
    if _is_whole(folder, run.weights.sha256):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        made, fetched = Path(place) / "made", Path(place) / "fetched"
        made.mkdir()
        fetched.mkdir()
        try:
            weights, about = _fetch(address, fetched)
            found = artifacts.digest(weights)
        except ArtifactError as error:
            msg = f"{key}.address: {address}: {error}"
            raise ArtifactError(msg) from error
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            msg = f"{key}.address: {address}: no weights that can be read: {said[: trained.MAX_MESSAGE]}"
            raise ArtifactError(msg) from error
        if found != run.weights.sha256:
            msg = f"{key}.sha256: expected {run.weights.sha256}, the weights at {address} have {found}"
            raise ArtifactError(msg)
        shutil.copyfile(weights, made / WEIGHTS)
        artifacts.write_json(made / CONFIG, about)
        artifacts.seal(made)
        if _is_whole(folder, run.weights.sha256):  # another process was faster, and may be reading it
            return
        shutil.rmtree(folder, ignore_errors=True)  # a broken one
        try:
            os.replace(made, folder)
        except OSError:
            if not _is_whole(folder, run.weights.sha256):  # else another process was faster
                raise


def _is_whole(folder: Path, sha256: str) -> bool:
    try:
        artifacts.verify(folder)
        return artifacts.digest(folder / WEIGHTS) == sha256
    except (ArtifactError, OSError):
        return False


def _fetch(address: str, place: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file of weights at an address, and the tokenizer and the origin of its model.

    Raises:
        ArtifactError: if there is none, its seal is broken, or a weight is not finite.
    """
    about: Mapping[str, Any] = {}
    origin: Any = {}
    if address.endswith(OWN):
        weights = Path(address)
        if not weights.is_file():
            msg = "no such file"
            raise ArtifactError(msg)
    else:
        folder, known = trained.find_folder(address, place)
        trained.require_small(folder)
        artifacts.verify(folder)
        about, origin, weights = artifacts.read_json(folder / CONFIG), known.get("origin"), folder / WEIGHTS
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            if not torch.isfinite(file.get_tensor(name)).all():
                msg = f"weights are not finite: {name}"
                raise ArtifactError(msg)
    origin = {key: str(value)[: trained.MAX_MESSAGE] for key, value in (origin or {}).items()}
    return weights, {"tokenizer": about.get("tokenizer"), "origin": origin}
