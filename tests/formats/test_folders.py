"""What the folders above files mean: wrappers, splits in any of their usual forms, classes; and files that are none."""

import pytest

from pipeline.formats.folders import Folders, is_litter, name_other, name_split, read_layout, resembles_split

CASES: dict[str, tuple[Folders, dict[str, tuple[str, str]]]] = {
    "classes": ("auto", {"cat/1": ("", "cat"), "dog/deep/2": ("", "dog")}),
    "flat": ("auto", {"1": ("", ""), "2": ("", "")}),
    "wrappers": ("auto", {"a/b/cat/1": ("", "cat"), "a/b/dog/1": ("", "dog")}),
    "one folder is a wrapper": ("auto", {"cat/1": ("", ""), "cat/2": ("", "")}),
    "splits and classes": (
        "auto",
        {"train/cat/1": ("train", "cat"), "val/dog/1": ("validation", "dog"), "test/cat/2": ("test", "cat")},
    ),
    "splits without classes": ("auto", {"train/1": ("train", ""), "test/2": ("test", "")}),
    "a wrapper around and one inside": (
        "auto",
        {"x/Training Set/images/cat/1": ("train", "cat"), "x/TEST/images/dog/1": ("test", "dog")},
    ),
    "one class in all splits is a wrapper": ("auto", {"train/cat/1": ("train", ""), "test/cat/2": ("test", "")}),
    "classes with splits inside": (
        "auto",
        {
            "cat/train/1": ("train", "cat"),
            "cat/test/1": ("test", "cat"),
            "dog/train/1": ("train", "dog"),
            "dog/dev/1": ("validation", "dog"),
        },
    ),
    "train alone is a wrapper": ("auto", {"train/cat/1": ("", "cat"), "train/dog/1": ("", "dog")}),
    "no training pictures, no splits": ("auto", {"val/1": ("", "val"), "test/1": ("", "test")}),
    "other folders next to them, no splits": (
        "auto",
        {"train/1": ("", "train"), "test/1": ("", "test"), "cat/1": ("", "cat")},
    ),
    "classes by order": ("classes", {"train/cat/1": ("", "train"), "test/dog/1": ("", "test")}),
    "splits by order": ("splits", {"train/cat/1": ("train", ""), "test/dog/1": ("test", "")}),
    "nothing by order": ("none", {"train/cat/1": ("", ""), "test/dog/1": ("", "")}),
}


@pytest.mark.parametrize("name", CASES)
def test_folders_mean_what_their_names_and_places_say(name: str) -> None:
    folders, expected = CASES[name]
    layout = read_layout(expected, folders)
    places = {path: layout.place(path) for path in expected}
    assert {path: (place.split, place.group) for path, place in places.items()} == expected
    assert not any(place.reason for place in places.values())


def test_a_file_outside_of_the_wrapper_or_of_the_splits_has_a_reason_and_no_class() -> None:
    layout = read_layout(["x/train/cat/1", "x/train/dog/1", "x/test/cat/2"])
    assert layout.place("cover").reason == "outside of the folder 'x' that holds the other files"
    for path in ("x/cover", "x/extra/cat/1"):
        place = layout.place(path)
        assert (place.split, place.group, place.reason) == ("", "", "outside of the folders that are the splits")
    assert [layout.is_class_folder(f"x/{name}/") for name in ("train", "train/eel", "train/eel/a", "y")] == [
        *(False, True, False, False)
    ]


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Train", "TRAINING", "training_set", "train2017", "train-images", "train_1"]),
        ("validation", ["val", "valid", "validation", "dev", "val2017"]),
        ("test", ["test", "testing", "test1", "Test Data"]),
        (
            "",
            ["trainA", "trains", "valley", "testament", "train_cats", "attest", "", "1", "train.cats", "développement"],
        ),
    ],
)
def test_names_of_splits(split: str, names: list[str]) -> None:
    assert {name: name_split(name) for name in names} == dict.fromkeys(names, split)


def test_names_that_resemble_splits_are_known_and_words_that_begin_alike_are_not() -> None:
    assert all(map(resembles_split, ["trainA", "train_cats", "TestB", "TEST", "val"]))
    assert not any(map(resembles_split, ["trains", "valley", "Testament", "cat", "cat_train", "7", ""]))


def test_what_is_no_picture_is_named() -> None:
    pictures = {"cat/1.png", "cat/1"}
    expected = {
        "Thumbs.db": "litter",
        "cat/desktop.ini": "litter",
        "__MACOSX/cat/1.png": "litter",
        "cat/1.txt": "caption",
        "cat/1.png.json": "caption",
        "cat/2.txt": "document",
        "metadata.csv": "table",
        "labels.JSONL": "table",
        "LICENSE": "document",
        "cat/2.png": "",
        "cat/2.heic": "",
        "cat/2": "",
        "photos.zip": "",
    }
    assert {path: name_other(path, pictures, {".png", ".heic"}) for path in expected} == expected
    assert name_other("album/cover.jpg", {"album/1.mp3", "album/1"}, {".mp3"}) == "companion"
    assert name_other("album/2.mp3", {"album/1.mp3", "album/1"}, {".mp3"}) == ""
    assert not is_litter("cat/thumbs.db.png")
