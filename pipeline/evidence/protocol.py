"""Evaluation protocols: everything that must be equal for two numbers to be comparable, value by value.

reports/runs/<run>/protocol.json has three keys. `protocol` is nested JSON: the fields on which any of the run's numbers
depends, each once. `values` has, for each value, the names of the fields that its number depends on, and their hash.
`run` has what belongs to the run itself (seed, config, training data, kept weights), which is no part of a protocol.
"""

import hashlib
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.evidence.values import Values, list_fields
from pipeline.params import NONE

KEYS = ("protocol", "run", "values")
SHORT = reprlib.Repr()  # of a field's value in a message
SHORT.maxstring = 40

Content = Mapping[str, Any]  # of a protocol.json


class ProtocolError(ValueError):
    """Numbers of different protocols were to be compared; the message names the values and the differing field."""


def hash_fields(leaves: Mapping[str, Any]) -> str:
    """Return 12 hex digits of SHA-256 over the canonical JSON."""
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()[:12]


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of nested mappings, in order of the names."""
    if isinstance(value, Mapping) and value:
        for key in sorted(value):
            yield from flatten(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def covers(fields: Iterable[str], leaf: str) -> bool:
    """Return whether a leaf is one of the fields, or below one: `network` covers `network.weights_sha256`."""
    return any(leaf == field or leaf.startswith(f"{field}.") for field in fields)


def select(protocol: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Return the leaves that the fields cover, by their dotted names."""
    wanted = list(fields)
    return {leaf: value for leaf, value in flatten(protocol) if covers(wanted, leaf)}


def describe_values(values: Values, names: Iterable[str], protocol: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, by value, the `fields` of the protocol that its number depends on, and their `hash`; counts have none.

    Raises:
        ArtifactError: if the protocol lacks a field that a value depends on.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        fields = list_fields(values, name)
        leaves = select(protocol, fields)
        if missing := [field for field in fields if not any(covers([field], leaf) for leaf in leaves)]:
            msg = f"{name} depends on {missing[0]}, a field that the protocol lacks; it has {', '.join(protocol)}"
            raise ArtifactError(msg)
        if fields:
            found[name] = {"fields": list(fields), "hash": hash_fields(leaves)}
    return found


def check_content(content: Any, place: str) -> dict[str, Any]:
    """Return the content of a protocol.json.

    Raises:
        ArtifactError: if it is of another form, such as that of older versions, which had one hash for all values.
    """
    if not isinstance(content, dict) or set(content) != set(KEYS):
        got = ", ".join(content) if isinstance(content, dict) else repr(content)
        msg = f"{place}: expected the keys {', '.join(KEYS)}, got {got}; evaluate the run again with this version"
        raise ArtifactError(msg)
    return content


def read_protocol(folder: Path) -> dict[str, Any]:
    """Return the content of the protocol.json in the folder of a run's numbers."""
    path = folder / "protocol.json"
    return check_content(artifacts.read_json(path), str(path))


def make_tags(content: Content) -> dict[str, str]:
    """Return MLflow's tags of an evaluation: the hash of each value's protocol."""
    return {f"protocol.{name}": entry["hash"] for name, entry in content["values"].items()}


def list_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (dotted name, first, second) of every leaf of nested mappings that differs; a missing one is None."""
    left, right = dict(flatten(first)), dict(flatten(second))
    leaves = sorted(left.keys() | right.keys())
    return [(leaf, left.get(leaf), right.get(leaf)) for leaf in leaves if left.get(leaf) != right.get(leaf)]


def find_differences(first: Content, second: Content, name: str) -> list[tuple[str, Any, Any]]:
    """Return (field, first, second) of every field that a value depends on and that differs; a missing one is None."""
    fields = {field for content in (first, second) for field in content["values"].get(name, {}).get("fields", ())}
    return list_differences(*(select(content["protocol"], fields) for content in (first, second)))


def find_refusals(
    names: Iterable[str], contents: Mapping[str, Content], allowed: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Return the values whose numbers are not comparable, by the reason: the first field that differs.

    Args:
        names: the values.
        contents: by run; a run counts only for the values that it has, and each is compared with the first one.
        allowed: fields, or their beginnings, that may differ.
    """
    reasons: dict[str, list[str]] = {}
    for name in names:
        first, *others = [run for run, content in contents.items() if name in content["values"]] or [""]
        found = [
            f"{field} is {SHORT.repr(left)} in {first} and {SHORT.repr(right)} in {other}"
            for other in others
            for field, left, right in find_differences(contents[first], contents[other], name)
            if not covers(allowed, field)
        ]
        if found:
            reasons.setdefault(found[0], []).append(name)
    return reasons


def format_refusals(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line per reason, with the names of the values."""
    return [f"Not comparable: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def check_runs(where: str, contents: Mapping[str, dict[str, Any]]) -> list[int]:
    """Return the seeds of runs that are one experiment; `where` begins the messages.

    Each may have a start of its own, if these starts differ only in the seed too.

    Raises:
        ArtifactError: if two runs have one seed, or differ in more than the seed.
    """
    seeds = [content["run"]["seed"] for content in contents.values()]
    if len(set(seeds)) < len(seeds):
        msg = f"{where}: expected one run per seed, {', '.join(contents)} have the seeds {seeds}"
        raise ArtifactError(msg)
    starts = [content["run"].get("start", NONE) for content in contents.values()]
    have_own = len(starts) > 1 and len({*starts}) == len(starts) and NONE not in starts
    if have_own:
        check_runs(where, {start: read_protocol(artifacts.REPORTS / "runs" / start) for start in starts})
    first, *others = contents
    known = params.load().runs if params.PATH.exists() else {}
    brought = {run: known[run].weights if run in known else None for run in contents}
    outside = {run: weights.sha256 if weights else NONE for run, weights in brought.items()}
    for run in others:
        if outside[run] != outside[first]:
            pair = f"weights is {outside[first]} in {first} and {outside[run]} in {run}"
            msg = f"{where}: expected runs that differ only in the seed, {pair}"
            raise ArtifactError(msg)
        for key, left, right in list_differences(contents[first]["run"], contents[run]["run"]):
            if key != "seed" and not (have_own and key == "start"):
                pair = f"{key} is {left!r} in {first} and {right!r} in {run}"
                msg = f"{where}: expected runs that differ only in the seed, {pair}"
                raise ArtifactError(msg)
    return seeds
