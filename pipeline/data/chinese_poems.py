"""chinese_poems: 36,117 regulated poems of the Tang dynasty, 1.7 million characters, in traditional script.

The Complete Tang Poems (1705) of the repository chinese-poetry: of its 57,607 entries those whose whole text has two
or four couplets of 5 + 5 or 7 + 7 characters; equal ones count once. A couplet is one line, and an empty line follows
each poem. Poems that share a couplet are variants of one another and go to one split. The characters stay traditional.

The archive of GitHub may change its bytes, so its content is hashed.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.formats.archives import read_members
from pipeline.formats.contents import hash_files
from pipeline.formats.download import Source, fetch_archive
from pipeline.formats.verses import is_regulated
from pipeline.kinds.text import TextConfig, Texts, split_documents

LICENCE = "poems in the public domain, collected under the MIT licence"
FILE = "chinese-poetry.zip"
SHA256 = "a1c65e5316294174fc7e6f2ada4474c9a0747c14b7b804de9f2ab8592d44c54e"  # of the content: see `measure`
COMMIT = "99ebbef7e1345c0985c44b9fd96a3f9e776f117b"
ADDRESSES = (
    f"https://github.com/chinese-poetry/chinese-poetry/archive/{COMMIT}.zip",
    f"https://codeload.github.com/chinese-poetry/chinese-poetry/zip/{COMMIT}",
)
LIMIT = 1 << 30  # bytes; the archive has more than Tang poems
BINS = 2000  # of the groups of variants: splitting takes time with the square of the number of documents
FOLDER = "全唐诗"  # of the Complete Tang Poems
NAMES = tuple(f"poet.tang.{number}.json" for number in range(0, 58_000, 1000))


class Config(TextConfig):
    """How the poems are split and tokenised."""

    source: Literal["chinese_poems"]


def fetch(folder: Path, config: Config) -> None:
    """Download the archive, and write its files of Tang poems, poet.tang.<number>.json."""
    del config
    fetch_archive("chinese_poems", Source(FILE, SHA256, ADDRESSES, limit=LIMIT), measure, folder)
    for name, content in read_poems(folder / FILE).items():
        artifacts.write_bytes(folder / name, content)
    (folder / FILE).unlink()


def read_poems(archive: Path) -> dict[str, bytes]:
    """Return the files of Tang poems in an archive by their names; its other files are skipped.

    Raises:
        ArtifactError: if the archive is refused or broken.
    """
    found = ((PurePosixPath(member.name), member.blocks) for member in read_members(archive, LIMIT))
    return {path.name: b"".join(blocks) for path, blocks in found if path.parent.name == FOLDER and path.name in NAMES}


def measure(archive: Path) -> str:
    """Return the hash of an archive's files of Tang poems."""
    return hash_files(read_poems(archive))


def prepare(raw: Path, config: Config) -> Texts:
    """Select the regulated poems, and split them.

    Raises:
        ArtifactError: if a file is missing or has no list of poems.
    """
    entries = [entry for name in NAMES for entry in _read(raw / name)]
    texts = dict.fromkeys("\n".join(entry["paragraphs"]) for entry in entries)
    poems = [text for text in texts if is_regulated(text)]
    groups: dict[str, list[str]] = {}
    for poem, group in zip(poems, group_variants(poems), strict=True):
        groups.setdefault(f"{group % BINS:04}", []).append(poem)
    return split_documents(groups, config)


def group_variants(poems: Sequence[str]) -> list[int]:
    """Return the group of each poem, by number: poems with a common couplet are in one group."""
    lines = [(number, line) for number, poem in enumerate(poems) for line in poem.split("\n")]
    couplets = {line: len(poems) + number for number, line in enumerate(dict.fromkeys(line for _, line in lines))}
    size = len(poems) + len(couplets)  # poems and couplets are the nodes
    edges = (np.array([number for number, _ in lines]), np.array([couplets[line] for _, line in lines]))
    graph = coo_array((np.ones(len(lines)), edges), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(poems)].tolist()


def _read(path: Path) -> list[dict[str, list[str]]]:
    entries = artifacts.read_json(path)
    if not isinstance(entries, list):
        msg = f"{path}: expected a list of poems, got {type(entries).__name__}"
        raise ArtifactError(msg)
    return entries
