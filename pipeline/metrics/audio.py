"""Quality of sound: Frechet and kernel distances, scores of class probabilities, agreement, silence, flatness.

Kilgour et al. 2019 (Frechet audio distance: FID's formula on features of sound), Chung et al. 2025 ("KAD": unbiased
MMD^2 with a Gaussian kernel, times 100), Kynkaanniemi et al. 2019 (precision and recall). The scores of class
probabilities p_i are those by which SC09 is judged (Kong et al. 2021, "DiffWave"; Goel et al. 2022, "SaShiMi"):

isc   exp mean KL(p_i || mean of the other half), over two random halves (Salimans et al. 2016)
mis   exp mean KL(p_i || p_j), over all pairs (Gurumurthy et al. 2017); the papers draw 10,000 pairs
am    KL(mean of real clips || mean of samples) + mean entropy of p_i (Zhou et al. 2018)

Each number that a feature network gives is named <metric>_<network>, and compares only with numbers of the same
weights. Floors are those of images: real training clips against the same test clips, in equal counts. `_trip` is the
value of the real test clips after the round trip through the spectrogram that models learn: sound of such a model
cannot be expected to do better.

Dimensions: N clips, T samples of a clip, D features, K classes.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics
from torch_fidelity.metric_prc import prc_features_to_metric

from pipeline import artifacts, plugins
from pipeline.artifacts import ArtifactError
from pipeline.backbones import audio as backbone
from pipeline.evidence import features, real_cache
from pipeline.evidence.features import Features, describe_network, extract
from pipeline.evidence.values import SETS, Value, fill_name
from pipeline.kinds import audio as kind
from pipeline.kinds import read_fields, unflatten_fields
from pipeline.kinds.labels import Rule
from pipeline.metrics.images import FLOOR, GENERATED, SEEN, TEST, measure_fid
from pipeline.params import NONE, Known, Measure, Params, Run, Section
from pipeline.randomness import shuffle
from pipeline.weights import choose_device

KIND = "audio"
NETWORK = "optional"  # silence, clipping and flatness need none
SPLITS = ("test", "train")  # the second one makes the floors
NUMBERS = {
    "features": "float32",
    "fad": "means float32, covariances float64",
    "kad": "float64",
    "distances": "float32",
    "classes": "log probabilities float64",
    "sound": "power float32, means float64",
}
FRAME = 512  # samples of a spectrum; 64 ms at 8 kHz
FIELD, LABELS = "clips", "labels"  # of the data

# Fields of the protocol that a calculation depends on, besides those of the clips that the network hears.
FAD = ("numbers.fad", "versions.numpy", "versions.torch-fidelity")
KAD = ("numbers.kad",)
NEAREST = ("metric.neighbours", "numbers.distances", "versions.torch-fidelity")
CLASSES = ("numbers.classes",)
FLOORS = {"fad": FAD, "kad": KAD, "precision": NEAREST, "recall": NEAREST}
# Without a network:
SOUND = ("counts.samples", "numbers.sound")
DRAWN = (*SOUND, "metric.sampling.sets", "metric.sampling.labels")


def _sample(depends: tuple[str, ...], **others: Any) -> Value:
    """Declare a value of generated clips."""
    return Value(over=SETS, counts="samples", depends=depends, **others)


def _heard(depends: tuple[str, ...], **others: Any) -> Value:
    """Declare a value of generated clips that a network has heard."""
    return _sample((*GENERATED, *depends), **others)


VALUES = {
    "samples": Value(role="count", unit="samples", headline=True, in_protocol=True),
    "agreement_{network}": _heard((), direction="higher", unit="share", headline=True),
    "fad_{network}": _heard((*TEST, *FAD), direction="lower", headline=True),
    "fad_{network}_ratio": _heard((*FLOOR, *FAD), direction="lower", headline=True),
    "precision_{network}": _heard((*TEST, *NEAREST), direction="higher", unit="share", headline=True),
    "recall_{network}": _heard((*TEST, *NEAREST), direction="higher", unit="share", headline=True),
    "kad_{network}": _heard((*TEST, *KAD), direction="lower", unit="squared distance times 100"),
    "isc_{network}": _heard(CLASSES, direction="higher"),
    "mis_{network}": _heard(CLASSES, direction="higher"),
    "am_{network}": _heard((*TEST, *CLASSES), direction="lower", unit="nats"),
    "silent_share": _sample(DRAWN, direction="lower", unit="share"),
    "clipped_share": _sample(DRAWN, direction="lower", unit="share"),
    "flatness": _sample(DRAWN, unit="1 for white noise"),
    "agreement_{network}_trip": Value(role="description", unit="share of the real clips", depends=TEST),
    "fad_{network}_trip": Value(role="description", unit="of the real clips", depends=(*TEST, *FAD)),
    "floor_sets": Value(role="count", unit="sets", in_protocol=True),
    "fad_{network}_reliable": Value(role="check", of="fad_{network}", depends=SEEN),
    "agreement_{network}_real": Value(role="real", of="agreement_{network}", depends=TEST),
    **{
        f"{score}_{{network}}_real": Value(role="real", of=f"{score}_{{network}}", depends=(*TEST, *CLASSES))
        for score in ("isc", "mis", "am")
    },
    **{
        f"{name}_real": Value(role="real", of=name, depends=(*SOUND, "reference.sha256.test"))
        for name in ("silent_share", "clipped_share", "flatness")
    },
    **{
        f"{metric}_{{network}}_floor": Value(role="floor", of=f"{metric}_{{network}}", depends=(*FLOOR, *depends))
        for metric, depends in FLOORS.items()
    },
}


class Sampling(Section):
    """What the stage `sample` draws."""

    count: int = Field(ge=kind.LEAST, description="clips; at most as many as the test and the training split hold")
    sets: int = Field(ge=1, description="independent sets of so many clips; metrics are means over them")
    labels: Rule = "test"


class Config(Measure):
    """How the quality of sound is measured."""

    sampling: Sampling
    neighbours: int = Field(ge=1, description="k of the nearest-neighbour manifolds of precision and recall")


@dataclass(frozen=True)
class Evidence(features.Evidence):
    """Clips int16 (N, T) in the place of images.

    given: the class that each clip of each generated set was to be, int64 (N,); none of a model that is told none.
    labels: the classes of the test clips, int64 (N,). trip: the test clips after the round trip.
    """

    given: Sequence[Tensor] = ()
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    trip: Tensor | None = None


def gather(key: str, settings: Params, circumstances: Mapping[str, Any]) -> Evidence:
    """Read generated and test clips, a set of training clips for each generated one, the classes, and the network."""
    run = settings.runs[key]
    folder, given = artifacts.RUNS / key / "samples", artifacts.RUNS / key / "samples" / f"given_{LABELS}.safetensors"
    generated = list(artifacts.read_tensors(folder / "generated.safetensors").values())
    count = len(generated[0])
    [test] = features.read_real(run.data, "test", count, 1)
    spec = cast("kind.Spec", read_fields(run.data)[FIELD])
    networks, labelled, described = {}, set(), {}
    if run.network != NONE:
        section = settings.networks[run.network]
        about = artifacts.read_json(artifacts.NETWORKS / run.network / "config.json")
        require_form(run, section.data, cast("kind.Spec", unflatten_fields(about)[FIELD]), spec)
        network = plugins.load("networks", section.network).load_features(artifacts.NETWORKS / run.network)
        networks[run.network] = network.to(choose_device())
        described = describe_network(run.network, settings)
        classes = [artifacts.read_manifest(data)["classes"] for data in (section.data, run.data)]
        labelled = {run.network} if classes[0] == classes[1] else set()

    def recall(about: Mapping[str, Any], given: Tensor, make: features.Make) -> dict[str, Tensor]:
        return real_cache.recall({**about, **described, **circumstances}, given, make)

    return Evidence(
        generated,
        test[FIELD],
        [part[FIELD] for part in features.read_real(run.data, "train", count, len(generated))],
        networks,
        {},
        labelled,
        recall,
        list(artifacts.read_tensors(given).values()) if given.exists() else [],
        test[LABELS],
        make_trip(test[FIELD], spec, recall) if networks else None,
    )


def make_trip(clips: Tensor, spec: kind.Spec, recall: Any) -> Tensor:
    """Return real clips int16 (N, T) as pictures of the backbone and back again."""
    made: Tensor = recall(
        {"trip": spec.model_dump()},
        clips,
        lambda given: {FIELD: backbone.from_unit(backbone.to_unit(given, spec), spec)},
    )[FIELD]
    return made


def require(key: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Refuse data that `compute` would refuse, a network that has learnt clips of another form, and names.

    Raises:
        ArtifactError: with the key to change.
    """
    run = settings.runs[key]
    data, config = known[run.data], cast("Config", settings.metrics[run.metric])
    if run.network != NONE:
        features.require_names(run, VALUES)
        section = settings.networks[run.network]
        if data.fields and known[section.data].fields:
            require_form(run, section.data, known[section.data].fields[FIELD], data.fields[FIELD])
    if not data.splits:
        return
    for split in SPLITS:
        kind.require_split(run.data, settings.data[run.data], split, data.splits)
    if run.network != NONE:
        require_count(config, min(config.sampling.count, *(data.splits[split]["count"] for split in SPLITS)))


