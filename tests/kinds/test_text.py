"""Text sets: what is written is the text, whatever its size, its pieces and the number of threads."""

import errno
import hashlib
import io
import json
import random
import resource
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline import artifacts
from pipeline.artifacts import ArtifactError, append_tensor
from pipeline.data import markov
from pipeline.formats import tokenizers
from pipeline.formats.own_files import FileReport
from pipeline.formats.tokenizers import Kind, restore_tokenizer
from pipeline.kinds.text import TextConfig, Texts, choose_prompt, question_data, write

KINDS = get_args(Kind)
WORDS = ["the", "of", "naïve", "Ωμέγα", "漢字", "a", "don't", "\n", "  ", "x = [1, 2]", "🙂"]


def text_config(**changes: Any) -> TextConfig:
    values = {
        "path": "data/own",
        "split_seed": 0,
        "validation": 0.1,
        "test": 0.1,
        "tokenizer": "byte",
        "vocabulary": 300,
    }
    return TextConfig.model_validate({"source": "test"} | values | changes)


def random_text(seed: int, words: int) -> str:
    generator = random.Random(seed)  # noqa: S311
    return " ".join(generator.choice(WORDS) for _ in range(words))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def splits() -> dict[str, str]:
    """A training text of several pieces."""
    return {"train": random_text(0, 120_000), "validation": random_text(1, 3000), "test": random_text(2, 3000)}


class Broken:
    """A text that cannot be read to its end."""

    def __iter__(self) -> Iterator[str]:
        yield "x " * tokenizers.PIECE
        msg = "the disk is gone"
        raise OSError(msg)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_depends_neither_on_the_threads_nor_on_how_the_text_comes_in(
    tmp_path: Path, splits: dict[str, str], kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(splits["train"]) > 2 * tokenizers.PIECE
    config = text_config(tokenizer=kind)
    manifests = []
    for workers, size in ((1, 10**9), (4, 99_999), (3, 1 << 20)):
        texts = {
            name: [text[start : start + size] for start in range(0, len(text), size)] for name, text in splits.items()
        }
        monkeypatch.setattr(tokenizers, "WORKERS", workers)
        manifests.append(write(tmp_path / str(workers), Texts(texts), config))
    assert manifests[0] == manifests[1] == manifests[2]
    assert files_of(tmp_path / "1") == files_of(tmp_path / "4") == files_of(tmp_path / "3")


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_the_text_and_the_manifest_counts_it(tmp_path: Path, splits: dict[str, str], kind: Kind) -> None:
    manifest = write(tmp_path, Texts({name: [text] for name, text in splits.items()}), text_config(tokenizer=kind))
    tokenizer = restore_tokenizer(artifacts.read_json(tmp_path / "tokenizer.json"))
    assert manifest["fields"] == {"tokens": {"kind": "text", "vocabulary": tokenizer.size}}
    for name, text in splits.items():
        tokens = load_file(tmp_path / f"{name}.safetensors")["tokens"]
        assert tokens.dtype == torch.int32
        assert tokens.ndim == 1
        assert tokenizer.decode(tokens.tolist()) == text
        entry = manifest["splits"][name]
        counts = [entry[key] for key in ("tokens", "characters", "bytes", "distinct_characters")]
        assert counts == [len(tokens), len(text), len(text.encode()), len(set(text))]
        assert entry["sha256"] == artifacts.digest(tmp_path / f"{name}.safetensors")
        assert entry["words"] == len(text.split()) + text.count("\n")
        assert entry["content_sha256"] == hashlib.sha256(text.encode()).hexdigest()  # the same for every tokenizer


def test_characters_that_the_tokenizer_cannot_write_are_counted_and_named(tmp_path: Path) -> None:
    train, lost = "plain words, " * 9000, "ééé☃☃üöäßç"
    texts = {"train": train, "validation": train, "test": lost + train + lost}  # in two pieces
    assert len(texts["test"]) > tokenizers.PIECE
    splits = Texts({name: [text] for name, text in texts.items()})
    config = text_config(tokenizer="character")
    manifest = write(tmp_path / "own", splits, config)
    entries = manifest["splits"]
    unknown = Counter(character for character in texts["test"] if character not in train)
    assert [entries[name]["unknown_characters"] for name in texts] == [0, 0, unknown.total()] == [0, 0, 20]
    assert entries["train"]["most_unknown"] == []
    assert entries["test"]["most_unknown"] == [
        ["U+00E9 LATIN SMALL LETTER E WITH ACUTE", 6],
        ["U+2603 SNOWMAN", 4],
        ["U+00DF LATIN SMALL LETTER SHARP S", 2],  # of equally many the first in code-point order
        ["U+00E4 LATIN SMALL LETTER A WITH DIAERESIS", 2],
        ["U+00E7 LATIN SMALL LETTER C WITH CEDILLA", 2],
    ]
    (message,) = [doubt for doubt in question_data("own", manifest, config) if "U+FFFD" in doubt]
    assert message.startswith(
        f"data.own.tokenizer: 20 of {len(texts['test'])} characters of the test split are not in the train"
    )
    assert "WITH ACUTE (6), U+2603 SNOWMAN (4)" in message
    assert "CEDILLA (2), ...;" in message
    assert message.endswith("byte or bpe writes every character")


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_byte_and_bpe_lose_no_character(tmp_path: Path, kind: Kind) -> None:
    texts = Texts({"train": ["plain words"], "validation": ["ü"] * 2, "test": ["漢字🙂"]})
    entries = write(tmp_path, texts, text_config(tokenizer=kind))["splits"]
    assert {entry["unknown_characters"] for entry in entries.values()} == {0}


# --- the prompt --------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "prompt", "chosen"),
    [
        ("two\nlines", "\n", "\n"),
        ("two\nlines", "tell", "tell"),
        ("one line", "\n", " "),
        ("漢字", "\n", "字"),
    ],
)
def test_samples_continue_the_prompt_or_instead_of_a_line_end_the_first_known_character(
    kind: Kind, text: str, prompt: str, chosen: str
) -> None:
    tokenizer = tokenizers.train_tokenizer([text], kind, 300)
    assert choose_prompt(tokenizer, prompt) == chosen
    assert set(chosen) <= set(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("one é", "U+00E9 LATIN SMALL LETTER E WITH ACUTE"),
        ("☃☃\n", r"U+2603 SNOWMAN, U+000A '\n'"),
        ("\ufffd", "U+FFFD REPLACEMENT CHARACTER"),
        ("\ud800", r"U+D800 '\ud800'"),
        ("", "an empty text"),
        ("ABCDEFG", ", ".join(f"U+{ord(letter):04X} LATIN CAPITAL LETTER {letter}" for letter in "ABCDE") + ", ..."),
    ],
)
def test_a_prompt_with_characters_that_the_training_text_lacks_is_refused_by_name(
    kind: Kind, prompt: str, named: str
) -> None:
    tokenizer = tokenizers.train_tokenizer(["one line"], kind, 300)
    with pytest.raises(ArtifactError) as caught:
        choose_prompt(tokenizer, prompt)
    expected = "metrics.text.sampling.prompt: expected characters of the training text, got "
    assert str(caught.value) == expected + named


