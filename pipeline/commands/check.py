"""Checks a model that you wrote before it trains, with a line for each demand of the stages.

    pipeline check model unet     # the model of pipeline/models/unet.py, as the first run of params.yaml uses it

It takes a few steps on the CPU with the prepared data of that run. The status is 1 if a demand fails.
"""

import contextlib
import copy
import io
import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.batches import Examples, Rows
from pipeline.commands import make_parser
from pipeline.formats.tokenizers import restore_tokenizer
from pipeline.kinds import Fields, make_pool
from pipeline.randomness import make_generator
from pipeline.runtime import checkpoints, writer
from pipeline.training import fit
from pipeline.weights import Loaded, load_model, read_learnt, save_model

STEPS, INTERRUPTED = 4, 2  # of the trainings; the second one stops after the latter, and resumes
BATCH = 16  # examples per step, at most
FEW = 32  # examples of each split that are scored
COUNT = 4  # samples


def main(arguments: list[str]) -> int:
    """Print a line for each demand; return whether one does not hold."""
    parser = make_parser("check", __doc__)
    parser.add_argument("subject", choices=["model"])
    parser.add_argument("name", metavar="NAME", help="a file in pipeline/models/")
    options = parser.parse_args(arguments)
    os.environ["PIPELINE_ACCELERATOR"] = "cpu"  # where equal bits are owed
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    failed = 0
    for title, problem in find_problems(read_subject(options.name)):
        print(f"{'fails' if problem else 'holds':7}{title}{': ' + problem if problem else ''}")
        failed += bool(problem)
    return int(failed > 0)


@dataclass
class Subject:
    """A model, and what the stages would give it. `manifest` and `read` are of the prepared data.

    model: the trained one, once there is one. tokenizer: the state that belongs to a text.
    """

    plug_in: str
    config: Any
    fields: Fields
    manifest: Mapping[str, Any]
    read: Callable[[str], dict[str, Tensor]]
    sampling: Any
    tokenizer: Any = None
    seed: int = 1  # not 0, with which a stored model is built before it gets its weights
    model: Any = field(default=None, init=False)

    @property
    def module(self) -> ModuleType:
        """The plug-in."""
        return plugins.load("models", self.plug_in)

    @property
    def kind(self) -> ModuleType:
        """The kind of the data."""
        return plugins.load("kinds", self.manifest["kind"])

    @property
    def examples(self) -> Examples:
        """What the training sees."""
        examples: Examples = self.kind.examples(self.read("train"), self.config, self.seed)
        return examples

    def build(self) -> Any:
        """Return a fresh model."""
        return self.module.Model(self.config, self.fields, self.seed)

    def load(self, model: Any) -> Loaded:
        """Return a model as the stages hold it."""
        pool = make_pool(self.fields, model.given, self.sampling, self.manifest, self.read)
        tokenizer = restore_tokenizer(self.tokenizer) if self.tokenizer else None
        return Loaded(model.eval(), self.fields, self.config, tokenizer, pool)

    def draw(self, loaded: Loaded, seed: int) -> Any:
        """Return samples: tensors of what has examples in rows, and else one as text."""
        generator = make_generator(seed, "check", device=loaded.model.device)
        torch.manual_seed(seed + int.from_bytes(os.urandom(2)))  # which must not count
        if isinstance(self.examples, Rows):
            rows = self.examples.batch(torch.arange(COUNT), 0)
            return loaded.model.sample(COUNT, generator, {name: rows[name] for name in loaded.model.given})
        return {loaded.model.makes: self.kind.encode(loaded, generator, self.sampling)}

    def train(self, model: Any, **options: Any) -> Any:
        """Train a model for some steps, without Lightning's words, and return it."""
        size = min(self.config.batch_size, BATCH)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            fit(
                model,
                self.examples,
                steps=STEPS,
                batch_size=size,
                seed=self.seed,
                clip_norm=self.config.clip_norm,
                **options,
            )
        return model


