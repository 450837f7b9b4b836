"""What the processes of a training must agree on: each difference is named, with the ranks that have it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import artifacts, code, params
from pipeline.runtime import agreement
from pipeline.stages import train


@pytest.mark.fault(53)
def test_a_fact_that_differs_is_named_with_its_values_and_ranks() -> None:
    first = {"stage": "train gan", "models.gan.width": "64", "code": "ab"}
    other = first | {"models.gan.width": "32"}
    assert agreement.find_differences([first, first]) == []
    assert agreement.find_differences([first, other, first, other | {"start": "x"}]) == [
        "models.gan.width is 64 on rank 0, 2 and 32 on rank 1, 3",
        "start is nothing on rank 0, 1, 2 and x on rank 3",
    ]


@pytest.mark.fault(53)
@pytest.mark.usefixtures("prepared")
def test_every_input_of_a_training_is_a_fact(
    edit_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    def compare(before: dict[str, str]) -> list[str]:
        differences = agreement.find_differences([before, train.describe("vae", params.load())])
        return [difference.partition(" is ")[0] for difference in differences]

    facts = train.describe("vae", params.load())
    edit_params({"models.vae.learning_rate": 0.5, "runs.vae.seed": 7})
    assert compare(facts) == ["runs.vae.seed", "models.vae.learning_rate"]
    facts = train.describe("vae", params.load())
    path = workdir / artifacts.PREPARED / "images" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert compare(facts) == ["data.images.splits.train.sha256"]
    facts = train.describe("vae", params.load())
    monkeypatch.setattr(code, "digest", lambda *_: "another")
    monkeypatch.setattr(agreement, "version", lambda _: "2.10")
    monkeypatch.setenv("PIPELINE_PRECISION", "64-true")
    versions = [f"version of {name}" for name in agreement.LIBRARIES]
    assert compare(facts) == ["code", *versions, "PIPELINE_PRECISION"]


@pytest.mark.fault(53)
@pytest.mark.usefixtures("prepared")
def test_the_facts_are_those_of_the_run_and_not_of_its_model_s_section(edit_params: Callable[..., None]) -> None:
    run = {**artifacts.encode(params.load().runs["vae"]), "changes": {"learning_rate": 0.25}}
    edit_params({"runs": {"another": run}})  # no run has the name of the model
    assert train.describe("another", params.load())["models.vae.learning_rate"] == "0.25"
