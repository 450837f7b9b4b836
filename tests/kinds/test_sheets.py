"""The stage prepare shows each data set at a glance, by the exhibit of its kind, without a branch on kinds."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML

from pipeline import artifacts
from pipeline.formats.wav import read_wav
from pipeline.kinds import audio, images, points
from pipeline.stages import fetch, prepare


def test_a_contact_sheet_has_a_row_per_class_of_images_of_that_class(tmp_path: Path) -> None:
    labels = torch.tensor([1, 0, 2, 1, 0, 2] * 3)
    values = (labels * 100).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 30, 30)
    artifacts.write_tensors(tmp_path / "train.safetensors", {"images": values, "labels": labels})
    manifest = {"fields": {"labels": {"classes": 4}}, "classes": ["cat", "dog", "Ü\n\udcff", "empty"]}
    sheet = images.show_data(tmp_path, manifest)
    picture = np.asarray(Image.open(io.BytesIO(sheet.content)))
    assert (sheet.name, sheet.suffix) == ("sheet", ".png")
    rows = np.split(picture, 4)
    for row, level in zip(rows, (0, 100, 200, 255), strict=True):
        assert (row[8:24, images.MARGIN + 8 : images.MARGIN + 24] == level).all()
        assert (row[:, : images.MARGIN] < 128).any()  # its label


def test_large_images_are_shown_small(tmp_path: Path) -> None:
    split = {"images": torch.zeros(4, 3, 512, 512, dtype=torch.uint8), "labels": torch.tensor([0, 1, 0, 1])}
    artifacts.write_tensors(tmp_path / "train.safetensors", split)
    sheet = images.show_data(tmp_path, {"fields": {"labels": {"classes": 2}}, "classes": []})
    assert Image.open(io.BytesIO(sheet.content)).height <= 2 * (images.THUMB + 4)


def test_the_first_clip_of_each_class_is_heard_in_the_order_of_the_classes(tmp_path: Path) -> None:
    clips = torch.tensor([[5, 5], [7, 7], [6, 6], [5, 8]], dtype=torch.int16)
    split = {"clips": clips, "labels": torch.tensor([1, 2, 0, 1])}
    artifacts.write_tensors(tmp_path / "train.safetensors", split)
    sheet = audio.show_data(tmp_path, {"fields": {"clips": {"rate": 8}}})
    (tmp_path / "sheet.wav").write_bytes(sheet.content)
    samples, rate = read_wav(tmp_path / "sheet.wav")
    assert (samples.tolist(), rate) == ([6, 6, 0, 0, 5, 5, 0, 0, 7, 7, 0, 0], 8)


def test_points_are_shown_as_their_samples_are(tmp_path: Path) -> None:
    values = torch.rand(20, 2)
    artifacts.write_tensors(tmp_path / "train.safetensors", {"points": values, "labels": torch.zeros(20).long()})
    assert points.show_data(tmp_path, {}) == points.show("sheet", values, None)


def test_the_stage_writes_the_beginning_of_each_split_of_a_text(
    edit_params: Callable[..., None], workdir: Path
) -> None:
    story = "".join(f"Line {number}.\n" for number in range(2000))
    (workdir / "story.txt").write_text(story)
    edit_params({"data.text.source": "text_file", "data.text.path": "story.txt"})
    fetch.main("text")
    prepare.main("text")
    texts = YAML(typ="safe", pure=True).load(workdir / "reports/data/text/sheet.yaml")
    assert [text.splitlines()[0] for text in texts] == ["train:", "validation:", "test:"]
    assert texts[0] == f"train:\n{story[:400]}"
