"""Stage train: trains the model of one run and writes data/runs/<run>/model and data/runs/<run>/record.

    python -m pipeline.stages.train gan

A training that was interrupted goes on from .state/train-<run>/ when it is started again with the same params, data
and code. Hardware comes from the environment: see pipeline/training.py.
"""

import contextlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import Tensor

from pipeline import artifacts, params, plugins
from pipeline.batches import Examples, LabelledExamples, TextExamples, require_length
from pipeline.formats.tokenizers import restore_tokenizer
from pipeline.history import alarms, leftovers
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record, describe_environment, describe_lineage, draw_points
from pipeline.metrics import points
from pipeline.params import Params, Run, Section
from pipeline.randomness import make_generator
from pipeline.runtime import checkpoints, processes, sharding
from pipeline.runtime.preemption import PreemptedError
from pipeline.runtime.processes import get_rank
from pipeline.stages import run_stage
from pipeline.training import Recorder, fingerprint, fit
from pipeline.weights import Loaded, save_model

log = logging.getLogger(__name__)


def main(key: str) -> None:
    """Train the run runs.<key>."""
    settings = params.load()
    run, config = settings.runs[key], settings.models[key]
    manifest = artifacts.read_manifest(run.data)
    require_length(run.data, manifest, run.model, config.model_dump().get("context"))
    code = plugins.PACKAGE / f"models/{run.model}.py"
    state = artifacts.STATE / f"train-{key}" / fingerprint(run.model_dump(), config.model_dump(), manifest, code)
    if processes.are_to_be_started():
        if sharding.is_named():  # what it cannot train is refused before the processes start
            sharding.require_divisible(_make_model(run, config))
        processes.supervise("pipeline.stages.train", key, lambda cause: close_failed(state, cause))
        return
    checkpoints.require_writable(artifacts.RUNS / key, artifacts.REPORTS / "runs" / key)
    with checkpoints.hold(state.parent) if get_rank() == 0 else contextlib.nullcontext():
        train(key, settings, state)


def train(key: str, settings: Params, state: Path) -> None:
    """Train with resume state in a folder that no other process writes; then write weights, record and curves."""
    run, config = settings.runs[key], settings.models[key]
    spec = artifacts.read_spec(run.data)
    model = _make_model(run, config)
    training, validation = (artifacts.read_split(run.data, split) for split in ("train", "validation"))
    tokenizer = artifacts.read_json(artifacts.PREPARED / run.data / "tokenizer.json") if "tokens" in training else None
    record = _open_record(state, key, settings) if get_rank() == 0 else None
    mirror = MlflowSync(record).start() if record else None
    values = config.model_dump()
    manifest = artifacts.read_manifest(run.data)
    whole = sharding.copy_whole(model)
    loaded = Loaded(whole, manifest["kind"], config, restore_tokenizer(tokenizer) if tokenizer else None)
    preview = Preview(loaded, validation, record, run.seed, values["steps"], manifest) if record else None
    folder = artifacts.RUNS / key / "model"
    try:
        trainer = fit(
            model,
            _make_examples(training, values, run.seed),
            steps=values["steps"],
            batch_size=values["batch_size"],
            seed=run.seed,
            clip_norm=values.get("clip_norm"),
            state=state,
            callbacks=[Recorder(record, values["steps"], preview, whole)],
        )
        sharding.gather(model, whole)
        if trainer.is_global_zero:
            save_model(folder, run.model, whole, config, spec, tokenizer)
    except BaseException as error:
        if record and mirror:
            _give_up(record, mirror, error)
        raise
    if record and mirror:
        record.finish("FINISHED", kept_parameters=sum(p.numel() for p in model.kept.parameters()))
        mirror.finish(model=folder)
        write_curves(record, artifacts.REPORTS / "runs" / key / "curves")
        _publish(record, state, artifacts.RUNS / key / "record")
        print(f"{key}: {values['steps']} steps in {record.about['totals']['seconds']:.0f} s, weights in {folder}")


def _make_model(run: Run, config: Section) -> Any:
    return plugins.load("models", run.model).Model(config, artifacts.read_spec(run.data), run.seed)


def _give_up(record: Record, mirror: MlflowSync, error: BaseException) -> None:
    """End the run's record with the reason; what goes wrong here must not hide it."""
    preempted = isinstance(error, KeyboardInterrupt | PreemptedError)
    try:
        record.finish("KILLED" if preempted else "FAILED", failure=f"{type(error).__name__}: {error}")
    except OSError as problem:
        log.warning("%s: the end of the run could not be written: %s", record.folder, problem)
    mirror.finish(seconds=3 if preempted else 60)  # who preempts does not wait


