"""Turns what belongs to a run into MLflow's entities: exhibits, data sets, the model that it serves."""

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
import mlflow.pyfunc
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from PIL import Image

from pipeline import code, plugins
from pipeline.artifacts import ArtifactError
from pipeline.formats.download import hide_login
from pipeline.history.mlflow_store import use_store
from pipeline.history.record import ExhibitId, read_exhibit
from pipeline.params import read_mapping

# With an example, MLflow would draw samples at the end of each training; without one, it warns.
warnings.filterwarnings("ignore", message=".*An input example was not provided")
FOLDERS = ("exhibits", "texts")  # of artifacts; older versions sent texts to a folder of their own
MODEL = "artifacts/model"  # of a LoggedModel: the folder that was its artifact
PICTURES, PICTURE = "images/", ".png"  # the folder of log_image, which MLflow shows with a slider of steps


def send_exhibit(client: MlflowClient, run_id: str, exhibit: ExhibitId, path: Path) -> None:
    """Send a picture as MLflow shows pictures, and every other file as an artifact; the suffix decides."""
    if exhibit.suffix == PICTURE:
        with Image.open(path) as picture:
            client.log_image(run_id, picture, key=exhibit.key, step=exhibit.step)
    else:
        client.log_artifact(run_id, str(path), f"{FOLDERS[0]}/{exhibit.key}")


def list_exhibits(client: MlflowClient, run_id: str) -> set[ExhibitId]:
    """Return the exhibits that MLflow has."""
    return {*_list_pictures(client, run_id), *_list_files(client, run_id)}


def _list_pictures(client: MlflowClient, run_id: str) -> Iterator[ExhibitId]:
    """Yield the pictures, which log_image stores as <key>+step+<step>+..."""
    for item in client.list_artifacts(run_id, PICTURES.rstrip("/")):
        if match := re.match(r"(.+)\+step\+(\d+)\+", PurePosixPath(item.path).name):
            yield ExhibitId(match[1], int(match[2]), PICTURE)


def _list_files(client: MlflowClient, run_id: str) -> Iterator[ExhibitId]:
    for top in FOLDERS:
        for folder in client.list_artifacts(run_id, top):
            for item in client.list_artifacts(run_id, folder.path):
                if exhibit := read_exhibit(Path(item.path)):
                    yield exhibit


def make_dataset(entry: Mapping[str, str]) -> DatasetInput:
    """Describe one split of a data set; its digest is the md5 under which DVC keeps the folder."""
    dataset = Dataset(
        name=entry["name"],
        digest=entry["md5"][:36],  # MLflow's limit
        source_type="dvc",
        source=json.dumps({"uri": entry["path"]}),
        profile=json.dumps({"sha256": entry["sha256"], "examples": entry["examples"]}),
    )
    tags = [InputTag("mlflow.data.context", entry["context"]), InputTag("dvc.md5", entry["md5"])]
    return DatasetInput(dataset, tags)


def log_model(
    client: MlflowClient, experiment: str, run_id: str, folder: Path, about: Mapping[str, Any], step: int
) -> None:
    """Make a model's folder the LoggedModel of a run, with the package's code, unless the run has one.

    A model whose files are gone is replaced. The record's description `about` says which versions and which sampling
    the model goes with, and what the fields that it is given are drawn from.
    """
    for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if model.status == LoggedModelStatus.READY:
            if any(item.path == "MLmodel" for item in client.list_logged_model_artifacts(model.model_id)):
                return
            client.delete_logged_model(model.model_id)
    names = ("torch", "pytorch-lightning", "numpy", "mlflow")
    given = about.get("given", {})
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"model": str(folder)},
            model_config={"sampling": about["config"].get("metric", {}).get("sampling", {}), "given": given},
            signature=make_signature(given.get("values", {})),
            code_paths=[str(plugins.PACKAGE)],
            metadata={code.TAG: about.get("tags", {}).get(code.TAG, "")},
            pip_requirements=[f"{name}=={about['environment'][name]}" for name in names]
            + ["pydantic", "ruamel.yaml", "safetensors", "tokenizers", "torchvision"],
            step=step,
        )


def make_signature(given: Iterable[str]) -> ModelSignature:
    """Return the signature of a served model: seeds in, texts out, and a parameter for each field that is given.

    A parameter is a list with one value for all samples, or one for each; an empty one lets the model draw.
    """
    parameters = [ParamSpec(name, "long", [], (-1,)) for name in given]
    return ModelSignature(Schema([ColSpec("long")]), Schema([ColSpec("string")]), ParamSchema(parameters))


def fetch_model(address: str, names: Iterable[str], folder: Path) -> dict[str, Any]:
    """Download files of a LoggedModel's own folder, and none of its code; return what it says of its samples.

    Args:
        address: models:/<id>, models:/<name>/<version>, models:/<name>@<alias> or runs:/<run id>.
        names: of the files.
        folder: gets the files.

    Raises:
        ArtifactError: if there is no such model, or it lacks a file.
    """
    uri = use_store()
    try:
        repository = get_artifact_repository(_find_model(address))
        for name in names:
            found = repository.download_artifacts(f"{MODEL}/{name}", str(folder))
            os.replace(found, folder / name)
        description = Path(repository.download_artifacts("MLmodel", str(folder)))
    except (MlflowException, OSError) as error:
        msg = f"no such model in {uri}: {' '.join(str(error).split())}"
        raise ArtifactError(hide_login(msg, uri)) from error
    about = read_mapping(description, "the description of a model", "MLflow")
    description.unlink()  # the folder is to have the model's own files only
    flavor = about.get("flavors", {}).get("python_function", {})
    return {**flavor.get("config", {}), "code": (about.get("metadata") or {}).get(code.TAG)}


def _find_model(address: str) -> str:
    """Return the address of a run's model; other addresses as they are."""
    if not address.startswith("runs:/"):
        return address
    run_id = address.removeprefix("runs:/").partition("/")[0]
    client = MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    models = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    if not models:
        msg = "the run has no model"
        raise ArtifactError(msg)
    return f"models:/{models[0].model_id}"
