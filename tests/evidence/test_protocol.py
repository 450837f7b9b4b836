"""Protocols: one changed field changes the hash, and is named."""

import copy
from typing import Any

import pytest

from pipeline.evidence.protocol import ProtocolError, find_differences, flatten, hash_protocol, require_equal

PROTOCOL: dict[str, Any] = {
    "metric": {"name": "images", "sampling": {"count": 1000}},
    "features": {"classifier": {"weights_sha256": "ab"}},
    "versions": {"torch": "2.14.0"},
}


def change(key: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(PROTOCOL)
    *path, last = key.split(".")
    inner = changed
    for part in path:
        inner = inner[part]
    inner[last] = value
    return changed


def test_the_hash_depends_on_every_leaf_and_not_on_the_order() -> None:
    leaves = dict(flatten(PROTOCOL))
    hashes = {hash_protocol(change(key, "other")) for key in leaves}
    assert len(hashes | {hash_protocol(PROTOCOL)}) == len(leaves) + 1
    assert hash_protocol(dict(reversed(PROTOCOL.items()))) == hash_protocol(PROTOCOL)


def test_the_differing_field_and_both_values_are_named() -> None:
    other = change("metric.sampling.count", 5000)
    with pytest.raises(ProtocolError, match=r"a and b .*: metric.sampling.count is 1000 and 5000"):
        require_equal({"a": PROTOCOL, "b": other})
    with pytest.raises(ProtocolError, match=r"a and c .*: features.inception.weights_sha256 is None and 'cd'"):
        require_equal({"a": PROTOCOL, "b": PROTOCOL, "c": change("networks.inception", {"weights_sha256": "cd"})})


def test_only_what_is_allowed_may_differ() -> None:
    other = change("versions.torch", "2.15.0")
    require_equal({"a": PROTOCOL, "b": other}, ["versions"])
    with pytest.raises(ProtocolError, match=r"versions.torch"):
        require_equal({"a": PROTOCOL, "b": other}, ["version"])


def test_equal_protocols_have_no_differences() -> None:
    assert find_differences(PROTOCOL, copy.deepcopy(PROTOCOL)) == []