def _publish(record: Record, state: Path, target: Path) -> None:
    """Copy the record to DVC's output, then remove the state: killed in between, the same run goes on."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(record.folder, target, ignore=shutil.ignore_patterns("*.tmp"))
    done = state.with_name(state.name + ".tmp")  # a state that is removed in part must not count as one
    os.replace(state, done)
    shutil.rmtree(done)


def close_failed(state: Path, cause: str) -> None:
    """Mark the record as failed by what the supervisor knows: its process was killed, or saw a consequence alone."""
    if not (state / "record" / "run.json").exists():
        return
    with contextlib.suppress(artifacts.ArtifactError), checkpoints.hold(state.parent):  # else it is another trainer's
        record = Record(state / "record")
        if record.about["status"] == "RUNNING":
            record.finish("FAILED", failure=cause)
        record.about["status"] = "FAILED"
        record.about["tags"]["failure"] = cause[:1000]
        record.save()
        MlflowSync(record).finish()


def _open_record(state: Path, key: str, settings: Params) -> Record:
    """Open the run's record: a new one, or the interrupted one, without the lines after its checkpoint."""
    run, config = settings.runs[key], settings.models[key]
    resolved = {"run": run.model_dump(), "model": config.model_dump(), "data": settings.data[run.data].model_dump()}
    measured = {
        "metric": settings.metrics[run.metric].model_dump(),
        "features": {name: settings.features[name].model_dump() for name in run.features},
    }
    manifest = artifacts.PREPARED / run.data / "manifest.json"
    datasets = [
        {"name": f"{run.data} ({resolved['data']['source']})", "path": str(manifest.parent), "context": context}
        | {"md5": _md5_of(run.data), "sha256": entry["sha256"], "examples": entry.get("count", entry.get("tokens"))}
        for context, entry in artifacts.read_json(manifest)["splits"].items()
        if context in {"train", "validation"}
    ]
    about: dict[str, Any] = {
        "name": key,
        "parameters": {
            f"{section}.{name}": value
            for section, values in resolved.items()
            for name, value in values.items()
            if name != "set"
        },
        "config": resolved | measured,
        "tags": describe_lineage(),
        "datasets": datasets,
        "environment": describe_environment(),
    }
    is_resumed = (state / "record" / "run.json").exists()
    follows = leftovers.close_abandoned(state, about)
    if is_resumed:
        record = Record(state / "record")
        record.reopen(about["tags"])
    else:
        record = Record(state / "record", about | {"tags": about["tags"] | follows})
    found = checkpoints.find(state)
    record.rewind(found[1] if found else 0)
    return record


def _md5_of(data: str) -> str:
    """Return DVC's md5 of the prepared data from dvc.lock, or of the manifest before DVC has written it."""
    lock = Path("dvc.lock")
    with contextlib.suppress(OSError, YAMLError, TypeError, KeyError):  # another `dvc` may be writing it
        for out in YAML(typ="safe", pure=True).load(lock)["stages"][f"prepare@{data}"]["outs"]:
            return str(out["md5"])
    return artifacts.digest(artifacts.PREPARED / data / "manifest.json")[:32]


def _make_examples(train: dict[str, Tensor], values: dict[str, Any], seed: int) -> Examples:
    if "tokens" in train:
        return TextExamples(train["tokens"], values["context"], seed)
    return LabelledExamples(train)


@dataclass(frozen=True)
class Preview:
    """What happens eight times a training: samples from fixed noise, and a score on validation data."""

    loaded: Loaded
    validation: dict[str, Tensor]
    record: Record
    seed: int
    steps: int
    manifest: dict[str, Any]

    def __call__(self, step: int) -> None:
        """Add samples to the record, the score of a model that has one, and look for alarms."""
        show = {"images": self._show_images, "points": self._show_points, "text": self._show_text}[self.loaded.kind]
        show(step, make_generator(self.seed, "preview", device=self.loaded.model.device))
        self._look_for_alarms()

    def _show_images(self, step: int, generator: torch.Generator) -> None:
        model, images = self.loaded.model, self.validation["images"]
        samples = model.sample(64, generator).cpu()
        self.record.image("samples", step, samples)
        spread = images[:: max(1, len(images) // 64)]  # a split may be sorted by class
        values = {"duplicate_share": alarms.duplicate_share(samples, spread)}
        if hasattr(model, "score"):
            scores = model.score(images, 1, make_generator(self.seed, "validate", device=model.device))
            values["validation_elbo_nats"] = float(scores["elbo"].mean())
            values["active_units"] = float(scores["active_units"])
        self.record.log(step, values)

    def _show_points(self, step: int, generator: torch.Generator) -> None:
        samples = self.loaded.model.sample(2000, generator).cpu()
        self.record.image("samples", step, draw_points(samples))
        known = self.manifest["known"]
        found = points.measure(samples, torch.tensor(known["modes"]), known["deviation"], within=3)
        self.record.log(step, {"modes_covered": found["modes_covered"]})

    def _show_text(self, step: int, generator: torch.Generator) -> None:
        model = self.loaded.model
        self.record.text("samples", step, self.loaded.write(1, generator)[0])
        nats = model.score(self.validation["tokens"][:20_000], model.config.context)
        self.record.log(step, {"validation_nats": float(nats.mean())})

    def _look_for_alarms(self) -> None:
        """Warn of what the record shows and tag it; an alarm that does not last loses its tag."""
        vocabulary = self.manifest["spec"].get("vocabulary")
        modes = len(self.manifest.get("known", {}).get("modes", []))
        found = alarms.find_all(self.record.read(), steps=self.steps, vocabulary=vocabulary, modes=modes)
        tags = self.record.about["tags"]
        for text in found:
            if text not in tags.get("alarm", ""):
                log.warning("alarm: %s", text)
        tags["alarm"] = "; ".join(found)
        if not found:
            del tags["alarm"]
        self.record.save()


def write_curves(record: Record, folder: Path) -> None:
    """Write each recorded value as a table of step and value, which `dvc plots` draws: <folder>/<value>.csv."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    columns: dict[str, list[str]] = {}
    for line in record.read():
        for name, value in line["values"].items():
            columns.setdefault(name, [f"step,{name}"]).append(f"{line['step']},{value:.6g}")
    for name, rows in columns.items():
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage(main, several=True)
