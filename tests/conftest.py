"""Shared fixtures: no network but loopback, no tracking server, a working folder of the test's own.

The fixtures import what they need: pytest-xdist's controller, which runs no test, reads this file before any worker
starts, and the libraries would take it five seconds.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import (  # noqa: F401 - pytest takes its hooks from here
    note_faults,
    pytest_addoption,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_testnodedown,
)
from tests.servers import database, proxy, server  # noqa: F401 - pytest takes its fixtures from here

if TYPE_CHECKING:
    from pipeline.networks import inception

ROOT = Path(__file__).resolve().parents[1]
# Workers that get whole files end at about the same time when the longest come first.
LONGEST = (
    "test_dvc.py",
    "test_processes.py",
    "test_server.py",
    "test_faults.py",
    "test_outages.py",
    "test_prove.py",
    "test_dvc_edits.py",
    "test_stages.py",
    "test_silence.py",
    "test_benchmark_speed.py",
    "test_benchmark_data.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note which faults the tests show, before -m and -k leave some out; put the longest files first."""
    note_faults(items)
    order = {name: position for position, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Put sys.path back after each test and its fixtures: MLflow puts the code of a loaded model first.

    A fixture of a whole module would leave it there, and what later tests start would be another copy of the package.
    """
    path = [*sys.path]
    result = yield
    sys.path[:] = path
    return result


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse every connection that leaves this machine, and forget the environment's tracking server."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else address
        if self.family != socket.AF_UNIX and host not in {"127.0.0.1", "localhost", "::1"}:
            msg = f"a test tried to reach {address}"
            raise RuntimeError(msg)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "PIPELINE_", "DVC_"))]:
        monkeypatch.delenv(name)
    yield
    import torch

    torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: its tables take seconds to create, so once for all tests."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


# Runs of params.yaml that have a test of their own; all other tests train one run of each kind of model.
MORE_IMAGE_RUNS = ("flow_matching", "codes", "codes_prior")
MORE_RUNS = (*MORE_IMAGE_RUNS, "speech")


def leave_out_runs(text: str) -> str:
    """Return the text of params.yaml without MORE_RUNS, and without the data and the network of speech."""
    lines = rf"(?:{'|'.join(MORE_IMAGE_RUNS)}): {{model: .*\n"
    blocks = r"(?:speech|listener):\n(?:    .*\n)+"
    left, count = re.subn(rf"^  (?:{lines}|{blocks})", "", text, flags=re.MULTILINE)
    assert count == len(MORE_IMAGE_RUNS) + 3
    return left


def prepare_own(source: Any, config: Any) -> Any:
    """Fetch and prepare a folder of your own files, as the section `key` of params.yaml."""
    raw = Path(config.path).parent / "raw" / "key"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True)
    source.fetch(raw, config)
    return source.prepare(raw, config)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """A fresh working folder with the project's params.yaml, lock file and an empty MLflow store."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(leave_out_runs(text), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder data/ of the shipped params with its pictures prepared: once for all tests."""
    from pipeline.stages import fetch, prepare

    folder = tmp_path_factory.mktemp("digits")
    shutil.copy(ROOT / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fetch.main("images")
        prepare.main("images")
    return folder / "data"


@pytest.fixture
def prepared(workdir: Path, digits: Path) -> Path:
    """A working folder whose pictures are prepared."""
    shutil.copytree(digits, workdir / "data")
    return workdir


def squeeze(text: str) -> str:
    """Return text without what aligns its tables."""
    return re.sub("-{3,}", "---", re.sub(" +", " ", text))


def set_value(values: Any, key: str, value: object) -> None:
    """Set one value of nested mappings by dotted key; every section on the way must exist."""
    *path, last = key.split(".")
    for part in path:
        values = values[part]
    values[last] = value


def write_pictures(folder: Path, count: int, side: int = 8) -> None:
    """Write grey noise of two classes, a and b."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(side)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (side, side), dtype=np.uint8)).save(path)


@pytest.fixture(scope="session")
def yaml_texts() -> dict[str, str]:
    """The YAML of the values that tests have written; many write the same."""
    return {}


@pytest.fixture
def edit_params(workdir: Path, yaml_texts: dict[str, str]) -> Callable[..., None]:
    """Change values of the working folder's params.yaml by dotted key."""
    from ruamel.yaml import YAML

    from pipeline import params

    def edit(changes: dict[str, Any]) -> None:
        values = params.read_mapping(workdir / "params.yaml", params.SECTIONS_SAID, params.FOLDER)
        for key, value in changes.items():
            set_value(values, key, value)
        if repr(values) not in yaml_texts:
            stream = io.StringIO()
            YAML(typ="safe", pure=True).dump(values, stream)
            yaml_texts[repr(values)] = stream.getvalue()
        (workdir / "params.yaml").write_text(yaml_texts[repr(values)], encoding="utf-8")

    return edit


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Make a text the model `tiny_flow` of another installed package; the function returns its file."""
    from pipeline import plugins

    entry = EntryPoint("tiny_flow", "brought_package.flow", f"{plugins.GROUP}.models")
    monkeypatch.setattr(plugins, "_read_entry_points", lambda: EntryPoints([entry]))
    path = tmp_path / "brought_package" / "flow.py"
    path.parent.mkdir()
    sys.path.insert(0, str(tmp_path))

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("brought_package")]:
            del sys.modules[name]

    def write(text: str) -> Path:
        forget()
        path.write_text(text, encoding="utf-8")
        return path

    yield write
    forget()


TINY = {  # a training shows what it makes before its first step and after each eighth of them: few steps show little
    "networks.classifier.steps": 60,
    "networks.classifier.width": 4,
    "models.gan.steps": 4,
    "models.gan.batch_size": 16,
    "models.gan.generator_width": 8,
    "models.gan.discriminator_width": 4,
    "models.vae.steps": 4,
    "models.vae.batch_size": 16,
    "models.vae.width": 4,
    "models.vae.hidden": 32,
    "models.vae.warmup": 2,
    "models.vae.flow_blocks": 1,
    "models.flow_matching.steps": 4,
    "models.flow_matching.batch_size": 16,
    "models.flow_matching.width": 8,
    "models.flow_matching.blocks": 1,
    "models.flow_matching.likelihood_steps": 1,
    "models.flow_matching.warmup": 2,
    "models.codes.steps": 4,
    "models.codes.batch_size": 16,
    "models.codes.width": 8,
    "models.codes.prior_width": 8,
    "models.codes.warmup": 2,
    "models.codes_prior.steps": 4,
    "models.codes_prior.batch_size": 16,
    "models.codes_prior.codes_width": 8,
    "models.codes_prior.layers": 1,
    "models.codes_prior.width": 32,
    "models.codes_prior.warmup": 2,
    "models.transformer.steps": 4,
    "models.transformer.batch_size": 4,
    "models.transformer.layers": 2,
    "models.transformer.width": 32,
    "models.transformer.context": 32,
    "models.transformer.warmup": 2,
    "metrics.images.sampling.count": 200,
    "metrics.images.sampling.importance_samples": 4,
    "metrics.images.kid_subset_size": 50,
    "metrics.text.sampling.length": 40,
}


@pytest.fixture
def tiny(edit_params: Callable[..., None]) -> None:
    """The shipped params with trainings of a second."""
    edit_params(TINY)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[inception.Config]:
    """A server of random weights with the published names and shapes (91 MB)."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from pipeline.networks import inception

    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        # The class loads weights as it is built: give it none, to learn the names and shapes.
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("x", ["2048"])
    torch.manual_seed(0)
    state = network.state_dict()  # batch norms as they begin: scale 1, variance 1
    for value in state.values():
        if value.ndim > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5)  # He: activations neither explode nor vanish
    path = folder / inception.FILE
    torch.save(state, path)
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield inception.Config(
        network="inception",
        data="images",
        address=f"http://127.0.0.1:{running.server_port}/",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    running.shutdown()
