"""Measures what features tell about the classes: the accuracy of linear probes that learn from few labels.

    pipeline probe simclr              # a feature network, next to the raw values
    pipeline probe simclr vae gan      # and runs: posterior means of a VAE, the discriminator of a GAN
    pipeline probe simclr --tune       # and the network itself, trained further with the same labels

The labelled examples of a draw are the same for all features. A probe's penalty is chosen by cross-validation on the
labelled examples; the test split is only read for the accuracies. The command prints its table and writes nothing.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.commands import align_table, make_parser
from pipeline.evidence import probe, tuning
from pipeline.history import continuation
from pipeline.kinds import find_field, read_fields
from pipeline.params import Params
from pipeline.weights import CONFIG, choose_device, load_model

LABELS = "labels"
Splits = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Encoder:
    """What makes features.

    name: of the network or run. field: the values that it reads, such as images.
    find: maps `network` and stored values (N, ...) to features (N, D). is_labelled: whether it learnt with all labels.
    """

    name: str
    field: str
    network: nn.Module
    find: tuning.Find
    is_labelled: bool


class Way(NamedTuple):
    """A row of the table; measure: from labels per class and draws, the accuracy of each draw."""

    features: str
    numbers: str
    all_labels: str
    measure: Callable[[int, int], list[float]]


def main(arguments: list[str]) -> int:
    """Print a line for the raw values, and one or two for each name."""
    parser = make_parser("probe", __doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="feature network or run of params.yaml, of one data")
    parser.add_argument(
        "--labels", type=_read_counts, default=[1, 5, 10], metavar="N,N", help="of each class; default: 1,5,10"
    )
    parser.add_argument("--draws", type=_read_draws, default=probe.DRAWS, help="of the labels; default: 10")
    parser.add_argument("--tune", action="store_true", help="also train each network with the labels; takes longer")
    options = parser.parse_args(arguments)
    settings = params.load()
    data = find_data(options.names, settings)
    encoders = [find_encoder(name, settings) for name in options.names]
    splits = {split: artifacts.read_split(data, split) for split in ("train", "test")}
    require_labels(data, splits["train"], options.labels)
    ways = list(list_ways(encoders, splits, tune=options.tune))
    rows = []
    with tqdm(total=len(ways) * len(options.labels), desc="probe", disable=None) as bar:
        for *cells, measure in ways:
            for count in options.labels:
                mean, error = probe.summarize(measure(count, options.draws))
                cells.append(f"{mean:.3f} ± {error:.3f}")
                bar.update()
            rows.append(cells)
    classes = len(splits["train"][LABELS].unique())
    titles = (
        *(name.replace("_", " ") for name in Way._fields[:-1]),
        *(f"{n * classes:,} labels" for n in options.labels),
    )
    print(align_table(titles, rows, titles[1:]), end="")
    print(f"accuracy on the test split of {data}: mean and standard error over {options.draws} draws of the labels")
    return 0


def find_data(names: list[str], settings: Params) -> str:
    """Return the section of the data of feature networks and runs.

    Raises:
        ArtifactError: if params.yaml lacks a name, its model gives no features, or it has other data than the first.
    """
    found: dict[str, str] = {}
    for name in names:
        if name in settings.networks:
            network: Any = settings.networks[name]
            found[name] = network.data
        elif name in settings.runs:
            run = settings.runs[name]
            if not hasattr(plugins.load("models", run.model), "find_features"):
                msg = f"runs.{name}: the model {run.model} gives no features; its file defines no find_features"
                raise ArtifactError(msg)
            found[name] = run.data
        else:
            known = ", ".join([*settings.networks, *settings.runs])
            msg = f"no feature network or run {name}; params.yaml has {known}"
            raise ArtifactError(msg)
        if found[name] != found[names[0]]:
            msg = f"{name}: expected the data of {names[0]}, {found[names[0]]}, got {found[name]}"
            raise ArtifactError(msg)
    return found[names[0]]


def find_encoder(name: str, settings: Params) -> Encoder:
    """Load a feature network, or a run whose model gives features.

    Raises:
        ArtifactError: if it has not been made.
    """
    if name in settings.networks:
        config: Any = settings.networks[name]
        module = plugins.load("networks", config.network)
        network = module.load_features(artifacts.NETWORKS / name)
        field = find_field(read_fields(config.data), module.LEARNS)
        with torch.inference_mode():
            logits = network(artifacts.read_split(config.data, "test")[field][:2].to(choose_device()))[1]
        has_classes = logits.size(1) > 1 and not hasattr(module, "fetch")  # a fetched network has those of other data
        return Encoder(name, field, network, lambda net, values: net(values)[0], has_classes)
    folder = artifacts.RUNS / name / "model"
    model: Any = load_model(folder).model
    parts = getattr(model, "unkept", ())
    others = continuation.read_parts(name, parts)
    if missing := [key for key in model.state_dict() if key.partition(".")[0] in parts and key not in others]:
        msg = f"runs.{name}: its training has kept no {missing[0].partition('.')[0]}, which makes the features"
        raise ArtifactError(msg)
    model.load_state_dict(others, strict=False)
    find = plugins.load("models", artifacts.read_json(folder / CONFIG)["model"]).find_features
    try:
        find(model, artifacts.read_split(settings.runs[name].data, "test")[model.makes][:2].to(choose_device()))
    except ArtifactError as error:
        msg = f"runs.{name}: {error}"
        raise ArtifactError(msg) from error
    return Encoder(name, model.makes, model, find, bool(model.given))


def require_labels(data: str, train: Mapping[str, Tensor], counts: Sequence[int]) -> None:
    """Refuse data without classes, and more labels than the smallest class of the training split has.

    Raises:
        ArtifactError: with the data or the option.
    """
    sizes = train[LABELS].unique(return_counts=True)[1].tolist() if LABELS in train else []
    if len(sizes) < 2:
        msg = f"data.{data}: expected examples of two classes or more, which a probe learns to tell, got {len(sizes)}"
        raise ArtifactError(msg)
    if max(counts) > min(sizes):
        msg = f"--labels: expected at most {min(sizes)} per class, as data.{data} has for training, got {max(counts)}"
        raise ArtifactError(msg)


def list_ways(encoders: list[Encoder], splits: Splits, *, tune: bool) -> Iterator[Way]:
    """List the probes of the raw values and of each encoder's features; with `tune` also the fine-tuned encoders."""
    values = {split: splits[split][encoders[0].field] for split in ("train", "test")}
    yield _probe(f"raw {encoders[0].field}", "no", values, splits)
    for each in encoders:
        all_labels = "yes" if each.is_labelled else "no"
        network = each.network.eval()
        features = {split: tuning.make_features(network, each.find, some).cpu() for split, some in values.items()}
        way = _probe(each.name, all_labels, features, splits)
        yield way
        if tune:
            yield Way(f"{each.name}, fine-tuned", way.numbers, all_labels, _tune(each, values, splits))


def _probe(title: str, all_labels: str, features: Mapping[str, Tensor], splits: Splits) -> Way:
    train, test = ((features[split], splits[split][LABELS]) for split in ("train", "test"))
    numbers = f"{features['test'][0].numel():,}"
    return Way(title, numbers, all_labels, lambda count, draws: probe.measure_probe(train, test, count, draws))


def _tune(encoder: Encoder, values: Mapping[str, Tensor], splits: Splits) -> Callable[[int, int], list[float]]:
    train, test = ((values[split], splits[split][LABELS]) for split in ("train", "test"))
    return lambda count, draws: tuning.measure_tuned(encoder.network, encoder.find, train, test, count, draws)


def _read_counts(text: str) -> list[int]:
    counts = text.split(",")
    if not all(count.isdecimal() and int(count) for count in counts):
        msg = f"expected numbers from 1 on with commas between them, such as 1,5,10, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return [int(count) for count in counts]


def _read_draws(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        msg = f"expected a number from 2 on, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)
