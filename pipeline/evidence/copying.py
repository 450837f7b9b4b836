"""Whether a generator copies its training data, which FID rewards: four statistics of features.

Meehan, Chaudhuri and Dasgupta 2020 ("A non-parametric test to detect data-copying in generative models"): C_T. Alaa et
al. 2022 ("How faithful is your synthetic data?"): authenticity. Both ask whether samples are nearer to the training
data than fresh data are. Copies are, but so are samples of little variety: those of a collapsed generator, all like one
image that it has never seen, have a C_T of -8 or an authenticity of 0. `distance_ratio` says how much nearer. All
three are shown, and decide nothing.

A copy is near to one training image and far from the next ones (Carlini et al. 2023, "Extracting training data from
diffusion models"): `nearness`. `find_copies` tests whether more samples than fresh data are as near as that. All need
features in which distances mean something.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from scipy.stats import hypergeom, mannwhitneyu
from torch import Tensor

from pipeline.artifacts import ArtifactError

LEAST = 20  # generated samples, and test features, of a cell or a set that counts
NEIGHBOURS = 50  # training features that a copy is much farther from than from the nearest
EQUAL = 1e-4  # nearness below which nothing but rounding is between two images
SHARE = 0.01  # of the test features, the nearest ones: as near as that is nearer than fresh data are by rule
EXCESS = 3  # times as many samples as expected are an effect that matters
ROWS = 1000  # distances to so many samples are in memory at a time


def copying_statistic(generated: Tensor, test: Tensor, train: Tensor, *, cells: int, seed: int) -> float:
    """Return C_T of generated (N, D), test (M, D) and training features (L, D): below -3 is copying, above 3 underfit.

    In each of `cells` k-means cells of the training features, the distances of generated and of test features to the
    nearest training feature of the cell are compared by Mann and Whitney's U; its z-scores are averaged over the cells
    with enough generated features, weighted by their share of the test features. A generator as good as fresh data has
    0. The statistic grows with the root of the counts, so only equal counts compare.

    Raises:
        ArtifactError: if no cell has training, and at least LEAST test and LEAST generated features.
    """
    arrays = [values.double().numpy() for values in (generated, test, train)]
    centres, _ = kmeans2(arrays[2], cells, minit="++", rng=np.random.default_rng(seed))
    labels = [torch.from_numpy(vq(values, centres)[0]) for values in arrays]
    scores, weights = [], []
    for cell in range(cells):
        ours, theirs, known = (
            values[label == cell] for values, label in zip((generated, test, train), labels, strict=True)
        )
        if min(len(ours), len(theirs)) >= LEAST and len(known):
            scores.append(compare(distances_to(known, ours), distances_to(known, theirs)))
            weights.append(len(theirs))
    if not scores:
        counts = f"{len(generated)} generated and {len(test)} test features"
        msg = f"C_T of {counts}: none of {cells} cells has {LEAST} of each; use fewer cells"
        raise ArtifactError(msg)
    return float(np.average(scores, weights=weights))


def compare(first: Tensor, second: Tensor) -> float:
    """Return the z-score of Mann and Whitney's U of two samples (N,), (M,): negative where the first is smaller."""
    count, other = len(first), len(second)
    statistic = mannwhitneyu(first.numpy(), second.numpy()).statistic
    return float((statistic - count * other / 2) / np.sqrt(count * other * (count + other + 1) / 12))


class Nearness(NamedTuple):
    """How near values are to one training feature only, float64 (N,), to which one, int64 (N,), and how far from it.

    distances: Euclidean, float64 (N,).
    """

    values: Tensor
    indices: Tensor
    distances: Tensor


