"""Tokenizers: character, byte, byte pair. Made from a training text, stored as JSON, restored without running code.

A text of any size is tokenised in pieces by several threads: NumPy and the tokenizers library let go of Python's lock
while they work. Threads share what is imported; a process of its own would import torch once more for each worker.
"""

import itertools
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Kind = Literal["character", "byte", "bpe"]
T = TypeVar("T")
R = TypeVar("R")

PIECE = 2**16  # characters: what a piece needs stays in the processor's cache, and the heap does not break up
PART = 2**14  # characters: the BPE library is fastest on short texts, and takes many at once
LINE = 2**10  # characters: the library's training takes time with the square of the longest word
SAMPLE = 2**8  # pieces that BPE learns from at most: 16 million characters bound its table of words
# The cores that this process may use, which a container makes fewer than the machine's; changes no result.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(8, CORES)
CUT = re.compile(r".*\S(?=[ \n]\S)", re.DOTALL)


class TextTokenizer(Protocol):
    """Turns text into token ids and back."""

    @property
    def size(self) -> int:
        """Count the vocabulary."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return token ids int32 (N,)."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""

    def count_lost(self, text: str) -> Counter[str]:
        """Count the characters of a text that `encode` cannot write, by character."""

    @property
    def characters(self) -> str:
        """Return the distinct characters of the training text, in code-point order."""

    def knows(self, character: str) -> bool:
        """Say whether a model learns to read a character: the training text has the tokens that write it."""

    def state(self) -> dict[str, object]:
        """Return what `restore_tokenizer` needs, as JSON values."""


class CharacterTokenizer:
    """One token a character of the training split, in code-point order; U+FFFD stands for every other."""

    UNKNOWN = "\ufffd"

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.ids = np.full(0x11_0000, max(characters.find(self.UNKNOWN), 0), dtype=np.int32)  # of each code point
        self.ids[code_points(characters)] = np.arange(len(characters), dtype=np.int32)
        self.written = np.zeros(0x11_0000, dtype=bool)  # of each code point
        self.written[code_points(characters)] = True

    @classmethod
    def train(cls, pieces: Iterable[str]) -> "CharacterTokenizer":
        """Take every character of the training text."""
        return cls("".join(sorted({*collect_characters(pieces), cls.UNKNOWN})))

    @property
    def size(self) -> int:
        """Count the vocabulary."""
        return len(self.characters)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return token ids int32 (N,), one a character."""
        return np.take(self.ids, code_points(text))

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        return "".join(self.characters[token] for token in tokens)

    def count_lost(self, text: str) -> Counter[str]:
        """Count the characters that the training text lacks: they become U+FFFD."""
        codes = code_points(text)
        return Counter(map(chr, codes[~self.written[codes]].tolist()))

    def knows(self, character: str) -> bool:
        """Say whether the training text has a character; U+FFFD stands for the ones that it lacks."""
        return character in self.characters and character != self.UNKNOWN

    def state(self) -> dict[str, object]:
        """Return the characters."""
        return {"tokenizer": "character", "characters": self.characters}


class ByteTokenizer:
    """One token a byte of UTF-8: lossless on any text."""

    size = 256

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.bytes = frozenset(characters.encode())

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return token ids int32 (N,)."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32)

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids; invalid bytes become U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")

    def count_lost(self, text: str) -> Counter[str]:
        """Return nothing: every text has bytes."""
        del text
        return Counter()

    def knows(self, character: str) -> bool:
        """Say whether the training text has each byte of a character."""
        return has_bytes(self.bytes, character)

    def state(self) -> dict[str, object]:
        """Return the characters of the training text."""
        return {"tokenizer": "byte", "characters": self.characters}


class BytePairTokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016) by the tokenizers library: lossless on any text."""

    def __init__(self, tokenizer: Tokenizer, characters: str) -> None:
        self.tokenizer = tokenizer
        self.characters = characters
        self.bytes = frozenset(characters.encode())

    @classmethod
    def train(cls, pieces: Iterable[str], vocabulary: int) -> "BytePairTokenizer":
        """Learn merges from the training text, up to `vocabulary` tokens; of a long text, from every n-th piece."""
        step = -(-sum(1 for _ in cut(pieces)) // SAMPLE) or 1
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        sample = itertools.islice(cut(pieces), 0, None, step)
        lines = (line for piece in sample for line in piece.splitlines(keepends=True))
        tokenizer.train_from_iterator((part for line in lines for part in cut([line], LINE)), trainer)
        return cls(tokenizer, collect_characters(pieces))

    @property
    def size(self) -> int:
        """Count the vocabulary."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return token ids int32 (N,)."""
        encodings = self.tokenizer.encode_batch_fast(list(cut([text], PART)))
        return np.array([token for encoding in encodings for token in encoding.ids], dtype=np.int32)

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        return str(self.tokenizer.decode(tokens))

    def count_lost(self, text: str) -> Counter[str]:
        """Return nothing: every byte is a token."""
        del text
        return Counter()

    def knows(self, character: str) -> bool:
        """Say whether the training text has each byte of a character."""
        return has_bytes(self.bytes, character)

    def state(self) -> dict[str, object]:
        """Return the library's own JSON, and the characters of the training text."""
        return {"tokenizer": "bpe", "json": self.tokenizer.to_str(), "characters": self.characters}


