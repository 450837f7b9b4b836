"""Speed, side by side in one run: each number is a ratio of two ways to do the same thing, on this machine, now.

    cd benchmarks && dvc repro prepare@shakespeare prepare@digits features@mnist_classifier && python speed.py
    python speed.py --only cache fid          # some of them

Pairs are measured in turn, several times: the table has the median ratio, and the smallest and largest. Writes
speed.json and speed.md. Nothing else should run on the machine meanwhile.
"""

import argparse
import json
import operator
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback
from pytorch_lightning.profilers import Profiler
from ruamel.yaml import YAML
from torch import Tensor, nn
from torch.utils.data import Subset
from torch.utils.flop_counter import FlopCounterMode
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from pipeline import artifacts, plugins
from pipeline.batches import Examples, Rows, Steps
from pipeline.kinds.text import Windows
from pipeline.evidence import real_cache
from pipeline.evidence.features import extract
from pipeline.history.costs import measure_memory
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record, describe_environment, describe_lineage
from pipeline.layers.blocks import warmup_cosine
from pipeline.metrics.images import measure_fid
from pipeline.networks.classifier import load_features
from pipeline.randomness import make_generator
from pipeline.stages.evaluate import digest_code
from pipeline.training import LOGGED_LINES, Recorder, fit
from pipeline.weights import save_model

HERE = Path(__file__).parent
SKIPPED = 10  # steps of a training that are not timed: allocator, threads
OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
LENGTH = 2400  # steps of lm_shakespeare_0
SMALL = {"layers": 2, "batch_size": 4}  # the language model at about 20 ms a step on two threads of a Xeon
LARGE = {"layers": 6, "heads": 6, "width": 192, "dropout": 0.1}  # the language model of 30 minutes


@dataclass(frozen=True)
class Row:
    """One line of the table: the median, least and largest of `repeats` ratios, and what was to be reached.

    count: what each way does in a repeat, such as "140 steps". seeds: of the models and the data's order; none where
    nothing is drawn. seconds: the median of each of two ways. peak_memory_mib: of this process or its largest child, at
    the end of the measurement; measurements before it in the same process count.
    """

    name: str
    title: str
    ratio: float
    low: float
    high: float
    repeats: int
    wanted: str
    detail: str
    count: str
    seeds: tuple[int, ...]
    seconds: tuple[float, float] | None
    peak_memory_mib: float


def compare(
    name: str,
    title: str,
    wanted: str,
    ways: tuple[Callable[[], float], Callable[[], float]],
    *,
    count: str,
    seeds: tuple[int, ...] = (0,),
    detail: str = "",
    repeats: int = 5,
) -> Row:
    """Measure both ways in turn; the ratio is the first one's seconds over the second one's."""
    ratios, medians = take_turns(ways, repeats)
    detail = "; ".join(filter(None, ["{:.4g} s against {:.4g} s".format(*medians), detail]))
    return summarize(name, title, wanted, ratios, detail, count=count, seeds=seeds, seconds=medians)


def take_turns(
    ways: tuple[Callable[[], float], Callable[[], float]], repeats: int
) -> tuple[list[float], tuple[float, float]]:
    """Return the ratios of both ways' seconds, measured in turn, and the median of each way."""
    first, second = zip(*((ways[0](), ways[1]()) for _ in range(repeats)), strict=True)
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return ratios, (statistics.median(first), statistics.median(second))


