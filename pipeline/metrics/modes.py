"""How many modes a GAN covers where the right answer is known: images whose channels are labelled pictures each.

Stacked-MNIST: three digits as colour channels make 10^3 modes (Metz et al. 2017; Srivastava et al. 2017, "VEEGAN").
A one-channel feature network labels each channel; the labels together name the mode. `modes_covered_<network>` counts
the modes that have an image, `mode_kl_nats_<network>` is KL(generated || uniform) of their histogram (Lin et al. 2018,
"PacGAN"), which N samples of K uniform modes do not bring below about (K - 1) / 2N. `_real` is the same value of as
many real test images, which shows that floor with the network's own errors in it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline import plugins
from pipeline.artifacts import ArtifactError
from pipeline.evidence import features
from pipeline.evidence.features import Evidence, Sampling, check_evidence, extract
from pipeline.evidence.values import SETS, Value, fill_name
from pipeline.params import Known, Measure, Params

KIND = "images"
NETWORK = "needed"
SPLITS = ("test",)
NUMBERS = "logits float32, shares and KL float64"
MOST = 10**6  # modes; a network of a thousand classes is none for three channels
# Fields of the protocol: of all images, generated ones and test images. The modes are known without a reference.
SEEN = ("network", "code.network", "numbers", "counts.samples")
GENERATED = (*SEEN, "metric.sampling.sets", "metric.sampling.labels")
TEST = (*SEEN, "reference.sha256.test")


def _measure(**others: Any) -> Value:
    """Declare a value of generated images."""
    return Value(headline=True, over=SETS, counts="samples", depends=GENERATED, **others)


MEASURED = {
    "modes_covered_{network}": _measure(direction="higher", unit="modes"),
    "mode_kl_nats_{network}": _measure(direction="lower", unit="nats"),
}
VALUES = {
    "samples": Value(role="count", unit="samples", headline=True, in_protocol=True),
    **MEASURED,
    **{
        f"{template}_real": Value(role="real", of=template, unit=value.unit, depends=TEST)
        for template, value in MEASURED.items()
    },
}


class Config(Measure):
    """How modes are counted."""

    sampling: Sampling


def gather(key: str, settings: Params, circumstances: Mapping[str, Any]) -> Evidence:
    """Read what the metrics of a run rest on."""
    return features.gather(key, settings, circumstances, floors=False, channelwise=True)


def require(key: str, settings: Params, known: Mapping[str, Known]) -> None:
    """Refuse data that `compute` would refuse.

    Raises:
        ArtifactError: with the key to change.
    """
    features.require(key, settings, known, VALUES, channelwise=True)
    run = settings.runs[key]
    section = settings.networks[run.network]
    learnt, given = known[section.data].fields, known[run.data].fields
    if learnt and given:
        own = learnt["labels"].classes if "labels" in learnt else 0
        require_few(getattr(plugins.load("networks", section.network), "CLASSES", own), given["images"].shape[0])


def require_few(classes: int, channels: int) -> None:
    """Refuse more modes than can be counted.

    Raises:
        ArtifactError: with the classes and the channels.
    """
    if classes**channels > MOST:
        msg = f"metrics.modes: expected at most {MOST} modes, {classes} classes in each of {channels} channels are more"
        raise ArtifactError(msg)


def compute(evidence: Evidence, config: Config) -> dict[str, list[float]]:
    """Return the coverage of each generated set, and of the test images, by every network.

    Raises:
        ArtifactError: if there is no network, or the images are nonsense.
    """
    del config
    if not evidence.networks:
        msg = "metrics.modes: expected a feature network that labels the channels, got none: name one in the run"
        raise ArtifactError(msg)
    check_evidence(evidence)
    values: dict[str, list[float]] = {"samples": [float(len(evidence.test))]}
    for name, network in evidence.networks.items():
        generated = [
            measure_coverage(*label_modes(extract(network, split_channels(images)).logits, images))
            for images in evidence.generated
        ]
        real = measure_coverage(
            *label_modes(evidence.extract_real(name, split_channels(evidence.test)).logits, evidence.test)
        )
        for metric, value in real.items():
            template = f"{metric}_{{network}}"
            values[fill_name(VALUES, template, network=name)] = [entry[metric] for entry in generated]
            values[fill_name(VALUES, f"{template}_real", network=name)] = [value]
    return values


def split_channels(pictures: Tensor) -> Tensor:
    """Return each channel of pictures (N, C, H, W) as a picture of its own, (N C, 1, H, W)."""
    return pictures.flatten(0, 1)[:, None]


def label_modes(logits: Tensor, pictures: Tensor) -> tuple[Tensor, int]:
    """Return the mode of each of the pictures (N, C, H, W), int64 (N,), and how many modes K^C there are.

    logits: what the network says of each channel, (N C, K).
    """
    classes, channels = logits.size(1), pictures.size(1)
    require_few(classes, channels)
    places = classes ** torch.arange(channels - 1, -1, -1)  # the first channel counts most, as in stacked_mnist
    return logits.argmax(dim=1).view(-1, channels) @ places, classes**channels


def measure_coverage(modes: Tensor, total: int) -> dict[str, float]:
    """Return the count of modes int64 (N,) below `total` that occur, and KL(their histogram || uniform) in nats."""
    shares = torch.bincount(modes, minlength=total).double() / len(modes)
    return {
        "modes_covered": float((shares > 0).sum()),
        "mode_kl_nats": float(torch.xlogy(shares, shares * total).sum()),
    }