def train_tokenizer(pieces: Iterable[str], kind: Kind, vocabulary: int) -> TextTokenizer:
    """Make a tokenizer from the training text, read up to three times; only BPE has a choice of `vocabulary`."""
    makers: dict[str, Callable[[], TextTokenizer]] = {
        "character": lambda: CharacterTokenizer.train(pieces),
        "byte": lambda: ByteTokenizer(collect_characters(pieces)),
        "bpe": lambda: BytePairTokenizer.train(pieces, vocabulary),
    }
    return makers[kind]()


def restore_tokenizer(state: dict[str, str]) -> TextTokenizer:
    """Return the tokenizer whose `state()` was stored."""
    match state["tokenizer"]:
        case "character":
            return CharacterTokenizer(state["characters"])
        case "byte":
            return ByteTokenizer(state["characters"])
        case _:
            return BytePairTokenizer(Tokenizer.from_str(state["json"]), state["characters"])


def extend_tokenizer(own: dict[str, str], start: dict[str, str]) -> dict[str, str]:
    """Return the state of a tokenizer that writes what both do, with the tokens of `own` for the text of `own`.

    Characters that only the start has follow those of the own text: a model that starts from another one forgets none
    of them, and prepared tokens stay as they are.

    Args:
        own: state of the tokenizer of the data.
        start: state of the tokenizer of the model that a run starts from.

    Raises:
        ValueError: if no tokenizer has the tokens of both, because one is of another kind, or has other merges.
    """
    if own["tokenizer"] != start["tokenizer"] or own.get("json") != start.get("json"):
        msg = f"the data have {own['tokenizer']} tokens, the start has {start['tokenizer']} tokens"
        if own["tokenizer"] == start["tokenizer"]:
            msg += " with other merges"
        raise ValueError(msg)
    both = {*own["characters"], *start["characters"]}
    added = "".join(character for character in start["characters"] if character not in own["characters"])
    return own | {"characters": own["characters"] + added if "json" not in own else "".join(sorted(both))}


def match_tokens(own: dict[str, str], start: dict[str, str]) -> list[int]:
    """Return the token of `start` that each token of `own` was, -1 for those that it lacks."""
    if own["tokenizer"] != "character":
        return list(range(restore_tokenizer(own).size))
    places = {character: token for token, character in enumerate(start["characters"])}
    return [places.get(character, -1) for character in own["characters"]]


def cut(texts: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """Cut texts, read as one, into pieces of at most `size` characters; how they came in changes nothing.

    A piece ends before a single space or line feed between words, where BPE's pre-tokenizer always cuts as well, so
    that the pieces' tokens are the whole text's. A text of `size` characters without such a place is cut at its end.
    """
    rest = ""
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start > size:
            place = CUT.match(rest, start, start + size)
            end = place.end() if place else start + size
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def map_pieces(function: Callable[[T], R], pieces: Iterable[T]) -> Iterator[R]:
    """Apply a function to each piece, several at a time; the results come in the order of the pieces."""
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead: deque[Future[R]] = deque()
        for piece in pieces:
            ahead.append(pool.submit(function, piece))
            if len(ahead) > WORKERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def code_points(text: str) -> NDArray[np.uint8] | NDArray[np.uint32]:
    """Return the code points of a text, (N,): uint8 if all are ASCII, which is four times less to move."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def distinct_characters(text: str) -> set[str]:
    """Return the characters of a text."""
    seen = np.zeros(0x11_0000, dtype=bool)
    seen[code_points(text)] = True
    return set(map(chr, np.flatnonzero(seen)))


def collect_characters(pieces: Iterable[str]) -> str:
    """Return the distinct characters of a text of any size, in code-point order."""
    found: set[str] = set()
    for characters in map_pieces(distinct_characters, cut(pieces)):
        found |= characters
    return "".join(sorted(found))


def has_bytes(known: frozenset[int], character: str) -> bool:
    """Say whether all bytes of a character's UTF-8 are known; half a surrogate pair has none."""
    written = character.encode("utf-8", errors="ignore")
    return bool(written) and known.issuperset(written)


def name_character(character: str) -> str:
    """Return a character's code point and Unicode name, such as "U+00E9 LATIN SMALL LETTER E WITH ACUTE"."""
    return f"U+{ord(character):04X} {unicodedata.name(character, repr(character))}"