def require_form(run: Run, data: str, learnt: kind.Spec, given: kind.Spec) -> None:
    """Refuse a feature network that has learnt clips of another length or rate than those of a run.

    Raises:
        ArtifactError: with both.
    """
    if learnt != given:
        forms = [f"clips of {spec.samples} samples at {spec.rate} per second" for spec in (learnt, given)]
        msg = f"networks.{run.network} has learnt {forms[0]} of data.{data}, data.{run.data} has {forms[1]}: name a "
        raise ArtifactError(msg + f"network that learns data.{run.data}")


def require_count(config: Config, count: int) -> None:
    """Refuse settings that need more clips than are compared.

    Raises:
        ArtifactError: with the key, and the most that it can be.
    """
    if config.neighbours >= count:
        msg = f"metrics.audio.neighbours: expected at most {count - 1} for {count} clips, got {config.neighbours}"
        raise ArtifactError(msg)


def check_evidence(evidence: Evidence) -> None:
    """Refuse evidence of which a set of clips is nonsense, or of another shape than the generated ones.

    Raises:
        ArtifactError: with the set's name.
    """
    named = {f"generated set {index}": clips for index, clips in enumerate(evidence.generated)}
    for name, clips in named.items():  # shares of silent and clipped ones are values here
        kind.check(name, clips, most=1)
        if kind.is_silent(clips).all():
            msg = f"{name}: all {len(clips)} clips are silent"
            raise ArtifactError(msg)
    real = {"test": evidence.test} | {f"training set {index}": clips for index, clips in enumerate(evidence.train)}
    for name, clips in real.items():
        kind.check(name, clips)
        if clips.shape != evidence.generated[0].shape:
            msg = f"{name}: expected the shape of the generated clips {tuple(evidence.generated[0].shape)}, "
            raise ArtifactError(msg + f"got {tuple(clips.shape)}")


