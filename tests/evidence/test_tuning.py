"""Fine-tuning with few labels: the head is a logistic regression, and training on tells what frozen features do not."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from pipeline.evidence import tuning
from pipeline.evidence.probe import measure_probe
from tests.networks.test_simclr import make_strokes


class Same(nn.Module):
    """Passes values on, and has a weight that says on which device it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def test_the_head_of_a_network_that_is_not_trained_is_scikit_learns_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "STEPS", 0)
    digits = load_digits()
    values, labels = torch.tensor(digits.data).float(), torch.tensor(digits.target)
    scale = StandardScaler().fit(values[:300].numpy())
    expected = LogisticRegression(max_iter=1000, tol=1e-8).fit(
        scale.transform(values[:300].numpy()), digits.target[:300]
    )
    head = tuning.tune(Same(), lambda _, some: some, values[:300], labels[:300], draw=0)
    logits = head(values[300:])
    said = torch.tensor(expected.predict_proba(scale.transform(values[300:].numpy())))
    assert torch.allclose(logits.softmax(dim=1), said.float(), atol=0.002)
    assert not values[:300].std(dim=0).all()  # corners are always black: they say nothing, and divide nothing


def test_a_network_learns_from_the_labels_what_its_fresh_features_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "LEARNING_RATE", 1e-2)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.Tanh())
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def find(some: nn.Module, images: Tensor) -> Tensor:
        return some(images.float() / 255)

    train, test = make_strokes(256), make_strokes(200)
    tuned = tuning.measure_tuned(network, find, train, test, 20, draws=2)
    with torch.no_grad():
        features = [(find(network, images), labels) for images, labels in (train, test)]
    assert min(tuned) > max(measure_probe(features[0], features[1], 20, draws=2)) + 0.1
    assert tuned == tuning.measure_tuned(network, find, train, test, 20, draws=2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_a_feature_that_is_constant_but_for_rounding_is_not_blown_up() -> None:
    head = tuning.Head(torch.full((100, 1), 0.1).repeat(1, 2) * torch.tensor([1.0, 3.7]), 2)
    torch.nn.init.ones_(head.layer.weight)
    assert head(torch.tensor([[0.101, 0.37]])).abs().max() < 0.01
