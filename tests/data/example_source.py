"""text8: 100 million characters of Wikipedia, only a to z and space (M. Mahoney); papers take 5 % and 5 % to test."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.formats.archives import read_files
from pipeline.formats.download import Source, fetch_all
from pipeline.kinds.text import TextConfig, Texts, split_documents

FILE = "text8.zip"
SHA256 = "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"
ADDRESSES = ("https://mattmahoney.net/dc/", "https://data.deepai.org/")


class Config(TextConfig):
    """How much of the text is used, and how it is split and tokenised."""

    source: Literal["text8"]
    characters: int = Field(default=100_000_000, ge=100, description="used of the text, from its beginning")


def fetch(folder: Path, config: Config) -> None:
    """Download the archive: from <DATA_MIRROR>/text8/text8.zip, or the first address that has the right bytes."""
    del config
    fetch_all("text8", [Source(FILE, SHA256, ADDRESSES)], folder)


def prepare(raw: Path, config: Config) -> Texts:
    """Read the one file of the archive and split it by position."""
    text = read_files(raw / FILE, ["text8"], limit=2**28)["text8"].decode("ascii")
    return split_documents({FILE: [text[: config.characters]]}, config)
