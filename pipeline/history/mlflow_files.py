"""Turns what belongs to a run into MLflow's entities: exhibits, data sets, the model that it serves."""

import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped]
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from PIL import Image
from ruamel.yaml import YAML

from pipeline import artifacts, code, plugins
from pipeline.artifacts import ArtifactError
from pipeline.formats.download import hide_login
from pipeline.history.choices import CHOSEN, OPTIONS, list_classes
from pipeline.history.mlflow_names import PICTURES, TRAIN
from pipeline.history.mlflow_store import use_store
from pipeline.history.record import ExhibitId, name_origin, read_exhibit
from pipeline.params import read_mapping

log = logging.getLogger(__name__)
# With an example, MLflow would draw samples at the end of each training; without one, it warns.
warnings.filterwarnings("ignore", message=".*An input example was not provided")
FOLDER = "exhibits"  # of the artifacts of a training's previews
IMAGES, PICTURE = "images/", ".png"  # the folder of log_image, which MLflow shows with a slider of steps
ORIGIN = "origin"  # of a LoggedModel's metadata: its run, commit and source of data
MODEL = "artifacts/model"  # of a LoggedModel: the folder that was its artifact
TABLES = "mlflow.loggedArtifacts"  # the tag that names the tables of a run, as log_table writes it
SENT = "mlflow.pipeline.results"  # the tag with the digest of the evaluation whose files a run has


def send_exhibit(client: MlflowClient, run_id: str, exhibit: ExhibitId, path: Path) -> None:
    """Send a picture as MLflow shows pictures, and every other file as an artifact; the suffix decides."""
    if exhibit.suffix == PICTURE:
        with Image.open(path) as picture:
            client.log_image(run_id, picture, key=TRAIN + exhibit.key, step=exhibit.step)
    else:
        client.log_artifact(run_id, str(path), f"{FOLDER}/{exhibit.key}")


def list_exhibits(client: MlflowClient, run_id: str) -> set[ExhibitId]:
    """Return the exhibits that MLflow has."""
    return {*_list_pictures(client, run_id), *_list_files(client, run_id)}


def _list_pictures(client: MlflowClient, run_id: str) -> Iterator[ExhibitId]:
    """Yield the previews' pictures, which log_image stores as <group>~<key>+step+<step>+..."""
    pattern = re.compile(rf"{TRAIN.rstrip('/')}~(.+)\+step\+(\d+)\+")
    for item in client.list_artifacts(run_id, IMAGES.rstrip("/")):
        if match := pattern.match(PurePosixPath(item.path).name):
            yield ExhibitId(match[1], int(match[2]), PICTURE)


def _list_files(client: MlflowClient, run_id: str) -> Iterator[ExhibitId]:
    for folder in client.list_artifacts(run_id, FOLDER):
        for item in client.list_artifacts(run_id, folder.path):
            if exhibit := read_exhibit(Path(item.path)):
                yield exhibit


def send_results(client: MlflowClient, run: Run, folder: Path) -> None:
    """Send the files of an evaluation, reports/runs/<run>, unless the run has just these.

    Its numbers, sets and protocol are in evaluation/, and what the model made is in samples/. Pictures are also in the
    charts at step 0, so that those of several runs are next to each other. A list of texts is also a table.
    """
    run_id = run.info.run_id
    paths = [path for path in (*sorted(folder.glob("*.json")), *sorted(folder.glob("samples/*"))) if path.is_file()]
    digest = hashlib.sha256("".join(artifacts.digest(path) for path in paths).encode()).hexdigest()
    if run.data.tags.get(SENT) == digest and client.list_artifacts(run_id, "evaluation"):
        return
    tables = []
    for path in paths:
        client.log_artifact(run_id, str(path), "evaluation" if path.parent == folder else "samples")
        if path.suffix == PICTURE:
            with Image.open(path) as picture:
                client.log_image(run_id, picture, key=PICTURES + path.stem, step=0)
        elif path.suffix == ".yaml":
            texts = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
            # As log_table writes it, which would append to the table of the evaluation before.
            client.log_text(
                run_id,
                pd.DataFrame({"sample": texts}).to_json(orient="split", index=False),
                name := f"{path.stem}.json",
            )
            tables.append({"path": name, "type": "table"})
    if tables:
        client.set_tag(run_id, TABLES, json.dumps(tables))
    client.set_tag(run_id, SENT, digest)


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
    given, sampling = about.get("given", {}), about["config"].get("metric", {}).get("sampling", {})
    classes = list_classes(about)
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"model": str(folder)},
            model_config={"sampling": sampling, "given": given, "classes": classes},
            signature=make_signature(given.get("values", {}), sampling),
            code_paths=[str(plugins.PACKAGE)],
            metadata={code.TAG: about.get("tags", {}).get(code.TAG, ""), ORIGIN: name_origin(about)},
            pip_requirements=[f"{name}=={about['environment'][name]}" for name in names]
            + ["pydantic", "ruamel.yaml", "safetensors", "tokenizers", "torchvision"],
            step=step,
        )


