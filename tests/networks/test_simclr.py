"""SimCLR: views keep the picture, and training without labels finds the classes."""

import torch

from pipeline.batches import Rows
from pipeline.evidence.probe import measure_probe
from pipeline.kinds.images import make_fields
from pipeline.networks.simclr import Config, Model, measure_accuracy
from pipeline.training import fit

SPEC = make_fields((1, 12, 12), 0)


def make_model(steps: int) -> Model:
    config = Config(
        network="simclr",
        data="images",
        seed=0,
        width=8,
        temperature=0.2,
        steps=steps,
        batch_size=64,
        learning_rate=5e-3,
        weight_decay=0.01,
    )
    return Model(config, SPEC, seed=0)


def make_strokes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return horizontal and vertical strokes at random places, in noise, with their class."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(60, (count, 1, 12, 12), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 2
    places = torch.randint(2, 9, (count,), generator=generator)
    for image, label, place in zip(images, labels.tolist(), places.tolist(), strict=True):
        (image[0, place : place + 2, 2:10] if label else image[0, 2:10, place : place + 2]).fill_(255)
    return images, labels


def test_features_learnt_without_labels_tell_classes_by_few_of_them() -> None:
    train, test = make_strokes(256), make_strokes(200)
    accuracies, found = [], []
    for steps in (1, 60):
        model = make_model(steps)
        fit(model, Rows({"images": train[0]}), steps=steps, batch_size=64, seed=0)
        with torch.no_grad():
            features = [(model.eval()(images)[0].detach(), labels) for images, labels in (train, test)]
        accuracies.append(sum(measure_probe(features[0], features[1], 2, draws=5)) / 5)
        found.append(measure_accuracy(model, {"images": test[0]}))
    assert accuracies[1] > max(0.85, accuracies[0])
    assert found[1] > found[0]
