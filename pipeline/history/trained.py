"""Loads a trained model by its address: the weights and the config are taken, and no code but this package's runs.

    import pipeline
    model = pipeline.load("gan")                  # a run of this project, or a folder such as data/runs/gan
    model = pipeline.load("models:/gan@latest")   # a model or a run of MLflow; also models:/<id> and runs:/<id>
    model.draw([0, 1])                            # one sample per seed: tensors, or texts

A LoggedModel brings its author's code, which `mlflow.pyfunc.load_model` runs. Here three files are read, each of which
must be in the seal. The header of the weights is compared with the model that the config describes before memory is
taken for either. A seal is against rot and not against forgery: who makes a file can make its seal. Therefore a file is
never more than numbers and settings here.
"""

import contextlib
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from pipeline import artifacts, code, plugins
from pipeline.artifacts import SEAL, ArtifactError
from pipeline.evidence import looks
from pipeline.history import choices
from pipeline.history.record import name_origin
from pipeline.kinds import Pool, unflatten_fields
from pipeline.randomness import normal
from pipeline.weights import ADAPTER, CONFIG, WEIGHTS, Loaded, load_model

log = logging.getLogger(__name__)
FILES = (SEAL, CONFIG, WEIGHTS)
MAX_JSON_BYTES = 64 << 20  # of a config: a tokenizer of 100,000 tokens has 5 MB
MOST_PARTS = 100  # registered parameters of a whole model for each stored one; a GAN keeps one of its two networks
MAX_MESSAGE = 500  # characters
DISTRIBUTION = "generative-experiment-pipeline"
NOT_STATED = "not stated"
DTYPES = {  # as safetensors calls them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Trained:
    """A model that was loaded by its address.

    loaded: the model itself, with its fields, config and tokenizer.
    sampling: how a sample is drawn, such as the prompt of a text; its keys are those of the kind's SAMPLING.
    classes: their names, if they have some and this project has prepared their data, or the LoggedModel has them.
    plug_in: the file in pipeline/models/.
    sha256: of the weights' file.
    origin: the run, its commit and the source of its data, as far as its record or its LoggedModel says.
    data: the section of params.yaml of its data, if its record is here.
    """

    address: str
    loaded: Loaded
    sampling: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ()
    plug_in: str = ""
    sha256: str = ""
    origin: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, seeds: Sequence[int], *, given: Mapping[str, Any] | None = None, **changes: Any) -> list[Any]:
        """Return one sample per seed, such as an image uint8 (C, H, W), or a text; equal for equal seeds.

        Args:
            seeds: of the samples. `model.predict` of the same LoggedModel draws the same ones.
            given: by the name of a given field the value of all samples, such as {"labels": 3}; others are drawn.
            changes: keys of `sampling`, such as prompt and temperature.

        Raises:
            ArtifactError: if the model is given no such field or value, or has no such key.
        """
        loaded = self._give(given or {})
        if unknown := changes.keys() - self.sampling.keys():
            known = f"only {', '.join(self.sampling)}" if self.sampling else "no such setting"
            msg = f"{self.address}: a sample of this model has no {', '.join(sorted(unknown))}; it has {known}"
            raise ArtifactError(msg)
        sampling = SimpleNamespace(**{**self.sampling, **changes})
        return [loaded.kind.draw_one(loaded, choices.start(loaded, seed), sampling) for seed in seeds]

    def name_label(self, seed: int, given: Mapping[str, Any] | None = None) -> str:
        """Return the class of the sample of a seed; empty without classes."""
        return choices.name_drawn(self._give(given or {}), self.classes, seed)

    def walk(self, seeds: Sequence[int], steps: int, *, given: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Yield the values on the way from the sample of each seed to that of the next, `steps` apart, and the last.

        Every value is of one class: the given one, or that of the first sample. With a given class, the values at the
        seeds are those of `draw`.

        Raises:
            ArtifactError: if the model turns no latents into values, or one value shows nothing.
        """
        decoder = looks.find_decoder(self.plug_in)
        if decoder is None or hasattr(self.loaded.kind, "TOGETHER"):
            why = (
                f"pipeline/models/{self.plug_in}.py has no decode" if decoder is None else "a single one shows nothing"
            )
            msg = f"{self.address}: there is no way between two samples of this model: {why}"
            raise ArtifactError(msg)
        loaded = self._give(given or {})
        ends, rows = [], []
        for seed in seeds:
            generator = choices.start(loaded, seed)
            rows.append(loaded.pool.draw(1, generator))
            ends.append(normal(1, *looks.find_latent(loaded, decoder), generator=generator))
        places = torch.arange(steps) / steps
        for first, last in pairwise(ends):
            for latents in looks.walk(first, last, places).split(1):  # one by one, as `draw` has them
                yield looks.decode(loaded, decoder, latents, rows[0])[0]
        yield looks.decode(loaded, decoder, ends[-1], rows[0])[0]

    def read_files(self, path: Path) -> tuple[list[str], Any]:
        """Return the names of a file or of the files of a folder, and their values (N, ...), for `complete`.

        Raises:
            ArtifactError: if the model completes nothing, or a file cannot be such a value.
        """
        if not completes(self.loaded.kind, self.plug_in):
            there = ", ".join(list_completing()) or "none"
            msg = f"{self.address}: this model completes nothing; runs here whose models do: {there}"
            raise ArtifactError(msg)
        if not self.data:
            print(
                f"{self.address}: no record of its data here, so your files are read by the defaults", file=sys.stderr
            )
        names, values = self.loaded.kind.read_files(path, self.loaded, self.data)
        return names, values

    def complete(self, value: torch.Tensor, seed: int, *, given: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return one value (...) of which a part is kept and the rest is drawn, such as the lower half of an image.

        Args:
            value: as `read_files` returns them.
            seed: of the noise.
            given: as in `draw`. Without it the model goes by the part that is kept.

        Raises:
            ArtifactError: if the model is given no such field or value, or needs one.
        """
        loaded = self._give(given or {})
        generator = choices.start(loaded, seed)
        rows = loaded.pool.draw(1, generator)
        rows = {name: rows[name] for name in given or {}}
        try:
            completed: torch.Tensor = loaded.kind.complete(loaded, value[None], generator, rows)[0]
        except ArtifactError as error:
            msg = f"{self.address}: {error}"
            raise ArtifactError(msg) from error
        return completed

    def _give(self, given: Mapping[str, Any]) -> Loaded:
        pool = self.loaded.pool
        for name, value in given.items():
            if name not in self.loaded.model.given:
                known = ", ".join(self.loaded.model.given) or "nothing"
                msg = f"{self.address}: the model is given {known}, so it takes no {name}"
                raise ArtifactError(msg)
            pool = pool.keep(name, value)
        return replace(self.loaded, pool=pool)

    def describe_origin(self) -> dict[str, str]:
        """Return what each sample says of its origin: the program, the model, its run, and the licence of its data."""
        return {
            "generator": f"{DISTRIBUTION} {version(DISTRIBUTION)}",
            "model_sha256": self.sha256,
            **{key: str(self.origin[key])[:MAX_MESSAGE] for key in ("run", "commit") if self.origin.get(key)},
            "data_licence": read_licence(str(self.origin.get("source", ""))),
        }


def completes(kind: Any, plug_in: str) -> bool:
    """Say whether a model draws the rest of a value of a kind of which a part is known."""
    return hasattr(kind, "complete") and hasattr(plugins.load("models", plug_in).Model, "complete")


def list_completing() -> list[str]:
    """Return the trained runs of this project whose models complete values."""
    found = []
    for path in sorted(artifacts.RUNS.glob(f"*/model/{CONFIG}")):
        with contextlib.suppress(ArtifactError, KeyError, ValueError):  # of a run that is damaged, or of other code
            about = artifacts.read_json(path)
            if completes(plugins.load("kinds", about["kind"]), about["model"]):
                found.append(path.parents[1].name)
    return found


def read_licence(source: str) -> str:
    """Return the terms of the data that a source in pipeline/data/ brings, as it states them in LICENCE."""
    try:
        return str(getattr(plugins.load("data", source), "LICENCE", NOT_STATED))
    except ValueError:  # no such source
        return NOT_STATED


def load(address: str | Path) -> Trained:
    """Load a trained model, verified, without running any code but this package's.

    Args:
        address: a run of this project, the folder of a run or of its model, models:/<id>, models:/<name>/<version>,
            models:/<name>@<alias>, or runs:/<run id>.

    Raises:
        ArtifactError: if there is no such model, or a file of it is missing, unsealed, damaged or unfit for this code.
    """
    address = str(address)
    try:
        with tempfile.TemporaryDirectory(prefix="model-") as place:
            return _load(address, *find_folder(address, Path(place)))
    except ArtifactError as error:
        msg = f"{address}: {error}"
        raise ArtifactError(msg) from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        msg = f"{address}: no model of this package: {type(error).__name__}: {' '.join(str(error).split())}"
        raise ArtifactError(msg[:MAX_MESSAGE]) from error


def find_folder(address: str, place: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the folder that has a model's files, and what is known about the model from elsewhere.

    Args:
        address: as in `load`.
        place: an empty folder, for files that are downloaded.
    """
    if re.match("(models|runs):/", address):
        from pipeline.history import mlflow_files  # MLflow takes seconds to import

        return place, mlflow_files.fetch_model(address, FILES, place, more=(ADAPTER,))  # the seal may name it
    for folder in (Path(address), Path(address) / "model", artifacts.RUNS / address / "model"):
        if (folder / CONFIG).is_file():
            return folder, _read_record(folder.resolve().with_name("record") / "run.json")
    msg = f"no model is there; expected a run in {artifacts.RUNS}, a folder with {CONFIG}, models:/... or runs:/..."
    raise ArtifactError(msg)


def _read_record(path: Path) -> dict[str, Any]:
    """Return what a run's record says about its model; nothing without a record."""
    if not path.is_file():
        return {}
    about = _as_mapping(artifacts.read_json(path))
    config = _as_mapping(about.get("config"))
    listed = about.get("datasets")
    datasets = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return {
        "sampling": _as_mapping(config.get("metric")).get("sampling"),
        "given": about.get("given"),
        "code": _as_mapping(about.get("tags")).get(code.TAG),
        "classes": choices.list_classes({"config": {"run": _as_mapping(config.get("run"))}, "datasets": datasets}),
        "origin": name_origin(about),
        "data": config.get("data"),
    }


def _as_mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def require_small(folder: Path) -> None:
    """Refuse JSON files that nobody would write.

    Raises:
        ArtifactError: with the size.
    """
    for name in (SEAL, CONFIG):
        if (folder / name).is_file() and (size := (folder / name).stat().st_size) > MAX_JSON_BYTES:
            msg = f"{name} has {size} bytes, expected at most {MAX_JSON_BYTES}"
            raise ArtifactError(msg)


def _load(address: str, folder: Path, about: Mapping[str, Any]) -> Trained:
    require_small(folder)
    artifacts.verify(folder)
    require_fit(folder)
    loaded = load_model(folder)
    state = loaded.model.kept.state_dict()
    if broken := [name for name, each in state.items() if each.is_floating_point() and not each.isfinite().all()]:
        msg = f"{WEIGHTS}: weights are not finite: {', '.join(broken[:5])}"
        raise ArtifactError(msg)
    if about.get("given"):
        loaded = replace(loaded, pool=Pool.restore(about["given"]))
    if any(len(values) != len(loaded.pool.weights) for values in loaded.pool.values.values()):
        msg = f"given: expected a weight for each value, got {len(loaded.pool.weights)} weights"
        raise ArtifactError(msg)
    _compare_code(address, folder, about.get("code"))
    return Trained(
        address,
        loaded,
        _choose_sampling(loaded.kind, about.get("sampling")),
        [str(name) for name in about.get("classes") or ()],
        plug_in=artifacts.read_json(folder / CONFIG)["model"],
        sha256=artifacts.digest(folder / WEIGHTS),
        origin=_as_mapping(about.get("origin")),
        data=_as_mapping(about.get("data")),
    )


def require_fit(folder: Path) -> None:
    """Refuse weights that are not those of the model that the config describes, before memory is taken for either.

    Raises:
        ArtifactError: if names, shapes or dtypes differ, or the model is larger than the free memory.
    """
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    about = artifacts.read_json(folder / CONFIG)
    module = plugins.load("models", about["model"])
    config, fields = module.Config.model_validate(about["config"]), unflatten_fields(about)
    note = _Budget(len(found)).note
    handles = [register_module_parameter_registration_hook(note), register_module_buffer_registration_hook(note)]
    try:
        with torch.device("meta"):  # shapes without memory
            expected = module.Model(config, fields, seed=0).kept.state_dict()
    finally:
        for handle in handles:
            handle.remove()
    wanted = {name: (tuple(each.shape), DTYPES.get(each.dtype, str(each.dtype))) for name, each in expected.items()}
    if wrong := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
        name = wrong[0]
        side = [" ".join(map(str, each[name])) if name in each else "nothing" for each in (wanted, found)]
        msg = f"{WEIGHTS}: {len(wrong)} weights do not fit {CONFIG}: {name}: expected {side[0]}, found {side[1]}"
        raise ArtifactError(msg)


class _Budget:
    """Ends the building of a model that grows beyond the free memory, or far beyond the weights that are stored."""

    def __init__(self, stored: int) -> None:
        self.most = MOST_PARTS * (stored + 1)
        self.free = psutil.virtual_memory().available
        self.parts = self.bytes = 0

    def note(self, module: torch.nn.Module, name: str, parameter: torch.Tensor | None) -> None:
        """Count a parameter, or a buffer, that a module registers."""
        del module, name
        self.parts += 1
        self.bytes += parameter.numel() * parameter.element_size() if parameter is not None else 0
        if self.parts > self.most or self.bytes > self.free:
            msg = (
                f"{CONFIG}: the model has {self.parts} parts or more with {self.bytes:.3g} bytes; expected at most "
                f"{self.most}, as the weights' file has {self.most // MOST_PARTS - 1}, and {self.free:.3g} bytes"
            )
            raise ArtifactError(msg)


def _compare_code(address: str, folder: Path, trained_with: Any) -> None:
    """Say so where the code of the model was another one when it was trained."""
    about = artifacts.read_json(folder / CONFIG)
    here = code.digest_model(about["model"], about["kind"])
    if trained_with and trained_with != here:
        log.warning(
            "%s: trained with other code of pipeline/models/%s.py (%s) than this package has (%s), which is used",
            *(address, about["model"], trained_with, here),
        )


def _choose_sampling(kind: Any, stored: Any) -> dict[str, Any]:
    """Return the settings of a sample that the kind has, with the values that go with the model.

    Raises:
        ArtifactError: if a value is of another type.
    """
    chosen: dict[str, Any] = dict(getattr(kind, "SAMPLING", {}))
    for key, value in chosen.items():
        new = _as_mapping(stored).get(key, value)
        if isinstance(new, bool) or not isinstance(new, (int, float) if isinstance(value, float) else type(value)):
            msg = f"sampling.{key}: expected {type(value).__name__}, got {type(new).__name__}"
            raise ArtifactError(msg)
        chosen[key] = new
    return chosen
