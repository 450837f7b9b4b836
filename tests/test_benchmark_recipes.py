"""Benchmarks that nobody has measured: their runs train for one step, with their own networks and settings."""

import json
import math
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

import pipeline
from pipeline import artifacts, params
from pipeline.data import cifar10
from pipeline.kinds import images
from pipeline.stages import check, fetch, prepare, train
from tests.conftest import ROOT
from tests.data.test_fetched_sources import CLASSES, make_records, write_tar
from tests.test_dvc import copy_project, list_stages, run

pytestmark = pytest.mark.slow
FOLDER = ROOT / "benchmarks" / "cifar10"
WEIGHTS = {"flow_0": 32, "dit_0": 32, "one_step_0": 32, "gan_0": 8, "vae_0": 41}  # millions, that samples need
FEW = {"count": 60, "sets": 1, "importance_samples": 1, "bits_images": 20, "labels": "test"}  # the archive has no more
yaml = YAML(typ="safe", pure=True)


@pytest.fixture
def project(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the benchmark's params.yaml; its trainings take one step, on a mirror's small archive."""
    mirror = workdir / "mirror" / "cifar10"
    mirror.mkdir(parents=True)
    files = {f"data_batch_{number}.bin": make_records(100, number) for number in range(1, 6)}
    files |= {"test_batch.bin": make_records(60, 6), "batches.meta.txt": CLASSES}
    path = write_tar(mirror, {f"{cifar10.FOLDER}/{name}": body for name, body in files.items()})
    monkeypatch.setattr(cifar10, "SHA256", artifacts.digest(path))
    monkeypatch.setenv("DATA_MIRROR", str(mirror.parent))
    monkeypatch.setattr(images, "PREVIEW", 1)  # samples; each takes 35 passes of a flow
    values = yaml.load(FOLDER / "params.yaml")
    values["data"]["cifar10"]["path"] = "data/own"
    values["metrics"]["images"] |= {"sampling": FEW, "kid_subset_size": 50}
    for section in (*values["models"].values(), *(each["changes"] for each in values["runs"].values())):
        section |= {key: few for key, few in {"steps": 1, "batch_size": 2}.items() if key in section}
    with (workdir / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    return workdir


@pytest.mark.parametrize(("precision", "keys"), [("32-true", tuple(WEIGHTS)), ("bf16-mixed", ("gan_0",))])
def test_every_run_of_cifar10_trains_with_its_own_settings_and_draws_pictures(
    project: Path, precision: str, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_PRECISION", precision)
    check.main()
    fetch.main("cifar10")
    prepare.main("cifar10")
    settings, expected = params.load(), params.load(FOLDER / "params.yaml")
    assert settings.runs.keys() == expected.runs.keys() == WEIGHTS.keys()
    drawn = {}
    for key in keys:  # one_step_0 starts from flow_0
        few = {"steps": 1, "batch_size": 2}
        assert settings.models[key].model_dump() == expected.models[key].model_dump() | few
        train.main(key)
        record = project / "data" / "runs" / key / "record"
        about = artifacts.read_json(record / "run.json")
        assert about["status"] == "FINISHED"
        assert round(about["totals"]["kept_parameters"] / 1e6) == WEIGHTS[key]
        [*_, last] = [json.loads(line) for line in (record / "metrics.jsonl").read_text().splitlines()]
        assert last["step"] == 1
        assert all(math.isfinite(value) for value in last["values"].values())
        (record / "state.ckpt").unlink()  # half a gigabyte
        drawn[key] = pipeline.load(key).draw([0, 1])
        for image in drawn[key]:
            assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 32, 32))
    assert len({image.numpy().tobytes() for pictures in drawn.values() for image in pictures}) == 2 * len(keys)


def test_dvc_and_the_stage_check_take_the_folder_as_it_is(tmp_path: Path) -> None:
    copy_project(tmp_path)
    folder = tmp_path / "benchmarks" / "cifar10"
    assert (folder / "params.yaml").read_bytes() == (FOLDER / "params.yaml").read_bytes()
    names = {line.split()[0] for line in run(folder, "dvc", "stage", "list").splitlines()}
    stages = {f"{stage}@{key}" for stage in ("train", "sample", "evaluate", "audit") for key in WEIGHTS}
    assert names == stages | {"check", "fetch@cifar10", "prepare@cifar10", "networks@inception", "report"}
    graph = run(folder, "dvc", "dag", "evaluate@one_step_0", "--dot")
    assert '"train@flow_0" -> "train@one_step_0"' in graph
    assert "gan_0" not in graph
    output = run(folder, "dvc", "repro", "check")
    assert list_stages(output) == ["check"]
    assert f"params.yaml: {len(WEIGHTS)} runs, all keys known and in range" in output
    run(folder, "python", "-m", "pipeline", "results")
    assert run(tmp_path, "git", "diff", "--name-only", "--", "benchmarks/cifar10") == ""  # results.md is up to date
