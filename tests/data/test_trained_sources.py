"""Data of one's own, and synthetic points, through the stages fetch, prepare and train, with trainings of a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.stages import fetch, prepare, train

Edit = Callable[[dict[str, Any]], None]
pytestmark = pytest.mark.usefixtures("tiny")


def run(data: str, key: str) -> None:
    """Train; fails unless weights are left."""
    fetch.main(data)
    prepare.main(data)
    train.main(key)
    assert (artifacts.RUNS / key / "model" / "model.safetensors").exists()


def test_a_gan_learns_pictures_of_ones_own(workdir: Path, edit_params: Edit) -> None:
    generator = np.random.default_rng(0)
    for number in range(400):
        path = workdir / "data" / "own" / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    edit_params({"data.images.source": "image_folder", "data.images.size": 32, "data.images.test": 0.25})
    run("images", "gan")


def test_a_transformer_learns_a_text_of_ones_own(workdir: Path, edit_params: Edit) -> None:
    (workdir / "novel.txt").write_text("It was a dark and stormy night. " * 200, encoding="utf-8")
    edit_params({"data.text.source": "text_file", "data.text.path": "novel.txt", "data.text.tokenizer": "byte"})
    run("text", "transformer")


def test_a_gan_learns_points(edit_params: Edit) -> None:
    points = {"source": "gaussians", "path": "none", "count": 200, "data_seed": 0}
    edit_params({"data.points": points | {"layout": "ring", "modes": 8, "deviation": 0.01}})
    edit_params({"metrics.points": {"sampling": {"count": 100, "sets": 1}, "deviations": 3.0}})
    edit_params({"runs.gan.data": "points", "runs.gan.metric": "points", "runs.gan.network": "none"})
    run("points", "gan")


def test_a_text_shorter_than_the_context_is_refused_by_its_keys_before_a_run_is_opened(
    workdir: Path, edit_params: Edit
) -> None:
    (workdir / "short.txt").write_text("a few words " * 5, encoding="utf-8")
    edit_params({"data.text.source": "text_file", "data.text.path": "short.txt", "data.text.test": 0.0})
    with pytest.raises(ArtifactError) as caught:
        run("text", "transformer")
    for part in (
        "data.text (source text_file, path short.txt) has 57 tokens",
        "models.transformer.context, which is 32",
    ):
        assert part in str(caught.value)
    assert not list((workdir / ".state").rglob("record"))
