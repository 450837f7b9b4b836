"""Sets to go on with after a pre-training: other digits in the frame of MNIST, other documentation, less of each."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pipeline.artifacts import ArtifactError, read_tensors
from pipeline.data import numpy_docs, optdigits, package_docs, usps
from pipeline.formats.digits import frame
from pipeline.kinds import images, text

COMMON: dict[str, Any] = {"path": "data/own", "split_seed": 0, "validation": 0.125}
TEXT = COMMON | {"test": 0.1, "tokenizer": "byte", "vocabulary": 300}


def test_framed_digits_fill_the_box_of_mnist_and_keep_their_place_and_mean() -> None:
    left = np.zeros((1, 8, 8))
    left[:, :, :4] = 1
    framed = frame(np.concatenate([left, np.ones((1, 8, 8))]))
    assert framed.shape == (2, 28, 28)
    assert framed.dtype == np.uint8
    assert (framed[1, 4:-4, 4:-4] == 255).all()
    assert framed[1].sum() == 255 * 400
    assert framed[0, 4:-4, 4:-4].mean() == pytest.approx(127.5, abs=1)
    assert framed[0, 14, 5] == 255
    assert framed[0, 14, 22] == 0


def test_optdigits_are_those_that_scikit_learn_loads(tmp_path: Path) -> None:
    config = optdigits.Config(source="optdigits", **COMMON)
    optdigits.fetch(tmp_path, config)
    found = optdigits.prepare(tmp_path, config).splits
    bunch = load_digits()
    assert sum(len(labels) for _, labels in found.values()) == len(bunch.target) == 1797
    expected = {(image.tobytes(), label) for image, label in zip(frame(bunch.images / 16), bunch.target, strict=True)}
    for pixels, labels in found.values():
        each = zip(pixels.squeeze(1).numpy(), labels.tolist(), strict=True)
        assert {(image.tobytes(), label) for image, label in each} <= expected


def test_usps_lines_become_digits(tmp_path: Path) -> None:
    rows = np.full((16, 257), -1.0)
    rows[:, 0] = np.arange(16) % 2
    rows[:, 1:] += 2 * np.arange(16)[:, None] / 15  # one grey level each
    for name in ("zip.train", "zip.test"):
        np.savetxt(tmp_path / name, rows, fmt="%.4f")
    found = usps.prepare(tmp_path, usps.Config(source="usps", **COMMON)).splits
    pixels, labels = found["test"]
    assert pixels[:, 0, 14, 14].tolist() == [17 * level for level in range(16)]
    assert labels.tolist() == [0, 1] * 8
    (tmp_path / "zip.test").write_text("1 2 3\n")
    with pytest.raises(ArtifactError, match=r"zip.test: expected 257 numbers a line, got 3"):
        usps.prepare(tmp_path, usps.Config(source="usps", **COMMON))


def test_package_docs_hold_the_docstrings_that_a_package_shows() -> None:
    found = package_docs.collect("filelock")  # small
    texts = [text for each in found.values() for text in each]
    assert inspect.getdoc(filelock.BaseFileLock.acquire) in texts
    assert inspect.getdoc(filelock) in found["__init__.py"]
    assert len(texts) == len(set(texts))
    assert not [name for name in package_docs.collect("sklearn.utils") if "tests" in name.split("/")]


def test_a_limit_keeps_the_beginning_of_the_training_text_and_all_of_the_rest(tmp_path: Path) -> None:
    letters = "".join(chr(97 + index * index % 26) for index in range(3000))
    texts = text.Texts({"train": [letters[:1000], letters[1000:2000]], "validation": ["abc"], "test": ["abcd"]})
    for limit, expected in ((0, 2000), (1, 1), (1000, 1000), (1001, 1001), (5000, 2000)):
        config = numpy_docs.Config(source="numpy_docs", **TEXT, train_limit=limit)
        if limit == 1:
            with pytest.raises(ArtifactError, match="the train split needs at least 2 characters"):
                text.write(tmp_path, texts, config)
            continue
        splits = text.write(tmp_path, texts, config)["splits"]
        assert [splits[name]["characters"] for name in ("train", "validation", "test")] == [expected, 3, 4]
        assert splits["train"]["content_sha256"] == hashlib.sha256(letters[:expected].encode()).hexdigest()


def test_smaller_limits_keep_some_of_the_training_images_of_larger_ones(tmp_path: Path) -> None:
    pixels = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    split = (pixels, torch.arange(200) % 10)
    kept: list[set[int]] = []
    for limit in (0, 100, 30, 10):
        config = images.ImageConfig(source="test", **COMMON, train_limit=limit)
        found = images.write(
            tmp_path / str(limit), images.ImageSplits(dict.fromkeys(("train", "test"), split), 10), config
        )
        assert found["splits"]["test"]["count"] == 200
        assert found["splits"]["train"]["count"] == (limit or 200)
        kept.append(set(read_tensors(tmp_path / str(limit) / "train.safetensors")["images"][:, 0, 0, 0].tolist()))
    assert kept[0] > kept[1] > kept[2] > kept[3]
