"""Generation against whole passes of the network."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from pipeline.layers.decoding import Decoder, choose
from tests.models.conftest import VOCABULARY, make_model


@pytest.mark.parametrize("cuts", [(5, 6, 7, 8, 9, 10, 11), (4, 9), ()], ids=["one by one", "several", "all at once"])
def test_the_decoder_gives_the_networks_logits(cuts: tuple[int, ...], tokens: torch.Tensor) -> None:
    network = make_model().network
    decoder = Decoder(network, 3)
    expected = network(tokens)
    for start, end in pairwise([0, *cuts, 12]):
        torch.testing.assert_close(decoder.feed(tokens[:, start:end]), expected[:, end - 1], rtol=1e-5, atol=1e-5)


def test_the_decoder_starts_anew_without_a_trace_of_what_it_held(tokens: torch.Tensor) -> None:
    decoder = Decoder(make_model().network, 3)
    first = decoder.feed(tokens[:, :4])
    decoder.feed(tokens[:, 4:])
    decoder.length = 0
    assert torch.equal(decoder.feed(tokens[:, :4]), first)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_the_decoder_normalizes_small_and_large_vectors_as_rms_norm_does(scale: float) -> None:
    decoder = Decoder(make_model().network, 1)
    x = scale * torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(4 * x / decoder.norm(x), F.rms_norm(x, (16,)))


def test_the_decoder_follows_weights_of_16_bits(tokens: torch.Tensor) -> None:
    network = make_model().network.bfloat16()
    found = Decoder(network, 3).feed(tokens)
    torch.testing.assert_close(found, network.float()(tokens)[:, -1], rtol=1e-5, atol=1e-5)


def test_more_tokens_than_the_context_are_refused(tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="the context is 12 tokens, got 13"):
        make_model().network(torch.cat([tokens, tokens[:, :1]], dim=1))
    decoder = Decoder(make_model().network, 3)
    decoder.feed(tokens)
    with pytest.raises(ValueError, match="the context is 12 tokens, got 13"):
        decoder.feed(tokens[:, :1])


def test_sampling_past_the_context_equals_the_plain_loop() -> None:
    # Whole passes without a cache: all tokens while they fit the context of 12, else its last half and what follows.
    model = make_model()
    prompt = torch.tensor([3, 1])
    greedy = model.sample(1, torch.Generator(), {"prompt": prompt}, length=30, temperature=0)["tokens"][0].tolist()
    expected, start = prompt.tolist(), 0
    for _ in range(30):
        if len(expected) - start > 12:
            start = len(expected) - 6
        expected.append(int(model.network(torch.tensor([expected[start:]]))[0, -1].argmax()))
    assert len(set(expected)) > 3
    assert greedy == expected


def test_a_prompt_beyond_the_context_keeps_its_last_tokens() -> None:
    model = make_model()
    prompt = torch.arange(20) % VOCABULARY
    drawn = model.sample(1, torch.Generator(), {"prompt": prompt}, length=1, temperature=0)["tokens"][0]
    assert torch.equal(drawn[:20], prompt)
    assert int(drawn[20]) == int(model.network(prompt[None, 8:])[0, -1].argmax())


def test_choose_follows_temperature_top_k_and_top_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(20_000, -1).clone()

    def shares(**settings: float) -> torch.Tensor:
        options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | settings
        picked = choose(logits, torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]
        return torch.bincount(picked.squeeze(1), minlength=4) / len(logits)

    close = {"atol": 0.015, "rtol": 0.0}
    torch.testing.assert_close(shares(), torch.tensor([0.5, 0.3, 0.15, 0.05]), **close)
    torch.testing.assert_close(shares(top_k=2), torch.tensor([0.625, 0.375, 0, 0]), **close)
    torch.testing.assert_close(shares(top_p=0.9), torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95, **close)
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    torch.testing.assert_close(shares(temperature=0.5), squared / squared.sum(), **close)
    assert shares(temperature=0)[0] == 1
