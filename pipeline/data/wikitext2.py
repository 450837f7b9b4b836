"""wikitext2: two million words of Wikipedia's good and featured articles (Merity et al. 2017), CC BY-SA 3.0.

`variant` raw is the text as it was, for characters, bytes and BPE; tokens is the one that word-level papers use, with
<unk> for rare words and @-@ for hyphens within words. Both archives are fetched, 9 MB, so that changing `variant`
suffices to change the data. The canonical train, valid and test files are the splits: `validation`, `test` and
`split_seed` have no effect here.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.artifacts import ArtifactError
from pipeline.formats.archives import read_files
from pipeline.formats.download import Source, fetch_all
from pipeline.kinds.text import TextConfig, Texts

LICENCE = "Creative Commons Attribution-ShareAlike, text of Wikipedia's authors"
FOLDERS = {"raw": "wikitext-2-raw", "tokens": "wikitext-2"}  # in the archive, which is named after it
FILES = {
    "raw": "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
    "tokens": "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
}
AUTHOR = "https://wikitext.smerity.com/"
ADDRESSES = {
    "raw": (
        AUTHOR,
        "https://huggingface.co/datasets/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/",
    ),
    "tokens": (AUTHOR, "https://s3.amazonaws.com/research.metamind.io/wikitext/"),
}
LIMIT = 1 << 25  # bytes; the archives unpack to 13 MB
SPLITS = {"train": "train", "validation": "valid", "test": "test"}


class Config(TextConfig):
    """Which form of the text, and how it is tokenised."""

    source: Literal["wikitext2"]
    variant: Literal["raw", "tokens"] = Field(default="raw", description="raw text, or words with <unk> for rare ones")


def fetch(folder: Path, config: Config) -> None:
    """Download both archives."""
    del config
    sources = [Source(f"{FOLDERS[variant]}-v1.zip", sha256, ADDRESSES[variant]) for variant, sha256 in FILES.items()]
    fetch_all("wikitext2", sources, folder)


def prepare(raw: Path, config: Config) -> Texts:
    """Read the three files of the variant.

    Raises:
        ArtifactError: naming the archive, and the file in it that is missing, empty or no UTF-8.
    """
    folder = FOLDERS[config.variant]
    archive = raw / f"{folder}-v1.zip"
    names = {split: f"{folder}/wiki.{part}.{config.variant}" for split, part in SPLITS.items()}
    files = read_files(archive, list(names.values()), LIMIT)
    return Texts({split: [_decode(files[name], f"{archive}: {name}")] for split, name in names.items()})


def _decode(content: bytes, place: str) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        msg = f"{place}: expected UTF-8, {error}"
        raise ArtifactError(msg) from error
    if not text:
        msg = f"{place}: expected text, found an empty file"
        raise ArtifactError(msg)
    return text