def test_the_text_of_a_source_without_line_ends_begins_with_a_letter_of_it(tmp_path: Path) -> None:
    config = markov.Config.model_validate(text_config().model_dump() | {"source": "markov", "count": 1000})
    train = markov.prepare(tmp_path, config).splits["train"]
    assert choose_prompt(tokenizers.train_tokenizer(train, "character", 0), "\n") == "a"
    assert "a" in "".join(train)


def test_words_are_counted_as_word_level_papers_count_wikitext(tmp_path: Path) -> None:
    # Merity et al. 2017: each line ends in <eos>, <unk> and punctuation are words.
    line = " = Robert <unk> = \n"
    entries = write(tmp_path, Texts({"train": [line], "validation": [line * 3], "test": ["a\tb  c"]}), text_config())
    assert [entries["splits"][name]["words"] for name in ("train", "validation", "test")] == [5, 15, 3]


def test_the_manifest_says_how_much_held_out_text_is_in_the_training_text(tmp_path: Path) -> None:
    train, other = random_text(0, 3000), random_text(1, 3000)
    texts = Texts({"train": [train], "validation": [train[500:900]], "test": [other[:1000], train[:1000]]})
    entries = write(tmp_path, texts, text_config())["splits"]
    assert "overlap_with_train" not in entries["train"]
    found = {name: [entries[name][key] for key in KEYS] for name in ("validation", "test")}
    assert found["validation"] == [1.0, 50, 351]
    held_out = other[:1000] + train[:1000]
    share = np.mean([held_out[start : start + 50] in train for start in range(1951)])
    assert found["test"] == [share, 50, 1951]
    assert 0.48 < share < 0.6


KEYS = ("overlap_with_train", "overlap_window", "overlap_windows")


def test_a_split_that_stands_in_another_held_out_split_is_told(tmp_path: Path) -> None:
    held_out = random_text(1, 3000)
    texts = Texts({"train": [random_text(0, 3000)], "validation": [held_out], "test": [held_out]})
    entries = write(tmp_path, texts, text_config())["splits"]
    assert entries["test"]["overlap_with_validation"] == 1.0
    assert entries["test"]["overlap_with_train"] == entries["validation"]["overlap_with_train"] < 0.1


