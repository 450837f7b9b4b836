"""The language model against written-out formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.kinds.text import make_fields as text_fields
from pipeline.layers.blocks import Muon, orthogonalize, token_nats, warmup_cosine
from pipeline.models.transformer import Model, rotate, rotation
from tests.models.conftest import VOCABULARY, make_model


def test_attention_is_the_written_out_formula() -> None:
    block = make_model().network.blocks[0]
    x = torch.randn(2, 5, 16)
    turn = rotation(5, 8)
    queries, keys, values = (part.view(2, 5, 2, 8).transpose(1, 2) for part in block.qkv(x).split(16, dim=2))
    queries, keys = rotate(block.query_norm(queries), turn), rotate(block.key_norm(keys), turn)
    scores = queries @ keys.mT / math.sqrt(8)
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    expected = block.project((scores.softmax(dim=-1) @ values).transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(block.attend(x, turn), expected)


def test_later_tokens_change_no_bit_of_earlier_logits(tokens: torch.Tensor) -> None:
    network = make_model().network
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % VOCABULARY
    before, after = network(tokens), network(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    turn = rotation(40, 8)

    def score(i: int, j: int) -> torch.Tensor:
        return (rotate(query, turn[:, i : i + 1]) * rotate(key, turn[:, j : j + 1])).sum()

    torch.testing.assert_close(score(7, 3), score(34, 30))
    assert not torch.isclose(score(7, 3), score(7, 4))


def test_the_first_loss_is_the_logarithm_of_the_vocabulary(tokens: torch.Tensor) -> None:
    fresh = Model(make_model().config, text_fields(VOCABULARY), seed=0)
    loss = fresh.training_step({"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}, 0)["loss"]
    assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=1e-6)


@pytest.mark.parametrize("length", [2, 5, 12, 13, 25, 40])
@pytest.mark.parametrize("stride", [1, 5, 12])
def test_every_target_is_scored_once_with_the_right_context(length: int, stride: int) -> None:
    model = make_model()
    stream = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(1))
    expected, done, start = [], 0, 0
    while done < length - 1:  # one window at a time, each scoring what no earlier window did
        end = min(start + 12, length - 1)
        first = max(0, length - 1 - 12) if end == length - 1 and start else start
        nats = token_nats(model.network(stream[None, first:end]), stream[None, first + 1 : end + 1])[0]
        expected.append(nats[done - first :])
        done, start = end, start + stride
    torch.testing.assert_close(model.score(stream, stride), torch.cat(expected), rtol=1e-5, atol=1e-6)


def test_a_stride_beyond_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="stride must be between 1 and the context of 12, got 13"):
        make_model().score(torch.zeros(20, dtype=torch.int64), 13)


def test_token_nats_of_an_impossible_token_stay_finite() -> None:
    logits = torch.tensor([[[0.0, 200.0]]])  # softmax and then log would give infinity in float32
    assert token_nats(logits, torch.tensor([[0]])).item() == pytest.approx(200.0)


def test_orthogonalize_keeps_the_singular_vectors_and_evens_the_values() -> None:
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices)
    aligned = left.mT @ result @ right.mT
    values = aligned.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.5
    assert values.max() < 1.3
    off = aligned - torch.diag_embed(values)
    assert off.abs().max() < 0.05
    torch.testing.assert_close(orthogonalize(matrices.mT), result.mT, rtol=1e-4, atol=1e-5)


def test_the_adamw_half_of_muon_is_torchs_adamw() -> None:
    ours, theirs = (torch.nn.Parameter(torch.arange(5.0)) for _ in range(2))
    pair = (
        Muon([], [ours], lr=1.0, adam_lr=0.1, weight_decay=0.2),
        torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.99), weight_decay=0.2),
    )
    for step in range(5):
        for parameter, optimizer in zip((ours, theirs), pair, strict=True):
            parameter.grad = torch.sin(torch.arange(5.0) + step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_muon_takes_a_step_of_the_stated_size_against_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.zeros(16, 32))
    weight.grad = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    Muon([weight], [], lr=0.5, adam_lr=1.0).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.5 * 0.2, rel=0.15)
    assert F.cosine_similarity(weight.flatten(), weight.grad.flatten(), dim=0) < -0.7


def test_warmup_cosine_passes_through_its_corner_points() -> None:
    values = [warmup_cosine(step, steps=110, warmup=10, final=0.1) for step in (0, 9, 10, 60, 110)]
    assert values == pytest.approx([1 / 11, 10 / 11, 1.0, 0.55, 0.1])
