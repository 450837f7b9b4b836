"""The chorales of Bach: their splits, voices and pins, and what is no such file."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import ArtifactError
from pipeline.data import jsb_chorales
from pipeline.kinds.music import PITCHES, REST

CONFIG = jsb_chorales.Config(source="jsb_chorales", path="data/own", transpose=0)
MIRROR = Path(os.environ.get("DATA_MIRROR", "")) / "jsb_chorales" / jsb_chorales.FILE


def make_content() -> dict[str, list[list[list[int]]]]:
    """As many chorales as the splits have, of two frames each; the second one has rests."""
    return {
        key: [[[70, 65, 60, 40 + index % 20], [71, -1, -1, 50]] for index in range(count)]
        for key, count in jsb_chorales.SPLITS.values()
    }


def test_the_chorales_keep_their_splits_and_a_silent_voice_rests(tmp_path: Path) -> None:
    (tmp_path / jsb_chorales.FILE).write_text(json.dumps(make_content()))
    splits = jsb_chorales.prepare(tmp_path, CONFIG).splits
    assert {name: len(pieces) for name, pieces in splits.items()} == {"train": 229, "validation": 76, "test": 77}
    assert splits["validation"][3].dtype == np.uint8
    assert splits["validation"][3].tolist() == [[70, 65, 60, 43], [71, REST, REST, 50]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"train": []}', "KeyError: 'valid'"),
        (json.dumps(make_content() | {"test": []}), "'test': 77}, got .*'test': 0}"),
        (json.dumps(make_content() | {"test": [[[60, 61, 62]]] * 77}), "ValueError"),
    ],
)
def test_what_is_no_file_of_chorales_is_refused_by_its_name(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / jsb_chorales.FILE).write_text(content)
    with pytest.raises(ArtifactError, match=f"{re.escape(str(tmp_path / jsb_chorales.FILE))}: expected .*{message}"):
        jsb_chorales.prepare(tmp_path, CONFIG)


def test_the_file_is_pinned_by_its_hash_and_two_addresses_of_one_commit() -> None:
    assert int(jsb_chorales.SHA256, 16)
    assert len(jsb_chorales.SHA256) == 64
    assert len(set(jsb_chorales.ADDRESSES)) == 2
    for address in jsb_chorales.ADDRESSES:
        assert address.startswith("https://")
        assert jsb_chorales.COMMIT in address


@pytest.mark.skipif(not MIRROR.exists(), reason="set DATA_MIRROR to a folder that has jsb_chorales/*.json")
def test_the_chorales_are_those_of_the_literature(tmp_path: Path) -> None:
    """Splits of 229, 76 and 77 chorales, of which 93,000 frames; pitches from 36 to 81, as in Coconet's paper."""
    jsb_chorales.fetch(tmp_path, CONFIG)
    assert hashlib.sha256(MIRROR.read_bytes()).hexdigest() == jsb_chorales.SHA256
    splits = jsb_chorales.prepare(tmp_path, CONFIG).splits
    assert {name: sum(map(len, pieces)) for name, pieces in splits.items()} == {
        "train": 55228,
        "validation": 18408,
        "test": 18900,
    }
    played = np.concatenate([piece[piece < PITCHES] for pieces in splits.values() for piece in pieces])
    assert (played.min(), played.max()) == (36, 81)