def test_a_terminal_shows_the_progress_of_every_pass(
    tmp_path: Path, splits: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    write(tmp_path, Texts({name: [text] for name, text in splits.items()}), text_config(tokenizer="character"))
    lines = {line.partition(":")[0].strip(): line for line in terminal.getvalue().replace("\n", "\r").split("\r")}
    total = len(splits["train"])
    for name in ("learn tokens", "tokenize train", "tokenize test", "sample test", "overlap with train"):
        assert ": 100%" in lines[name], lines.keys()
    assert f"{total / 1000:.0f}k/{total / 1000:.0f}k" in lines["tokenize train"]
    assert f"{total / 1000:.0f}k characters" in lines["survey train"]  # its length is not known before


def test_known_facts_and_reports_of_files_are_carried(tmp_path: Path) -> None:
    texts = {name: [random_text(0, 50)] for name in ("train", "validation", "test")}
    files = [FileReport("a", 1, "0"), FileReport("b", 1, "1", reason="binary")]
    manifest = write(tmp_path, Texts(texts, known={"entropy_rate_nats": 1.5}, files=files), text_config())
    assert manifest["known"] == {"entropy_rate_nats": 1.5}
    assert (manifest["files"]["count"], manifest["files"]["quarantined"]) == (2, 1)
    assert [entry["path"] for entry in artifacts.read_json(tmp_path / "files.json")] == ["a", "b"]


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("pieces", [[], [""], ["x"], None])
def test_a_split_without_two_characters_is_refused(tmp_path: Path, name: str, pieces: list[str] | None) -> None:
    texts = {split: ["some text"] for split in ("train", "validation", "test") if pieces is not None or split != name}
    if pieces is not None:
        texts[name] = pieces
    count = len("".join(pieces or []))
    with pytest.raises(
        ArtifactError, match=rf"the {name} split needs at least 2 characters.* {name} {count}"
    ) as caught:
        write(tmp_path / "new", Texts(texts), text_config())
    assert "validation, test or split_seed" in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_without_a_test_share_no_test_split_is_wanted(tmp_path: Path) -> None:
    manifest = write(tmp_path, Texts({"train": ["text"], "validation": ["text"]}), text_config(test=0.0))
    assert set(manifest["splits"]) == {"train", "validation"}


def test_a_text_that_cannot_be_read_leaves_no_tokens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        write(tmp_path, Texts({"train": Broken(), "validation": ["text"], "test": ["text"]}), text_config())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["character", "byte"])
def test_memory_is_bounded_by_the_pieces_and_not_by_the_text(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "WORKERS", 2)
    megabyte = random_text(0, 300_000).encode("ascii", "replace")[: 1 << 20].decode()

    class Long:
        def __iter__(self) -> Iterator[str]:
            return iter([megabyte] * 24)

    tracemalloc.start()
    try:
        write(
            tmp_path,
            Texts({"train": Long(), "validation": [megabyte], "test": [megabyte]}),
            text_config(tokenizer=kind),
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "train.safetensors").stat().st_size > 4 * 24 << 20  # 96 MiB
    assert peak < 20 << 20  # less than the text


# --- the file that grows -----------------------------------------------------


def test_appended_parts_are_one_tensor(tmp_path: Path) -> None:
    parts = [np.arange(size, dtype=np.int32) - 35_000 for size in (3, 0, 70_000)]
    path = tmp_path / "new" / "tokens.safetensors"
    with append_tensor(path, "tokens") as append:
        for part in parts:
            append(part)
        append(np.arange(10, dtype=np.int32)[::2])
    expected = np.concatenate([*parts, [0, 2, 4, 6, 8]])
    assert load_file(path)["tokens"].tolist() == expected.tolist()
    with safe_open(path, framework="numpy") as file:
        assert file.get_slice("tokens").get_dtype() == "I32"
    size = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + size) % 64 == 0  # the values are aligned
    assert json.loads(path.read_bytes()[8 : 8 + size])["tokens"]["shape"] == [len(expected)]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_an_empty_tensor_can_be_read(tmp_path: Path) -> None:
    with append_tensor(tmp_path / "x.safetensors", "tokens"):
        pass
    assert load_file(tmp_path / "x.safetensors")["tokens"].shape == (0,)


def test_a_failure_while_appending_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with append_tensor(path, "tokens") as append:
        append(np.arange(3, dtype=np.int32))
    before = path.read_bytes()

    def fail() -> None:
        with append_tensor(path, "tokens") as append:
            append(np.arange(10, dtype=np.int32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert files_of(tmp_path) == {path.name: before}


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with append_tensor(tmp_path / "x.safetensors", "tokens") as append:
            for _ in range(10):
                append(np.arange(100_000, dtype=np.int32))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
