"""Tokenizers: character, byte, byte pair. Made from a training text, stored as JSON, restored without running code."""

from collections.abc import Callable
from typing import Literal, Protocol

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Kind = Literal["character", "byte", "bpe"]


class TextTokenizer(Protocol):
    """Turns text into token ids and back."""

    @property
    def size(self) -> int:
        """Count the vocabulary."""

    def encode(self, text: str) -> list[int]:
        """Return token ids."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""

    def state(self) -> dict[str, object]:
        """Return what `restore_tokenizer` needs, as JSON values."""


class CharacterTokenizer:
    """One token a character of the training split, in code-point order; U+FFFD stands for every other."""

    UNKNOWN = "\ufffd"

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.ids = {character: index for index, character in enumerate(characters)}

    @property
    def size(self) -> int:
        """Count the vocabulary."""
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Return token ids."""
        unknown = self.ids.get(self.UNKNOWN, 0)
        return [self.ids.get(character, unknown) for character in text]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        return "".join(self.characters[token] for token in tokens)

    def state(self) -> dict[str, object]:
        """Return the characters."""
        return {"tokenizer": "character", "characters": self.characters}


class ByteTokenizer:
    """One token a byte of UTF-8."""

    size = 256

    def encode(self, text: str) -> list[int]:
        """Return token ids."""
        return list(text.encode("utf-8"))

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids; invalid bytes become U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")

    def state(self) -> dict[str, object]:
        """Return the name alone."""
        return {"tokenizer": "byte"}


class BytePairTokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016) by the tokenizers library: lossless on any text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def train(cls, text: str, vocabulary: int) -> "BytePairTokenizer":
        """Learn merges from the training text, up to `vocabulary` tokens."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(tokenizer)

    @property
    def size(self) -> int:
        """Count the vocabulary."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return token ids."""
        return list(self.tokenizer.encode(text).ids)

    def decode(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        return str(self.tokenizer.decode(tokens))

    def state(self) -> dict[str, object]:
        """Return the library's own JSON."""
        return {"tokenizer": "bpe", "json": self.tokenizer.to_str()}


def train_tokenizer(text: str, kind: Kind, vocabulary: int) -> TextTokenizer:
    """Make a tokenizer from the training text alone; only BPE has a choice of `vocabulary`."""
    makers: dict[str, Callable[[], TextTokenizer]] = {
        "character": lambda: CharacterTokenizer("".join(sorted({*text, CharacterTokenizer.UNKNOWN}))),
        "byte": ByteTokenizer,
        "bpe": lambda: BytePairTokenizer.train(text, vocabulary),
    }
    return makers[kind]()


def restore_tokenizer(state: dict[str, str]) -> TextTokenizer:
    """Return the tokenizer whose `state()` was stored."""
    match state["tokenizer"]:
        case "character":
            return CharacterTokenizer(state["characters"])
        case "byte":
            return ByteTokenizer()
        case _:
            return BytePairTokenizer(Tokenizer.from_str(state["json"]))
