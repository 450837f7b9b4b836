"""markov: text of a Markov chain, whose entropy rate is known exactly, so that perplexity has a right answer.

    dvc exp run -S data.text.source=markov

The next letter depends on the last `order` letters, by probabilities drawn from `data_seed`: the softmax of normal
numbers. The chain starts in its stationary distribution. Split by position. The manifest's `known` has, in nats a
character, `entropy_rate_nats`, which no model's expected loss can be below, and what the true chain itself would pay on
the very texts, `validation_nats` and `test_nats`: a model's loss less this is its excess, without sampling noise.
"""

from bisect import bisect_right
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.kinds.text import TextConfig, Texts, split_documents
from pipeline.randomness import make_generator

LICENCE = "Apache 2.0"
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
STATES = 2**16  # at most
SPREAD = 2.0  # standard deviation of the logits: with eight letters, half of their entropy is left
CHUNK = 2**16  # letters drawn at once


class Config(TextConfig):
    """The chain, the length of its text, and how the text is split and tokenised."""

    source: Literal["markov"]
    letters: int = Field(8, ge=2, le=len(ALPHABET), description="size of the alphabet")
    order: int = Field(2, ge=1, description="letters that the next one depends on")
    count: int = Field(1_000_000, ge=1000, le=100_000_000, description="characters of all splits together")
    data_seed: int = Field(0, ge=0, description="seed of the probabilities and of the text")

    @model_validator(mode="after")
    def _check_states(self) -> "Config":
        if self.letters**self.order > STATES:
            msg = f"letters ** order must be at most {STATES}, got {self.letters} ** {self.order}"
            raise ValueError(msg)
        return self


def fetch(folder: Path, config: Config) -> None:
    """Bring nothing: the text is drawn by seed."""
    del folder, config


def prepare(raw: Path, config: Config) -> Texts:
    """Draw the text, split it by position, and state what is known of it."""
    del raw
    table = make_table(config)
    text = draw_text(table, config)
    splits = split_documents({"chain": [text]}, config).splits
    held_out = {name: "".join(splits[name]) for name in splits if name != "train"}
    known = {f"{name}_nats": true_nats(table, part) for name, part in held_out.items() if len(part) > config.order}
    return Texts(splits, known={"entropy_rate_nats": entropy_rate(table), **known})


def make_table(config: Config) -> Tensor:
    """Draw the probabilities of the next letter, float64 (states S, letters A), by state.

    A state is the number that the last `order` letters write in base A, the oldest first.
    """
    generator = make_generator(config.data_seed, "markov table")
    logits = torch.randn(config.letters**config.order, config.letters, generator=generator, dtype=torch.float64)
    return (SPREAD * logits).softmax(dim=1)


def find_stationary(table: Tensor) -> Tensor:
    """Return the stationary distribution over states, float64 (S,), of a table (S, A), by power iteration.

    Raises:
        ValueError: if it does not converge; a table without zeros and ones does.
    """
    states, letters = table.shape
    current = torch.full((states,), 1 / states, dtype=torch.float64)
    for _ in range(100_000):
        # The state (oldest, rest) goes to (rest, next): the oldest letter is summed out.
        following = (current[:, None] * table).view(letters, states).sum(dim=0)
        if float((following - current).abs().sum()) < 1e-14:
            return following / following.sum()
        current = following
    msg = f"the chain of {states} states has no stationary distribution that power iteration finds"
    raise ValueError(msg)


def entropy_rate(table: Tensor) -> float:
    """Return the entropy rate, nats a letter: the entropy of each state's row, weighted by the state's probability."""
    rows = -torch.special.xlogy(table, table).sum(dim=1)
    return float(find_stationary(table) @ rows)


def draw_text(table: Tensor, config: Config) -> str:
    """Draw `config.count` letters, one after the other; the first ones from the stationary distribution."""
    generator = make_generator(config.data_seed, "markov text")
    states, letters = table.shape
    bounds = table.cumsum(dim=1)[:, :-1].tolist()  # the last letter takes what rounding leaves
    start = float(torch.rand((), generator=generator, dtype=torch.float64))
    state = bisect_right(find_stationary(table).cumsum(dim=0)[:-1].tolist(), start)
    drawn = bytearray(state // letters**power % letters for power in reversed(range(config.order)))
    while len(drawn) < config.count:
        size = min(CHUNK, config.count - len(drawn))
        for number in torch.rand(size, generator=generator, dtype=torch.float64).tolist():
            letter = bisect_right(bounds[state], number)
            drawn.append(letter)
            state = (state * letters + letter) % states
    names = bytes.maketrans(bytes(range(len(ALPHABET))), ALPHABET.encode())
    return drawn.translate(names).decode()


def true_nats(table: Tensor, text: str) -> float:
    """Return what the true chain pays for a text, in nats a target: the mean over every character but the first.

    The first targets have fewer than `order` letters before them; they cost what the stationary chain says. The text is
    longer than `order`.
    """
    states, letters = table.shape
    order = next(order for order in range(1, states) if letters**order == states)
    codes = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long() - ord(ALPHABET[0])
    count = len(codes) - order  # letters with all of their past in the text
    state = sum(
        (codes[place : place + count] * letters ** (order - 1 - place) for place in range(order)), torch.tensor(0)
    )
    total = -float(table[state, codes[order:]].log().sum())
    known = find_stationary(table).view([letters] * order)[tuple(codes[:order])]  # of the first letters together
    first = find_stationary(table).view(letters, -1).sum(dim=1)[codes[0]]
    return (total - float((known / first).log())) / (len(codes) - 1)