def summarize(
    name: str,
    title: str,
    wanted: str,
    ratios: list[float],
    detail: str = "",
    *,
    count: str,
    seeds: tuple[int, ...] = (0,),
    seconds: tuple[float, float] | None = None,
) -> Row:
    """Return the row of some ratios; called when the measurement ends, for it looks at the memory."""
    memory = max(measure_memory(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    middle = statistics.median(ratios)
    found = middle, min(ratios), max(ratios), len(ratios)
    return Row(name, title, *found, wanted, detail, count, seeds, seconds, memory)


def time_it(action: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def make(kind: str, seed: int = 0, **changes: Any) -> tuple[Any, Examples]:
    """Return a model of params.yaml (of the main project, if this one has none) and its training data."""
    yaml = YAML(typ="safe", pure=True)
    sections = {**yaml.load(HERE.parent / "params.yaml")["models"], **yaml.load(HERE / "params.yaml")["models"]}
    module = plugins.load("models", kind)
    config = module.Config.model_validate({**sections[kind], **changes})
    data = "shakespeare" if kind == "transformer" else "digits"
    split = artifacts.read_split(data, "train")
    model = module.Model(config, artifacts.read_spec(data), seed)
    return model, Windows(split["tokens"], config.context, seed) if "tokens" in split else Rows(split)


class Clock(Callback):
    """Seconds from step SKIPPED to the last one."""

    seconds = 0.0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Look at the time where it counts."""
        if index + 1 == SKIPPED:
            self.started = time.perf_counter()
        elif index + 1 == trainer.num_training_batches:
            self.seconds = time.perf_counter() - self.started


class Waits(Profiler):
    """Seconds in which Lightning's loop waited for a batch, which the same thread makes: order, reading, conversion."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def start(self, action_name: str) -> None:
        """Note when a batch is asked for."""
        if action_name.endswith("train_dataloader_next"):
            self.asked = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add up until it is there."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self.asked


class Watched(Callback):
    """Hands the trainer a profiler for the steps that a Clock counts."""

    def __init__(self, profiler: Profiler) -> None:
        self.profiler = profiler

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Begin with the step after SKIPPED."""
        if index + 1 == SKIPPED:
            trainer.profiler = self.profiler


def time_pipeline(
    kind: str, steps: int, callbacks: list[Callback] | None = None, state: Path | None = None, **changes: Any
) -> float:
    """Train by the pipeline's own loop; return the seconds from step SKIPPED on."""
    model, examples = make(kind, steps=steps, **changes)
    clock = Clock()
    train(model, examples, steps, [*([Recorder(None, steps)] if callbacks is None else callbacks), clock], state)
    return clock.seconds


def train(model: Any, examples: Examples, steps: int, callbacks: list[Callback], state: Path | None = None) -> None:
    """Call the pipeline's own loop as its stages do."""
    fit(
        model,
        examples,
        steps=steps,
        batch_size=model.config.batch_size,
        seed=0,
        clip_norm=getattr(model.config, "clip_norm", None),
        state=state,
        callbacks=callbacks,
    )


def describe(model: Any) -> dict[str, Any]:
    """Return what a record is opened with, as the stage `train` has it."""
    config = model.config.model_dump()
    about = {"parameters": {f"model.{name}": value for name, value in config.items()}, "config": {"model": config}}
    return {"name": "speed", "tags": describe_lineage(), "datasets": [], "environment": describe_environment(), **about}


def make_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a new folder on the disk where trainings have their state: another one may be memory."""
    artifacts.STATE.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir=artifacts.STATE.resolve(), prefix="speed-")


def time_recorded(steps: int) -> float:
    """Train the small language model with a record and resume state; lines are as rare as in LENGTH steps."""
    with make_folder() as folder:
        state = Path(folder)
        record = Record(state / "record", describe(make("transformer", **SMALL)[0]))
        return time_pipeline("transformer", steps, [Recorder(record, LENGTH)], state, **SMALL)


def train_bare(model: Any, examples: Examples, steps: int, *, compile_it: bool = False) -> Iterator[float]:
    """Train a model of one optimizer by a loop of plain PyTorch; yields the loss of each step."""
    found = model.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    if compile_it:
        torch.compiler.reset()  # each training compiles anew: after a few, PyTorch would give up
    loss_of = torch.compile(model.loss, dynamic=False) if compile_it else model.loss
    for batch in Steps(examples, steps=steps, batch_size=model.config.batch_size, seed=0):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), model.config.clip_norm)
        optimizer.step()
        schedule.step()
        yield loss.detach()


def time_bare(steps: int, *, compile_it: bool = False, whole: bool = False, **changes: Any) -> float:
    """Time the plain loop, from step SKIPPED on or as a whole."""
    loop = train_bare(*make("transformer", steps=steps, **changes), steps, compile_it=compile_it)
    start = time.perf_counter()
    for index, _ in enumerate(loop, 1):
        if index == SKIPPED and not whole:
            start = time.perf_counter()
    return time.perf_counter() - start


def measure_overhead(steps: int = 300) -> Iterator[Row]:
    """Lightning's and the pipeline's share of a step, with the record; MLflow has a row of its own.

    Without the eight previews of a training, which are samples and scores: a plain loop would have to make them, too.
    """
    ways = partial(time_recorded, steps), partial(time_bare, steps, **SMALL)
    ratios, medians = take_turns(ways, 5)
    ours, bare = (1000 * seconds / (steps - SKIPPED) for seconds in medians)
    title = "training step: pipeline with its record, without MLflow, against a plain PyTorch loop, language model"
    detail = f"{ours:.3g} ms a step against {bare:.3g} ms; a line of the record every {LENGTH // LOGGED_LINES} steps"
    count = f"{steps - SKIPPED} steps"
    yield summarize("step_over_bare", title, "<= 1.05", ratios, detail, count=count, seconds=medians)


def measure_data(steps: int = 150) -> Iterator[Row]:
    """The share of a training's seconds in which its loop waits for batches; the other models are in the detail."""
    sizes: dict[str, dict[str, Any]] = {"transformer": SMALL, "gan": {}, "vae": {}}
    times = {kind: [time_waits(kind, steps, **size) for _ in range(5)] for kind, size in sizes.items()}
    shares = {kind: [waited / seconds for waited, seconds in found] for kind, found in times.items()}
    waited, seconds = (statistics.median(part) for part in zip(*times["transformer"], strict=True))
    each = (steps - SKIPPED) / 1000
    detail = f"{waited / each:.2g} ms of {seconds / each:.3g} ms a step; "
    detail += ", ".join(f"{statistics.median(shares[kind]):.2g} of the {kind.upper()}'s" for kind in ("gan", "vae"))
    title = "seconds that the training loop waits for its batches, over the seconds of the training, language model"
    about: dict[str, Any] = {"count": f"{steps - SKIPPED} steps", "seconds": (waited, seconds)}
    yield summarize("data_share", title, "<= 0.05", shares["transformer"], detail, **about)


def time_waits(kind: str, steps: int, **changes: Any) -> tuple[float, float]:
    """Train by the pipeline's own loop; return the seconds of waiting for batches, and all, from step SKIPPED on."""
    waits = Waits()
    seconds = time_pipeline(kind, steps, [Recorder(None, steps), Watched(waits)], **changes)
    return waits.seconds, seconds


class PlainGPT(nn.Module):
    """GPT-2's layout as nanoGPT has it: learned positions, LayerNorm, GELU, biases, tied head, fused attention."""

    def __init__(self, layers: int, heads: int, width: int, context: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        block = partial(
            nn.TransformerEncoderLayer, width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.ModuleList(block() for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.mask: Tensor
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T) to logits (B, T, V)."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.size(1)]
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(x))


def train_plain(model: PlainGPT, examples: Examples, steps: int, config: Any) -> float:
    """Train by nanoGPT's laptop recipe: AdamW, 1e-3 to 1e-4 by a cosine after 100 steps, clipped at 1."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    start = time.perf_counter()
    for step, batch in enumerate(Steps(examples, steps=steps, batch_size=config.batch_size, seed=0)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * warmup_cosine(step, steps=steps, warmup=100, final=0.1)
        loss = F.cross_entropy(model(batch["inputs"]).flatten(0, 1), batch["targets"].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return time.perf_counter() - start


@torch.inference_mode()
def validate(network: nn.Module, context: int) -> float:
    """Return the nats a character over the whole validation text, in disjoint windows."""
    tokens = artifacts.read_split("shakespeare", "validation")["tokens"].long()
    windows = tokens[: (len(tokens) - 1) // context * context].view(-1, context)
    targets = tokens[1 : windows.numel() + 1].view(-1, context)
    network.eval()
    parts = zip(windows.split(256), targets.split(256), strict=True)
    total = sum(float(F.cross_entropy(network(x).flatten(0, 1), y.flatten(), reduction="sum")) for x, y in parts)
    return total / windows.numel()


def measure_plain(steps: int = 500) -> Iterator[Row]:
    """Loss after equal steps, and after equal seconds, against a plain GPT-2-style module; three seeds."""
    equal_steps, equal_seconds, texts, times = [], [], [], []
    seeds = (0, 1, 2)
    for seed in seeds:
        model, examples = make("transformer", seed, steps=steps)
        config = model.config
        seconds = time_it(lambda: list(train_bare(model, examples, steps)))  # noqa: B023
        ours = validate(model.network, config.context)
        sizes = (config.layers, config.heads, config.width, config.context, model.network.head.out_features)
        torch.manual_seed(seed)
        plain = PlainGPT(*sizes)
        plain_seconds = train_plain(plain, examples, steps, config)
        equal_steps.append(ours / validate(plain, config.context))
        torch.manual_seed(seed)
        longer = PlainGPT(*sizes)
        longer_seconds = train_plain(longer, examples, round(steps * seconds / plain_seconds), config)
        equal_seconds.append(ours / validate(longer, config.context))
        texts.append(f"{ours:.3f}")
        times.append((seconds, plain_seconds, longer_seconds))
    first, second, third = (statistics.median(way) for way in zip(*times, strict=True))
    title = f"validation loss after {steps} steps at nanoGPT's laptop size, against a plain GPT-2 module with AdamW"
    about: dict[str, Any] = {"count": f"{steps} steps", "seeds": seeds}
    detail = f"{', '.join(texts)} nats"
    yield summarize(
        "loss_equal_steps", f"{title}, equal steps", "< 1", equal_steps, detail, seconds=(first, second), **about
    )
    yield summarize(
        "loss_equal_seconds", f"{title}, equal seconds", "< 1", equal_seconds, seconds=(first, third), **about
    )


class TimedRecord(Record):
    """A record that knows how long the training waited for it."""

    seconds = 0.0

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add up the time of writing a line."""
        self.seconds += time_it(partial(super().log, step, values))


class Spent(Callback):
    """What MLflow's threads had taken when its run was open, and at the training's end, with the time of each."""

    def __init__(self, mirror: MlflowSync) -> None:
        self.mirror = mirror
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Read the clocks where it counts."""
        if index + 1 == trainer.num_training_batches or (self.mirror.run_id and not self.seen):
            clocks = [time.pthread_getcpuclockid(thread.ident) for thread in self.mirror.threads if thread.ident]
            self.seen.append((time.perf_counter(), sum(map(time.clock_gettime, clocks))))


def measure_tracking(steps: int = LENGTH) -> Iterator[Row]:
    """MLflow's share of a training's wall time, both from the record's opening to the end of MLflow's run.

    Each training is a process, as a stage is: MLflow imports much when it is first used. All three write to one store,
    which the first one makes. Processor time of MLflow's threads counts as if the training had stood still for it, and
    at the end, when the training waits for them, wall time. With and without them in turn, as the other rows do it,
    differ by less than this machine's noise.
    """
    with make_folder() as folder:
        times = [time_tracking(Path(folder), str(index), steps) for index in range(3)]
    spent = [found["start"] + found["steps"] + found["close"] for found in times]
    shares = [part / found["wall"] for part, found in zip(spent, times, strict=True)]
    middle = {name: statistics.median(found[name] for found in times) for name in times[0]}
    detail = (
        f"{middle['start']:.2g} s until the run is open and {middle['close']:.2g} s at the end, with the model, "
        f"whatever the length; {middle['steps'] / middle['between']:.2g} of the time between; not counted: "
        f"{middle['record']:.2g} s for the record's lines, {time_import():.2g} s to import MLflow"
    )
    title = f"MLflow's seconds, start and end included, over the wall time of a language model's {steps:,} steps"
    seconds = statistics.median(spent), middle["wall"]
    yield summarize("tracking_share", title, "<= 0.01", shares, detail, count=f"{steps:,} steps", seconds=seconds)


def time_tracking(store: Path, name: str, steps: int) -> dict[str, float]:
    """Train in a process of its own that writes to the MLflow store in a folder; return what `track` found."""
    command = [sys.executable, "-c", f"import speed; speed.track({str(store / name)!r}, {steps})"]
    mine = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    subprocess.run(command, cwd=HERE, env=mine | {"DVC_ROOT": str(store)}, check=True)
    return artifacts.read_json(store / name / "spent.json")


def track(folder: str, steps: int) -> None:
    """Train as the stage does, but for what previews compute, and write down what MLflow takes.

    In spent.json, seconds: `start` of MLflow until its run is open, `steps` of it from then to the last step, which are
    `between` apart, `close` of it at the end; `wall` from the record's opening on, `record` of writing lines.
    """
    state = Path(folder)
    model, examples = make("transformer", steps=steps)
    began = time.perf_counter()
    record = TimedRecord(state / "record", describe(model))
    mirror = MlflowSync(record).start()
    spent = Spent(mirror)
    recorder = Recorder(record, steps, lambda step: record.text("samples", step, 400 * "x"))
    train(model, examples, steps, [recorder, spent], state)
    tokenizer = artifacts.read_json(artifacts.PREPARED / "shakespeare" / "tokenizer.json")
    save_model(state / "model", "transformer", model, model.config, artifacts.read_spec("shakespeare"), tokenizer)
    record.finish("FINISHED")
    close = time_it(partial(mirror.close, model=state / "model"))
    wall = time.perf_counter() - began
    assert not mirror.failed
    (opened, start), (ended, whole) = spent.seen  # one, if the training ended before the run was open
    found = {"start": start, "steps": whole - start, "between": ended - opened, "close": close, "wall": wall}
    artifacts.write_json(state / "spent.json", found | {"record": record.seconds})


def time_import() -> float:
    """Time what importing MLflow adds to a training's process; the median of three."""
    code = "import time, pipeline.training; start = time.perf_counter(); import pipeline.history.mlflow_sync; "
    command = [sys.executable, "-c", code + "print(time.perf_counter() - start)"]
    found = [subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, check=True).stdout for _ in range(3)]
    return statistics.median(map(float, found))


def measure_cache() -> Iterator[Row]:
    """Generation by the decoder, which remembers keys and values, against whole passes: one text and 16, two sizes."""
    yield compare_cache("uncached_over_cached", 1)
    yield compare_cache("uncached_over_cached_16", 16)
    yield compare_cache("uncached_over_cached_large", 1, **LARGE)
    yield compare_cache("uncached_over_cached_large_16", 16, **LARGE)


def count_millions(model: Any) -> str:
    """Return the millions of a language model's parameters, with one digit after the point."""
    return f"{sum(parameter.numel() for parameter in model.network.parameters()) / 1e6:.1f}"


def compare_cache(name: str, count: int, length: int = 256, **size: int) -> Row:
    """Measure one size of the language model, drawing so many texts at once."""
    model, _ = make("transformer", context=length + 1, **size)
    model.eval()
    start = torch.zeros(1, dtype=torch.int64)

    @torch.inference_mode()
    def without() -> None:
        tokens = start.expand(count, 1)
        for _ in range(length):
            tokens = torch.cat([tokens, model.network(tokens)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)

    def with_cache() -> Tensor:
        return model.sample(start, count, length, torch.Generator(), temperature=0.0)

    ways = partial(time_it, without), partial(time_it, with_cache)
    texts = "one text" if count == 1 else f"{count} texts at once"
    title = f"{length} tokens of {texts} by {count_millions(model)} million parameters: whole passes against KV cache"
    return compare(name, title, ">= 10", ways, count=f"{count * length:,} tokens", repeats=3 if count > 1 else 5)


def measure_distances(count: int = 4000) -> Iterator[Row]:
    """FID by the pipeline against scipy's matrix root and torch-fidelity, and how far they agree."""
    for size in (128, 1024):
        features = [torch.randn(count, size, generator=make_generator(index, "speed")) + index / 10 for index in (0, 1)]
        first, second = (fid_features_to_statistics(part) for part in features)

        def theirs() -> float:
            root = scipy.linalg.sqrtm(first["sigma"] @ second["sigma"]).real  # noqa: B023
            gap = first["mu"] - second["mu"]  # noqa: B023
            return float(gap @ gap + np.trace(first["sigma"] + second["sigma"] - 2 * root))  # noqa: B023

        library = float(fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"])
        values = measure_fid(features[0], second), library, theirs()
        gaps = [abs(value - values[0]) / values[0] for value in values[1:]]
        detail = f"relative differences {gaps[0]:.1g} of torch-fidelity, {gaps[1]:.1g} of scipy"
        ways = partial(time_it, lambda: measure_fid(features[0], second)), partial(time_it, theirs)  # noqa: B023
        title = f"FID in {size} dimensions against scipy's matrix root"
        about = f"{count:,} features a side"
        yield compare(f"fid_{size}_over_scipy", title, "< 1", ways, count=about, seeds=(0, 1), detail=detail, repeats=3)
    yield compare_features()
    yield compare_images()


class Classifier(FeatureExtractorBase):
    """The feature network mnist_classifier as torch-fidelity takes one."""

    def __init__(self, name: str, features_list: list[str], **settings: object) -> None:
        super().__init__(name, features_list)
        self.network = load_features(artifacts.FEATURES / "mnist_classifier")

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Name the layers."""
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Name the layer that FID compares; torch-fidelity asks for no other metric here."""
        del metric
        return "features"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features of uint8 images."""
        return (self.network(images)[0],)


def read_pictures(count: int) -> tuple[Tensor, Tensor]:
    """Return training images of MNIST, in the place of generated ones, and as many test images."""
    generated, real = (artifacts.read_split("mnist", split)["images"][:count] for split in ("train", "test"))
    return generated, real


def compare_features(count: int = 10_000) -> Row:
    """FID from features that are there, where the pipeline knows the real side's statistics."""
    network = load_features(artifacts.FEATURES / "mnist_classifier")
    features, reference = (extract(network, images).features for images in read_pictures(count))
    known = fid_features_to_statistics(reference)

    def ours() -> float:
        return measure_fid(features, known)

    def theirs() -> float:
        both = fid_features_to_statistics(features), fid_features_to_statistics(reference)
        return float(fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"])

    title = "FID from features in 128 dimensions, real side's statistics known, against torch-fidelity from both sides"
    return compare_values("fid_features_over_torch_fidelity", title, (ours, theirs), f"{count:,} features a side")


def compare_images(count: int = 10_000) -> Row:
    """FID of one set of images, where the pipeline remembers the real side's features as the stage `evaluate` does."""
    generated, real = read_pictures(count)
    folder = artifacts.FEATURES / "mnist_classifier"

    def ours() -> float:
        network = load_features(folder)
        weights = artifacts.digest(artifacts.find_weights(folder))
        about = {"weights": weights, **describe_environment(), "code": digest_code()}
        kept = real_cache.recall(about, real, lambda given: extract(network, given)._asdict())
        known = fid_features_to_statistics(kept["features"])
        return measure_fid(extract(network, generated).features, known)

    def theirs() -> float:
        found = calculate_metrics(
            input1=Subset(generated, range(count)),
            input2=Subset(real, range(count)),
            fid=True,
            feature_extractor="mnist_classifier",
            batch_size=250,  # as `extract`
            save_cpu_ram=True,  # no worker processes: for images in memory it is faster without
            cuda=torch.cuda.is_available(),
            cache=False,
            verbose=False,
        )
        return float(found["frechet_inception_distance"])

    register_feature_extractor("mnist_classifier", Classifier)
    with tempfile.TemporaryDirectory() as kept, mock.patch.object(real_cache, "FOLDER", Path(kept)):
        title = "FID from images, real side's features remembered, against torch-fidelity, which extracts both sides"
        name, about = "fid_images_over_torch_fidelity", f"{count:,} images a side"
        return compare_values(name, title, (ours, theirs), about, repeats=3)


def compare_values(
    name: str, title: str, ways: tuple[Callable[[], float], Callable[[], float]], count: str, *, repeats: int = 5
) -> Row:
    """Compare two ways to one value, which must agree to a millionth; each is called once before it is timed."""
    first, second = (way() for way in ways)
    gap = abs(first - second) / second
    assert gap <= 1e-6, f"{name}: {first} against {second}"
    detail = f"FID {first:.6g}, relative difference {gap:.1g}"
    timed = partial(time_it, ways[0]), partial(time_it, ways[1])
    return compare(name, title, "< 1", timed, count=count, seeds=(), detail=detail, repeats=repeats)


def require_reproduced() -> None:
    """Refuse to go on where `dvc repro` of the main project would have something to do, such as its trainings.

    Raises:
        SystemExit: with the command to run first.
    """
    command = [sys.executable, "-m", "dvc", "status", "--quiet"]  # its exit status is 1 if a stage is stale
    if subprocess.run(command, cwd=HERE.parent, check=False).returncode:
        msg = "the main project is not up to date: run `make repro` there first, or leave dvc out of --only"
        raise SystemExit(msg)


def measure_dvc() -> Iterator[Row]:
    """A `dvc repro` of the main project that has nothing to do, against `dvc status`."""
    require_reproduced()

    def run(command: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", command, "--quiet"], cwd=HERE.parent, check=True)

    ways = partial(time_it, partial(run, "repro")), partial(time_it, partial(run, "status"))
    title = "`dvc repro` with nothing to do against `dvc status`"
    yield compare("repro_over_status", title, "<= 2", ways, count="1 command", seeds=())


def measure_seeds(steps: int = 200) -> Iterator[Row]:
    """Two seeds at once on one thread each, against one after the other on all threads."""
    child = [sys.executable, __file__, "--train", str(steps)]

    def together() -> None:
        started = [subprocess.Popen([*child, "1"]) for _ in range(2)]
        assert not any(process.wait() for process in started)

    def in_turn() -> None:
        for _ in range(2):
            subprocess.run([*child, str(torch.get_num_threads())], check=True)

    ways = partial(time_it, together), partial(time_it, in_turn)
    title = "two seeds at once, a thread each, against in turn on all"
    yield compare("together_over_in_turn", title, "< 1", ways, count=f"2 x {steps} steps", repeats=3)


def measure_compile() -> Iterator[Row]:
    """A step with torch.compile against without, at two sizes, and how many steps pay for the compilation."""
    sizes: tuple[tuple[str, int, dict[str, Any]], ...] = (
        ("compiled_over_eager", 110, {}),
        ("compiled_over_eager_large", 30, LARGE | {"context": 256, "batch_size": 16}),
    )
    for name, steps, size in sizes:
        compilation = time_compilation(size)
        ways = partial(time_bare, steps, compile_it=True, **size), partial(time_bare, steps, **size)
        ratios, medians = take_turns(ways, 3)
        compiled, eager = (seconds / (steps - SKIPPED) for seconds in medians)
        detail = f"{compiled:.3g} s against {eager:.3g} s; the compilation takes {compilation:.0f} s"
        if eager > compiled:
            detail += f", which {compilation / (eager - compiled):.0f} steps save"
        model, _ = make("transformer", **size)
        title = f"training step of {count_millions(model)} million parameters: torch.compile of the loss against eager"
        count = f"{steps - SKIPPED} steps"
        yield summarize(name, title, "< 1 to be used", ratios, detail, count=count, seconds=medians)


def time_compilation(size: dict[str, Any]) -> float:
    """Time the first step of a compiled training in a process that finds nothing compiled before."""
    code = f"import speed; print(speed.time_bare(1, compile_it=True, whole=True, **{size!r}))"
    with tempfile.TemporaryDirectory() as folder:
        mine = {key: value for key, value in os.environ.items() if not key.startswith("TORCHINDUCTOR_")}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=HERE, env=mine | {"TMPDIR": folder}, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def measure_rates() -> Iterator[Row]:
    """Floating-point operations a second of each training, as a share of the machine's own matrix product.

    The GAN without its penalties: PyTorch's counter cannot follow gradients of gradients.
    """
    square = torch.randn(1536, 1536)
    peak = max(2 * 1536**3 / time_it(lambda: square @ square) for _ in range(10))
    kinds: dict[str, dict[str, Any]] = {"gan": {"r1": 0.0, "r2": 0.0}, "vae": {}, "transformer": {}}
    for kind, changes in kinds.items():
        model, examples = make(kind, steps=4, **changes)
        with FlopCounterMode(display=False) as counter:
            fit(model, examples, steps=4, batch_size=model.config.batch_size, seed=0)
        each = counter.get_total_flops() / 4
        rates = [each * (60 - SKIPPED) / time_pipeline(kind, 60, **changes) / peak for _ in range(3)]
        detail = f"{each / 1e9:.3g} GFLOP a step; matrix product {peak / 1e9:.3g} GFLOP/s"
        what = f"{kind} without its penalties" if changes else kind
        title = f"share of the matrix product's rate that training {what} reaches"
        yield summarize(f"rate_{kind}", title, ">= 0.5", rates, detail, count=f"{60 - SKIPPED} steps")


MEASURES: dict[str, Callable[[], Iterator[Row]]] = {
    "overhead": measure_overhead,
    "data": measure_data,
    "plain": measure_plain,
    "tracking": measure_tracking,
    "cache": measure_cache,
    "fid": measure_distances,
    "dvc": measure_dvc,
    "seeds": measure_seeds,
    "compile": measure_compile,
    "rates": measure_rates,
}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), help="measure only these")
    parser.add_argument("--train", nargs=2, type=int, metavar=("STEPS", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        torch.set_num_threads(options.train[1])
        time_bare(options.train[0], whole=True)
        return
    path = HERE / "speed.json"
    is_part = len(options.only) < len(MEASURES)  # then the others' rows stay
    rows = json.loads(path.read_text())["rows"] if is_part and path.exists() else {}
    environment = describe_environment()
    about = {name: environment[name] for name in ("processor", "threads", "torch")} | {"commit": describe_commit()}
    if "dvc" in options.only:
        require_reproduced()  # now, and not after the minutes that the rows before take
    for name in options.only:
        for row in MEASURES[name]():
            rows[row.name] = asdict(row) | about
            print(f"{row.title}: {row.ratio:.3g} ({row.low:.3g} to {row.high:.3g}), wanted {row.wanted}", flush=True)
    artifacts.write_json(path, {"rows": rows})
    (HERE / "speed.md").write_text(render(rows), encoding="utf-8")


def describe_commit() -> str:
    """Return the short commit that is measured, with -dirty if tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]  # of no tag: the commit itself
    return subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown"


def is_missed(row: dict[str, Any]) -> bool:
    """Say whether a row's median is not what was wanted: `<= x`, `>= x`, `< x` or `> x`, words may follow."""
    wanted = re.match(r"([<>]=?) ([\d.]+)", row["wanted"])
    return wanted is not None and not OPERATORS[wanted[1]](row["ratio"], float(wanted[2]))


def render(rows: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| compared | ratio | least to largest | repeats | of | wanted | | on |",
        "|---|---:|---:|---:|---:|---:|---|---|",
    ]
    line = (
        "| {title} (`{name}`) | {found} | {low:.3g} to {high:.3g} | {repeats} | {count} | {wanted} | {detail} | {on} |"
    )
    for row in rows.values():
        on = f"{row['processor']}, {row['threads']} threads"
        if "commit" in row:  # rows of older versions have none
            on += f", commit `{row['commit']}`"
        found = f"{row['ratio']:.3g}{' (missed)' if is_missed(row) else ''}"
        lines.append(line.format(**{"count": ""} | row, found=found, on=on))  # nor a count
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
