"""pipeline audit: copies of the training images are found, other real images pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipeline import artifacts, seals
from pipeline.__main__ import main
from pipeline.stages import features, fetch, prepare
from tests.conftest import TINY


@pytest.fixture
def write_samples(edit_params: Callable[..., None]) -> Callable[[Tensor], None]:
    """Prepare digits and a feature network; return what gives the run `gan` its samples."""
    edit_params(TINY)
    fetch.main("images")
    prepare.main("images")
    features.main("classifier")

    def write(images: Tensor) -> None:
        folder = artifacts.RUNS / "gan" / "samples"
        artifacts.write_tensors(folder / "generated.safetensors", {"0": images})
        seals.seal(folder)

    return write


@pytest.mark.fault(42)
def test_copies_fail_and_other_real_images_pass(
    write_samples: Callable[[Tensor], None], capsys: pytest.CaptureFixture[str]
) -> None:
    train = artifacts.read_split("images", "train")["images"]
    write_samples(artifacts.read_split("images", "validation")["images"])
    assert main(["audit"]) == 0
    assert "| no copy |" in capsys.readouterr().out
    write_samples(train[:500])
    assert main(["audit", "gan"]) == 1
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert row[1].strip() == "gan, classifier"
    assert float(row[2]) < -10
    assert (float(row[3]), row[5].strip()) == (0, "**copies**")
    blurred = train[:500].clone()
    blurred[:, :, ::2] = train[:500, :, 1::2]  # each second row doubled: near the original, and not equal
    write_samples(blurred)
    assert main(["audit", "gan"]) == 1


def test_a_run_without_samples_is_named(workdir: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    assert workdir.exists()
    assert main(["audit", "vae"]) == 1
    assert "features for: vae" in capsys.readouterr().err
