"""Texts of one's own: every file is decoded right, or quarantined with a reason; real files, as people bring them."""

import codecs
import io
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.data import text_file
from pipeline.data.text_file import Config, fetch, prepare
from pipeline.kinds.text import write

SHARED: dict[str, Any] = {
    "source": "text_file",
    "split_seed": 0,
    "validation": 0.1,
    "test": 0.2,
    "tokenizer": "byte",
    "vocabulary": 300,
}
LINES = 200
STORY = "".join(f"Zeile {number}: größer als 🙂 und 漢字.\n" for number in range(LINES))


def config_of(path: Path, **changes: Any) -> Config:
    return Config.model_validate(SHARED | {"path": str(path)} | changes)


def texts_of(path: Path, **changes: Any) -> dict[str, str]:
    """Fetch and prepare; return each split's text."""
    raw = path.with_name(f"{path.name}.raw")
    config = config_of(path, **changes)
    fetch(raw, config)
    return {name: "".join(pieces) for name, pieces in prepare(raw, config).splits.items()}


def whole(path: Path, **changes: Any) -> str:
    """The text of one file: its splits, joined."""
    return "".join(texts_of(path, **changes).values())


def reports_of(path: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """What files.json says of each file."""
    raw, prepared = path.with_name(f"{path.name}.raw"), path.with_name(f"{path.name}.prepared")
    config = config_of(path, **changes)
    fetch(raw, config)
    write(prepared, prepare(raw, config), config)
    return {entry["path"]: entry for entry in artifacts.read_json(prepared / "files.json")}


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        texts_of(path, **changes)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a stage that stops leaves its reports in .state


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_bytes(STORY.encode())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """120 documents in three subfolders; each says its number."""
    root = tmp_path / "books"
    for number in range(120):
        path = root / f"part {number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<{number}>" * random.Random(number).randint(1, 60), encoding="utf-8")  # noqa: S311
    return root


def numbers(text: str) -> set[int]:
    return {int(document.split(">")[0][1:]) for document in text.split("\n\n")}


# --- one file ----------------------------------------------------------------


