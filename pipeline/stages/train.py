"""Stage train: trains the model of one run and writes data/runs/<run>/model and data/runs/<run>/record.

    python -m pipeline.stages train gan

An interrupted training resumes from .state/train-<run>/ when it is started again with the same params, data
and code; one that has ended, but whose outputs DVC has not stored, finishes at once.
Hardware comes from the environment: see pipeline/runtime/environment.py.
"""

import contextlib
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from pipeline import artifacts, code, params, plugins
from pipeline.formats.tokenizers import restore_tokenizer
from pipeline.history import alarms, continuation, dvc_lock, finished, inputs, leftovers, starts
from pipeline.history.inputs import Inputs
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record, describe_environment, describe_lineage, describe_settings
from pipeline.history.recorder import Recorder
from pipeline.kinds import TRAIN, Pool, make_pool, read_known
from pipeline.params import Params, Run, Section, Trainable
from pipeline.runtime import agreement, checkpoints, hardware, processes, sharding
from pipeline.runtime.agreement import Agreement
from pipeline.runtime.preemption import PreemptedError
from pipeline.runtime.processes import get_rank
from pipeline.runtime.requirements import require_run
from pipeline.training import OwnSettings, fingerprint, fit
from pipeline.weights import Learnt, Loaded, read_learnt, save_model, start_from

log = logging.getLogger(__name__)


def main(key: str) -> None:
    """Train the run runs.<key>."""
    hardware.require_available()
    seen = inputs.read("train", key)
    settings = params.load()
    run, config = settings.runs[key], settings.models[key]
    manifest = artifacts.read_manifest(run.data)
    require_run(key, settings, {run.data: read_known(run.data)})
    starts.bring(key, run)
    parts = (run, config, manifest, *read_start(run))
    state = checkpoints.locate(f"train-{key}") / fingerprint(*parts, code.digest("train", key, settings))
    if config.steps and processes.are_to_be_started():
        if sharding.is_named():  # what it cannot train is refused before the processes start
            sharding.require_divisible(make_model(run, config, read_learnt(run.data, starts.find(run))))
        processes.supervise("train", key, lambda cause: close_failed(state, cause))
        return
    checkpoints.require_writable(artifacts.RUNS / key, artifacts.REPORTS / "runs" / key)
    with checkpoints.hold_run(state) if get_rank() == 0 else contextlib.nullcontext():
        train(key, settings, state, seen)


def describe(key: str, settings: Params) -> dict[str, str]:
    """Return what every process of this training must agree on."""
    run = settings.runs[key]
    return agreement.describe(
        "train",
        key,
        runs={key: run},
        models={run.model: settings.models[key]},
        data={run.data: artifacts.read_manifest(run.data)},
        start=read_start(run),
        code=code.digest("train", key, settings),
    )


def read_start(run: Run) -> list[str]:
    """Return the SHA-256 of the weights that a run starts from, or none, and of the state that it goes on with."""
    weights = starts.list_hashes(run)
    return [*weights, continuation.read_state(run.start)["sha256"]] if run.resume else weights


def train(key: str, settings: Params, state: Path, seen: Inputs) -> None:
    """Train with resume state in a folder that no other process writes; then write weights, record and curves.

    The state stays if the inputs are no longer those that were seen: with these put back, the same training ends.
    """
    run, config = settings.runs[key], settings.models[key]
    manifest = artifacts.read_manifest(run.data)
    learnt = read_learnt(run.data, starts.find(run))
    kind = plugins.load("kinds", manifest["kind"])
    model = make_model(run, config, learnt)
    training, validation = (artifacts.read_split(run.data, split) for split in ("train", "validation"))
    sampling = settings.metrics[run.metric].sampling
    fields, tokenizer = learnt.fields, learnt.tokenizer
    make = partial(make_pool, fields, model.given, manifest=manifest, read=partial(artifacts.read_split, run.data))
    pool = make(sampling)
    begins = run.resume and continuation.lend_state(run.start, state, model)
    record = _open_record(state, key, settings, pool) if get_rank() == 0 else None
    if record:
        print(f"{key}: previews appear in {record.folder / 'exhibits'}", flush=True)
    sync = MlflowSync(record).start() if record else None
    whole = sharding.copy_whole(model)
    loaded = Loaded(whole, fields, config, restore_tokenizer(tokenizer) if tokenizer else None, pool)
    preview = Preview(loaded, validation, record, run.seed, config.steps, manifest, sampling) if record else None
    folder = artifacts.RUNS / key / "model"
    try:
        if config.steps:
            fit(
                model,
                kind.examples(training, config, run.seed),
                steps=config.steps,
                batch_size=config.batch_size,
                seed=run.seed,
                clip_norm=config.clip_norm,
                state=state,
                callbacks=[
                    Agreement(describe(key, settings)),
                    Recorder(record, config.steps, preview, whole),
                    *([OwnSettings()] if begins else []),
                ],
            )
        sharding.gather(model, whole)
        if record:
            seen.require_same()
        adapter: dict[str, Tensor] = getattr(whole, "end", dict)()
        if get_rank() == 0:
            as_trained = make(SimpleNamespace(**dict.fromkeys(model.given, TRAIN)))  # a model depends on no metric
            save_model(folder, run.model, whole, config, fields, tokenizer=tokenizer, pool=as_trained, adapter=adapter)
    except BaseException as error:
        if record and sync:
            _give_up(record, sync, error)
        raise
    if record and sync:
        record.finish("FINISHED", kept_parameters=sum(p.numel() for p in model.kept.parameters()))
        sync.finish(model=folder)
        write_curves(record, artifacts.REPORTS / "runs" / key / "curves")
        write_previews(record, artifacts.REPORTS / "runs" / key / "previews")
        seen.require_same()  # MLflow may have taken minutes
        continuation.keep_state(record, state, config.steps, folder)
        _publish(record, state, folder)
        print(f"{key}: {config.steps} steps in {record.about['totals']['seconds']:.0f} s, weights in {folder}")


