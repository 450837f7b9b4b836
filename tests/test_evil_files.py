"""Files that run code when a library loads them carelessly: the project refuses each, and their code has not run.

Each attack meets the bare library too, where its code does run: so the file is as evil as it says.
"""

import functools
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.pyfunc.model import PythonModel
from pytorch_lightning import LightningModule

from pipeline import artifacts
from pipeline.kinds import Pool
from pipeline.runtime import checkpoints
from pipeline.weights import load_model, save_model
from tests.conftest import ROOT
from tests.test_training import SPECS, make, run

VARIABLES = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION")
LOAD = """
import json, sys
{guard}
import mlflow
from pytorch_lightning import LightningModule
from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

attacks = dict(
    address=lambda: LightningModule.load_from_checkpoint("{address}/address.ckpt"),
    fidelity=lambda: FeatureExtractorVGG16("x", ["fc2"], feature_extractor_weights_path="fidelity.pth"),
    tracker=lambda: mlflow.pyfunc.load_model("tracker"),
)
for name, load in attacks.items():
    try:
        load()
    except Exception as error:
        print(json.dumps([name, str(error)]))
"""


class Evil:
    """Makes an empty file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


class Harmless(PythonModel):
    def predict(self, context: Any, model_input: list[int], params: Any = None) -> list[int]:
        return model_input


def write_attacks(folder: Path) -> None:
    """Write one evil file an attack; each makes the folder <folder>/ran-<attack> when its code runs."""
    folder.mkdir()
    evil = {name: Evil(folder / f"ran-{name}") for name in ("address", "fidelity", "tracker")}
    torch.save(
        {"state_dict": {}, "more": evil["address"], "pytorch-lightning_version": "2.6.6"}, folder / "address.ckpt"
    )
    torch.save(evil["fidelity"], folder / "fidelity.pth")
    mlflow.pyfunc.save_model(folder / "tracker", python_model=Harmless(), pip_requirements=[])
    (folder / "tracker" / "python_model.pkl").write_bytes(pickle.dumps(evil["tracker"]))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, str], set[str]]]:
    """What each attack raised, and which attacks ran, in a fresh interpreter with and without `import pipeline`."""
    root = tmp_path_factory.mktemp("evil")
    processes = {}
    for name, guard in (("ours", "import pipeline"), ("bare", "")):
        write_attacks(root / name)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root / name))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = LOAD.format(guard=guard, address=f"http://127.0.0.1:{server.server_port}")
        environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        environment |= {"PYTHONPATH": str(ROOT), "TORCH_HOME": str(root / name / "hub")}
        processes[name] = subprocess.Popen(
            [sys.executable, "-c", code], cwd=root / name, env=environment, stdout=subprocess.PIPE, text=True
        )
    found = {}
    for name, process in processes.items():
        said = dict(json.loads(line) for line in process.communicate(timeout=120)[0].splitlines() if line[0] == "[")
        found[name] = said, {path.name.removeprefix("ran-") for path in (root / name).glob("ran-*")}
    return found


@pytest.mark.slow
@pytest.mark.fault(12)
@pytest.mark.parametrize("attack", ["address", "fidelity"])
def test_an_evil_checkpoint_or_weights_file_is_refused(loaded: dict[str, Any], attack: str) -> None:
    said, ran = loaded["ours"]
    assert "Weights only load failed" in said[attack]
    assert attack not in ran
    assert attack in loaded["bare"][1]


@pytest.mark.slow
@pytest.mark.fault(13)
def test_an_evil_pickle_as_mlflow_model_is_refused(loaded: dict[str, Any]) -> None:
    said, ran = loaded["ours"]
    assert "Deserializing model using pickle is disallowed" in said["tracker"]
    assert "tracker" not in ran
    assert "tracker" in loaded["bare"][1]


def test_our_own_mlflow_models_need_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # for params.yaml
    model, config, _ = make("gan")
    save_model(
        tmp_path / "model", "gan", model, config, SPECS["images"], pool=Pool({"labels": torch.arange(2)}, [1, 1])
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    code = str(ROOT / "pipeline" / "history" / "serving.py")
    artifacts_ = {"model": str(tmp_path / "model")}
    mlflow.pyfunc.save_model(tmp_path / "saved", python_model=code, artifacts=artifacts_, pip_requirements=[])
    assert len(mlflow.pyfunc.load_model(str(tmp_path / "saved")).predict([0, 1])) == 2
    assert not list((tmp_path / "saved").rglob("*.pkl"))


def test_an_evil_checkpoint_with_the_right_hash_in_a_trainings_state_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    path = state / "step-000000003.ckpt"
    torch.save({"state_dict": {}, "more": Evil(tmp_path / "ran")}, path)
    path.with_suffix(".ckpt.sha256").write_text(artifacts.digest(path))
    assert checkpoints.find(state) == (path, 3)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        run("transformer", state=state)
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault(35)
@pytest.mark.parametrize("key", ["_instantiator", "_class_path"])
def test_hyper_parameters_that_name_code_do_not_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n\ndef make(*_, **__): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    allowed = "pytorch_lightning.cli.instantiate_module"
    named = {
        "_instantiator": {"_instantiator": "evil.make"},
        "_class_path": {"_instantiator": allowed, "_class_path": "evil.make"},
    }
    content = {"state_dict": {}, "hyper_parameters": named[key], "pytorch-lightning_version": "2.6.6"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="blocked to prevent arbitrary code execution"):
        LightningModule.load_from_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../../x", "gan.py", "os", "", "../models/gan"])
def test_a_model_folder_that_names_other_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(ROOT)  # for params.yaml
    model, config, _ = make("gan")
    folder = tmp_path / "model"
    save_model(folder, "gan", model, config, SPECS["images"])
    about = artifacts.read_json(folder / "config.json")
    artifacts.write_json(folder / "config.json", about | {"model": name})
    artifacts.seal(folder)
    with pytest.raises(ValueError, match="no models plug-in"):
        load_model(folder)
