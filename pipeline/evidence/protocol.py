"""Evaluation protocols: everything that must be equal for two numbers to be comparable.

A protocol is nested JSON, and its hash covers all of it. What belongs to the run itself (seeds, kept weights, training
data) is stored next to the protocol and never compared.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class ProtocolError(ValueError):
    """Numbers of different protocols were to be compared; the message names the first differing field."""


def hash_protocol(protocol: Mapping[str, Any]) -> str:
    """Return 12 hex digits of SHA-256 over the canonical JSON."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of nested mappings, in order of the names."""
    if isinstance(value, Mapping) and value:
        for key in sorted(value):
            yield from flatten(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def find_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (field, first value, second value) of every field that differs; a missing one is None."""
    left, right = dict(flatten(first)), dict(flatten(second))
    fields = sorted(left.keys() | right.keys())
    return [(name, left.get(name), right.get(name)) for name in fields if left.get(name) != right.get(name)]


def require_equal(protocols: Mapping[str, Mapping[str, Any]], allowed: Sequence[str] = ()) -> None:
    """Refuse to compare numbers of different protocols.

    Args:
        protocols: by the name of what is compared.
        allowed: fields, or their beginnings, that may differ.

    Raises:
        ProtocolError: naming the runs, the field and both values.
    """
    names = list(protocols)
    for name in names[1:]:
        for field, left, right in find_differences(protocols[names[0]], protocols[name]):
            if not any(field == prefix or field.startswith(f"{prefix}.") for prefix in allowed):
                msg = f"{names[0]} and {name} were evaluated by different protocols: {field} is {left!r} and {right!r}"
                raise ProtocolError(msg)
