"""Keeps the last state of a finished training in its record, and lends it to a run that goes on with that training.

record/state.ckpt      weights, averages, optimizers and schedules after the last step; run.json has its step and hash

The record is an output of the stage `train`, so that DVC shares the state, and no stage depends on it: a run depends on
the model folder of its start, which says by its weights whether the state belongs to it.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.history.record import Record
from pipeline.params import NONE, Run
from pipeline.runtime import checkpoints
from pipeline.weights import WEIGHTS

log = logging.getLogger(__name__)
STATE = "state.ckpt"


def keep_state(record: Record, state: Path, steps: int, model: Path) -> None:
    """Write the checkpoint of the last step to the record as one with more to come.

    Without it, after a full disk perhaps, the record has none.

    Args:
        record: of the training.
        state: folder of its checkpoints.
        steps: of the training.
        model: folder of the model that it has made.
    """
    found = checkpoints.find(state)
    if not found or found[1] != steps:
        return
    content = torch.load(found[0], map_location="cpu", weights_only=True)
    content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False  # else Lightning ends at once
    try:
        with artifacts.replace(record.folder / STATE) as partial:
            torch.save(content, partial)
    except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError; the model is written
        log.warning("%s: not written, so that no run can go on with this training: %s", record.folder / STATE, error)
        return
    weights = artifacts.digest(model / WEIGHTS)
    record.about["state"] = {"step": steps, "sha256": artifacts.digest(record.folder / STATE), "weights": weights}
    record.save()


def read_state(start: str) -> dict[str, Any]:
    """Return what the record of a run says of its last state: step, sha256, weights.

    Raises:
        ArtifactError: if the record is missing, has no state, or one of other weights than those in the model folder.
    """
    folder = artifacts.RUNS / start
    path = folder / "record" / "run.json"
    if not path.exists():
        msg = f"{path}: not found; `dvc pull train@{start}` or `dvc repro train@{start}` brings it"
        raise ArtifactError(msg)
    about: dict[str, Any] = artifacts.read_json(path).get("state", {})
    if not about:
        msg = f"{path}: the training has kept no state to go on from; `dvc repro --force train@{start}` trains it again"
        raise ArtifactError(msg)
    if about["weights"] != (found := artifacts.digest(folder / "model" / WEIGHTS)):
        msg = f"{path}: its state belongs to weights {about['weights'][:16]}, {folder / 'model'} has {found[:16]}; "
        raise ArtifactError(msg + f"`dvc checkout --force train@{start}` brings both back")
    return about


def lend_state(start: str, state: Path, model: nn.Module) -> bool:
    """Make the last state of a run the first checkpoint of another one that goes on with it.

    A checkpoint that is there stays: the training was interrupted. Every process may call it.

    Returns:
        Whether the training goes on from that state now, and not from a checkpoint of its own.

    Raises:
        ArtifactError: as `read_state`, or if the state is broken or does not fit the model.
    """
    about = read_state(start)
    if own := checkpoints.find(state):
        return own[1] == about["step"]
    path = find_state(start)
    require_fit(start, torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"], model)
    state.mkdir(parents=True, exist_ok=True)
    target = state / f"step-{about['step']:09d}.ckpt"
    partial = state / f"partial-{os.getpid()}.tmp"  # another process may be doing the same
    partial.write_text(about["sha256"], encoding="ascii")
    os.replace(partial, checkpoints.name_hash(target))
    shutil.copyfile(path, partial)
    os.replace(partial, target)
    return True


def read_parts(start: str, names: Sequence[str]) -> dict[str, Tensor]:
    """Return weights that a finished training has, and its model does not keep, by their names in the model.

    A run of no step has those of its own start.

    Args:
        start: the run.
        names: of parts of the model, such as its discriminator.

    Raises:
        ArtifactError: as `read_state`, or if the state is broken.
    """
    if not names or start == NONE:  # weights from outside have no record
        return {}
    path = artifacts.RUNS / start / "record" / "run.json"
    config = artifacts.read_json(path).get("config", {}) if path.exists() else {}
    if config.get("model", {}).get("steps") == 0:
        return read_parts(config["run"]["start"], names)
    weights = torch.load(find_state(start), map_location="cpu", mmap=True, weights_only=True)["state_dict"]
    return {name: weight for name, weight in weights.items() if name.partition(".")[0] in names}


def find_state(start: str) -> Path:
    """Return the path of the last state of a run, verified.

    Raises:
        ArtifactError: as `read_state`, or if the state is broken.
    """
    expected, path = read_state(start)["sha256"], artifacts.RUNS / start / "record" / STATE
    found = artifacts.digest(path) if path.exists() else "no file"
    if found != expected:
        msg = f"{path}: expected SHA-256 {expected}, found {found}; {artifacts.MEND}"
        raise ArtifactError(msg)
    return path


def require_fit(start: str, weights: dict[str, Any], model: nn.Module) -> None:
    """Refuse weights that a model does not have, or has in another shape.

    Raises:
        ArtifactError: with up to five of them.
    """
    shapes = [{name: tuple(value.shape) for name, value in each.items()} for each in (weights, model.state_dict())]
    lines = [
        f"{name}: {shapes[0].get(name, 'nothing')} in the start, {shapes[1].get(name, 'nothing')} in the model"
        for name in sorted(shapes[0].keys() | shapes[1].keys())
        if shapes[0].get(name) != shapes[1].get(name)
    ]
    if lines:
        msg = f"the state of {start} does not fit; a run with `resume` has the layers of its start:\n  "
        raise ArtifactError(msg + "\n  ".join(lines[:5]))


def name_parent(run: Run) -> dict[str, str]:
    """Return the tags that lead from a run to the run that it starts from: its name, its record's id, its steps."""
    path = artifacts.RUNS / run.start / "record" / "run.json"
    if run.start == NONE or not path.exists():
        return {}
    about = artifacts.read_json(path)
    steps = {"start.step": str(about["state"]["step"])} if run.resume else {}
    return {"start.run": run.start, "start.record": about["id"], **steps}