def compute(evidence: Evidence, config: Config) -> dict[str, list[float]]:
    """Return every value: floors for each training set, real ones and counts once, others for each set.

    Raises:
        ArtifactError: if clips are nonsense, too few for the config, or a network's output is not finite.
    """
    check_evidence(evidence)
    values: dict[str, list[float]] = {"samples": [float(len(evidence.test))]}
    drawn = [measure_sound(clips) for clips in evidence.generated]
    values |= {name: [entry[name] for entry in drawn] for name in drawn[0]}
    values |= {f"{name}_real": [value] for name, value in measure_sound(evidence.test).items()}
    if evidence.networks:
        require_count(config, len(evidence.test))
        values["floor_sets"] = [float(len(evidence.train))]
    for name in evidence.networks:
        columns = hear(evidence, name, config)
        values |= {fill_name(VALUES, template, network=name): column for template, column in columns.items()}
    return values


def hear(evidence: Evidence, name: str, config: Config) -> dict[str, list[float]]:
    """Return the values of one network, by template."""
    test = evidence.extract_real(name, evidence.test)
    floors = [
        measure_distances(evidence.extract_real(name, clips).features, test.features, config.neighbours)
        for clips in evidence.train
    ]
    columns = {f"{metric}_{{network}}_floor": [entry[metric] for entry in floors] for metric in floors[0]}
    found = []
    for index, (clips, floor) in enumerate(zip(evidence.generated, itertools.cycle(floors), strict=False)):
        given = evidence.given[index] if evidence.given else torch.zeros(len(clips))
        rows = shuffle(torch.cat([clips, given.to(torch.int16)[:, None]], dim=1))  # the score isc takes halves of them
        heard = extract(evidence.networks[name], rows[:, :-1])
        entry = measure_distances(heard.features, test.features, config.neighbours)
        entry |= score_classes(heard.logits, test.logits)
        if evidence.given and name in evidence.labelled:
            entry["agreement"] = measure_agreement(heard, rows[:, -1])
        found.append({f"{metric}_{{network}}": value for metric, value in entry.items()})
        found[-1]["fad_{network}_ratio"] = entry["fad"] / floor["fad"]
    columns |= {template: [entry[template] for entry in found] for template in found[0]}
    real = score_classes(test.logits, test.logits)
    if "agreement_{network}" in columns:
        real["agreement"] = measure_agreement(test, evidence.labels)
    columns |= {f"{score}_{{network}}_real": [value] for score, value in real.items()}
    # Else the covariance is singular and the distance is mostly bias.
    columns["fad_{network}_reliable"] = [float(len(evidence.test) > test.features.size(1))]
    if evidence.trip is not None:
        back = evidence.extract_real(name, evidence.trip)
        columns["fad_{network}_trip"] = [measure_fid(back.features, fid_features_to_statistics(test.features))]
        if name in evidence.labelled:
            columns["agreement_{network}_trip"] = [measure_agreement(back, evidence.labels)]
    return columns