def read_subject(name: str) -> Subject:
    """Return the model of a name as the first run of params.yaml that has it uses it.

    Raises:
        ArtifactError: if there is no such model, it lacks a name that is needed, no run has it, or the run's data are
            not prepared.
    """
    try:
        plugins.load("models", name)
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    settings = params.load()
    key = next((key for key, run in settings.runs.items() if run.model == name), None)
    if key is None:
        line = f"{{model: {name}, data: ..., start: none, metric: ..., network: ..., seed: 0, changes: {{}}}}"
        msg = f"{params.PATH}: no run has the model {name}; add one to the section runs, such as `{name}: {line}`"
        raise ArtifactError(msg)
    run = settings.runs[key]
    if not (artifacts.PREPARED / run.data / "manifest.json").exists():
        msg = f"{artifacts.PREPARED / run.data}: not found; run `dvc repro prepare@{run.data}`"
        raise ArtifactError(msg)
    learnt = read_learnt(run.data)
    return Subject(
        name,
        settings.models[key],
        learnt.fields,
        artifacts.read_manifest(run.data),
        partial(artifacts.read_split, run.data),
        settings.metrics[run.metric].sampling,
        learnt.tokenizer,
    )


def find_problems(subject: Subject) -> Iterator[tuple[str, str]]:
    """Yield each demand with what is wrong, or nothing; the demands after an untrainable model are left out."""
    for title, demand in DEMANDS.items():
        problem = ""
        try:
            demand(subject)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            problem = describe(error, subject.module)
        yield title, problem
        if problem and demand in NEEDED:
            return


def describe(error: Exception, module: ModuleType) -> str:
    """Return one line on an error, with the line of the plug-in that it passed last."""
    if isinstance(error, ArtifactError):
        return " ".join(str(error).split())
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == module.__file__]
    place = f", line {lines[-1]} of {Path(str(module.__file__)).name}" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def require(holds: object, expected: str, came: object) -> None:
    """Refuse what does not hold.

    Raises:
        ArtifactError: with what was expected and what came.
    """
    if not holds:
        msg = f"expected {expected}, got {came}"
        raise ArtifactError(msg)


def demand_names(subject: Subject) -> None:
    """Ask for the attributes that the stages read."""
    model = subject.build()
    absent = [name for name in ("makes", "given", "trained", "kept", "sample") if not hasattr(model, name)]
    require(not absent, "a Model with makes, given, trained, kept and sample", f"one without {', '.join(absent)}")
    require(model.makes in subject.fields, f"makes to be one of {', '.join(subject.fields)}", repr(model.makes))
    is_known = isinstance(model.given, tuple) and set(model.given) <= {*subject.fields}
    require(is_known, f"given to be a tuple of some of {', '.join(subject.fields)}", repr(model.given))
    for name in ("trained", "kept"):
        part = getattr(model, name)
        require(isinstance(part, nn.Module), f"{name} to be an nn.Module", type(part).__name__)
        require(part is not model, f"{name} to be a module of the Model, with weights only", "the Model itself")


def demand_equal_weights(subject: Subject) -> None:
    """Ask for weights that follow from the seed."""
    torch.manual_seed(1)  # which must not count
    first = subject.build()
    torch.manual_seed(2)
    require_equal(first, subject.build(), "equal weights for equal seeds; make them within `seeded(seed, ...)`")


def require_equal(first: Any, second: Any, expected: str) -> None:
    """Compare the weights of two models bit by bit."""
    pairs = zip(first.kept.state_dict().items(), second.kept.state_dict().values(), strict=True)
    if differing := [name for (name, one), other in pairs if not torch.equal(one.cpu(), other.cpu())]:
        require(holds=False, expected=expected, came=f"other bits in {len(differing)}, first in {differing[0]}")


def demand_training(subject: Subject) -> None:
    """Ask for a training step that learns."""
    model = subject.build()
    before = copy.deepcopy(model.trained.state_dict())
    subject.train(model)
    after = model.trained.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name].cpu())]
    require(changed, f"other weights in `trained` after {STEPS} steps", "the same")
    subject.model = model


