"""Random numbers are a pure function of seed and purpose; the global generator is left alone."""

import hashlib
import random

import pytest
import torch

from pipeline.randomness import derive_seed, make_generator, normal, seed_global, seeded
from pipeline.weights import choose_device


def test_a_seed_is_the_first_63_bits_of_the_sha256_of_its_words() -> None:
    # printf 0/noise/3 | sha256sum begins with 16 hex digits, 64 bits; the lowest is dropped.
    assert derive_seed(0, "noise", 3) == 0xB8FA417C2C105577 >> 1
    for words in ((0,), (7, "order", 12), (2**40, "sample", "gan")):
        digest = hashlib.sha256("/".join(map(str, words)).encode()).hexdigest()
        assert derive_seed(*words) == int(digest, 16) >> (256 - 63)  # type: ignore[arg-type]


def test_seeds_fit_a_torch_generator() -> None:
    seeds = [derive_seed(seed, "range") for seed in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # all 63 bits are in use


def test_different_seeds_purposes_and_positions_differ() -> None:
    words = [
        (seed, purpose, step) for seed in range(10) for purpose in ("noise", "order", "sample") for step in range(50)
    ]
    assert len({derive_seed(*word) for word in words}) == len(words)
    draws = {tuple(torch.rand(4, generator=make_generator(*word)).tolist()) for word in words[:300]}
    assert len(draws) == 300


def test_equal_purposes_give_equal_streams_whatever_was_drawn_before() -> None:
    first = torch.rand(100, generator=make_generator(3, "noise", 5))
    torch.manual_seed(99)
    torch.rand(17)
    random.seed(1)
    assert torch.equal(first, torch.rand(100, generator=make_generator(3, "noise", 5)))


def test_make_generator_and_normal_leave_the_global_generator_untouched() -> None:
    before = torch.get_rng_state()
    normal(10, generator=make_generator(0, "noise"))
    assert torch.equal(before, torch.get_rng_state())


def test_normal_has_mean_0_variance_1_and_float32() -> None:
    drawn = normal(50, 400, generator=make_generator(0, "noise"))
    assert drawn.shape == (50, 400)
    assert drawn.dtype == torch.float32
    # 20,000 draws: the standard errors are 0.007 and 0.01, the limits five of them.
    assert abs(float(drawn.mean())) < 0.036
    assert abs(float(drawn.var()) - 1) < 0.05


def test_seed_global_is_manual_seed_on_every_device() -> None:
    drawn = []
    with torch.random.fork_rng():
        for seed in (torch.manual_seed, seed_global):
            seed(12)
            drawn.append([torch.rand(8, device=device) for device in ("cpu", choose_device())])
    assert all(torch.equal(first, second) for first, second in zip(*drawn, strict=True))


def test_seeded_is_manual_seed_inside() -> None:
    with seeded(4, "weights"):
        inside = torch.rand(8)
    expected = torch.Generator().manual_seed(derive_seed(4, "weights"))
    assert torch.equal(inside, torch.rand(8, generator=expected))


def test_seeded_leaves_the_global_generator_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(6)
    torch.manual_seed(5)
    drawn = [torch.rand(3)]
    context = seeded(0, "weights")  # kept: its end restores the generator, not its deletion
    with context:
        torch.rand(1000)
    drawn.append(torch.rand(3))
    assert torch.equal(torch.cat(drawn), expected)


def test_seeded_restores_the_global_generator_after_an_exception_and_lets_it_through() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="size"), seeded(0, "weights"):
        torch.rand(2) @ torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())


def test_seeded_contexts_nest() -> None:
    with seeded(0, "outer"):
        first = torch.rand(2)
        with seeded(0, "inner"):
            torch.rand(50)
        second = torch.rand(2)
    with seeded(0, "outer"):
        assert torch.equal(torch.cat([first, second]), torch.rand(4))
