"""What few labels give on frozen features: the accuracy of a linear probe over draws of the labels.

A feature network whose section names labels per class, `probe: [1, 5, 10]`, gets one when it is made.
The draw of the labels is the dominant noise, so each accuracy is a mean over draws, which are the same for all
features. The probe's penalty is chosen by cross-validation on the few labels, never on the test split.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from pipeline.artifacts import ArtifactError
from pipeline.randomness import make_generator

DRAWS = 10
PENALTIES = tuple(10.0**power for power in range(-4, 3))  # inverse strengths
FOLDS = 5


def draw_labels(labels: Tensor, per_class: int, draw: int) -> Tensor:
    """Return the indices of `per_class` examples of each class of labels int64 (N,), at random.

    Raises:
        ValueError: if a class has fewer.
    """
    generator = make_generator(0, "labels", per_class, draw)
    chosen = []
    for label in labels.unique(sorted=True).tolist():
        indices = (labels == label).nonzero().squeeze(1)
        if len(indices) < per_class:
            msg = f"class {label} has {len(indices)} examples, expected {per_class}"
            raise ValueError(msg)
        chosen.append(indices[torch.randperm(len(indices), generator=generator)[:per_class]])
    return torch.cat(chosen)


def require(per_class: Sequence[int], train: Mapping[str, Tensor]) -> None:
    """Refuse probes whose labels the training split lacks.

    Raises:
        ArtifactError: with the key.
    """
    if not per_class:
        return
    least = int(train["labels"].unique(return_counts=True)[1].min()) if "labels" in train else 0
    if max(per_class) > least:
        msg = f"probe: expected at most {least} labels per class, as the training split has, got {max(per_class)}"
        raise ArtifactError(msg)


@torch.inference_mode()
def measure_all(
    network: nn.Module, name: str, splits: Mapping[str, Mapping[str, Tensor]], per_class: Sequence[int]
) -> dict[str, float]:
    """Return test accuracies of probes on features and, with the same labels, on the raw values.

    Args:
        network: maps values (B, ...) to a pair, of which features (B, D) are the first.
        name: the field that it reads.
        splits: train and test, with that field and labels int64 (N,).
        per_class: numbers of labelled examples of each class.

    Returns:
        By count of all labels, such as 100: probe_100_labels_accuracy, a mean over draws of the labels, its standard
        error probe_100_labels_error, and raw_100_labels_accuracy and raw_100_labels_error.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    values = {split: splits[split][name] for split in ("train", "test")}
    learnt = {
        split: torch.cat([network(part.to(device))[0].float().cpu() for part in each.split(250)])
        for split, each in values.items()
    }
    labels = {split: splits[split]["labels"] for split in values}
    found: dict[str, float] = {}
    for prefix, inputs in (("probe", learnt), ("raw", values)):
        for count in per_class:
            total = count * len(labels["train"].unique())
            train, test = (inputs["train"], labels["train"]), (inputs["test"], labels["test"])
            mean, error = summarize(measure_probe(train, test, count))
            found |= {f"{prefix}_{total}_labels_accuracy": mean, f"{prefix}_{total}_labels_error": error}
    return found


def measure_probe(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], per_class: int, draws: int = DRAWS
) -> list[float]:
    """Return the test accuracy of a linear probe for each draw of the labels.

    Args:
        train: features float (N, D) and labels int64 (N,) that the labelled examples are drawn from.
        test: the same of the test split.
        per_class: labelled examples of each class.
        draws: how often they are drawn.
    """
    accuracies = []
    for draw in range(draws):
        rows = draw_labels(train[1], per_class, draw)
        accuracies.append(_fit(_flatten(train[0][rows]), train[1][rows].numpy(), _flatten(test[0]), test[1].numpy()))
    return accuracies


def _flatten(features: Tensor) -> np.ndarray:
    return features.flatten(1).double().numpy()


def _fit(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, expected: np.ndarray) -> float:
    scale = StandardScaler().fit(features)
    folds = min(FOLDS, int(np.bincount(labels).min(initial=len(labels), where=np.bincount(labels) > 0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = (
            LogisticRegressionCV(
                Cs=list(PENALTIES),
                cv=folds,
                max_iter=500,
                l1_ratios=(0.0,),
                use_legacy_attributes=False,
                scoring="neg_log_loss",
            )
            if folds > 1
            else LogisticRegression(max_iter=500)  # one label a class leaves nothing to choose by
        )
        probe.fit(scale.transform(features), labels)
    return float((probe.predict(scale.transform(held_out)) == expected).mean())


def summarize(accuracies: Sequence[float]) -> tuple[float, float]:
    """Return the mean over draws and its standard error."""
    values = np.asarray(accuracies)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
