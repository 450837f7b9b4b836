"""Sound through all stages: a model that replays training clips has good numbers, noise has bad ones; all is shown."""

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from scipy.io import wavfile

from pipeline import artifacts, params
from pipeline.__main__ import main
from pipeline.backbones import audio as backbone
from pipeline.data.spoken_digits import WORDS
from pipeline.evidence import judges
from pipeline.history.serving import Generator
from pipeline.stages import audit, check, evaluate, fetch, networks, prepare, report, sample, train
from tests.data.test_spoken_digits import DATA, HEARING

MODEL = '''"""Replays training clips of the asked class, or makes noise."""

import torch
from pydantic import Field
from torch import nn

from pipeline import artifacts
from pipeline.models import OneNetwork, OneNetworkConfig, require

LEARNS = ("audio",)


class Config(OneNetworkConfig):
    noise: bool = Field(description="make noise")


class Model(OneNetwork):
    given = ("labels",)

    def build(self, fields):
        self.samples = fields["clips"].samples
        return nn.Linear(1, 1)

    def compute_loss(self, batch, generator):
        return self.network(torch.ones(1, 1)).square().sum()

    def draw(self, network, count, generator, given):
        if self.config.noise:
            return (3000 * torch.randn(count, self.samples, generator=generator)).short()
        split = artifacts.read_split("spoken", "train")
        rows = torch.arange(len(split["labels"]))[None]
        chance = (split["labels"] == given["labels"][:, None]).float() + 1e-9 * rows
        return split["clips"][torch.multinomial(chance, 1, generator=generator)[:, 0]]
'''
SECTIONS = {"learning_rate": 1e-3, "warmup": 0, "final_learning_rate": 0.1, "weight_decay": 0.0, "ema": 0.0}
RUNS = {"replay": False, "noise": True}


def write_params() -> None:
    """Write a params.yaml of two runs of sound."""
    run = {"model": "tiny_flow", "data": "spoken", "start": "none", "metric": "audio", "network": "hearing", "seed": 0}
    values = {
        "data": {"spoken": DATA | {"path": "data/own"}},
        "networks": {"hearing": HEARING},
        "models": {"tiny_flow": SECTIONS | {"steps": 8, "batch_size": 4, "noise": False}},
        "metrics": {"audio": {"sampling": {"count": 1000, "sets": 3, "labels": "test"}, "neighbours": 3}},
        "runs": {name: run | {"changes": {"noise": noise}} for name, noise in RUNS.items()},
    }
    Path("data/own").mkdir(parents=True)
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def read_wav(path: Path) -> np.ndarray:
    with pytest.warns(wavfile.WavFileWarning, match="not understood"):  # SciPy knows no XMP
        rate, samples = wavfile.read(path)
    assert (rate, samples.dtype) == (8000, np.int16)
    return np.asarray(samples)


