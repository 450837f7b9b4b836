"""The schema for editors: it is that of the configs, and it says of every params.yaml here what params.load says."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import params
from pipeline.commands import schema
from tests.conftest import ROOT, set_value

FILE = json.loads((ROOT / schema.PATH).read_text(encoding="utf-8"))
TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}


def find_mistakes(value: Any, rule: Any, where: str = "") -> list[str]:
    """Check a value by the part of JSON Schema that the file uses."""
    if "$ref" in rule:
        rule = FILE["$defs"][rule["$ref"].rpartition("/")[2]] | {key: rule[key] for key in rule if key != "$ref"}
    if "anyOf" in rule:
        return [] if any(not find_mistakes(value, each) for each in rule["anyOf"]) else [where]
    if "type" in rule and rule["type"] in TYPES and not isinstance(value, TYPES[rule["type"]]):
        return [where]
    found = [where] if value not in rule.get("enum", [value]) or value != rule.get("const", value) else []
    if not isinstance(value, bool) and isinstance(value, int | float):
        found += [where] if not rule.get("minimum", value) <= value <= rule.get("maximum", value) else []
    if not isinstance(value, dict):
        return found
    properties, others = rule.get("properties", {}), rule.get("additionalProperties", True)
    found += [f"{where}.{key}" for key in rule.get("required", ()) if key not in value]
    for key, each in value.items():
        part = properties.get(key, others)
        known = [f"{where}.{key}"] if part is False else []
        found += known if isinstance(part, bool) else find_mistakes(each, part, f"{where}.{key}")
    for choice in rule.get("allOf", ()):
        if not find_mistakes(value, choice["if"]):
            found += find_mistakes(value, choice["then"], where)
    return found


def test_the_committed_file_is_that_of_the_configs() -> None:
    assert schema.dump(schema.build()) == (ROOT / schema.PATH).read_text(encoding="utf-8"), "run `pipeline schema`"


@pytest.mark.parametrize(
    "path", ["params.yaml", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/**/params.yaml"))]
)
def test_every_params_yaml_names_the_schema_and_fits_it(path: str) -> None:
    first = (ROOT / path).read_text(encoding="utf-8").splitlines()[0]
    address = first.removeprefix("# yaml-language-server: $schema=")
    assert (ROOT / path).parent.joinpath(address).resolve() == ROOT / schema.PATH
    assert find_mistakes(YAML(typ="safe", pure=True).load(ROOT / path), FILE) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("models.gan.los", "hinge"),
        ("models.gan.loss", "hing"),
        ("models.vae.steps", -1),
        ("data.images.source", "mnst"),
        ("data.images.vocabulary", 3),
        ("runs.gan.changes", {"loss": "hing"}),
        ("runs.gan.changes", {"los": "hinge"}),
        ("runs.gan.model", "gam"),
        ("metrics.text.sampling.count", "4"),
    ],
)
def test_a_mistake_is_one_for_the_schema_and_for_the_loader(key: str, value: object, tmp_path: Path) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml")
    set_value(values, key, value)
    yaml.dump(values, tmp_path / "params.yaml")
    assert find_mistakes(values, FILE)
    with pytest.raises(params.ParamsError):
        params.load(tmp_path / "params.yaml")
