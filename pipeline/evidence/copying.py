"""Whether a generator copies its training data, which FID rewards: two statistics of features.

Meehan, Chaudhuri and Dasgupta 2020 ("A non-parametric test to detect data-copying in generative models"): C_T. Alaa et
al. 2022 ("How faithful is your synthetic data?"): authenticity. Both need features in which distances mean something.
"""

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from scipy.stats import mannwhitneyu
from torch import Tensor

from pipeline.artifacts import ArtifactError

FIELD = "images"  # of the data set whose copies are looked for
LEAST = 20  # generated samples of a cell that counts
ROWS = 1000  # distances to so many samples are in memory at a time


def copying_statistic(generated: Tensor, test: Tensor, train: Tensor, *, cells: int, seed: int) -> float:
    """Return C_T of generated (N, D), test (M, D) and training features (L, D): below -3 is copying, above 3 underfit.

    In each of `cells` k-means cells of the training features, the distances of generated and of test features to the
    nearest training feature of the cell are compared by Mann and Whitney's U; its z-scores are averaged over the cells
    with enough generated features, weighted by their share of the test features. A generator as good as fresh data has
    0. The statistic grows with the root of the counts, so only equal counts compare.

    Raises:
        ArtifactError: if no cell has training, test and at least LEAST generated features.
    """
    arrays = [values.double().numpy() for values in (generated, test, train)]
    centres, _ = kmeans2(arrays[2], cells, minit="++", rng=np.random.default_rng(seed))
    labels = [torch.from_numpy(vq(values, centres)[0]) for values in arrays]
    scores, weights = [], []
    for cell in range(cells):
        ours, theirs, known = (
            values[label == cell] for values, label in zip((generated, test, train), labels, strict=True)
        )
        if len(ours) >= LEAST and len(theirs) and len(known):
            scores.append(compare(distances_to(known, ours), distances_to(known, theirs)))
            weights.append(len(theirs))
    if not scores:
        msg = f"C_T of {len(generated)} generated features: none of {cells} cells has {LEAST} of them; use fewer cells"
        raise ArtifactError(msg)
    return float(np.average(scores, weights=weights))


def compare(first: Tensor, second: Tensor) -> float:
    """Return the z-score of Mann and Whitney's U of two samples (N,), (M,): negative where the first is smaller."""
    count, other = len(first), len(second)
    statistic = mannwhitneyu(first.numpy(), second.numpy()).statistic
    return float((statistic - count * other / 2) / np.sqrt(count * other * (count + other + 1) / 12))


def authenticity(generated: Tensor, train: Tensor) -> float:
    """Return the share of generated features (N, D) that are no copies of training features (L, D).

    A copy is nearer to its nearest training feature than that one is to the nearest other. Copies have 0; what fresh
    data have depends on dimensions and counts: measure it too.
    """
    apart = torch.cat([_without_self(rows, train, start) for start, rows in _parts(train)])
    authentic = 0
    for _, rows in _parts(generated):
        distances, nearest = torch.cdist(rows.double(), train.double()).min(dim=1)
        authentic += int((distances > apart[nearest]).sum())
    return authentic / len(generated)


def distances_to(known: Tensor, values: Tensor) -> Tensor:
    """Euclidean distance of each of `values` (N, D) to the nearest of `known` (L, D), float64 (N,)."""
    return torch.cat([torch.cdist(rows.double(), known.double()).amin(dim=1) for _, rows in _parts(values)])


def _without_self(rows: Tensor, train: Tensor, start: int) -> Tensor:
    """Distance of rows `start`, `start` + 1, ... of `train` to the nearest other row."""
    distances = torch.cdist(rows.double(), train.double())
    distances[torch.arange(len(rows)), start + torch.arange(len(rows))] = torch.inf
    return distances.amin(dim=1)


def _parts(values: Tensor) -> list[tuple[int, Tensor]]:
    return [(ROWS * index, part) for index, part in enumerate(values.split(ROWS))]
