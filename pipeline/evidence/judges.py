"""Judges: feature networks whose weights git keeps in pipeline/judges/, so that every machine measures with the same.

A trained classifier has other bits on another processor, and with it every number that its features give. The stage
`networks` therefore takes kept weights where their recipe is the asked one: the same section of params.yaml, and the
same training split. Anything else is trained. `pipeline judge` keeps a trained network.
"""

import shutil
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.code import JUDGES
from pipeline.kinds import flatten_fields, read_fields
from pipeline.weights import CONFIG

RECIPE = "recipe.json"
LEFT_OUT = ("data", "probe")  # keys that no weight follows from: the name of a section, and what is measured


def describe_recipe(config: Any) -> dict[str, Any]:
    """Return what the weights of a section of networks follow from on one machine; its data must be prepared."""
    manifest = artifacts.read_manifest(config.data)
    return {
        "config": {name: value for name, value in artifacts.encode(config).items() if name not in LEFT_OUT},
        "fields": artifacts.encode(flatten_fields(read_fields(config.data))),
        "trained_on": manifest["splits"]["train"]["sha256"],
    }


def find(recipe: dict[str, Any], place: Path = JUDGES) -> Path | None:
    """Return the folder of the kept network with this recipe.

    Raises:
        ArtifactError: if a file of it is damaged.
    """
    for path in sorted(place.glob(f"*/{RECIPE}")):
        if artifacts.read_json(path)["recipe"] == recipe:
            artifacts.verify(path.parent)
            return path.parent
    return None


def keep(network: Path, name: str, recipe: dict[str, Any], made: dict[str, Any], place: Path = JUDGES) -> Path:
    """Copy a trained network to a folder of its own, with its recipe and how it was made; return the folder."""
    folder = place / name
    _copy(network, folder)
    artifacts.write_json(folder / RECIPE, {"recipe": recipe, "made": made})
    artifacts.seal(folder)
    return folder


def take(judge: Path, folder: Path) -> None:
    """Make a kept network the one in `folder`."""
    _copy(judge, folder)
    artifacts.seal(folder)


def _copy(network: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (artifacts.find_weights(network), network / CONFIG):
        shutil.copyfile(path, folder / path.name)
