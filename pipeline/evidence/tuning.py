"""What few labels give when the network learns from them too: fine-tuning after a linear probe.

The head is fitted on the frozen features first, and then all weights are trained (Kumar et al. 2022, "Fine-Tuning can
Distort Pretrained Features and Underperform Out-of-Distribution"). The head begins as scikit-learn's LogisticRegression
with C = 1, where the linear probe chooses its penalty. Layers such as batch norm keep their statistics, as few examples
say little about them. The draws of the labels are those of the linear probe.

Dimensions: N examples, D features, K classes.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.evidence.probe import DRAWS, draw_labels
from pipeline.randomness import make_generator

STEPS = 60
LEARNING_RATE = 3e-4
BATCH = 100  # labelled examples of a step
HEAD_STEPS = 100
PART = 250  # examples that pass at once
Find = Callable[[nn.Module, Tensor], Tensor]


def measure_tuned(
    network: nn.Module,
    find: Find,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    per_class: int,
    draws: int = DRAWS,
) -> list[float]:
    """Return the test accuracy of the fine-tuned network for each draw of the labels.

    Args:
        network: is trained where it is, and is as before afterwards, but in evaluation mode.
        find: maps the network and stored values (N, ...) to features float32 (N, D).
        train: values (N, ...) and labels int64 (N,) from 0 that the labelled examples are drawn from.
        test: the same of the test split.
        per_class: labelled examples of each class.
        draws: how often they are drawn.
    """
    before = copy.deepcopy(network.state_dict())  # the network itself may hold what has no copy
    trained = {parameter: parameter.requires_grad for parameter in network.parameters()}
    accuracies = []
    try:
        for draw in range(draws):
            network.load_state_dict(before)
            rows = draw_labels(train[1], per_class, draw)
            head = tune(network, find, train[0][rows], train[1][rows], draw)
            with torch.no_grad():
                said = head(make_features(network, find, test[0])).argmax(dim=1).cpu()
            accuracies.append(float((said == test[1]).double().mean()))
    finally:
        network.load_state_dict(before)
        network.zero_grad()
        for parameter, is_trained in trained.items():
            parameter.requires_grad_(is_trained)
    return accuracies


@torch.no_grad()
def make_features(network: nn.Module, find: Find, values: Tensor) -> Tensor:
    """Return the features of stored values (N, ...), float32 (N, D), on the network's device."""
    device = next(network.parameters()).device
    return torch.cat([find(network, part.to(device)).float() for part in values.split(PART)])


class Head(nn.Module):
    """Maps features (N, D) to logits (N, K); scaled so that those of the labelled examples have mean 0, deviation 1."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: Tensor, classes: int) -> None:
        super().__init__()
        deviations, means = torch.std_mean(features.double(), dim=0, correction=0)
        is_constant = deviations <= 1e-6 * means.abs()  # but for rounding
        self.register_buffer("mean", means.float())
        self.register_buffer("scale", deviations.masked_fill(is_constant, 1).float())
        self.layer = nn.Linear(features.size(1), classes, device=features.device)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, K); a feature that was the same for all labelled examples is divided by nothing."""
        return self.layer((features - self.mean) / self.scale)


def tune(network: nn.Module, find: Find, values: Tensor, labels: Tensor, draw: int) -> Head:
    """Train a new head, then all weights, on values (N, ...) and labels int64 (N,); return the head."""
    network.eval().requires_grad_(True)
    device = next(network.parameters()).device
    values, labels = values.to(device), labels.to(device)
    features = make_features(network, find, values)
    head = Head(features, int(labels.max()) + 1)
    solver = torch.optim.LBFGS(head.parameters(), max_iter=HEAD_STEPS, line_search_fn="strong_wolfe")

    def compute_loss() -> Tensor:
        solver.zero_grad()
        weights = head.layer.weight
        # The penalty of scikit-learn's LogisticRegression with C = 1.
        loss = F.cross_entropy(head(features), labels) + weights.square().sum() / (2 * len(labels))
        loss.backward()
        return loss

    solver.step(compute_loss)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], LEARNING_RATE)
    generator = make_generator(0, "tuning", draw)
    for _ in range(STEPS):
        rows = torch.randperm(len(labels), generator=generator)[:BATCH].to(device)
        optimizer.zero_grad()
        F.cross_entropy(head(find(network, values[rows]).float()), labels[rows]).backward()
        optimizer.step()
    return head
