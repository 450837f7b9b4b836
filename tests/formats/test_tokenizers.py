"""Tokenizers: what they lose, what they never saw, what JSON keeps."""

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from pipeline import artifacts
from pipeline.formats import tokenizers
from pipeline.formats.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    Kind,
    TextTokenizer,
    code_points,
    cut,
    distinct_characters,
    map_pieces,
    name_character,
    restore_tokenizer,
    train_tokenizer,
)
from pipeline.kinds.text import TextConfig, Texts, write

ROOT = Path(__file__).resolve().parents[1]
TEXT = (
    """The quick brown fox jumps over the lazy dog; whatever remains, however improbable, must be the truth.

    def sum(a, axis=None, dtype=None):
        return add.reduce(a, axis, dtype)
"""
    * 40
)
KINDS = get_args(Kind)
NEVER_SEEN = (
    "🙂👩‍👩‍👧 naïve Ωμέγα 漢字かな مرحبا",
    "\r\n\t\x00\x7f\u2028\u200b\ufeff\ufffd",
    "  two  spaces  at  the  ends  ",
    "e\u0301 and \u00e9 are not the same bytes",  # no Unicode normalisation
    "",
    "<|endoftext|><unk>[PAD]",  # no special tokens
)


def restored(tokenizer: TextTokenizer) -> TextTokenizer:
    return restore_tokenizer(json.loads(json.dumps(tokenizer.state())))


def random_text(seed: int) -> str:
    generator = random.Random(seed)  # noqa: S311
    codes = (generator.randrange(0x11_0000) for _ in range(300))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)  # no surrogates: they are no text


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_text_survives_the_roundtrip(kind: Kind) -> None:
    tokenizer = train_tokenizer([TEXT], kind, 300)
    tokens = tokenizer.encode(TEXT).tolist()
    assert tokenizer.decode(tokens) == TEXT
    assert 0 <= min(tokens) <= max(tokens) < tokenizer.size


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_restored_from_json_is_the_same(kind: Kind) -> None:
    tokenizer = train_tokenizer([TEXT], kind, 300)
    copy = restored(tokenizer)
    assert type(copy) is type(tokenizer)
    assert copy.size == tokenizer.size
    assert copy.state() == tokenizer.state()
    for text in (TEXT, *NEVER_SEEN):
        tokens = tokenizer.encode(text).tolist()
        assert copy.encode(text).tolist() == tokens
        assert copy.decode(tokens) == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@pytest.mark.parametrize("text", [*NEVER_SEEN, random_text(0), random_text(1)])
def test_bytes_and_byte_pairs_lose_nothing_of_text_they_never_saw(kind: Kind, text: str) -> None:
    tokenizer = restored(train_tokenizer([TEXT], kind, 300))
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    assert tokenizer.count_lost(text) == Counter()


@pytest.mark.parametrize("text", [TEXT, *NEVER_SEEN, random_text(0), random_text(1)])
def test_every_character_that_decoding_does_not_bring_back_is_counted(text: str) -> None:
    tokenizer = restored(train_tokenizer([TEXT], "character", 0))
    decoded = tokenizer.decode(tokenizer.encode(text).tolist())
    assert tokenizer.count_lost(text) == Counter(was for was, now in zip(text, decoded, strict=True) if was != now)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("character", "known"),
    [("a", True), ("ö", True), ("漢", False), ("\n", False), ("\ufffd", False)],
)
def test_a_character_is_known_if_the_training_text_has_its_tokens(kind: Kind, character: str, known: bool) -> None:
    tokenizer = restored(train_tokenizer(["a body of öre"], kind, 300))
    assert tokenizer.knows(character) == known
    assert not tokenizer.knows("\ud800")  # half of a pair: no text


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_a_character_whose_bytes_other_characters_have_is_known(kind: Kind) -> None:
    text = "ñу"  # C3 B1, D1 83
    tokenizer = train_tokenizer([text], kind, 300)
    assert "Ã".encode() == b"\xc3\x83"
    assert tokenizer.knows("Ã")
    assert not tokenizer.knows("Ä")  # C3 84


@pytest.mark.parametrize(
    ("character", "name"),
    [("é", "U+00E9 LATIN SMALL LETTER E WITH ACUTE"), ("\n", r"U+000A '\n'"), ("\ud800", r"U+D800 '\ud800'")],
)
def test_a_character_has_a_name_that_can_be_printed(character: str, name: str) -> None:
    assert name_character(character) == name
    assert name.isascii()


