"""The Markov source: its entropy rate is that of closed forms, and of the text that it draws."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.data import markov
from pipeline.data.markov import Config, draw_text, entropy_rate, find_stationary, make_table, prepare, true_nats

SHARED: dict[str, Any] = {
    "source": "markov",
    "path": "data/own",
    "split_seed": 0,
    "validation": 0.1,
    "test": 0.2,
    "tokenizer": "character",
    "vocabulary": 300,
}


def chain(**changes: Any) -> Config:
    return Config.model_validate(SHARED | changes)


def text_of(config: Config) -> str:
    return "".join("".join(pieces) for pieces in prepare(Path("unused"), config).splits.values())


def entropy(probabilities: list[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities if p)


@pytest.mark.parametrize(("leave", "back"), [(0.1, 0.4), (0.5, 0.5), (0.999, 0.001), (0.02, 0.03)])
def test_two_states_have_the_closed_form(leave: float, back: float) -> None:
    # Cover and Thomas, Elements of Information Theory, 4.1: (b H(a) + a H(b)) / (a + b).
    table = torch.tensor([[1 - leave, leave], [back, 1 - back]], dtype=torch.float64)
    stationary = [back / (leave + back), leave / (leave + back)]
    assert find_stationary(table).tolist() == pytest.approx(stationary, abs=1e-12)
    expected = stationary[0] * entropy([leave, 1 - leave]) + stationary[1] * entropy([back, 1 - back])
    assert entropy_rate(table) == pytest.approx(expected, abs=1e-12)


def test_letters_that_depend_on_nothing_have_the_entropy_of_one() -> None:
    row = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    assert entropy_rate(row.expand(64, 4)) == pytest.approx(1.75 * math.log(2), abs=1e-12)  # order 3


def test_the_stationary_distribution_is_the_eigenvector_of_the_whole_matrix() -> None:
    table = make_table(chain(letters=3, order=3))
    matrix = torch.zeros(27, 27, dtype=torch.float64)
    for state, letter in itertools.product(range(27), range(3)):
        matrix[state, state * 3 % 27 + letter] = table[state, letter]
    values, vectors = torch.linalg.eig(matrix.T)
    vector = vectors[:, (values - 1).abs().argmin()].real
    assert torch.allclose(find_stationary(table), vector / vector.sum(), atol=1e-10)


@pytest.mark.parametrize(("letters", "order"), [(2, 1), (8, 2), (3, 4)])
def test_the_text_has_the_entropy_rate_that_is_stated(letters: int, order: int) -> None:
    config = chain(letters=letters, order=order, count=300_000)
    text = text_of(config)
    grams = Counter(text[start : start + order + 1] for start in range(len(text) - order))
    contexts = Counter(text[start : start + order] for start in range(len(text) - order))
    estimate = -sum(count * math.log(count / contexts[gram[:-1]]) for gram, count in grams.items()) / (
        len(text) - order
    )
    # The plug-in estimate is low by (states * (letters - 1)) / (2 N) nats, here at most 0.0008; its standard error is
    # about 0.001.
    assert estimate == pytest.approx(entropy_rate(make_table(config)), abs=0.005)


def test_next_letters_come_with_the_probabilities_of_the_table() -> None:
    config = chain(letters=3, order=2, count=300_000)
    text, table = text_of(config), make_table(config)
    grams = Counter(text[start : start + 3] for start in range(len(text) - 2))
    for oldest, last in itertools.product("abc", repeat=2):
        seen = [grams[oldest + last + letter] for letter in "abc"]
        expected = table["abc".index(oldest) * 3 + "abc".index(last)]
        error = (expected * (1 - expected) / sum(seen)).sqrt()
        assert bool(((torch.tensor(seen) / sum(seen) - expected).abs() < 5 * error).all())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_true_nats_are_the_log_probabilities_letter_by_letter(order: int) -> None:
    config = chain(letters=3, order=order, count=1000)
    table, text = make_table(config), "abcabbacbbca"
    codes = ["abc".index(letter) for letter in text]
    stationary = find_stationary(table).view([3] * order)
    total = 0.0
    for place in range(1, len(text)):
        if place >= order:
            state = sum(code * 3 ** (order - 1 - index) for index, code in enumerate(codes[place - order : place]))
            total -= math.log(table[state, codes[place]])
        else:  # the law of the first letters together, over that of one letter less
            total -= math.log(stationary[tuple(codes[: place + 1])].sum() / stationary[tuple(codes[:place])].sum())
    assert true_nats(table, text) == pytest.approx(total / (len(text) - 1), rel=1e-12)


def test_the_manifest_knows_the_rate_and_what_the_true_chain_pays() -> None:
    config = chain(count=200_000)
    texts = prepare(Path("unused"), config)
    assert set(texts.known) == {"entropy_rate_nats", "validation_nats", "test_nats"}
    assert texts.known["entropy_rate_nats"] < math.log(8)
    for name in ("validation", "test"):
        assert texts.known[f"{name}_nats"] == true_nats(make_table(config), "".join(texts.splits[name]))
        # 20,000 and 40,000 letters: a standard error below 0.01 nats.
        assert texts.known[f"{name}_nats"] == pytest.approx(texts.known["entropy_rate_nats"], abs=0.03)
    assert set(prepare(Path("unused"), chain(count=5000, test=0.0)).known) == {"entropy_rate_nats", "validation_nats"}


def test_the_text_has_the_asked_length_and_alphabet_and_is_split_by_position() -> None:
    config = chain(letters=5, count=12_345)
    texts = prepare(Path("unused"), config)
    assert {name: len("".join(pieces)) for name, pieces in texts.splits.items()} == {
        "train": int(12_345 * 0.7),
        "validation": int(12_345 * 0.8) - int(12_345 * 0.7),
        "test": 12_345 - int(12_345 * 0.8),
    }
    assert text_of(config) == draw_text(make_table(config), config)
    assert set(text_of(config)) == set("abcde")


def test_the_text_is_a_function_of_the_data_seed() -> None:
    first, again, other = (text_of(chain(count=5000, data_seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert text_of(chain(count=2000))[:2000] == first[:2000]  # more text begins as less


def test_the_first_letters_are_drawn_from_the_stationary_distribution() -> None:
    config = chain(letters=2, order=1)
    table = make_table(config)
    starts = [draw_text(table, chain(letters=2, order=1, count=1000, data_seed=seed))[0] for seed in range(300)]
    share = float(find_stationary(table)[0])
    assert abs(starts.count("a") / 300 - share) < 4 * math.sqrt(share * (1 - share) / 300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"letters": 1}, "letters"),
        ({"letters": 27}, "letters"),
        ({"order": 0}, "order"),
        ({"letters": 26, "order": 4}, rf"letters \*\* order must be at most {markov.STATES}, got 26 \*\* 4"),
        ({"count": 10}, "count"),
    ],
)
def test_nonsense_is_refused_by_name(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        chain(**changes)