@pytest.mark.slow
@pytest.mark.usefixtures("workdir")
def test_sound_goes_through_all_stages(brought: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    brought(MODEL)
    write_params()
    check.main()
    for stage in (fetch, prepare):
        stage.main("spoken")
    networks.main("hearing")
    for name in RUNS:
        for stage in (train, sample, evaluate, audit):
            stage.main(name)
    report.main()

    good, bad = (artifacts.read_json(artifacts.REPORTS / "runs" / name / "metrics.json") for name in RUNS)
    assert good["samples"] == 140
    assert good["agreement_hearing_real"] > 0.7
    assert good["agreement_hearing"] > 0.9  # of clips that the network has learnt
    assert bad["agreement_hearing"] < 0.3
    assert good["fad_hearing_ratio"] < 3
    assert bad["fad_hearing_ratio"] > 10
    assert bad["kad_hearing"] > 10 * abs(good["kad_hearing"])
    assert good["flatness"] < 0.2
    assert bad["flatness"] > 0.9
    if hasattr(backbone, "from_unit"):
        assert good["agreement_hearing_trip"] > good["agreement_hearing_real"] - 0.1
        assert good["fad_hearing_trip"] < good["fad_hearing_floor"]
    protocol = artifacts.read_json(artifacts.REPORTS / "runs" / "replay" / "protocol.json")
    assert "metric.neighbours" in protocol["values"]["recall_hearing"]["fields"]

    verdict = artifacts.read_json(artifacts.REPORTS / "runs" / "replay" / "audit" / "verdicts.json")["copies"]
    assert verdict["verdict"] == "copies"
    assert verdict["distance_ratio"] < 0.1

    page = (artifacts.REPORTS / "index.html").read_text(encoding="utf-8")
    assert page.count("data:audio/wav;base64,") >= 4  # samples, previews and neighbours of two runs
    frames = artifacts.RUNS / "replay" / "record" / "exhibits" / "samples"
    steps = {path.stem for path in frames.iterdir()}
    assert {(path.stem, path.suffix) for path in frames.iterdir()} == {
        (step, suffix) for step in steps for suffix in (".png", ".wav")
    }

    assert main(["generate", "replay", "--count", "2", "--label", "seven", "--seed", "4"]) == 0
    names = sorted(path.name for path in Path("generated").iterdir())
    assert names == ["labels-7-00004.wav", "labels-7-00005.wav", "samples.csv", "sheet.png", "sheet.wav"]
    rows = list(csv.DictReader(Path("generated/samples.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["file"], row["label"], row["seed"]) for row in rows] == [
        (name, "seven", seed) for name, seed in zip(names, ("4", "5"), strict=False)
    ]
    split: Any = artifacts.read_split("spoken", "train")
    clip = read_wav(Path("generated/labels-7-00004.wav"))
    assert (split["clips"].numpy()[split["labels"] == 7] == clip).all(axis=1).any()
    assert Image.open(io.BytesIO(Path("generated/sheet.png").read_bytes())).size == (260, 144)
    capsys.readouterr()
    assert main(["generate", "--read", "generated/labels-7-00004.wav"]) == 0
    origin = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert (origin["run"], origin["label"], origin["seed"]) == ("replay", "seven", "4")
    assert origin["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert json.loads(origin["AIGC"])["Label"] == "1"

    served = Generator()
    about = {"sampling": {}, "given": {"values": {"labels": [3, 7]}, "weights": [1, 1]}, "classes": WORDS}
    served.load_context(SimpleNamespace(artifacts={"model": "data/runs/replay/model"}, model_config=about))  # type: ignore[arg-type]
    first, second = served.predict(None, [4], {"label": "seven", "count": 2, "details": True})
    assert (first["label"], first["seed"], second["seed"]) == ("seven", 4, 5)
    rate, samples = wavfile.read(io.BytesIO(base64.b64decode(first["sample"])))
    assert rate == 8000
    assert np.array_equal(samples, clip)  # as `pipeline generate` has it

    recipe = judges.describe_recipe(params.load().networks["hearing"])
    assert recipe["fields"]["spec"] == {"samples": 8192, "rate": 8000, "classes": 10}
    kept = judges.keep(artifacts.NETWORKS / "hearing", "mine", recipe, {}, Path("judges"))
    assert judges.find(recipe, Path("judges")) == kept
    assert judges.find(recipe) is None

    assert main(["doctor", "metrics"]) == 0
    table = capsys.readouterr().out
    assert "class scores" in table
    assert "audio, noise" in table


@pytest.mark.usefixtures("workdir")
def test_a_run_of_sound_and_a_network_of_pictures_do_not_fit(brought: Callable[[str], Path]) -> None:
    brought(MODEL)
    write_params()
    text = Path("params.yaml").read_text(encoding="utf-8")
    values = YAML(typ="safe", pure=True).load(text)
    values["data"]["images"] = {"source": "mnist5k", "path": "data/own", "split_seed": 0, "validation": 0.125}
    values["networks"]["seeing"] = HEARING | {"data": "images"}
    values["runs"]["noise"]["network"] = "seeing"
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)
    message = r"runs.noise.network: networks.seeing learns images \(data.images\), data.spoken holds audio"
    with pytest.raises(params.ParamsError, match=message):
        params.load()
