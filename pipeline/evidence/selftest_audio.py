"""Self-test of the metrics of sound on real clips, where the right answer is known.

Each check returns what was expected, what was found, and whether it holds. `pipeline doctor metrics` prints them.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.evidence.features import extract
from pipeline.evidence.selftest import Check, check_order
from pipeline.metrics import audio as metrics
from pipeline.metrics.audio import Config, Evidence
from pipeline.randomness import make_generator

METRIC = "audio"  # the metric that is tested, and the kind of the data set that it is tested on
FIELD, LABELS = "clips", "labels"  # of that data set
SURE = 60  # logit of a class that is certain
MADE = 2000  # predictions whose scores are known
NOISES = (0.02, 0.1, 0.5)  # standard deviations, of the range


def check_all(
    network: nn.Module, clips: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], config: Config
) -> Iterator[Check]:
    """Check a feature network's metrics on two independent sets of real clips.

    Args:
        network: maps int16 clips to features and logits.
        clips: training and test clips, int16 (N, T), of equal count.
        labels: their classes, int64 (N,).
        config: neighbours.
    """
    test = extract(network, clips[1])
    yield check_identity(test.features, config)
    yield check_shift(test.features)
    yield check_scores(test.logits.size(1))
    yield check_noise(network, clips[0], labels[0], test.features, config)
    evidence = Evidence(
        [clips[0]], clips[1], [clips[0]], {"network": network}, {}, ["network"], given=[labels[0]], labels=labels[1]
    )
    yield check_order(metrics.compute, evidence, config)


def check_identity(test: Tensor, config: Config) -> Check:
    """A set has no distance to itself; the unbiased one is below 0 by no more than 200 / N."""
    same = metrics.measure_distances(test, test, config.neighbours)
    holds = abs(same["fad"]) < 1e-2 and same["precision"] == same["recall"] == 1
    holds = holds and -200 / len(test) <= same["kad"] <= 0
    return Check(
        "identity", f"FAD 0, KAD {-200 / len(test):.2g} to 0, precision and recall 1", format_values(same), holds
    )


def check_shift(test: Tensor) -> Check:
    """Features that are moved have the squared way as their distance, because the covariance stays."""
    way = torch.linspace(-1, 1, test.size(1))
    expected = float(way.square().sum())
    found = metrics.measure_distances(test + way, test, 1)["fad"]
    return Check("shifted features", f"FAD {expected:.5g}", f"{found:.5g}", abs(found - expected) < 1e-2 * expected)


def check_scores(classes: int) -> Check:
    """Certain predictions of all classes have isc K and am 0, those of one class isc and mis 1."""
    every = SURE * nn.functional.one_hot(torch.arange(MADE) % classes, classes).float()
    order = torch.randperm(MADE, generator=make_generator(0, "scores"))
    uniform, constant = (metrics.score_classes(values, every) for values in (every[order], every[:1].repeat(MADE, 1)))
    holds = abs(uniform["isc"] / classes - 1) < 0.02 and abs(uniform["am"]) < 1e-6
    holds = holds and abs(constant["isc"] - 1) < 1e-6 and abs(constant["mis"] - 1) < 1e-6
    found = f"isc {uniform['isc']:.3f}, am {uniform['am']:.2g}; isc {constant['isc']:.3f}, mis {constant['mis']:.3f}"
    return Check("class scores", f"isc {classes}, am 0 of all classes; isc 1, mis 1 of one", found, holds)


def check_noise(network: nn.Module, clips: Tensor, labels: Tensor, test: Tensor, config: Config) -> Check:
    """Noise raises both distances, the more the stronger it is, and lowers the agreement."""
    found = []
    for deviation in (0.0, *NOISES):
        generator = make_generator(0, "noise", str(deviation))
        noise = deviation * 2**15 * torch.randn(clips.shape, generator=generator)
        heard = extract(network, (clips + noise).round().clamp(-(2**15), 2**15 - 1).short())
        values = metrics.measure_distances(heard.features, test, config.neighbours)
        found.append(values | {"agreement": metrics.measure_agreement(heard, labels)})
    rising = all(a[name] < b[name] for a, b in itertools.pairwise(found) for name in ("fad", "kad"))
    holds = rising and found[-1]["agreement"] < found[0]["agreement"]
    texts = [f"{format_values(values)}, agreement {values['agreement']:.3f}" for values in found]
    return Check("noise", f"FAD and KAD rise, agreement falls from {texts[0]}", "; ".join(texts[1:]), holds)


def format_values(values: dict[str, float]) -> str:
    """Return the distances as text."""
    return f"FAD {values['fad']:.3g}, KAD {values['kad']:.3g}, P {values['precision']:.3f}, R {values['recall']:.3f}"
