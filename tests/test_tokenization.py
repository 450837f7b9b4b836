"""Tokenizers: what they lose, what they never saw, what JSON keeps."""

import json
import random
from pathlib import Path
from typing import get_args

import pytest

from pipeline import artifacts
from pipeline.data.text_sets import TextConfig, Texts, write
from pipeline.tokenization import CharacterTokenizer, Kind, TextTokenizer, restore_tokenizer, train_tokenizer

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
    tokenizer = train_tokenizer(TEXT, kind, 300)
    tokens = tokenizer.encode(TEXT)
    assert tokenizer.decode(tokens) == TEXT
    assert 0 <= min(tokens) <= max(tokens) < tokenizer.size


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_restored_from_json_is_the_same(kind: Kind) -> None:
    tokenizer = train_tokenizer(TEXT, kind, 300)
    copy = restored(tokenizer)
    assert type(copy) is type(tokenizer)
    assert copy.size == tokenizer.size
    assert copy.state() == tokenizer.state()
    for text in (TEXT, *NEVER_SEEN):
        assert copy.encode(text) == tokenizer.encode(text)
        assert copy.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@pytest.mark.parametrize("text", [*NEVER_SEEN, random_text(0), random_text(1)])
def test_bytes_and_byte_pairs_lose_nothing_of_text_they_never_saw(kind: Kind, text: str) -> None:
    tokenizer = restored(train_tokenizer(TEXT, kind, 300))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_tokens_are_the_bytes_of_utf8() -> None:
    tokenizer = train_tokenizer("", "byte", 0)
    assert tokenizer.size == 256
    assert tokenizer.encode("aé€") == [0x61, 0xC3, 0xA9, 0xE2, 0x82, 0xAC]
    assert tokenizer.decode([0x61, 0xC3]) == "a\ufffd"  # half a character, as a model may sample it


def test_the_character_vocabulary_is_the_distinct_characters_in_code_point_order_and_unknown() -> None:
    tokenizer = train_tokenizer("banana 🙂", "character", 0)
    assert tokenizer.size == 5 + 1  # b, a, n, space, 🙂 and U+FFFD
    assert tokenizer.state()["characters"] == " abn\ufffd🙂"
    assert tokenizer.encode("nab") == [3, 1, 2]


def test_the_character_tokenizer_maps_what_it_never_saw_to_the_replacement_character() -> None:
    tokenizer = restored(train_tokenizer("banana 🙂", "character", 0))
    assert tokenizer.decode(tokenizer.encode("ban😀ana\ncab")) == "ban\ufffdana\ufffd\ufffdab"
    [unknown] = set(tokenizer.encode("xyzß漢"))
    assert tokenizer.decode([unknown]) == CharacterTokenizer.UNKNOWN


@pytest.mark.parametrize("vocabulary", [257, 280, 320])
def test_the_bpe_vocabulary_has_the_size_that_was_asked_for(vocabulary: int) -> None:
    tokenizer = train_tokenizer(TEXT, "bpe", vocabulary)
    assert tokenizer.size == vocabulary
    merges = json.loads(str(tokenizer.state()["json"]))["model"]["merges"]
    assert len(merges) == vocabulary - 256  # every token is a byte or a merge


def test_a_larger_bpe_vocabulary_makes_shorter_texts() -> None:
    lengths = [len(train_tokenizer(TEXT, "bpe", size).encode(TEXT)) for size in (257, 280, 320)]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 3
    assert lengths[0] < len(TEXT.encode())


def test_the_first_bpe_merge_is_the_most_frequent_pair() -> None:
    # Sennrich et al. 2016: pairs are counted within words; "ab" occurs 4 times, "cd" 2 times.
    tokenizer = train_tokenizer("ab ab ab ab cd cd", "bpe", 257)
    assert len(tokenizer.encode("ab")) == 1
    assert len(tokenizer.encode("cd")) == 2


def test_training_is_deterministic() -> None:
    assert train_tokenizer(TEXT, "bpe", 320).state() == train_tokenizer(TEXT, "bpe", 320).state()


@pytest.mark.parametrize("kind", KINDS)
def test_the_prepared_tokenizer_never_sees_held_out_text(tmp_path: Path, kind: Kind) -> None:
    word = "zyzzyva"  # only in the held-out splits, and so often that every merge would be of it
    held_out = f"{word} " * 500
    config = TextConfig(path="data/own", split_seed=0, validation=0.1, test=0.1, tokenizer=kind, vocabulary=300)
    train = TEXT.replace("z", "s")
    texts = Texts({"train": [train], "validation": [held_out], "test": [held_out]})
    write(tmp_path, texts, config)
    tokenizer = restore_tokenizer(artifacts.read_json(tmp_path / "tokenizer.json"))
    if kind == "character":
        assert tokenizer.decode(tokenizer.encode(word)) == "\ufffdy\ufffd\ufffdyva"
        return
    assert len(tokenizer.encode(word)) == len(word)  # a token a byte: no merge
    if kind == "bpe":  # with the held-out text it would have become one token
        assert len(train_tokenizer(train + held_out, kind, 300).encode(word)) == 1
    tokens = artifacts.read_tensors(tmp_path / "validation.safetensors")["tokens"]
    assert tokenizer.decode(tokens.tolist()) == held_out