def test_byte_tokens_are_the_bytes_of_utf8() -> None:
    tokenizer = train_tokenizer([], "byte", 0)
    assert tokenizer.size == 256
    assert tokenizer.encode("aé€").tolist() == [0x61, 0xC3, 0xA9, 0xE2, 0x82, 0xAC]
    assert tokenizer.decode([0x61, 0xC3]) == "a\ufffd"  # half a character, as a model may sample it


def test_the_character_vocabulary_is_the_distinct_characters_in_code_point_order_and_unknown() -> None:
    tokenizer = train_tokenizer(["banana 🙂"], "character", 0)
    assert tokenizer.size == 5 + 1  # b, a, n, space, 🙂 and U+FFFD
    assert tokenizer.state()["characters"] == " abn\ufffd🙂"
    assert tokenizer.encode("nab").tolist() == [3, 1, 2]


def test_the_character_tokenizer_maps_what_it_never_saw_to_the_replacement_character() -> None:
    tokenizer = restored(train_tokenizer(["banana 🙂"], "character", 0))
    assert tokenizer.decode(tokenizer.encode("ban😀ana\ncab").tolist()) == "ban\ufffdana\ufffd\ufffdab"
    [unknown] = set(tokenizer.encode("xyzß漢").tolist())
    assert tokenizer.decode([unknown]) == CharacterTokenizer.UNKNOWN


@pytest.mark.parametrize("vocabulary", [257, 280, 320])
def test_the_bpe_vocabulary_has_the_size_that_was_asked_for(vocabulary: int) -> None:
    tokenizer = train_tokenizer([TEXT], "bpe", vocabulary)
    assert tokenizer.size == vocabulary
    merges = json.loads(str(tokenizer.state()["json"]))["model"]["merges"]
    assert len(merges) == vocabulary - 256  # every token is a byte or a merge


def test_a_larger_bpe_vocabulary_makes_shorter_texts() -> None:
    lengths = [len(train_tokenizer([TEXT], "bpe", size).encode(TEXT)) for size in (257, 280, 320)]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 3
    assert lengths[0] < len(TEXT.encode())


def test_the_first_bpe_merge_is_the_most_frequent_pair() -> None:
    # Sennrich et al. 2016: pairs are counted within words; "ab" occurs 4 times, "cd" 2 times.
    tokenizer = train_tokenizer(["ab ab ab ab cd cd"], "bpe", 257)
    assert len(tokenizer.encode("ab")) == 1
    assert len(tokenizer.encode("cd")) == 2


def test_training_is_deterministic() -> None:
    assert train_tokenizer([TEXT], "bpe", 320).state() == train_tokenizer([TEXT], "bpe", 320).state()


@pytest.mark.parametrize("kind", KINDS)
def test_the_prepared_tokenizer_never_sees_held_out_text(tmp_path: Path, kind: Kind) -> None:
    word = "zyzzyva"  # only in the held-out splits, and so often that every merge would be of it
    held_out = f"{word} " * 500
    config = TextConfig(
        source="test", path="data/own", split_seed=0, validation=0.1, test=0.1, tokenizer=kind, vocabulary=300
    )
    train = TEXT.replace("z", "s")
    texts = Texts({"train": [train], "validation": [held_out], "test": [held_out]})
    write(tmp_path, texts, config)
    tokenizer = restore_tokenizer(artifacts.read_json(tmp_path / "tokenizer.json"))
    if kind == "character":
        assert tokenizer.decode(tokenizer.encode(word).tolist()) == "\ufffdy\ufffd\ufffdyva"
        return
    assert len(tokenizer.encode(word)) == len(word)  # a token a byte: no merge
    if kind == "bpe":  # with the held-out text it would have become one token
        assert len(train_tokenizer([train + held_out], kind, 300).encode(word)) == 1
    tokens = artifacts.read_tensors(tmp_path / "validation.safetensors")["tokens"]
    assert tokenizer.decode(tokens.tolist()) == held_out


# --- texts in pieces ---------------------------------------------------------

