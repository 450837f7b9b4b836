"""Writes params.schema.json, with which editors complete and check params.yaml as you type.

    pipeline schema

The file follows from the configs of the plug-ins that are installed; run it again when you have added one. An editor
with a YAML language server, such as VS Code with the extension redhat.vscode-yaml, finds the file by the first line of
params.yaml. What depends on several keys is checked by `python -m pipeline.params` only.
"""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from pipeline import artifacts, params, plugins
from pipeline.commands import make_parser

PATH = Path("params.schema.json")
NAMED_BY = {"data": "source", "networks": "network"}  # the key that names a section's plug-in; else its own name does
DIALECT = "http://json-schema.org/draft-07/schema#"  # the one that every editor knows


def main(arguments: list[str]) -> int:
    """Write the file and print its name."""
    make_parser("schema", __doc__).parse_args(arguments)
    artifacts.write_bytes(PATH, dump(build()).encode())
    print(f"{PATH}: written")
    return 0


def dump(schema: dict[str, Any]) -> str:
    """Return the content of the file."""
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def build() -> dict[str, Any]:
    """Return the schema of params.yaml."""
    configs = {
        (family, name): plugins.load(family, name).Config for family in SECTIONS for name in plugins.names(family)
    }
    inputs: Any = [(config, "validation") for config in (*configs.values(), params.Run)]
    found, shared = models_json_schema(inputs, schema_generator=Described)
    references = {key: found[config, "validation"] for key, config in configs.items()}
    run = shared["$defs"][found[params.Run, "validation"]["$ref"].rpartition("/")[2]]
    sections = {family: _describe_section(family, references) for family in SECTIONS}
    sections["runs"] = _named(_describe_run(run, shared["$defs"], references))
    return {
        "$schema": DIALECT,
        "title": "params.yaml",
        "type": "object",
        "additionalProperties": False,
        "required": list(params.SECTIONS),
        "properties": sections,
        "$defs": shared["$defs"],
    }


class Described(GenerateJsonSchema):
    """Leaves out titles, which repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Say no."""
        del schema
        return False


SECTIONS = ("data", "networks", "models", "metrics")


def _describe_section(family: str, references: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """Return the schema of a section, in which each entry is checked by its plug-in's Config."""
    known = {name: reference for (other, name), reference in references.items() if other == family}
    key = NAMED_BY.get(family)
    if key is None:
        return {"type": "object", "additionalProperties": False, "properties": known}
    return _named({"type": "object", "required": [key], "properties": {key: {"enum": [*known]}}, **_choose(key, known)})


def _describe_run(run: dict[str, Any], shared: dict[str, Any], references: dict[tuple[str, str], Any]) -> Any:
    """Return the schema of a run, whose `changes` are keys of its model's section."""
    changes = {}
    for (family, name), reference in references.items():
        if family == "models":
            config = shared[reference["$ref"].rpartition("/")[2]]
            partial = {key: value for key, value in config.items() if key != "required"}
            changes[name] = {"properties": {"changes": partial}}
    enums = {f"{each}": {"enum": plugins.names(f"{each}s")} for each in ("model", "metric")}
    properties = {name: {**value, **enums.get(name, {})} for name, value in run["properties"].items()}
    return {**run, "properties": properties, **_choose("model", changes)}


def _choose(key: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return a rule for each value of a key."""
    return {
        "allOf": [
            {"if": {"required": [key], "properties": {key: {"const": name}}}, "then": schema}
            for name, schema in schemas.items()
        ]
    }


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a section whose keys are names that the user chooses."""
    return {"type": "object", "propertyNames": {"pattern": f"^{params.NAME.pattern}$"}, "additionalProperties": entry}