def test_a_terminal_shows_how_many_bytes_were_read(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    texts_of(story)
    lines = [line for line in terminal.getvalue().replace("\n", "\r").split("\r") if line.startswith("read bytes")]
    size = f"{story.stat().st_size / 1000:.2f}k"
    assert lines[-1].startswith("read bytes: 100%")
    assert f"{size}/{size}" in lines[-1]


def test_a_file_is_split_by_position(story: Path) -> None:
    splits = texts_of(story)
    total = len(STORY)
    assert splits == {
        "train": STORY[: int(total * (1 - 0.1 - 0.2))],
        "validation": STORY[int(total * (1 - 0.1 - 0.2)) : int(total * 0.8)],
        "test": STORY[int(total * 0.8) :],
    }
    assert set(texts_of(story, test=0.0)) == {"train", "validation"}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030"])
def test_chunks_cut_neither_characters_nor_line_ends(
    tmp_path: Path, chunk: int, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "ab\r\nä漢\r\r\n🙂\n\r" * 5 + "é\r"
    path = tmp_path / "x.txt"
    path.write_bytes(text.encode(encoding))
    monkeypatch.setattr(text_file, "CHUNK", chunk)
    monkeypatch.setattr(text_file, "SPACING", 2 * chunk)  # reading begins at many places
    named = {"encoding": "gb18030"} if encoding == "gb18030" else {}
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    splits = texts_of(path, **named)
    assert "".join(splits.values()) == expected
    assert len(splits["train"]) == int(len(expected) * (1 - 0.1 - 0.2))
    changed = text.count("\r")  # each CRLF has one, each CR is one
    assert reports_of(path, **named)["x.txt"]["note"] == f"CRLF and CR became LF, {changed} in all"


def test_a_text_can_be_read_again_and_again_and_from_its_middle(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "CHUNK", 100)
    monkeypatch.setattr(text_file, "SPACING", 300)
    config = config_of(story)
    fetch(story.parent / "raw", config)
    pieces = prepare(story.parent / "raw", config).splits["test"]
    assert "".join(pieces) == "".join(pieces) == STORY[int(len(STORY) * 0.8) :]
    begun = next(iter(pieces))
    assert 0 < len(begun) < 500  # not from the beginning of the file


@pytest.mark.parametrize(
    ("content", "named", "mode", "note"),
    [
        (STORY.encode(), "auto", "utf-8, LF", ""),
        (codecs.BOM_UTF8 + STORY.encode(), "auto", "utf-8 with BOM, LF", ""),
        (codecs.BOM_UTF16_LE + STORY.encode("utf-16-le"), "auto", "utf-16-le with BOM, LF", ""),
        (codecs.BOM_UTF16_BE + STORY.encode("utf-16-be"), "auto", "utf-16-be with BOM, LF", ""),
        (codecs.BOM_UTF32_LE + STORY.encode("utf-32-le"), "auto", "utf-32-le with BOM, LF", ""),
        (codecs.BOM_UTF32_BE + STORY.encode("utf-32-be"), "auto", "utf-32-be with BOM, LF", ""),
        (STORY.replace("\n", "\r\n").encode(), "auto", "utf-8, CRLF", f"CRLF became LF, {LINES} in all"),
        (STORY.replace("\n", "\r").encode(), "auto", "utf-8, CR", f"CR became LF, {LINES} in all"),
        (STORY.replace("\n", "\r\n", 3).encode(), "auto", "utf-8, LF and CRLF", "CRLF became LF, 3 in all"),
        (
            STORY.replace("\n", "\r\n").replace("\r\n", "\r", 2).encode("utf-16"),
            "auto",
            "utf-16-le with BOM, CRLF and CR",
            f"CRLF and CR became LF, {LINES} in all",
        ),
        (STORY.encode("utf-16-le"), "utf-16-le", "utf-16-le, LF", ""),
        (codecs.BOM_UTF8 + STORY.encode(), "latin-1", "utf-8 with BOM, LF", ""),  # the mark decides
        (STORY.encode("gb18030"), "gb18030", "gb18030, LF", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.fault(37)
def test_every_encoding_and_line_end_gives_the_same_text(
    tmp_path: Path, content: bytes, named: str, mode: str, note: str
) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    assert whole(path, encoding=named) == STORY
    report = reports_of(path, encoding=named)["x.txt"]
    assert (report["mode"], report["note"], report["reason"]) == (mode, note, "")


def test_latin_1_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("schön und größer".encode("latin-1") * 10)
    assert "'x.txt': not utf-8: invalid start byte at byte 3" in refusal(path)
    assert whole(path, encoding="latin-1") == "schön und größer" * 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (codecs.BOM_UTF8, "no text"),
        (codecs.BOM_UTF16_LE, "no text"),
        (b"good text\n" * 150_000 + b"\xff", "not utf-8: invalid start byte at byte 1500000"),
        (b"good text\n" * 150_000 + "é".encode()[:1], "not utf-8: unexpected end of data at byte 1500000"),
        (codecs.BOM_UTF8 + b"abc\xc0\xaf", "not utf-8: invalid start byte at byte 6"),  # overlong /
        (b"abc\xed\xa0\x80", "not utf-8: invalid continuation byte at byte 3"),  # a surrogate
        (codecs.BOM_UTF16_LE + b"a\0b\0\x00\xd8c\0", "not utf-16-le: illegal UTF-16 surrogate at byte 6"),
        (codecs.BOM_UTF16_LE + b"a\x00b", "not utf-16-le: truncated data at byte 4"),
        (b"some text\0more", "character 9 is NUL: binary, or in another encoding"),
        ("plain ASCII".encode("utf-16-le"), "character 1 is NUL: binary, or in another encoding"),  # without a mark
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not utf-8: invalid start byte at byte 0"),
        (b"GIF89a\x01\0\x01\0", "character 7 is NUL: binary, or in another encoding"),
    ],
    ids=range(13),
)
@pytest.mark.fault(37)
def test_what_is_no_text_is_quarantined_with_its_place(tmp_path: Path, content: bytes, reason: str) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    (root / "good.txt").write_text(STORY, encoding="utf-8")
    (root / "bad.txt").write_bytes(content)
    reports = reports_of(root, max_broken=0.5)
    assert reports["bad.txt"]["reason"] == reason
    assert reports["good.txt"]["reason"] == ""
    assert whole(root, max_broken=0.5) == STORY
    assert f"'bad.txt': {reason}" in refusal(root)  # the default allows 1 %


def test_html_is_text_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("<html><body>404 Not Found</body></html>" * 5, encoding="utf-8")
    assert whole(tmp_path / "x.txt") == "<html><body>404 Not Found</body></html>" * 5


@pytest.mark.parametrize("kind", ["character", "byte", "bpe"])
def test_one_line_of_ten_megabytes_is_text(tmp_path: Path, kind: str) -> None:
    length = 1_000_000 if kind == "bpe" else 10_000_000  # BPE would need seconds
    path = tmp_path / "line.txt"
    path.write_bytes((b"one more word " * (length // 14 + 1))[:length])
    config = config_of(path, tokenizer=kind)
    fetch(tmp_path / "raw", config)
    manifest = write(tmp_path / "prepared", prepare(tmp_path / "raw", config), config)
    assert sum(entry["characters"] for entry in manifest["splits"].values()) == length
    assert artifacts.read_json(tmp_path / "prepared" / "files.json")[0]["mode"] == "utf-8, one line"


def test_blanks_and_controls_stay(tmp_path: Path) -> None:
    text = "\t a\x0b\x0c\x1c\x85\u2028b\ufeff\x7f " * 20  # str.splitlines would end lines at six of them
    (tmp_path / "x.txt").write_bytes(text.encode())
    assert whole(tmp_path / "x.txt") == text


@pytest.mark.parametrize("length", [1, 2, 5, 9])
@pytest.mark.fault(37)
def test_a_text_too_short_for_its_splits_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.txt"
    path.write_text("x" * length, encoding="utf-8")
    config = config_of(path)
    fetch(tmp_path / "raw", config)
    with pytest.raises(
        ArtifactError, match="split needs at least 2 characters, one to predict from another; got train"
    ):
        write(tmp_path / "prepared", prepare(tmp_path / "raw", config), config)


# --- folders -----------------------------------------------------------------


@pytest.mark.fault(36)
def test_every_document_is_in_one_split_and_whole(folder: Path) -> None:
    splits = texts_of(folder)
    found = {name: numbers(text) for name, text in splits.items()}
    assert set.union(*found.values()) == set(range(120))
    assert sum(map(len, found.values())) == 120
    for text in splits.values():
        for document in text.split("\n\n"):
            number = document.split(">")[0][1:]
            assert document == f"<{number}>" * random.Random(int(number)).randint(1, 60)  # noqa: S311


def test_shares_of_documents_are_right_in_expectation(tmp_path: Path) -> None:
    root = tmp_path / "many"
    root.mkdir()
    for number in range(1000):
        (root / f"{number}.txt").write_text(f"<{number}>", encoding="utf-8")
    splits = texts_of(root)
    # Of 1,000 independent documents: standard errors 9.5 and 12.6.
    assert abs(len(numbers(splits["validation"])) - 100) < 40
    assert abs(len(numbers(splits["test"])) - 200) < 50
    assert texts_of(root, split_seed=1)["test"] != splits["test"]
    assert set(texts_of(root, test=0.0)) == {"train", "validation"}


def test_a_further_file_moves_no_other_and_names_decide_nothing(folder: Path) -> None:
    before = {name: numbers(text) for name, text in texts_of(folder).items()}
    (folder / "part 0" / "0.txt").rename(folder / "zzz.txt")
    (folder / "1000.txt").write_text("<1000>", encoding="utf-8")
    after = {name: numbers(text) - {1000} for name, text in texts_of(folder).items()}
    assert after == before


def test_documents_come_in_the_order_of_their_names_and_say_their_split(folder: Path) -> None:
    splits = texts_of(folder)
    reports = reports_of(folder)
    assert list(reports) == sorted(reports)
    for name, text in splits.items():
        paths = [path for path, report in reports.items() if report["split"] == name]
        assert [Path(path).stem for path in paths] == [part.split(">")[0][1:] for part in text.split("\n\n")]


@pytest.mark.fault(36)
def test_equal_texts_are_used_once_and_named(folder: Path) -> None:
    before = texts_of(folder)
    text = (folder / "part 1" / "1.txt").read_text(encoding="utf-8")
    (folder / "part 2" / "copy.txt").write_text(text, encoding="utf-8")
    (folder / "part 2" / "utf16.txt").write_text(text, encoding="utf-16")
    assert texts_of(folder) == before
    reports = reports_of(folder)
    for name in ("part 2/copy.txt", "part 2/utf16.txt"):
        assert reports[name]["duplicate_of"] == "part 1/1.txt"
        assert reports[name]["reason"] == ""
    assert reports["part 1/1.txt"]["duplicate_of"] == ""


def test_documents_that_differ_in_line_ends_alone_are_equal(tmp_path: Path) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    (root / "a.txt").write_bytes(STORY.encode())
    (root / "b.txt").write_bytes(STORY.replace("\n", "\r\n").encode())
    assert whole(root) == STORY  # one document is left: by position
    assert reports_of(root)["b.txt"]["duplicate_of"] == "a.txt"


@pytest.mark.parametrize("seed", range(5))
def test_few_documents_fill_every_split_that_has_a_share(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    for number in range(5):
        (root / f"{number}.txt").write_text(f"<{number}>", encoding="utf-8")
    counts = {name: len(numbers(text)) for name, text in texts_of(root, split_seed=seed).items()}
    assert sum(counts.values()) == 5
    assert min(counts[name] for name in ("train", "validation", "test")) >= 1
    assert set(texts_of(root, split_seed=seed, test=0.0)) == {"train", "validation"}


def test_too_few_documents_for_every_split_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    for number in range(2):
        (root / f"{number}.txt").write_text(f"text {number}" * 10, encoding="utf-8")
    config = config_of(root)
    fetch(tmp_path / "raw", config)
    with pytest.raises(
        ArtifactError, match="bring more text or more documents, or change validation, test or split_seed"
    ):
        write(tmp_path / "prepared", prepare(tmp_path / "raw", config), config)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*.txt", {"a.txt", "sub/b.txt", "sub/deep/c.txt"}),
        ("*.txt", {"a.txt", "sub/b.txt", "sub/deep/c.txt"}),
        ("sub/*.txt", {"sub/b.txt"}),
        ("**/*", {"a.txt", "README.md", "sub/b.txt", "sub/deep/c.txt"}),
        ("*.md", {"README.md"}),
    ],
)
def test_the_pattern_chooses_files(tmp_path: Path, pattern: str, names: set[str]) -> None:
    root = tmp_path / "texts"
    for number, name in enumerate(["a.txt", "README.md", "sub/b.txt", "sub/deep/c.txt", ".hidden.txt", ".git/d.txt"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text {number} " * 20, encoding="utf-8")
    config = config_of(root, pattern=pattern)
    fetch(tmp_path / "raw", config)
    assert {report.path for report in prepare(tmp_path / "raw", config).files} == names


def test_a_pattern_without_a_file_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "README.md").write_text("text", encoding="utf-8")
    assert "no file matches the pattern '**/*.txt'; the first of 1 files: 'README.md'" in refusal(tmp_path / "texts")


def test_names_may_hold_anything(tmp_path: Path) -> None:
    root = tmp_path / "te xts"
    root.mkdir()
    names = [
        "two words.txt",
        'it\'s "quoted".txt',
        "new\nline.txt",
        "🙂.txt",
        "n" * 251 + ".txt",
    ]
    if sys.platform == "linux":  # macOS takes no such name
        names.append(os.fsdecode(b"\xff\xfe.txt"))
    for number, name in enumerate(names):
        (root / name).write_text(f"<{number}>" * 50, encoding="utf-8")
    shares = {"validation": 0.3, "test": 0.3, "split_seed": 1}
    text = "\n\n".join(texts_of(root, **shares).values())
    assert numbers(text) == set(range(len(names)))
    assert set(reports_of(root, **shares)) == set(names)


def test_what_leads_out_of_the_folder_or_hangs_is_quarantined(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret", encoding="utf-8")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "broken.txt").symlink_to(outside / "none")
    os.mkfifo(folder / "pipe.txt")
    (folder / "inside.txt").symlink_to(folder / "part 0")  # its files are listed at their own place
    (folder / "same.txt").symlink_to(folder / "part 0" / "0.txt")
    reports = reports_of(folder, max_broken=0.1)
    for name in ("link.txt", "broken.txt"):
        assert reports[name]["reason"] == "a link out of the folder, or to nothing"
    assert reports["pipe.txt"]["reason"].startswith("cannot be read")
    assert "inside.txt" not in reports
    assert reports["same.txt"]["duplicate_of"] == "part 0/0.txt"
    assert "secret" not in "".join(texts_of(folder, max_broken=0.1).values())
    assert "'link.txt': a link out of the folder" in refusal(folder)
    (folder / "linked").symlink_to(outside)
    assert "linked': a link to a folder outside of " in refusal(folder)


def test_a_single_file_may_be_named_by_a_link(story: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    link = tmp_path / "own" / "link.txt"
    link.symlink_to(story)
    assert whole(link) == STORY


# --- changes and wrong paths -------------------------------------------------


def test_a_file_that_changed_after_it_was_listed_is_refused_with_both_hashes(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder)
    fetch(tmp_path / "raw", config)
    path = folder / "part 2" / "2.txt"
    before = artifacts.digest(path)
    path.write_text("other", encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"'part 2/2.txt' changed .* {before}, found {artifacts.digest(path)}"):
        prepare(tmp_path / "raw", config)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"'part 2/2.txt' changed .* found No such file"):
        prepare(tmp_path / "raw", config)


def test_a_file_that_changes_after_it_was_judged_is_refused(story: Path, tmp_path: Path) -> None:
    config = config_of(story)
    fetch(tmp_path / "raw", config)
    texts = prepare(tmp_path / "raw", config)
    story.write_bytes(b"\xff" * len(STORY.encode()))
    os.utime(story, ns=(0, 0))
    with pytest.raises(ArtifactError, match=r"story.txt: changed while it was read"):
        write(tmp_path / "prepared", texts, config)
    assert not (tmp_path / "prepared" / "train.safetensors").exists()


def test_an_absent_path_and_an_empty_folder_are_refused_by_name(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: expected a folder, found nothing" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: no file found" in refusal(tmp_path / "empty")


def test_the_listing_has_sizes_and_hashes_and_the_text_stays_where_it_is(folder: Path, tmp_path: Path) -> None:
    fetch(tmp_path / "raw", config_of(folder))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["files.json"]
    listing = json.loads((tmp_path / "raw" / "files.json").read_text())
    for entry in listing:
        path = folder / entry["path"]
        assert (entry["size"], entry["sha256"]) == (path.stat().st_size, artifacts.digest(path))
    assert len(listing) == 120


def test_preparing_twice_gives_identical_bytes(folder: Path, tmp_path: Path) -> None:
    contents = []
    for attempt in ("one", "two"):
        config = config_of(folder, tokenizer="bpe")
        fetch(tmp_path / attempt / "raw", config)
        manifest = write(tmp_path / attempt / "prepared", prepare(tmp_path / attempt / "raw", config), config)
        files = sorted((tmp_path / attempt).rglob("*.*"))
        contents.append([manifest, *((path.name, path.read_bytes()) for path in files)])
    assert contents[0] == contents[1]
    tokens = load_file(tmp_path / "one" / "prepared" / "train.safetensors")["tokens"]
    assert len(tokens) == contents[0][0]["splits"]["train"]["tokens"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "latin-7b"}, "expected auto or a text encoding that Python knows"),
        ({"encoding": "hex"}, "expected auto or a text encoding that Python knows"),
        ({"pattern": "books/**/*.txt"}, "may only stand at its beginning"),
        ({"pattern": ""}, "expected a pattern"),
        ({"max_broken": 1.0}, "max_broken"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of(tmp_path, **changes)


# --- folders and files that are splits -----------------------------------------


def write_documents(root: Path, documents: dict[str, str]) -> None:
    for name, text in documents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("train/a.txt", "val/b.txt", "test/c.txt"),
        ("corpus/Training/a.txt", "corpus/dev/b.txt", "corpus/test_set/c.txt"),
    ],
)
def test_folders_or_files_named_train_valid_and_test_are_the_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    texts = dict(zip(("train", "validation", "test"), ("a" * 90, "b" * 30, "c" * 30), strict=True))
    write_documents(tmp_path / "own", dict(zip(names, texts.values(), strict=True)))
    assert texts_of(tmp_path / "own") == texts
    split = {path: report["split"] for path, report in reports_of(tmp_path / "own").items()}
    assert split == dict(zip(names, texts, strict=True))
    mixed = texts_of(tmp_path / "own", folders="none", validation=0.4, test=0.4, split_seed=1)
    assert mixed != texts
    assert sorted("".join(mixed.values()).replace("\n", "")) == sorted("".join(texts.values()))


def test_a_split_without_a_file_is_a_share_of_the_training_text(tmp_path: Path) -> None:
    write_documents(tmp_path / "own", {"train.txt": "0123456789" * 10, "test.txt": "x" * 50})
    found = texts_of(tmp_path / "own", validation=0.2, test=0.5)
    assert {name: len(text) for name, text in found.items()} == {"train": 80, "validation": 20, "test": 50}
    assert found["train"] + found["validation"] == "0123456789" * 10


def test_a_text_of_the_test_folder_is_never_trained_on(tmp_path: Path) -> None:
    write_documents(
        tmp_path / "own",
        {**{f"train/{index}.txt": f"text {index}" * 9 for index in range(9)}, "test/x.txt": "text 3" * 9},
    )
    found = texts_of(tmp_path / "own")
    assert found["test"] == "text 3" * 9
    assert "text 3" not in found["train"] + found.get("validation", "")
    assert reports_of(tmp_path / "own", validation=0.4)["train/3.txt"]["duplicate_of"] == "test/x.txt"


def test_litter_is_no_text_whatever_the_pattern(tmp_path: Path) -> None:
    write_documents(tmp_path / "own", {"a.txt": STORY})
    (tmp_path / "own" / "Thumbs.db").write_bytes(b"\0" * 9)
    assert set(reports_of(tmp_path / "own", pattern="*", max_broken=0.0)) == {"a.txt"}
