"""Folders of pictures brought through the stages fetch and prepare for real: classes, splits, duplicates, refusals."""

import hashlib
import json
import os
import resource
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import torch as safetensors

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.data import image_folder
from pipeline.data.image_folder import Config
from pipeline.formats.own_files import FileReport, read_reports
from pipeline.formats.own_folders import choose_split
from pipeline.kinds.images import ImageSplits, write
from pipeline.stages import fetch as fetch_stage
from pipeline.stages import prepare as prepare_stage
from tests.conftest import prepare_own
from tests.formats.test_pictures import png

SPLITS = ("train", "validation", "test")
ODD = ["a b", "it's", 'say "x"', "two\nlines", "🙂", os.fsdecode(b"\xff\xfe")]


def draw(number: int, side: int = 8) -> np.ndarray:
    """A picture of its own for each number."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def save(root: Path, name: str, number: int) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.fromarray(draw(number)).save(file, "PNG")


def configure(root: Path, **changes: Any) -> Config:
    values = {"path": str(root), "split_seed": 0, "validation": 0.25, "test": 0.25, "size": 8, **changes}
    return Config.model_validate({"source": "image_folder", **values})


def run(root: Path, **changes: Any) -> ImageSplits:
    """Fetch and prepare a folder of pictures."""
    prepared: ImageSplits = prepare_own(image_folder, configure(root, **changes))
    return prepared


def report_of(images: ImageSplits) -> dict[str, FileReport]:
    return {report.path: report for report in images.files}


def collect(images: ImageSplits) -> dict[bytes, tuple[str, str]]:
    """Each image's bytes with its split and the name of its class."""
    found = {}
    for split, (pixels, labels) in images.splits.items():
        for image, label in zip(pixels, labels.tolist(), strict=True):
            found[image.numpy().tobytes()] = (split, images.names[label] if images.names else "")
    return found


