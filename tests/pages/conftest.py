"""A project with small results: an untrained GAN whose samples are copies, a language model, the committed numbers."""

import shutil
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from pipeline import artifacts, params, plugins
from pipeline.formats.tokenizers import train_tokenizer
from pipeline.kinds import Pool, images, read_fields, text
from pipeline.stages import audit, report
from pipeline.weights import Loaded, save_model
from tests.conftest import ROOT, TINY, leave_out_runs, set_value

TEXT = "\nReturn the mean of an array.\n\nThe default is none.\n" * 40
PROMPT = "Return"
ABOUT = {
    "environment": {
        **dict.fromkeys(("python", "torch", "pytorch-lightning", "numpy", "torchmetrics", "torch-fidelity"), "1.0"),
        "dvc": "3.0",
        "mlflow": "3.0",
        "processor": "a processor",
        "threads": "2",
        "accelerator": "none",
        "instruction_set": "AVX2",
        "lock_sha256": "0" * 64,
    },
    "totals": {"seconds": 60.0, "cpu_seconds": 90.0, "peak_memory_mib": 900.0, "kept_parameters": 1234},
    "tags": {"alarm": "step 12: <b>mode collapse</b>"},
    "status": "FINISHED",
}


def write_run(name: str, seconds: float) -> None:
    """Write what trainings and evaluations leave: the committed numbers, curves, a record."""
    target = artifacts.REPORTS / "runs" / name
    for stem in ("metrics", "sets", "protocol"):
        artifacts.write_bytes(target / f"{stem}.json", (ROOT / "reports" / "runs" / name / f"{stem}.json").read_bytes())
    artifacts.write_bytes(target / "curves" / "loss.csv", b"step,loss\n10,3.5\n20,2.5\n30,2.0\n")
    about = ABOUT | {"totals": ABOUT["totals"] | {"cpu_seconds": seconds}}  # type: ignore[operator]
    artifacts.write_json(artifacts.RUNS / name / "record" / "run.json", about)


def write_networks(settings: params.Params) -> Loaded:
    """Write an untrained GAN and an untrained classifier; return the first."""
    fields = read_fields("images")
    pool = Pool({"labels": torch.arange(10)}, [1.0] * 10)
    for family, name, key in (("models", "gan", "gan"), ("networks", "classifier", "classifier")):
        module, config = plugins.load(family, name), getattr(settings, family)[key]
        model = module.Model(config, fields, 0)
        folder = artifacts.RUNS / "gan" / "model" if family == "models" else artifacts.NETWORKS / key
        save_model(folder, name, model, config, fields, pool=pool if family == "models" else None)
        if family == "models":
            made = Loaded(model.eval(), fields, config, None, pool)
    return made


def write_text(settings: params.Params) -> None:
    """Write an untrained language model, its data, and what it has written."""
    tokenizer = train_tokenizer([TEXT], "character", 0)
    fields = text.make_fields(tokenizer.size)
    module, config = plugins.load("models", "transformer"), settings.models["transformer"]
    model = module.Model(config, fields, 0)
    torch.nn.init.normal_(model.network.head.weight)
    save_model(
        artifacts.RUNS / "transformer" / "model", "transformer", model, config, fields, tokenizer=tokenizer.state()
    )
    folder = artifacts.PREPARED / "text"
    artifacts.write_json(folder / "tokenizer.json", tokenizer.state())
    split = text.tokenize(folder / "test.safetensors", [TEXT], tokenizer)
    entry = text.survey([TEXT]) | {"tokens": split[0], "sha256": artifacts.digest(folder / "test.safetensors")}
    entry |= {"unknown_characters": 0, "most_unknown": []}
    shutil.copy(folder / "test.safetensors", folder / "train.safetensors")
    manifest = {
        "source": "numpy_docs",
        "kind": "text",
        "fields": {"tokens": {"kind": "text", "vocabulary": tokenizer.size}},
    }
    artifacts.write_json(folder / "manifest.json", manifest | {"splits": {"test": entry, "train": entry}})
    samples = artifacts.RUNS / "transformer" / "samples"
    artifacts.write_tensors(samples / "nats.safetensors", {"test": torch.ones(5)})
    shown = text.show("samples", [f"{PROMPT} <script>alert(1)</script>", f"{PROMPT} again"], None)
    artifacts.write_bytes(artifacts.REPORTS / "runs" / "transformer" / "samples" / "samples.yaml", shown.content)
    previews = artifacts.RUNS / "transformer" / "record" / "exhibits" / "samples"
    for step in (10, 20):
        artifacts.write_bytes(previews / f"{step:07}.txt", f"{PROMPT} {step}".encode())


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The project's folder, with its report."""
    folder = tmp_path_factory.mktemp("shown")
    shutil.copytree(digits, folder / "data")
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(leave_out_runs((ROOT / "params.yaml").read_text(encoding="utf-8")))
    for key, value in (TINY | {"metrics.text.sampling.prompt": PROMPT}).items():
        set_value(values, key, value)
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = params.load()
        for number, name in enumerate(settings.runs):
            write_run(name, 60.0 * (number + 1))
        shutil.rmtree(artifacts.RUNS / "vae")  # as in a clone, whose numbers git has and whose record it has not
        made = write_networks(settings)
        train = artifacts.read_split("images", "train")["images"]
        artifacts.write_tensors(artifacts.RUNS / "gan" / "samples" / "generated.safetensors", {"0": train[:100]})
        artifacts.seal(artifacts.RUNS / "gan" / "samples")
        shown = images.show("samples", train[:100], made)
        artifacts.write_bytes(artifacts.REPORTS / "runs" / "gan" / "samples" / "samples.png", shown.content)
        for step in (4, 8, 12):
            preview = images.show("samples", train[step : step + 16], made)
            path = artifacts.RUNS / "gan" / "record" / "exhibits" / "samples" / f"{step:07}.png"
            artifacts.write_bytes(path, preview.content)
        write_text(settings)
        for run in ("gan", "transformer"):
            audit.main(run)
        report.main()
    return folder


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the working folder; tests only read it."""
    monkeypatch.chdir(project)
    return project