def register_model(client: MlflowClient, experiment: str, run_id: str, name: str) -> None:
    """Make a run's LoggedModel a version of the registered model `name`: `models:/<name>@latest` is the newest one.

    A name that belongs to somebody else on a team's server is a warning: the run has its model nevertheless.
    """
    models = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    name = re.sub(r"[/:]", "_", name)
    for model in models:
        source = f"models:/{model.model_id}"
        try:
            versions = client.search_model_versions(f"run_id = '{run_id}'")
            if any(version.source == source for version in versions):
                continue
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name, description=f"The models of the runs named `{name}`.")
            client.create_model_version(name, source, run_id, model_id=model.model_id)
        except MlflowException as error:
            log.warning("%s: its model is not registered: %s", name, error)


def make_signature(given: Iterable[str], sampling: Mapping[str, Any] | None = None) -> ModelSignature:
    """Return the signature of a served model: seeds in, texts out, and the parameters that serving.py describes.

    A given field is a list with one value for all samples, or one for each; an empty one lets the model draw.

    Args:
        given: names of the fields that the model is given.
        sampling: how a sample is drawn; prompt and temperature are the defaults of parameters.
    """
    types = {str: "string", bool: "boolean", int: "long", float: "double"}
    parameters = [ParamSpec(name, "long", [], (-1,)) for name in given]
    options = OPTIONS | {name: value for name, value in (sampling or {}).items() if name in CHOSEN}
    if not parameters:
        del options["label"]
    parameters += [ParamSpec(name, types[type(value)], value) for name, value in options.items()]
    return ModelSignature(Schema([ColSpec("long")]), Schema([ColSpec("string")]), ParamSchema(parameters))


def fetch_model(address: str, names: Iterable[str], folder: Path, more: Iterable[str] = ()) -> dict[str, Any]:
    """Download files of a LoggedModel's own folder, and none of its code; return what it says of its samples.

    Args:
        address: models:/<id>, models:/<name>/<version>, models:/<name>@<alias> or runs:/<run id>.
        names: of the files.
        folder: gets the files.
        more: names of files that not every model has.

    Raises:
        ArtifactError: if there is no such model, or it lacks a file.
    """
    uri = use_store()
    try:
        repository = get_artifact_repository(_find_model(address))
        present = {PurePosixPath(item.path).name for item in repository.list_artifacts(MODEL)}
        for name in (*names, *(name for name in more if name in present)):
            found = repository.download_artifacts(f"{MODEL}/{name}", str(folder))
            os.replace(found, folder / name)
        description = Path(repository.download_artifacts("MLmodel", str(folder)))
    except (MlflowException, OSError) as error:
        msg = f"no such model in {uri}: {' '.join(str(error).split())}"
        raise ArtifactError(hide_login(msg, uri)) from error
    about = read_mapping(description, "the description of a model", "MLflow")
    description.unlink()  # the folder is to have the model's own files only
    flavor = about.get("flavors", {}).get("python_function", {})
    metadata = about.get("metadata") or {}
    return {**flavor.get("config", {}), "code": metadata.get(code.TAG), "origin": metadata.get(ORIGIN)}


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