def pixels_of(number: int) -> bytes:
    return draw(number).transpose(2, 0, 1).tobytes()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 pictures in three classes, one of them two folders deep."""
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        save(tmp_path / "own", f"{['cat', 'dog/brown', 'Eel'][number % 3]}/{number}.png", number)
    return tmp_path / "own"


@pytest.fixture
def stages(edit_params: Callable[..., None]) -> Callable[..., dict[str, Any]]:
    """Run the stages fetch and prepare on the shipped params with changed keys; return the manifest."""

    def stage(**changes: Any) -> dict[str, Any]:
        edit_params({f"data.images.{key}": value for key, value in changes.items()})
        fetch_stage.main("images")
        prepare_stage.main("images")
        return artifacts.read_manifest("images")

    return stage


# --- images, classes, splits -------------------------------------------------


def test_source_and_path_are_enough(stages: Callable[..., dict[str, Any]], workdir: Path) -> None:
    for number in range(60):
        save(workdir / "pictures", f"{number % 2}/{number}.png", number)
    manifest = stages(source="image_folder", path="pictures")
    assert manifest["fields"]["images"]["shape"] == [3, 64, 64]
    assert manifest["fields"]["labels"]["classes"] == 2
    assert manifest["classes"] == ["0", "1"]
    assert manifest["files"] == {"count": 60, "quarantined": 0, "duplicates": 0, "changed": 0}
    assert sum(entry["count"] for entry in manifest["splits"].values()) == 60
    for split in SPLITS:
        assert artifacts.read_split("images", split)["images"].shape[1:] == (3, 64, 64)
    assert [path.name for path in (workdir / "data/raw").iterdir()] == ["images"]
    assert {path.name for path in (workdir / "data/raw/images").iterdir()} == {"files.json", artifacts.SEAL}


def test_every_picture_arrives_once_with_the_class_of_its_first_folder(root: Path) -> None:
    images = run(root)
    found = collect(images)
    assert {content: name for content, (_, name) in found.items()} == {
        pixels_of(number): ["cat", "dog", "Eel"][number % 3] for number in range(30)
    }
    assert images.names == ["Eel", "cat", "dog"]  # in byte order: capitals first
    assert images.classes == 3
    assert sum(len(labels) for _, labels in images.splits.values()) == 30
    assert all(labels.dtype == torch.int64 for _, labels in images.splits.values())


def test_pictures_without_folders_are_one_class_with_the_label_0(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / "own", f"{number}.png", number)
    images = run(tmp_path / "own")
    assert images.classes == 1
    assert list(images.names) == []
    assert all(labels.unique().tolist() == [0] for _, labels in images.splits.values())


def test_the_listing_has_each_file_with_its_size_and_sha_256(root: Path) -> None:
    run(root)
    listed = {report.path: report for report in read_reports(root.parent / "raw" / "key")}
    folders = ["Eel/", "cat/", "dog/", "dog/brown/"]
    assert [path for path in listed if path.endswith("/")] == folders
    for path in root.rglob("*.png"):
        content = path.read_bytes()
        name = path.relative_to(root).as_posix()
        assert listed.pop(name) == FileReport(name, len(content), hashlib.sha256(content).hexdigest())
    assert set(listed) == set(folders)


def test_the_split_is_a_function_of_seed_and_pixels(root: Path) -> None:
    def uniform(seed: int, name: str, sha256: str) -> float:
        digest = hashlib.sha256(f"{seed}/{name}/{sha256}".encode()).digest()
        return (int.from_bytes(digest[:8], "big") >> 1) / 2**63

    for seed in (0, 1):
        expected = {}
        for path in root.rglob("*.png"):
            sha256 = hashlib.sha256(pixels_of(int(path.stem))).hexdigest()
            held_out = "validation" if uniform(seed, "validation", sha256) < 0.25 else "train"
            expected[pixels_of(int(path.stem))] = "test" if uniform(seed, "test", sha256) < 0.25 else held_out
        assert {content: split for content, (split, _) in collect(run(root, split_seed=seed)).items()} == expected


def test_shares_are_those_of_the_config() -> None:
    config = configure(Path("own"), test=0.1, validation=0.2)
    names = [choose_split(hashlib.sha256(bytes([i % 256, i // 256])).hexdigest(), config) for i in range(20_000)]
    for name, share in (("test", 0.1), ("validation", 0.9 * 0.2), ("train", 0.9 * 0.8)):
        assert abs(names.count(name) / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


def test_a_further_picture_moves_no_other_one(root: Path) -> None:
    before = collect(run(root))
    save(root, "Dab/new.png", 1000)  # a new class, first but one in the order
    save(root, "cat/0 before all others.png", 1001)
    after = collect(run(root))
    assert {content: after[content] for content in before} == before
    assert set(after) - set(before) == {pixels_of(1000), pixels_of(1001)}


def test_preparing_twice_gives_identical_bytes_whatever_threads_and_order(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one", run(root), configure(root))
    for path in sorted(root.rglob("*.png"), reverse=True):  # new inodes in another order
        shutil.copy(path, tmp_path / "copy")
        path.unlink()
        shutil.move(tmp_path / "copy", path)
    monkeypatch.setattr("pipeline.formats.own_files.THREADS", 1)
    write(tmp_path / "two", run(root), configure(root))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["files.json", *sorted(f"{split}.safetensors" for split in SPLITS)]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


@pytest.mark.parametrize("changes", [{"test": 0.001}, {"validation": 0.001}, {"test": 0.999}])
def test_a_split_without_a_picture_is_refused_with_counts_and_advice(root: Path, changes: dict[str, float]) -> None:
    with pytest.raises(ArtifactError) as caught:
        run(root, **changes)
    message = str(caught.value)
    assert "every split needs a picture, got train " in message
    assert next(f"{key} {value:g}" for key, value in changes.items()) in message
    assert message.endswith("add pictures, raise the share of the empty split, or change split_seed")


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 2},
        {"size": 0},
        {"filter": "sinc"},
        {"fit": "stretch"},
        {"background": 256},
        {"test": 0.0},
        {"max_broken": 1.0},
        {"max_megapixels": 200.0},
    ],
)
def test_nonsense_is_refused_by_its_key(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        configure(Path("own"), **changes)


# --- what is not used --------------------------------------------------------


@pytest.mark.fault(31)
def test_broken_files_are_quarantined_with_their_reasons_and_the_others_used(root: Path) -> None:
    (root / "cat" / "empty.png").touch()
    (root / "cat" / "page.png").write_bytes(b"<!DOCTYPE html>")
    (root / "dog" / "half.png").write_bytes((root / "cat" / "0.png").read_bytes()[:150])
    (root / "dog" / "out.png").symlink_to("/etc/passwd")
    os.mkfifo(root / "dog" / "pipe.png")
    images = run(root, max_broken=0.2)
    broken = {path: report.reason for path, report in report_of(images).items() if report.reason}
    assert broken == {
        "cat/empty.png": "an empty file",
        "cat/page.png": "no readable picture of a known format, it begins with b'<!DOCTYPE html>'",
        "dog/half.png": "cannot be decoded: image file is truncated",
        "dog/out.png": "a link out of the folder, or to nothing",
        "dog/pipe.png": "cannot be read: no regular file but a folder, pipe, socket or device",
    }
    assert set(collect(images)) == {pixels_of(number) for number in range(30)}
    with pytest.raises(ArtifactError, match=r"5 of 35 files cannot be used, allowed is a share of 0\.1"):
        run(root, max_broken=0.1)


@pytest.mark.fault(36)
def test_of_equal_files_the_first_is_used_and_the_others_named(root: Path) -> None:
    shutil.copy(root / "cat" / "0.png", root / "cat" / "copy.png")
    (root / "cat" / "link.png").symlink_to("0.png")
    images = run(root, max_broken=0.0)  # a duplicate is not broken
    assert sum(len(labels) for _, labels in images.splits.values()) == 30
    reports = report_of(images)
    first = reports["cat/0.png"]
    assert (first.duplicate_of, first.mode) == ("", "RGB 8x8 PNG")
    for name in ("cat/copy.png", "cat/link.png"):
        assert reports[name] == FileReport(name, first.size, first.sha256, first.mode, duplicate_of="cat/0.png")
    decisions = {path: report.decision for path, report in reports.items() if not path.endswith("/")}
    assert {path for path, decision in decisions.items() if decision == "duplicate"} == {"cat/copy.png", "cat/link.png"}
    assert set(decisions.values()) == {"used", "duplicate"}
    found = collect(images)
    assert all(reports[f"cat/{number}.png"].split == found[pixels_of(number)][0] for number in range(0, 30, 3))


@pytest.mark.fault(36)
def test_equal_pixels_in_other_bytes_are_one_picture_and_cannot_leak_between_splits(root: Path, tmp_path: Path) -> None:
    for number in range(0, 30, 3):
        picture = Image.fromarray(draw(number))
        picture.save(root / "cat" / f"{number} other.bmp")
        picture.save(root / "cat" / f"{number} packed.png", compress_level=0)
        picture.convert("RGBA").save(root / "cat" / f"{number} alpha.png")
    images = run(root, max_broken=0.0)
    reports = report_of(images)
    for number in range(0, 30, 3):
        for name in ("other.bmp", "packed.png", "alpha.png"):
            assert reports[f"cat/{number} {name}"].duplicate_of == f"cat/{number} alpha.png" or name == "alpha.png"
    assert sum(len(labels) for _, labels in images.splits.values()) == 30
    for entry in write(tmp_path / "prepared", images, configure(root))["splits"].values():
        assert {value for key, value in entry.items() if key == "duplicates" or key.startswith("shared")} == {0}


def test_the_duplicates_of_a_broken_file_are_broken(root: Path) -> None:
    for index in range(20):
        (root / "cat" / f"error {index}.png").write_bytes(b"404 not found")
    with pytest.raises(ArtifactError, match="20 of 50 files cannot be used"):
        run(root, max_broken=0.1)
    reports = report_of(run(root, max_broken=0.5))
    assert sum("404 not" in report.reason for report in reports.values()) == 20
    assert not any(report.duplicate_of for report in reports.values())


@pytest.mark.fault(36)
def test_a_picture_in_two_classes_is_used_in_neither(root: Path) -> None:
    before = collect(run(root, max_broken=0.1))
    shutil.copy(root / "cat" / "0.png", root / "Eel" / "copy.png")
    images = run(root, max_broken=0.1)
    del before[pixels_of(0)]
    assert collect(images) == before  # the others close the gap, each with its class
    reports = report_of(images)
    for name in ("cat/0.png", "Eel/copy.png"):
        assert reports[name].reason == "the same picture is in the classes 'Eel', 'cat'"
        assert reports[name].duplicate_of == ""


def test_pictures_beside_class_folders_are_quarantined(root: Path) -> None:
    save(root, "stray.png", 99)
    images = run(root, max_broken=0.1)
    assert report_of(images)["stray.png"].reason.startswith("next to class folders: its class is not known")
    assert pixels_of(99) not in collect(images)


def test_a_class_folder_without_a_picture_is_no_class_and_that_is_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "aardvark" / "deep").mkdir(parents=True)
    (root / "broken").mkdir()
    (root / "broken" / "x.png").write_bytes(b"nothing")
    (root / ".cache").mkdir()
    images = run(root, max_broken=0.1)
    assert images.names == ["Eel", "cat", "dog"]
    empty = {path: report.note for path, report in report_of(images).items() if path.endswith("/")}
    assert empty == dict.fromkeys(["aardvark/", "broken/"], "no picture that can be used: no class")
    assert "class folder 'aardvark/' has no picture that can be used" in capsys.readouterr().out


def test_a_class_folder_that_is_a_link_out_is_refused_and_one_to_a_folder_inside_passed_over(
    root: Path, tmp_path: Path
) -> None:
    (root / "same").symlink_to("cat", target_is_directory=True)
    images = run(root, max_broken=0.0)
    assert set(images.names) == {"cat", "dog", "Eel"}
    assert not [path for path in report_of(images) if path.startswith("same")]
    save(tmp_path / "elsewhere", "1.png", 500)
    (root / "fox").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ArtifactError, match="fox': a link to a folder outside of "):
        run(root, max_broken=0.9)


def test_a_folder_without_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own" / "cat").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="own: no file found"):
        run(tmp_path / "own")
    with pytest.raises(ArtifactError, match="absent: expected a folder, found nothing"):
        run(tmp_path / "absent")


def test_a_file_that_changed_after_it_was_listed_is_refused_with_both_hashes(root: Path, tmp_path: Path) -> None:
    run(root)
    path = root / "cat" / "3.png"
    listed = hashlib.sha256(path.read_bytes()).hexdigest()
    save(root, "cat/3.png", 1000)
    config = configure(root)
    with pytest.raises(ArtifactError) as caught:
        image_folder.prepare(tmp_path / "raw" / "key", config)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"'cat/3.png' changed after it was listed: expected SHA-256 {listed}, found {found}" in str(caught.value)
    assert "`dvc repro`" in str(caught.value)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"expected SHA-256 [0-9a-f]{64}, found No such file or directory"):
        image_folder.prepare(tmp_path / "raw" / "key", config)
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["key"]


def test_a_file_that_is_not_listed_is_not_used(root: Path, tmp_path: Path) -> None:
    run(root)
    save(root, "cat/later.png", 1000)
    assert pixels_of(1000) not in collect(image_folder.prepare(tmp_path / "raw" / "key", configure(root)))


def test_names_of_any_kind_come_through_to_the_manifest(
    stages: Callable[..., dict[str, Any]], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ODD if sys.platform == "linux" else ODD[:-1]
    for index, name in enumerate(names):
        for number in range(10):
            save(workdir / "my own", f"{name}/{number}{name}.png", 10 * index + number)
        (workdir / "my own" / name / f"broken{name}").write_bytes(b"nothing")
    manifest = stages(source="image_folder", path="my own", test=0.3, size=8, max_broken=0.5)
    assert manifest["classes"] == sorted(names, key=os.fsencode)
    reports = json.loads((workdir / "data/prepared/images/files.json").read_text(encoding="ascii"))
    assert {report["path"] for report in reports} == {
        f"{name}/{file}" for name in names for file in [f"broken{name}", *(f"{i}{name}.png" for i in range(10))]
    }
    with pytest.raises(ArtifactError) as caught:
        stages(max_broken=0.0)
    capsys.readouterr()
    assert all(f"  {f'{name}/broken{name}'!r}: no readable" in str(caught.value) for name in names)
    str(caught.value).encode()  # no lone surrogate: the message can be printed


def test_pillows_warnings_do_not_leak(root: Path) -> None:
    (root / "cat" / "x.png").write_bytes(b"II*\0\x08\0\0\0\x0a\0\0\x01\x04\0\x01\0")  # a TIFF directory cut short
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports = report_of(run(root, max_broken=0.1))
    assert reports["cat/x.png"].reason.startswith("no readable picture")


# --- folders that are splits, litter, values -----------------------------------


def lay_out(root: Path, folders: dict[str, int]) -> None:
    """Save so many pictures into each folder, each picture different."""
    number = 0
    for folder, count in folders.items():
        for index in range(count):
            save(root, f"{folder}/{index}.png", number)
            number += 1


def count_labels(manifest: dict[str, Any]) -> dict[str, list[int]]:
    return {name: entry["per_class"] for name, entry in manifest["splits"].items()}


def find_doubts(manifest: dict[str, Any], key: str) -> list[str]:
    return [doubt.removeprefix(f"{key}: ") for doubt in manifest["doubts"] if doubt.startswith(f"{key}: ")]


@pytest.fixture
def prepare(stages: Callable[..., dict[str, Any]], workdir: Path) -> Callable[..., dict[str, Any]]:  # noqa: ARG001 - `own` is in it
    """Prepare the pictures in `own`, at 8 pixels a side."""
    return lambda **changes: stages(source="image_folder", path="own", size=8, **changes)


def test_folders_named_train_val_and_test_are_the_splits(
    prepare: Callable[..., dict[str, Any]], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"train/cat": 20, "train/dog": 10, "val/cat": 4, "val/dog": 3, "test/cat": 6, "test/dog": 5}
    lay_out(workdir / "own", {f"data/{folder}": count for folder, count in counts.items()})
    manifest = prepare()
    assert manifest["classes"] == ["cat", "dog"]
    assert count_labels(manifest) == {"train": [20, 10], "validation": [4, 3], "test": [6, 5]}
    test = artifacts.read_split("images", "test")["images"]
    expected = [
        (workdir / "own" / f"data/test/{name}/{index}.png")
        for name, n in (("cat", 6), ("dog", 5))
        for index in range(n)
    ]
    assert np.array_equal(
        test.permute(0, 2, 3, 1).numpy(), np.stack([np.asarray(Image.open(path)) for path in expected])
    )
    said = capsys.readouterr().out
    assert "images splits: train train/, validation val/, test test/" in said
    assert "images wrapper: data" in said
    assert "images classes: 2, with examples of each: 'cat' 30, 'dog' 18" in said


@pytest.mark.parametrize(("present", "absent", "key"), [("test", "validation", "validation"), ("val", "test", "test")])
def test_a_split_without_a_folder_is_a_share_of_the_training_folder(
    prepare: Callable[..., dict[str, Any]], workdir: Path, present: str, absent: str, key: str
) -> None:
    lay_out(workdir / "own", {"train": 200, present: 7})
    manifest = prepare(**{key: 0.25})
    split = {"val": "validation"}.get(present, present)
    counts = {name: entry["count"] for name, entry in manifest["splits"].items()}
    assert counts[split] == 7
    assert counts["train"] + counts[absent] == 200
    assert abs(counts[absent] - 50) < 4 * (200 * 0.25 * 0.75) ** 0.5
    assert manifest["known"]["splits"][absent] == "a share of 0.25 of train"


def test_a_picture_of_the_test_folder_is_never_trained_on(
    prepare: Callable[..., dict[str, Any]], workdir: Path
) -> None:
    lay_out(workdir / "own", {"train": 60, "valid": 10, "test": 10})
    for index in range(3):
        shutil.copy(workdir / "own" / "test" / f"{index}.png", workdir / "own" / "train" / f"a copy {index}.png")
    shutil.copy(workdir / "own" / "test" / "0.png", workdir / "own" / "valid" / "copy.png")
    manifest = prepare()
    assert {name: entry["count"] for name, entry in manifest["splits"].items()} == {
        "train": 60,
        "validation": 10,
        "test": 10,
    }
    assert "shared_with_train" in manifest["splits"]["test"]
    assert manifest["splits"]["test"]["shared_with_train"] == 0
    assert any("4 pictures of one split's folder are in another's too" in doubt for doubt in manifest["doubts"])


@pytest.mark.parametrize(
    ("folders", "classes", "known"),
    [
        ("classes", ["test", "train"], {}),
        ("splits", [], {"train": "train/", "validation": "a share of 0.125 of train", "test": "test/"}),
        ("none", [], {}),
    ],
)
def test_the_key_folders_says_what_they_mean(
    prepare: Callable[..., dict[str, Any]], workdir: Path, folders: str, classes: list[str], known: dict[str, str]
) -> None:
    lay_out(workdir / "own", {"train/cat": 40, "train/dog": 40, "test/cat": 20, "test/dog": 20})
    manifest = prepare(folders=folders)
    assert manifest["classes"] == classes
    assert manifest.get("known", {}).get("splits", {}) == known
    assert not any("named like splits" in doubt for doubt in manifest["doubts"])


def test_splits_by_order_without_split_folders_are_refused_by_the_key(root: Path) -> None:
    with pytest.raises(ArtifactError, match=r"`folders: splits` expects folders named train .* found Eel, cat, dog"):
        run(root, folders="splits")


@pytest.mark.parametrize("folders", ["auto", "none"])
def test_a_set_without_labels_is_prepared_as_one_class_and_that_is_said(
    prepare: Callable[..., dict[str, Any]], workdir: Path, folders: str
) -> None:
    lay_out(workdir / "own", {"2024" if folders == "none" else ".": 60, "2025" if folders == "none" else ".": 60})
    manifest = prepare(folders=folders)
    assert (manifest["classes"], manifest["fields"]["labels"]["classes"]) == ([], 1)
    assert find_doubts(manifest, "data.images.folders") == [
        "one class only, so models learn no labels and the classifier cannot be trained"
    ]
    assert Path("reports/data/images/sheet.png").exists()


def test_litter_captions_tables_and_documents_are_counted_apart_and_break_nothing(
    prepare: Callable[..., dict[str, Any]], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(workdir / "own", {"photos/cat": 30, "photos/dog": 30})
    for name in ("Thumbs.db", "photos/cat/Thumbs.db", "desktop.ini", ".DS_Store", "__MACOSX/photos/cat/1.png"):
        save(workdir / "own", name, 0)
        (workdir / "own" / name).write_bytes(b"\xd0\xcf\x11\xe0")
    for name in ("labels.csv", "photos/metadata.csv", "LICENSE", "photos/cat/0.txt", "photos/dog/0.txt"):
        (workdir / "own" / name).write_text("a cat" if "0" in name else "")
    manifest = prepare(max_broken=0.0)
    ignored = {"litter": 4, "table": 2, "document": 1, "caption": 2}
    assert manifest["files"] == {"count": 69, "quarantined": 0, "duplicates": 0, "changed": 0, "ignored": ignored}
    assert manifest["classes"] == ["cat", "dog"]
    decisions = {
        entry["path"]: entry["decision"] for entry in artifacts.read_json(Path("data/prepared/images/files.json"))
    }
    assert decisions["Thumbs.db"] == decisions["photos/cat/0.txt"] == "ignored"
    assert "2 ignored as caption" in capsys.readouterr().out
    assert "files that are ignored: 2 of the kind caption" in find_doubts(manifest, "data.images.path")
    (workdir / "own" / "photos" / "cat" / "broken.png").write_bytes(b"")
    with pytest.raises(ArtifactError, match="1 of 61 files cannot be used"):  # what is ignored does not thin them out
        prepare()


def test_pictures_named_as_something_else_are_still_pictures(root: Path) -> None:
    (root / "cat" / "0.png").rename(root / "cat" / "0.txt")
    images = run(root, max_broken=0.0)
    assert pixels_of(0) in collect(images)
    assert report_of(images)["cat/0.txt"].other == ""


def test_a_folder_of_ignored_files_alone_is_refused_with_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "labels.csv").write_text("a,b")
    with pytest.raises(ArtifactError, match=r"no file found but 1 that are ignored: 'labels.csv' is a table"):
        run(tmp_path / "own")


@pytest.mark.parametrize(("bits", "stated"), [(12, "use 12 of 16 bits"), (1, "are masks of 0 and 1")])
def test_the_values_of_scans_and_masks_are_scaled_by_the_bits_that_the_whole_set_uses(
    prepare: Callable[..., dict[str, Any]], workdir: Path, bits: int, stated: str
) -> None:
    (workdir / "own").mkdir()
    generator = np.random.default_rng(0)
    values = generator.integers(0, 2**bits, (60, 8, 8)).astype(np.uint16 if bits > 8 else np.uint8)
    values[0] //= 8  # dark: scaled as the others are
    for index, each in enumerate(values):
        Image.fromarray(each).save(workdir / "own" / f"{index:02}.png")
    manifest = prepare(channels=1)
    found = {image.numpy().tobytes() for split in SPLITS for image in artifacts.read_split("images", split)["images"]}
    white = 2**bits - 1
    assert found == {np.round(each / white * 255).astype(np.uint8).tobytes() for each in values}
    assert manifest["known"]["white"] == white
    (doubt,) = find_doubts(manifest, "data.images.white")
    assert doubt == f"the pictures {stated}, so {white} is taken for white; a number here fixes it"
    manifest = prepare(channels=1, white=65535)
    assert manifest["splits"]["train"]["maximum"] <= 16
    assert "the images use only the values 0 to" in find_doubts(manifest, "data.images.white")[0]


def test_dark_colours_of_16_bits_among_8_bits_are_quarantined_and_the_preparation_ends(root: Path) -> None:
    rows = (b"\0" + np.random.default_rng(0).integers(0, 2**12, 24).astype(">u2").tobytes() for _ in range(8))
    (root / "cat" / "deep.png").write_bytes(png(8, 8, zlib.compress(b"".join(rows)), depth=16, kind=2))
    images = run(root, max_broken=0.1)
    (reason,) = [report.reason for report in report_of(images).values() if report.reason]
    assert reason.endswith("but white is 4095: save it with 8 bits, or set white to 65535")
    assert images.known["white"] == 4095
    whole = run(root, max_broken=0.0, white=65535)  # as the reason says
    assert set(collect(whole)) > {pixels_of(number) for number in range(30)}


def test_dark_ink_on_a_transparent_ground_is_put_on_white_and_that_is_said(
    prepare: Callable[..., dict[str, Any]], workdir: Path
) -> None:
    (workdir / "own").mkdir()
    inks = np.random.default_rng(0).integers(0, 2, (60, 8, 8), dtype=np.uint8) * 255
    for index, ink in enumerate(inks):
        Image.fromarray(np.dstack([np.zeros((8, 8, 3), np.uint8), ink])).save(workdir / "own" / f"{index:02}.png")
    manifest = prepare()
    found = {
        image[0].numpy().tobytes() for split in SPLITS for image in artifacts.read_split("images", split)["images"]
    }
    assert found == {(255 - ink).tobytes() for ink in inks}
    assert manifest["known"] == {"background": 255, "transparent": 60}
    (doubt,) = find_doubts(manifest, "data.images.background")
    assert doubt.startswith(
        "60 pictures are transparent in parts, and their ink is dark, so the ground behind it is white"
    )
    with pytest.raises(ArtifactError, match="every split needs a picture"):  # all black, all equal
        prepare(background=0)


def test_an_ordinary_set_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    decode = image_folder.decode
    monkeypatch.setattr(image_folder, "decode", lambda *given: calls.append(given[1]) or decode(*given))
    run(root)
    assert len(calls) == 30


# --- sets larger than memory -------------------------------------------------

LAYOUT = {
    "images": (torch.uint8, (3, 1, 5, 5)),
    "labels": (torch.int64, (3,)),
    "b": (torch.float32, (2, 2)),
    "a": (torch.int32, (7,)),
    "names of any kind Ü": (torch.uint8, (1,)),
}


def test_created_tensors_are_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.randint(0, 100, shape, generator=generator).to(dtype) for name, (dtype, shape) in LAYOUT.items()
    }
    with artifacts.create_tensors(tmp_path / "new" / "x.safetensors", LAYOUT) as tensors:
        assert all(not tensor.any() for tensor in tensors.values())
        for name, value in values.items():
            tensors[name].copy_(value)
        assert not (tmp_path / "new" / "x.safetensors").exists()
    assert (tmp_path / "new" / "x.safetensors").read_bytes() == safetensors.save(values)
    read = safetensors.load_file(tmp_path / "new" / "x.safetensors")
    assert all(torch.equal(read[name], value) for name, value in values.items())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_a_failure_while_tensors_are_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"), artifacts.create_tensors(path, LAYOUT):
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_before_any_value_is_written(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20 + 2**19, hard))
    try:
        with (
            pytest.raises(OSError, match="too large"),
            artifacts.create_tensors(tmp_path / "x.safetensors", {"x": (torch.uint8, (3 * 2**20,))}),
        ):
            pytest.fail("the context was entered")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_prepared_images_are_mapped_and_written_as_safetensors_would(root: Path, tmp_path: Path) -> None:
    images = run(root)
    manifest = write(tmp_path / "prepared", images, configure(root))
    for split, (pixels, labels) in images.splits.items():
        content = safetensors.save({"images": pixels, "labels": labels})
        assert (tmp_path / "prepared" / f"{split}.safetensors").read_bytes() == content
        assert manifest["splits"][split]["sha256"] == hashlib.sha256(content).hexdigest()
    if Path("/proc/self/maps").exists():
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        start = images.splits["train"][0].data_ptr()
        (line,) = (
            line for line in maps if int(line.split("-")[0], 16) <= start < int(line.split()[0].split("-")[1], 16)
        )
        assert str(tmp_path / "raw") in line  # the pixels lie in a nameless file, not in the heap
        assert line.endswith("(deleted)")
