"""Overlap of held-out and training text: the share that a plain search finds."""

import random

import numpy as np
import pytest

from pipeline.formats import overlap
from pipeline.formats.overlap import WINDOW, hash_windows, measure_overlap, sample_windows


def random_text(seed: int, length: int, alphabet: str) -> str:
    generator = random.Random(seed)  # noqa: S311
    return "".join(generator.choice(alphabet) for _ in range(length))


def naive_share(held_out: str, train: str) -> float:
    windows = [held_out[start : start + WINDOW] for start in range(len(held_out) - WINDOW + 1)]
    return sum(window in train for window in windows) / len(windows)


def measure(held_out: list[str], train: list[str]) -> float:
    windows = sample_windows(held_out, sum(map(len, held_out)))
    return measure_overlap({"test": windows}, train)["test"]


def split_up(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("alphabet", ["ab", "abcdefgh \n", "aé漢🙂", "\x00\x01"])
def test_the_share_is_that_of_a_plain_search(alphabet: str) -> None:
    train, other = random_text(0, 3000, alphabet), random_text(1, 3000, alphabet)
    held_out = other[:500] + train[700:900] + other[500:900] + train[:60] + train[-49:] + other[1000:1300] + train[-50:]
    share = naive_share(held_out, train)
    assert 0.1 < share < 0.2  # (151 + 11 + 0 + 1) of 1,410 windows
    assert measure([held_out], [train]) == share
    for size in (1, 7, 49, 50, 51, 1000):  # windows lie across the borders of pieces
        assert measure(split_up(held_out, size), split_up(train, size + 1)) == share


def test_windows_across_the_inner_borders_of_a_long_text_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    train = random_text(0, 600_000, "abcdefgh ")  # three pieces, many blocks
    held_out = "".join(train[start : start + 60] for start in range(0, 600_000, 14_999))
    monkeypatch.setattr(overlap, "WINDOWS", 10**9)
    assert measure([held_out], [train]) == naive_share(held_out, train)


def test_a_copy_overlaps_wholly_and_another_text_not_at_all() -> None:
    text = random_text(0, 5000, "abcdefgh ")
    assert measure([text[100:3000]], [text]) == 1.0
    assert measure([random_text(1, 5000, "abcdefgh ")], [text]) == 0.0


def test_text_shorter_than_a_window_has_no_window() -> None:
    text = random_text(0, 5000, "abcdefgh ")
    for held_out in ("", text[: WINDOW - 1]):
        assert len(sample_windows([held_out], len(held_out))) == 0
        assert measure([held_out], [text]) == 0.0
    assert measure([text[:WINDOW]], [text]) == 1.0
    assert measure([text], [text[: WINDOW - 1]]) == 0.0


def test_of_a_long_text_evenly_spaced_windows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "WINDOWS", 100)
    text = random_text(0, 12_345, "abcdefgh ")
    windows = sample_windows(split_up(text, 1000), len(text))
    starts = [number * (len(text) - WINDOW + 1) // 100 for number in range(100)]
    assert windows.tolist() == [int(hash_windows(text[start : start + WINDOW])[0]) for start in starts]


def test_equal_windows_have_equal_hashes_wherever_they_stand_and_others_do_not() -> None:
    text = random_text(0, 40_000, "ab")  # beyond two blocks
    hashes = hash_windows(text + text[:20_000])
    assert np.array_equal(hashes[: 20_000 - WINDOW + 1], hashes[40_000:])
    windows = {text[start : start + WINDOW] for start in range(40_000 - WINDOW + 1)}
    assert len(np.unique(hash_windows(text))) == len(windows)


def test_splits_are_measured_together_as_they_are_alone() -> None:
    train = random_text(0, 5000, "abcdefgh ")
    parts = {"validation": train[:500] + random_text(1, 500, "ab"), "test": random_text(2, 700, "abc") + train[-100:]}
    windows = {name: sample_windows([part], len(part)) for name, part in parts.items()}
    assert measure_overlap(windows, [train]) == {name: naive_share(part, train) for name, part in parts.items()}
    assert measure_overlap({}, [train]) == {}