# What BPE's pre-tokenizer could see differently at a cut: runs of blanks, contractions, scripts, marks, controls.
AWKWARD = [
    "word",
    "don't",
    "'s",
    " ",
    "  ",
    "\n",
    "\n\n",
    " \n",
    "\t",
    "\x1c",
    "\u00a0",
    "\u2028",
    "9",
    "42",
    "!?",
    "漢字",
    "e\u0301",
    "🙂",
]


def awkward_text(seed: int, length: int) -> str:
    generator = random.Random(seed)  # noqa: S311
    return "".join(generator.choice([*AWKWARD, " a", "\nb"]) for _ in range(length))


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_pieces_are_the_text_and_depend_on_nothing_but_the_text_and_the_size(size: int) -> None:
    text = awkward_text(0, 400)
    pieces = list(cut([text], size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)
    for step in (1, 3, 50, 900):
        assert list(cut([text[start : start + step] for start in range(0, len(text), step)], size)) == pieces


def test_a_text_without_a_place_to_cut_is_cut_where_a_piece_is_full() -> None:
    assert [len(piece) for piece in cut(["x" * 10], 4)] == [4, 4, 2]
    assert list(cut([], 4)) == list(cut([""], 4)) == []


@pytest.mark.parametrize("seed", range(5))
def test_byte_pairs_of_the_pieces_are_those_of_the_whole_text(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer([TEXT + awkward_text(100, 2000)], "bpe", 400)
    assert isinstance(tokenizer, BytePairTokenizer)
    text = awkward_text(seed, 8000)
    whole = list(tokenizer.tokenizer.encode(text).ids)  # the library, in one go
    pieces = list(cut([text], 300))
    assert len(pieces) > 50
    assert max(map(len, pieces)) < 300  # every one ends between words
    assert [token for piece in pieces for token in tokenizer.encode(piece).tolist()] == whole
    monkeypatch.setattr(tokenizers, "PART", 300)
    assert tokenizer.encode(text).tolist() == whole


@pytest.mark.parametrize("kind", ["character", "byte"])
def test_character_and_byte_tokens_do_not_depend_on_the_piece_size(kind: Kind) -> None:
    text = awkward_text(0, 3000)
    tokenizer = train_tokenizer([text], kind, 0)
    for size in (1, 100):
        assert [token for piece in cut([text], size) for token in tokenizer.encode(piece).tolist()] == tokenizer.encode(
            text
        ).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_does_not_depend_on_how_the_training_text_comes_in(kind: Kind) -> None:
    text = TEXT * 40 + awkward_text(0, 1000)
    parts = [text[start : start + 999] for start in range(0, len(text), 999)]
    assert train_tokenizer(parts, kind, 300).state() == train_tokenizer([text], kind, 300).state()


def test_byte_pairs_of_a_long_text_are_learnt_from_evenly_spaced_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "SAMPLE", 2)
    pieces = [f"{letter * 7} " * (tokenizers.PIECE // 8) for letter in "abcd"]
    pieces[-1] = pieces[-1][:-100]
    assert [piece[1001] for piece in cut(pieces)] == ["a", "b", "c", "d"]
    tokenizer = train_tokenizer(pieces, "bpe", 262)  # few merges: none for the words at the borders
    learnt = [letter for letter in "abcd" if len(tokenizer.encode(letter * 7)) < 7]
    assert learnt == ["a", "c"]


def test_code_points_and_distinct_characters_are_those_of_python() -> None:
    for text in (*NEVER_SEEN, random_text(2), "plain ASCII"):
        assert code_points(text).tolist() == [ord(character) for character in text]
        assert distinct_characters(text) == set(text)


@pytest.mark.parametrize("workers", [1, 4])
def test_results_of_pieces_come_in_order_and_few_pieces_are_read_ahead(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "WORKERS", workers)
    read = 0

    def pieces() -> Iterator[int]:
        nonlocal read
        for number in range(100):
            read = number
            yield number

    waits = threading.Event()
    ahead = []
    for number, result in enumerate(map_pieces(lambda piece: (waits.wait(0.002 * (piece % 3)), piece)[1], pieces())):
        assert result == number
        ahead.append(read - number)
    assert max(ahead) <= workers + 1


def test_an_error_in_a_piece_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_pieces(lambda piece: 1 // piece, [1, 2, 0, 3]))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_no_more_threads_work_than_the_process_has_cores() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code += "; from pipeline.formats import tokenizers as t"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(t.WORKERS)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
