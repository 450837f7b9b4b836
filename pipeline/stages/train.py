"""Stage train: trains the model of one run and writes data/runs/<run>/model and data/runs/<run>/record.

    python -m pipeline.stages.train gan

A training that was interrupted goes on from .state/train-<run>/ when it is started again with the same params, data
and code. Hardware comes from the environment: see pipeline/training.py.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from torch import Tensor

from pipeline import artifacts, params, plugins
from pipeline.data.loading import Examples, ImageExamples, TextExamples
from pipeline.params import Params, Section
from pipeline.randomness import make_generator
from pipeline.record import Record, describe_environment, describe_lineage, measure_cost
from pipeline.stages import run_stage
from pipeline.tokenization import restore_tokenizer
from pipeline.tracking import Mirror
from pipeline.training import STATE, Recorder, fingerprint, fit, get_rank, resume_step
from pipeline.weights import Loaded, save_model


def main(key: str) -> None:
    """Train the run runs.<key>."""
    settings = params.load()
    run, config = settings.runs[key], settings.models[key]
    module = plugins.load("models", run.model)
    manifest = artifacts.read_manifest(run.data)
    if manifest["kind"] != module.KIND:
        msg = f"runs.{key}: model {run.model} learns {module.KIND}, data {run.data} holds {manifest['kind']}"
        raise artifacts.ArtifactError(msg)
    spec = artifacts.read_spec(run.data)
    code = [plugins.PACKAGE / name for name in (f"models/{run.model}.py", "models/layers.py", "data/loading.py")]
    state = STATE / f"train-{key}" / fingerprint(run.model_dump(), config.model_dump(), manifest, *code)
    model = module.Model(config, spec, run.seed)
    train, validation = (artifacts.read_split(run.data, split) for split in ("train", "validation"))
    tokenizer = artifacts.read_json(artifacts.PREPARED / run.data / "tokenizer.json") if "tokens" in train else None
    started = time.monotonic()
    record = _open_record(state, key, settings) if get_rank() == 0 else None
    mirror = Mirror(record).start() if record else None
    values = config.model_dump()
    try:
        trainer = fit(
            model,
            _make_examples(train, values, run.seed),
            steps=values["steps"],
            batch_size=values["batch_size"],
            seed=run.seed,
            clip_norm=values.get("clip_norm"),
            state=state,
            callbacks=[
                Recorder(
                    record,
                    values["steps"],
                    _make_preview(model, module.KIND, config, validation, record, tokenizer, run.seed),
                )
            ],
        )
    except BaseException as error:
        if record and mirror:
            record.about["tags"]["failure"] = f"{type(error).__name__}: {error}"[:1000]
            record.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", **measure_cost())
            mirror.close()
        raise
    if trainer.is_global_zero and record and mirror:
        folder = artifacts.RUNS / key / "model"
        save_model(folder, run.model, model, config, spec, tokenizer)
        mirror.log_model(folder)
        seconds = record.about.get("totals", {}).get("seconds", 0.0) + time.monotonic() - started
        parameters = sum(p.numel() for p in model.kept.parameters())
        record.finish("FINISHED", seconds=seconds, kept_parameters=parameters, **measure_cost())
        mirror.close()
        write_curves(record, artifacts.REPORTS / "runs" / key / "curves")
        shutil.rmtree(artifacts.RUNS / key / "record", ignore_errors=True)
        shutil.move(record.folder, artifacts.RUNS / key / "record")
        shutil.rmtree(state.parent)
        print(f"{key}: {values['steps']} steps in {seconds:.0f} s, weights in {folder}")


def _open_record(state: Path, key: str, settings: Params) -> Record:
    """Open the run's record: a new one, or the interrupted one, without the lines after its checkpoint."""
    run, config = settings.runs[key], settings.models[key]
    resolved = {"run": run.model_dump(), "model": config.model_dump(), "data": settings.data[run.data].model_dump()}
    manifest = artifacts.PREPARED / run.data / "manifest.json"
    datasets = [
        {"name": f"{run.data} ({resolved['data']['source']})", "path": str(manifest.parent), "context": context}
        | {"md5": _md5_of(run.data), "sha256": entry["sha256"], "examples": entry.get("count", entry.get("tokens"))}
        for context, entry in artifacts.read_json(manifest)["splits"].items()
        if context in {"train", "validation"}
    ]
    about = {
        "name": key,
        "parameters": {
            f"{section}.{name}": value
            for section, values in resolved.items()
            for name, value in values.items()
            if name != "set"
        },
        "config": resolved,
        "tags": describe_lineage(),
        "datasets": datasets,
        "environment": describe_environment(),
    }
    record = Record(state / "record", about)
    record.rewind(resume_step(state))
    return record


def _md5_of(data: str) -> str:
    """Return DVC's md5 of the prepared data from dvc.lock, or of the manifest before DVC has written it."""
    lock = Path("dvc.lock")
    if lock.exists():
        stages = YAML(typ="safe", pure=True).load(lock)["stages"]
        for out in stages.get(f"prepare@{data}", {}).get("outs", []):
            return str(out["md5"])
    return artifacts.digest(artifacts.PREPARED / data / "manifest.json")[:32]


def _make_examples(train: dict[str, Tensor], values: dict[str, Any], seed: int) -> Examples:
    if "tokens" in train:
        return TextExamples(train["tokens"], values["context"], seed)
    return ImageExamples(train["images"], train["labels"])


def _make_preview(
    model: Any,
    kind: str,
    config: Section,
    validation: dict[str, Tensor],
    record: Record | None,
    tokenizer: dict[str, str] | None,
    seed: int,
) -> Callable[[int], None] | None:
    """Return what happens eight times a training: samples from fixed noise, and a validation score."""
    if record is None:
        return None

    def show_images(step: int) -> None:
        record.image("samples", step, model.sample(64, make_generator(seed, "preview", device=model.device)).cpu())
        if hasattr(model, "score"):
            scores = model.score(validation["images"], 1, make_generator(seed, "validate", device=model.device))
            record.log(step, {"validation_elbo_nats": float(scores["elbo"].mean())})

    def show_text(step: int) -> None:
        generator = make_generator(seed, "preview", device=model.device)
        loaded = Loaded(model, kind, config, params_tokenizer)
        record.text("samples", step, loaded.write(1, generator)[0])
        tokens = validation["tokens"][:20_000]
        record.log(step, {"validation_nats": float(model.score(tokens, model.config.context).mean())})

    if tokenizer is None:
        return show_images
    params_tokenizer = restore_tokenizer(tokenizer)
    return show_text


def write_curves(record: Record, folder: Path) -> None:
    """Write each recorded value as a table of step and value, which `dvc plots` draws: <folder>/<value>.tsv."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    columns: dict[str, list[str]] = {}
    for line in record.read():
        for name, value in line["values"].items():
            columns.setdefault(name, [f"step\t{name}"]).append(f"{line['step']}\t{value:.6g}")
    for name, rows in columns.items():
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage(main)