def make_model(run: Run, config: Trainable, learnt: Learnt) -> Any:
    """Return the run's model: fresh, or with the weights of its start."""
    model = plugins.load("models", run.model).Model(config, learnt.fields, run.seed)
    start = starts.find(run)
    if start:
        others = continuation.read_parts(run.start, getattr(model, "unkept", ()))
        start_from(model, start, skip=run.skip, freeze=run.freeze, tokens=learnt.tokens, others=others)
    if hasattr(model, "begin"):
        model.begin(has_start=start is not None)
    return model


def _give_up(record: Record, sync: MlflowSync, error: BaseException) -> None:
    """End the run's record with the reason; a further error here must not hide it."""
    preempted = isinstance(error, KeyboardInterrupt | PreemptedError)
    try:
        record.finish("KILLED" if preempted else "FAILED", failure=f"{type(error).__name__}: {error}")
    except OSError as problem:
        log.warning("%s: the end of the run could not be written: %s", record.folder, problem)
    sync.finish(seconds=3 if preempted else 60)  # a scheduler that preempts does not wait


def _publish(record: Record, state: Path, model: Path) -> None:
    """Copy the record next to the model, where DVC expects it, then end the state: killed before, the run goes on."""
    target = model.with_name("record")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(record.folder, target, ignore=shutil.ignore_patterns("*.tmp"))
    finished.end(state, model, target)


def close_failed(state: Path, cause: str) -> None:
    """Mark the record as failed by what the supervisor knows: its process was killed, or saw only a consequence."""
    if not (state / "record" / "run.json").exists():
        return
    with (
        contextlib.suppress(artifacts.ArtifactError, OSError),  # a full disk; the cause is said anyway
        checkpoints.hold_run(state, waits=False),
    ):  # else it is another trainer's
        record = Record(state / "record")
        if record.about["status"] == "RUNNING":
            record.finish("FAILED", failure=cause)
        record.about["status"] = "FAILED"
        record.about["tags"]["failure"] = cause[:1000]
        record.save()
        MlflowSync(record).finish()


def _open_record(state: Path, key: str, settings: Params, pool: Pool) -> Record:
    """Open the run's record: a new one, or the interrupted one, without the lines after its checkpoint.

    `pool` goes into it for the served model, which has no data.
    """
    run = settings.runs[key]
    manifest = artifacts.PREPARED / run.data / "manifest.json"
    datasets = [
        {"name": f"{run.data} ({settings.data[run.data].source})", "path": str(manifest.parent), "context": context}
        | {"md5": _md5_of(run.data), "sha256": entry["sha256"], "examples": entry.get("count", entry.get("tokens"))}
        for context, entry in artifacts.read_json(manifest)["splits"].items()
        if context in {"train", "validation"}
    ]
    about: dict[str, Any] = {
        "name": key,
        **describe_settings(key, settings),
        "given": pool.dump(),
        "tags": {
            **describe_lineage(),
            **continuation.name_parent(run),
            **starts.name_lineage(run),
            code.TAG: code.digest_model(run.model, settings.data[run.data].KIND),
        },
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
    with contextlib.suppress(OSError, artifacts.ArtifactError, TypeError, KeyError), dvc_lock.hold():
        for md5 in dvc_lock.list_hashes(dvc_lock.read_stages(), f"prepare@{data}", "outs").values():
            return md5
    return artifacts.digest(artifacts.PREPARED / data / "manifest.json")[:32]


@dataclass(frozen=True)
class Preview:
    """About eight previews per training and one before it: samples from fixed noise, and a score on validation data."""

    loaded: Loaded
    validation: dict[str, Tensor]
    record: Record
    seed: int
    steps: int
    manifest: dict[str, Any]
    sampling: Section

    def __call__(self, step: int) -> None:
        """Add exhibits and values to the record, and look for alarms; of the untrained model only exhibits."""
        kind = self.loaded.kind
        look = kind.look(self.loaded, self.validation, self.manifest, self.seed, self.sampling)
        for exhibit in look.exhibits:
            self.record.exhibit(exhibit.name, step, exhibit.suffix, exhibit.content)
        if not step:
            return
        self.record.log(step, look.values)
        self._look_for_alarms()

    def _look_for_alarms(self) -> None:
        """Warn of the alarms in the record and tag them; an alarm that does not last loses its tag."""
        kind, tags = self.loaded.kind, self.record.about["tags"]
        if silent := "; ".join(kind.find_silent_alarms(self.validation, self.manifest)):
            if silent != tags.get("alarm.silent"):
                log.warning("%s", silent)
            tags["alarm.silent"] = silent
        found = alarms.find_all(
            self.record.read(),
            steps=self.steps,
            batch_size=self.loaded.config.batch_size,
            find=lambda newest: [] if silent else kind.find_alarms(newest, self.manifest),
        )
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


def write_previews(record: Record, folder: Path) -> None:
    """Copy the previews that are pictures to <folder>/<name>/<step>.png: `dvc plots` and editors step through them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for exhibit, path in record.list_exhibits().items():
        if exhibit.suffix == ".png":
            target = folder / exhibit.key / f"{exhibit.step}.png"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
