"""jsb_chorales: 382 chorales of J. S. Bach in four voices on a grid of sixteenth notes, with the canonical splits.

229 chorales for training, 76 for validation and 77 for testing (Boulanger-Lewandowski et al. 2012). The files are those
of czhuang/JSB-Chorales-dataset, which state no licence; the music is in the public domain. The grid does not tell a
repeated note from a held one.
"""

import json
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.artifacts import ArtifactError
from pipeline.formats.download import Source, fetch_all
from pipeline.kinds import FieldSpec
from pipeline.kinds.music import REST, MusicConfig, Pieces, make_fields

LICENCE = "music in the public domain"
FILE = "Jsb16thSeparated.json"
SHA256 = "79294cc374f9252e95ef4b703161524c1c53dc1f712c236f00f1c1f5d54af5a7"
COMMIT = "9a7f733ddb4ed91f48da64ac7f0f621c34aadd4d"
ADDRESSES = (
    f"https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/{COMMIT}/",
    f"https://cdn.jsdelivr.net/gh/czhuang/JSB-Chorales-dataset@{COMMIT}/",
)
SPLITS = {"train": ("train", 229), "validation": ("valid", 76), "test": ("test", 77)}  # names in the file, chorales
VOICES = 4
SILENCE = -1  # in the file


class Config(MusicConfig):
    """How the training chorales are transposed."""

    source: Literal["jsb_chorales"]


def foresee(config: Config) -> dict[str, FieldSpec]:
    """Return the field of the chorales."""
    del config
    return make_fields(VOICES)


def fetch(folder: Path, config: Config) -> None:
    """Download the file."""
    del config
    fetch_all("jsb_chorales", [Source(FILE, SHA256, ADDRESSES, limit=1 << 24)], folder)


def prepare(raw: Path, config: Config) -> Pieces:
    """Read the chorales of each split.

    Raises:
        ArtifactError: naming the file, if it is not the chorales.
    """
    del config
    path = raw / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        splits = {
            name: [np.array(piece, dtype=np.int16).reshape(-1, VOICES) for piece in content[key]]
            for name, (key, _) in SPLITS.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path}: expected chorales of {VOICES} voices, got {type(error).__name__}: {error}"
        raise ArtifactError(msg) from error
    wanted = {name: count for name, (_, count) in SPLITS.items()}
    if (found := {name: len(pieces) for name, pieces in splits.items()}) != wanted:
        msg = f"{path}: expected chorales {wanted}, got {found}"
        raise ArtifactError(msg)
    return Pieces(
        {
            name: [np.where(piece == SILENCE, REST, piece).astype(np.uint8) for piece in pieces]
            for name, pieces in splits.items()
        }
    )
