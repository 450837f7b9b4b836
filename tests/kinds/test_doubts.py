"""What a manifest makes doubtful, by planted sets: each doubt comes with its key, and an ordinary set has none."""

from typing import Any

import pytest
import torch

from pipeline.data import gaussians, image_folder, mnist5k
from pipeline.kinds import images, points, text

SHARED = {"path": "own", "split_seed": 0, "validation": 0.1}
OWN = image_folder.Config.model_validate({"source": "image_folder", **SHARED})
DIGITS = mnist5k.Config.model_validate({"source": "mnist5k", **SHARED})

SPLIT_FOLDERS = "split folders are one named train and others named test or validation, without further folders"


def describe(
    train: list[int], validation: list[int] | None = None, test: list[int] | None = None, **changes: Any
) -> dict[str, Any]:
    """A manifest of images with these numbers per class."""
    splits = {"train": train, "validation": validation or train, "test": test or train}
    entries = {name: {"count": sum(counts), "per_class": counts, "duplicates": 0} for name, counts in splits.items()}
    names = [f"class {label}" for label in range(len(train))]
    return {"splits": entries, "classes": names, "fields": {"labels": {"classes": len(train)}}} | changes


def test_an_ordinary_set_raises_no_doubt() -> None:
    assert images.question_data("faces", describe([500, 600]), OWN) == []
    assert images.question_data("faces", describe([500, 600], classes=[]), DIGITS) == []


@pytest.mark.parametrize(
    ("manifest", "doubt"),
    [
        (describe([100, 100]), "data.faces.path: 200 training examples are few, a model may copy them"),
        (
            describe([900]),
            "data.faces.folders: one class only, so models learn no labels and the classifier cannot be trained",
        ),
        (
            describe([500, 500, 500], test=[9, 0, 9]),
            "data.faces.test: the test split has no example of 1 of 3 classes: 'class 1'",
        ),
        (
            describe([500, 500], validation=[9, 0], known={"splits": {"validation": "val/"}}),
            "data.faces.folders: the validation split has no example of 1 of 2 classes: 'class 1'",
        ),
        (
            describe([5000, 400, 499]),
            "data.faces.path: class 'class 0' has 5000 training examples, class 'class 1' has 400",
        ),
        (
            describe([500, 500], classes=["cat", "trainA"]),
            f"data.faces.folders: 'trainA' are classes, though named like splits; {SPLIT_FOLDERS}",
        ),
        (
            describe([500, 500], known={"range": [0, 16]}),
            "data.faces.white: the images use only the values 0 to 16 of 0 to 255",
        ),
        (
            describe([500, 500], files={"count": 1000, "duplicates": 10, "ignored": {"table": 1, "litter": 2}}),
            "data.faces.path: files that are ignored: 1 of the kind table",
        ),
        (
            describe([500, 500], files={"count": 1000, "duplicates": 11}),
            "data.faces.path: 11 of 1000 files repeat another one, and are not used",
        ),
    ],
)
def test_each_doubt_names_its_key(manifest: dict[str, Any], doubt: str) -> None:
    assert images.question_data("faces", manifest, OWN) == [doubt]


def test_repeated_and_shared_examples_are_doubtful_above_a_share() -> None:
    manifest = describe([500, 500])
    manifest["splits"]["train"]["duplicates"] = 10  # a hundredth
    manifest["splits"]["test"]["shared_with_train"] = 1
    assert images.question_data("digits", manifest, DIGITS) == []
    manifest["splits"]["train"]["duplicates"] = 11
    manifest["splits"]["test"]["shared_with_train"] = 2
    assert images.question_data("digits", manifest, DIGITS) == [
        "data.digits.source: 11 of 1000 examples in the train split repeat another one",
        "data.digits.source: 2 of 1000 examples in the test split are in the train split too",
    ]


def test_a_class_may_be_absent_from_validation_by_chance_and_not_from_the_test_split() -> None:
    many = [60] * 20
    one = [3] * 19 + [0]
    assert images.question_data("faces", describe(many, validation=one), OWN) == []
    assert len(images.question_data("faces", describe(many, validation=[3] * 17 + [0] * 3), OWN)) == 1
    assert len(images.question_data("faces", describe(many, test=one), OWN)) == 1


def test_a_narrow_range_is_found_despite_outliers() -> None:
    values = torch.arange(20, 60, dtype=torch.uint8).repeat(100).view(10, 1, 20, 20)
    values[0, 0, 0, 0], values[1, 0, 0, 0] = 255, 0
    assert images.find_narrow_range(values) == {"range": [20, 59]}
    assert images.find_narrow_range(torch.arange(256, dtype=torch.uint8).repeat(100).view(-1, 1, 16, 16)) == {}


def test_a_tiny_text_and_one_that_repeats_itself_are_doubtful() -> None:
    config: Any = type("Config", (), {"model_fields": {"max_broken": None}})()
    known = {"unknown_characters": 0}
    splits = {"train": {"characters": 9999} | known, "test": {"characters": 10, "overlap_with_train": 0.75} | known}
    assert text.question_data("book", {"splits": splits}, config) == [
        "data.book.path: 9999 characters of training text are few, a model may copy them",
        "data.book.path: 75% of the test split is word for word in the train split too",
    ]


def test_few_points_are_named_with_the_key_of_their_number() -> None:
    config = gaussians.Config(
        source="gaussians", path="own", layout="ring", modes=2, deviation=0.1, count=200, data_seed=0
    )
    assert points.question_data("ring", describe([100, 100]), config) == [
        "data.ring.count: 200 training examples are few, a model may copy them"
    ]