def nearness(values: Tensor, train: Tensor) -> Nearness:
    """Return the distance of each of `values` (N, D) to the nearest of `train` (L, D) over the mean to the NEIGHBOURS.

    It is 0 for a copy, and near 1 for a value that is like no one in particular, wherever it lies.
    """
    found = [
        torch.cdist(rows.double(), train.double()).topk(min(NEIGHBOURS, len(train)), largest=False)
        for rows in values.split(ROWS)
    ]
    distances = torch.cat([part.values for part in found])
    scale = distances.mean(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    return Nearness(distances[:, 0] / scale, torch.cat([part.indices[:, 0] for part in found]), distances[:, 0])


def authenticity(near: Nearness, train: Tensor) -> float:
    """Return the share of features that are no copies of training features (L, D), from how near they are to them.

    A copy is nearer to its nearest training feature than that one is to the nearest other. Copies have 0; what fresh
    data have depends on dimensions and counts: measure it too.
    """
    chosen, places = near.indices.unique(return_inverse=True)
    apart = torch.cat([_without_self(part, train) for part in chosen.split(ROWS)])
    return float((near.distances > apart[places]).double().mean())


def distance_ratio(ours: Nearness, fresh: Nearness) -> float | None:
    """Return how far samples lie from the training data, as a share of what fresh data do.

    The median distance of samples to the nearest training feature is divided by that of test features: 0 for copies, 1
    for a generator as good as fresh data, more for samples unlike any data. There is none where half of the test
    features are training features.
    """
    median, typical = (float(near.distances.median()) for near in (ours, fresh))
    return median / typical if typical else None


@dataclass(frozen=True)
class Copies:
    """How many of `count` samples are nearer to one training image than nearly all test images are.

    Of samples with the same nearest training image only the first counts, as of test images: those of one mode are not
    independent. expected: as many as of fresh data. p: probability of `found` or more of fresh data. equal: share of
    all samples that are a training image; of test images that is `equal_real`.
    """

    found: int
    count: int
    expected: float
    p: float
    equal: float
    equal_real: float

    def are_proved(self, chance: float) -> bool:
        """Say whether there are copies: too many to be chance and enough to matter, or equal ones."""
        is_enough = self.p < chance and self.found >= EXCESS * self.expected
        return is_enough or (self.equal >= SHARE and self.equal >= EXCESS * self.equal_real)


def find_copies(ours: Nearness, fresh: Nearness, trained: int) -> Copies:
    """Count the samples that are as near to one of `trained` training features as a hundredth of test features.

    ours: of the samples. fresh: of the test features.

    If samples are as good as fresh data, every order of generated and test features is equally likely. Then K or more
    samples come before the j-th test feature just if the first K + j - 1 of all have fewer than j test features, whose
    number is hypergeometric: the p-value is exact for all counts. Test features that are training features are left
    out.

    Raises:
        ArtifactError: if there are fewer than LEAST of a kind, or of distinct samples where one of them is near.
    """
    equal, equal_real = (float((near.values < EQUAL).double().mean()) for near in (ours, fresh))
    near, bound = (_take_first(values) for values in (ours, fresh))
    bound = bound[bound >= EQUAL].sort().values
    _require_enough({"samples": len(ours.values), "distinct test images": len(bound), "training images": trained})
    rank = max(1, round(SHARE * len(bound)))
    found = int((near < bound[rank - 1]).sum())
    if found and equal < SHARE:
        _require_enough({"distinct samples, and some near to a training image": len(near)})
    p = float(hypergeom.cdf(rank - 1, len(near) + len(bound), len(bound), found + rank - 1)) if found else 1.0
    return Copies(found, len(near), len(near) * rank / (len(bound) + 1), p, equal, equal_real)


def _require_enough(counts: Mapping[str, int]) -> None:
    if few := [f"{count} {name}" for name, count in counts.items() if count < LEAST]:
        msg = f"{', '.join(few)}: too few, {LEAST} are needed"
        raise ArtifactError(msg)


def _take_first(near: Nearness) -> Tensor:
    """Return the value of the first of those that have the same nearest training feature, in their order."""
    _, first = np.unique(near.indices.numpy(), return_index=True)
    return near.values[torch.from_numpy(np.sort(first))]


def distances_to(known: Tensor, values: Tensor) -> Tensor:
    """Euclidean distance of each of `values` (N, D) to the nearest of `known` (L, D), float64 (N,)."""
    return torch.cat([torch.cdist(rows.double(), known.double()).amin(dim=1) for rows in values.split(ROWS)])


def _without_self(chosen: Tensor, train: Tensor) -> Tensor:
    """Distance of the rows `chosen` of `train` to the nearest other row."""
    distances = torch.cdist(train[chosen].double(), train.double())
    distances[torch.arange(len(chosen)), chosen] = torch.inf
    return distances.amin(dim=1)
