"""shakespeare: Tiny Shakespeare, 1,115,394 characters of plays (A. Karpathy's char-rnn), public domain text.

One document, split by position: with validation 0.1 and test 0 the split is nanoGPT's.
"""

from pathlib import Path
from typing import Literal

from pipeline.formats.download import Source, fetch_all
from pipeline.kinds.text import TextConfig, Texts, split_documents

LICENCE = "public domain"
FILE = "input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
ADDRESSES = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/",
)


class Config(TextConfig):
    """How the text is split and tokenised."""

    source: Literal["shakespeare"]


def fetch(folder: Path, config: Config) -> None:
    """Download the text."""
    del config
    fetch_all("shakespeare", [Source(FILE, SHA256, ADDRESSES)], folder)


def prepare(raw: Path, config: Config) -> Texts:
    """Split the text by position."""
    return split_documents({FILE: [(raw / FILE).read_text(encoding="utf-8")]}, config)