def measure_agreement(heard: Features, labels: Tensor) -> float:
    """Return the share of clips that a network reads as their class, from labels (N,)."""
    return float((heard.logits.argmax(dim=1) == labels).double().mean())


def measure_distances(values: Tensor, reference: Tensor, neighbours: int) -> dict[str, float]:
    """Return fad, kad, precision and recall of features (N, D) and (M, D)."""
    manifold = prc_features_to_metric(
        values, reference, prc_neighborhood=neighbours, prc_batch_size=10_000, save_cpu_ram=True, verbose=False
    )
    return {
        "fad": measure_fid(values, fid_features_to_statistics(reference)),
        "kad": measure_kad(values, reference),
        "precision": float(manifold["precision"]),
        "recall": float(manifold["recall"]),
    }


def measure_kad(values: Tensor, reference: Tensor) -> float:
    """Return 100 MMD^2 of features (N, D) and (M, D), unbiased and thus maybe negative, which is not symmetric.

    k(x, y) = exp(-|x - y|^2 / 2 s^2), where s is the median distance of two features of the reference.

    Raises:
        ArtifactError: if that distance is 0, because most of the reference's features are equal.
    """
    first, second = values.double(), reference.double()
    width = torch.nn.functional.pdist(second).median()
    if not width:
        msg = f"kad: half of the {len(second)} real features or more are equal: the network tells no clips apart"
        raise ArtifactError(msg)

    def average(left: Tensor, right: Tensor) -> Tensor:
        """Return the mean of k over all pairs, of one set over those of two clips."""
        distances = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = (-distances.square() / (2 * width.square())).exp()
        if left is not right:
            return kernel.mean()
        return (kernel.sum() - kernel.diagonal().sum()) / (len(left) * (len(left) - 1))

    return 100 * float(average(first, first) + average(second, second) - 2 * average(first, second))


def score_classes(logits: Tensor, real: Tensor) -> dict[str, float]:
    """Return isc, mis and am of logits (N, K), whose order is random, and logits of real clips (M, K)."""
    log_p, log_real = (values.double().log_softmax(dim=1) for values in (logits, real))
    p = log_p.exp()
    negative_entropy = (p * log_p).sum(dim=1)  # (N,)
    halves = [torch.arange(len(p)) % 2 == part for part in (0, 1)]
    gains = [
        (negative_entropy[ours] - p[ours] @ average_log(log_p[others])).mean()
        for ours, others in (halves, halves[::-1])
    ]
    pairs = negative_entropy.mean() - p.mean(dim=0) @ log_p.mean(dim=0)
    apart = (log_real.exp().mean(dim=0) * (average_log(log_real) - average_log(log_p))).sum()
    scores = {"isc": torch.stack(gains).mean().exp(), "mis": pairs.exp(), "am": apart - negative_entropy.mean()}
    return {name: float(score) for name, score in scores.items()}


def average_log(log_p: Tensor) -> Tensor:
    """Return the logarithm of the mean probabilities, (K,), of log probabilities (N, K)."""
    return log_p.logsumexp(dim=0) - math.log(len(log_p))


def measure_sound(clips: Tensor) -> dict[str, float]:
    """Return the shares of silent and of clipped clips (N, T), and the mean spectral flatness of the audible ones.

    Flatness is the geometric over the arithmetic mean of a clip's power spectrum, averaged over its frames: near 1 for
    white noise, near 0 for a tone (Johnston 1988).
    """
    silent = kind.is_silent(clips)
    audible = clips[~silent].float() / 2**15
    size = min(FRAME, clips.size(1))
    spectrum = torch.stft(audible, size, size // 2, window=torch.hann_window(size), center=False, return_complex=True)
    power = spectrum.abs().square().mean(dim=2).double() + 1e-20  # (N, F)
    flatness = power.log().mean(dim=1).exp() / power.mean(dim=1)
    return {
        "silent_share": float(silent.double().mean()),
        "clipped_share": float(kind.is_clipped(clips).double().mean()),
        "flatness": float(flatness.mean()),
    }
