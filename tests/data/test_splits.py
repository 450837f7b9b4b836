"""Splits: shares, disjoint and complete sets, the same ones every time."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.kinds.images import ImageConfig, hold_out, split_stratified
from pipeline.kinds.text import TextConfig, split_documents
from pipeline.randomness import make_generator

COUNTS = (10, 40, 7, 101)  # of the classes


def text_config(**changes: Any) -> TextConfig:
    values = {"path": "data/own", "split_seed": 0, "validation": 0.1, "test": 0.2}
    values |= {"tokenizer": "character", "vocabulary": 300}
    return TextConfig.model_validate({"source": "test"} | values | changes)


def split(groups: dict[str, list[str]], config: TextConfig) -> dict[str, str]:
    return {name: "".join(pieces) for name, pieces in split_documents(groups, config).splits.items()}


@pytest.fixture
def labels() -> torch.Tensor:
    values = torch.cat([torch.full((count,), label) for label, count in enumerate(COUNTS)])
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]


@pytest.fixture
def groups() -> dict[str, list[str]]:
    """300 groups of 1 to 4 documents; every document is a number that occurs nowhere else, repeated."""
    generator = random.Random(0)  # noqa: S311
    numbers = iter(range(10_000))
    return {
        f"name{index}": [f"<{next(numbers)}>" * generator.randint(1, 60) for _ in range(generator.randint(1, 4))]
        for index in range(300)
    }


@pytest.mark.parametrize("share", [0.1, 0.125, 0.5])
def test_every_class_gives_exactly_its_share(labels: torch.Tensor, share: float) -> None:
    rest, part = split_stratified(labels, share, make_generator(0, "test"))
    assert labels[part].bincount(minlength=4).tolist() == [round(share * count) for count in COUNTS]
    assert labels[rest].bincount(minlength=4).tolist() == [count - round(share * count) for count in COUNTS]


def test_stratified_parts_are_disjoint_and_complete(labels: torch.Tensor) -> None:
    rest, part = split_stratified(labels, 0.3, make_generator(0, "test"))
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(len(labels)))


def test_stratified_split_is_a_function_of_the_generator_alone(labels: torch.Tensor) -> None:
    first, second, other = (split_stratified(labels, 0.3, make_generator(seed, "test"))[1] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_part_is_drawn_from_the_whole_class_not_from_its_beginning() -> None:
    part = split_stratified(torch.zeros(1000, dtype=torch.long), 0.5, make_generator(0, "test"))[1]
    # The mean of 500 of 1,000 positions drawn without replacement: 499.5, standard error 9.1.
    assert abs(float(part.double().mean()) - 499.5) < 50


def test_hold_out_pairs_every_image_with_its_label() -> None:
    values = np.arange(100, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None], (100, 28, 28))  # the pixels say which image it is
    digits = values % 10
    config = ImageConfig(source="test", path="data/own", split_seed=0, validation=0.2)
    splits = hold_out((images, digits), (images[:20], digits[:20]), config)
    assert splits.classes == 10
    assert {name: len(part[0]) for name, part in splits.splits.items()} == {"train": 80, "validation": 20, "test": 20}
    for pixels, classes in splits.splits.values():
        assert pixels.dtype == torch.uint8
        assert classes.dtype == torch.int64
        assert pixels.shape[1:] == (1, 28, 28)
        assert torch.equal(pixels[:, 0, 3, 5] % 10, classes)
    held_in = torch.cat([splits.splits[name][0][:, 0, 0, 0] for name in ("train", "validation")])
    assert sorted(held_in.tolist()) == values.tolist()


def test_a_change_of_the_validation_share_leaves_the_test_split() -> None:
    images, digits = np.zeros((50, 28, 28), dtype=np.uint8), np.arange(50, dtype=np.uint8) % 10
    held_out = np.arange(10 * 784, dtype=np.uint64).astype(np.uint8).reshape(10, 28, 28), np.arange(10)
    for share in (0.2, 0.4):
        config = ImageConfig(source="test", path="data/own", split_seed=0, validation=share)
        splits = hold_out((images, digits), held_out, config).splits
        assert np.array_equal(splits["test"][0].squeeze(1).numpy(), held_out[0])


def test_groups_stay_whole_disjoint_and_complete(groups: dict[str, list[str]]) -> None:
    splits = split(groups, text_config())
    for documents in groups.values():
        homes = {name for document in documents for name, text in splits.items() if document in text.split("\n\n")}
        assert len(homes) == 1  # no document is lost, no group and no document stands in two splits
    pieces = [piece for text in splits.values() for piece in text.split("\n\n")]
    assert sorted(pieces) == sorted(document for documents in groups.values() for document in documents)


@pytest.mark.parametrize(("validation", "test"), [(0.05, 0.1), (0.1, 0.2), (0.3, 0.3)])
def test_document_shares_are_right_to_the_size_of_a_group(
    groups: dict[str, list[str]], validation: float, test: float
) -> None:
    sizes = {name: len(text) for name, text in split(groups, text_config(validation=validation, test=test)).items()}
    total = sum(sizes.values())
    largest = max(sum(map(len, documents)) + 2 * len(documents) for documents in groups.values())
    assert abs(sizes["validation"] - validation * total) <= largest + 0.01 * total
    assert abs(sizes["test"] - test * total) <= largest + 0.01 * total


def test_document_split_is_a_function_of_the_seed_and_not_of_the_order_of_the_groups(
    groups: dict[str, list[str]],
) -> None:
    first = split(groups, text_config())
    assert split(dict(reversed(groups.items())), text_config()) == first
    assert split(groups, text_config(split_seed=1)) != first


def test_without_a_test_share_there_is_no_test_split(groups: dict[str, list[str]]) -> None:
    assert set(split(groups, text_config(test=0.0))) == {"train", "validation"}
    assert set(split({"one": ["abc" * 100]}, text_config(test=0.0))) == {"train", "validation"}


@pytest.mark.parametrize("length", [10, 11, 99, 101, 12_345, 1_115_394])
def test_a_single_document_is_cut_where_nanogpt_cuts_it(length: int) -> None:
    text = "".join(chr(33 + index % 90) for index in range(length))
    splits = split({"input.txt": [text]}, text_config(validation=0.1, test=0.0))
    # data/shakespeare_char/prepare.py: train_data = data[:int(n*0.9)], val_data = data[int(n*0.9):]
    assert splits == {"train": text[: int(length * 0.9)], "validation": text[int(length * 0.9) :]}


def test_a_single_document_is_cut_into_three_parts_in_the_order_of_the_text() -> None:
    text = "".join(map(str, range(5000)))
    splits = split({"one": [text]}, text_config(validation=0.1, test=0.2))
    assert list(splits) == ["train", "validation", "test"]
    assert "".join(splits.values()) == text
    for name, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(len(splits[name]) - share * len(text)) <= 1


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.9, 0.2), (0.1, 0.95)])
def test_shares_that_leave_no_training_text_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ValidationError, match=rf"validation \+ test must stay below 1, got {validation} \+ {test}"):
        text_config(validation=validation, test=test)


@pytest.mark.parametrize("changes", [{"validation": 0.0}, {"validation": 1.0}, {"test": -0.1}, {"test": 1.0}])
def test_shares_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(changes))}\n"):
        text_config(**changes)