def demand_samples(subject: Subject) -> None:
    """Ask for samples like the data, which follow from the generator."""
    loaded = subject.load(subject.model)
    name = loaded.model.makes
    first, again, other = (subject.draw(loaded, seed) for seed in (0, 0, 1))
    require(isinstance(first, Mapping) and name in first, f"sample to return {{{name!r}: ...}}", type(first).__name__)
    if not isinstance(first[name], Tensor):
        require(first[name] == again[name], "equal samples for equal generators", "others")
        return
    row = subject.read("train")[name]
    wanted, came = (f"{str(each.dtype)[6:]} {(COUNT, *each.shape[1:])}" for each in (row, first[name]))
    require(
        wanted == came and len(first[name]) == COUNT, f"{COUNT} samples {wanted}", f"{len(first[name])} samples {came}"
    )
    require(torch.equal(first[name], again[name]), "equal samples for equal generators", "others")
    require(not torch.equal(first[name], other[name]), "other samples for another generator", "equal ones")


def demand_loading(subject: Subject) -> None:
    """Ask that a folder with the kept weights gives the same samples."""
    model = subject.model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        save_model(path, subject.plug_in, model, subject.config, subject.fields, tokenizer=subject.tokenizer)
        loaded = load_model(path)
    require(loaded.config == subject.config, "the config that was saved", loaded.config)
    before = subject.draw(subject.load(model.to(loaded.model.device)), 3)[model.makes]
    after = subject.draw(subject.load(loaded.model), 3)[model.makes]
    is_equal = torch.equal(before, after) if isinstance(before, Tensor) else before == after
    require(is_equal, "the samples of the model that was saved; is something outside `kept`?", "others")


class Interruption(Callback):
    """Stops a training as a signal would, with its state saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and stop."""
        if batch_idx + 1 == INTERRUPTED:
            writer.save(trainer, self.folder, INTERRUPTED)
            raise InterruptedError


def demand_resuming(subject: Subject) -> None:
    """Ask that an interrupted training ends with the weights of an uninterrupted one."""
    straight = subject.train(subject.build())
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(InterruptedError):
            subject.train(subject.build(), callbacks=[Interruption(Path(folder))])
        require(checkpoints.find(Path(folder)), "a state to resume from", "none")
        resumed = subject.train(subject.build(), state=Path(folder))
    require_equal(straight, resumed, "the weights of an uninterrupted training; draw with generators, keep state in it")


def demand_stages(subject: Subject) -> None:
    """Ask what the kind of data asks: of previews, of the stage `sample`, and of the served model."""
    loaded = subject.load(subject.model)
    manifest = copy.deepcopy(dict(subject.manifest))
    for entry in manifest["splits"].values():
        entry.update({name: min(FEW, entry[name]) for name in ("count", "tokens") if name in entry})

    def read(split: str) -> dict[str, Tensor]:
        return {name: values[:FEW] for name, values in subject.read(split).items()}

    subject.kind.look(loaded, subject.read("validation"), subject.manifest, subject.seed, subject.sampling)
    subject.kind.draw(loaded, subject.sampling, subject.seed, manifest, read)
    served = subject.kind.encode(loaded, make_generator(0, "serve", device=loaded.model.device), subject.sampling)
    require(isinstance(served, str), "a text from the kind's encode", type(served).__name__)


DEMANDS: dict[str, Callable[[Subject], None]] = {
    "has the names that the stages read": demand_names,
    "builds equal weights for equal seeds": demand_equal_weights,
    "trains": demand_training,
    "samples like the data, and equally for equal seeds": demand_samples,
    "is saved, and loaded with the same samples": demand_loading,
    "resumes an interrupted training with the same bits": demand_resuming,
    "is previewed, sampled, scored and served": demand_stages,
}
NEEDED = (demand_names, demand_training)  # by the demands after them
