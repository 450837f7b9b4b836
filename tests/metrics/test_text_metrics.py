"""Text metrics against closed forms."""

import math

import pytest
import torch

from pipeline.artifacts import ArtifactError
from pipeline.evidence.values import find_flaw
from pipeline.layers.blocks import token_nats
from pipeline.metrics.text import VALUES, Config, Evidence, compute

CONFIG = Config.model_validate(
    {
        "sampling": {
            "count": 1,
            "length": 1,
            "prompt": "a",
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "stride": 1.0,
            "random_windows": 0,
        }
    }
)


def sizes(tokens: int, characters: int | None = None, in_bytes: int | None = None) -> dict[str, dict[str, int]]:
    lengths = {"tokens": tokens, "characters": characters or tokens, "bytes": in_bytes or tokens}
    return {"test": lengths | {"unknown_characters": 0}}


def test_perplexity_of_uniform_logits_is_the_vocabulary_size() -> None:
    nats = token_nats(torch.zeros(1, 40, 65), torch.arange(40)[None])[0]
    values = compute(Evidence({"test": nats}, sizes(41)), CONFIG)
    assert values["test_perplexity"] == [pytest.approx(65)]
    assert values["test_bits_per_character"] == [pytest.approx(math.log2(65))]
    assert values["test_targets"] == [40]


def test_bits_per_character_and_byte_spread_the_same_sum_over_the_text() -> None:
    # 101 tokens stand for 202 characters in 404 bytes: 4 bits a token are 2 a character and 1 a byte.
    nats = torch.full((100,), 4 * math.log(2), dtype=torch.float64)
    values = compute(Evidence({"test": nats}, sizes(101, 202, 404)), CONFIG)
    assert values["test_bits_per_character"] == [pytest.approx(2)]
    assert values["test_bits_per_byte"] == [pytest.approx(1)]


@pytest.mark.parametrize("unknown", [0, 7])
def test_values_of_the_whole_text_are_not_reliable_if_the_tokens_lack_characters_of_it(unknown: int) -> None:
    split = sizes(401)["test"] | {"words": 80, "unknown_characters": unknown}
    known = {"entropy_rate_nats": 0.9, "test_nats": 0.9}
    found = compute(Evidence({"test": torch.ones(400)}, {"test": split}, known), CONFIG)
    values = {name: value for name, (value,) in found.items()}
    assert values["test_unknown_characters"] == unknown
    flaws = {name: flaw for name in values if (flaw := find_flaw(VALUES, values, name))}
    names = ["bits_per_byte", "bits_per_character", "excess_percent", "perplexity_per_word"]
    flaw = "not reliable: 7 unknown characters"
    assert dict(sorted(flaws.items())) == ({f"test_{name}": flaw for name in names} if unknown else {})


def test_perplexity_a_word_is_the_same_for_every_tokenizer() -> None:
    # A text of 20 words that costs 60 nats, whether in 100 or in 400 tokens (and one that nothing predicts).
    for count in (100, 400):
        nats = torch.full((count,), 60 / count, dtype=torch.float64)
        with_words = {"test": sizes(count + 1)["test"] | {"words": 20 * (count + 1) / count}}
        assert compute(Evidence({"test": nats}, with_words), CONFIG)["test_perplexity_per_word"] == [
            pytest.approx(math.exp(3))
        ]
    one_word = {"test": sizes(401)["test"] | {"words": 1}}
    assert "test_perplexity_per_word" not in compute(Evidence({"test": torch.ones(400)}, one_word), CONFIG)


@pytest.mark.parametrize("count", [99, 101])
def test_missing_or_repeated_targets_are_refused(count: int) -> None:
    with pytest.raises(ArtifactError, match=f"expected 100 targets, each once, got {count}"):
        compute(Evidence({"test": torch.ones(count)}, sizes(101)), CONFIG)


@pytest.mark.parametrize("nats", [torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf]), torch.tensor([])])
def test_broken_or_absent_nats_are_refused(nats: torch.Tensor) -> None:
    with pytest.raises(ArtifactError, match="test: expected finite nats"):
        compute(Evidence({"test": nats}, sizes(len(nats) + 1)), CONFIG)


def test_the_standard_error_of_independent_nats_is_the_textbook_one() -> None:
    nats = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).double() + 5
    values = compute(Evidence({"test": nats}, sizes(100_001)), CONFIG)
    assert values["test_nats_se"] == [pytest.approx(1 / 100_000**0.5, rel=0.3)]


def test_targets_that_resemble_their_neighbours_make_the_standard_error_larger() -> None:
    nats = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double().repeat_interleave(50) + 5
    values = compute(Evidence({"test": nats}, sizes(100_001)), CONFIG)
    assert values["test_nats_se"] == [pytest.approx(1 / 2000**0.5, rel=0.3)]  # 2,000 facts, not 100,000


def test_the_excess_is_over_what_the_true_model_pays_in_percent_of_the_entropy_rate() -> None:
    known = {"entropy_rate_nats": 2.0, "test_nats": 2.1}
    values = compute(Evidence({"test": torch.full((100,), 2.2)}, sizes(101), known), CONFIG)
    assert values["test_excess_percent"] == [pytest.approx(5)]
    assert "test_excess_percent" not in compute(Evidence({"test": torch.ones(100)}, sizes(101)), CONFIG)


def test_random_windows_have_a_mean_and_its_standard_error() -> None:
    nats = torch.ones(40, dtype=torch.float64)
    windows = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    values = compute(Evidence({"test": nats}, sizes(41), windows={"test": windows}), CONFIG)
    assert (values["test_windows"], values["test_window_nats"]) == ([4], [2.5])
    assert values["test_window_nats_se"] == [pytest.approx((5 / 3) ** 0.5 / 2)]  # variance 5/3 of four values
    one = compute(Evidence({"test": nats}, sizes(41), windows={"test": windows[:1]}), CONFIG)
    assert "test_window_nats_se" not in one
    assert "test_window_nats" not in compute(Evidence({"test": nats}, sizes(41)), CONFIG)
