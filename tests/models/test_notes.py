"""The transformer over notes: scores, padding, places and samples, next to sums that are written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.artifacts import ArtifactError
from pipeline.kinds import music
from pipeline.kinds import text as text_kind
from pipeline.kinds.music import END, REST, VOCABULARY, make_fields, pad, to_tokens
from pipeline.models import notes

FIELDS = make_fields(voices=2)  # 32 tokens in a bar


def make_model(seed: int = 0, **changes: Any) -> notes.Model:
    values = {"layers": 2, "heads": 2, "width": 16, "context": 64, "dropout": 0.0, "steps": 1, "batch_size": 2}
    values |= {"optimizer": "muon", "learning_rate": 0.01, "matrix_learning_rate": 0.01, "warmup": 0, "ema": 0.0}
    values |= {"final_learning_rate": 0.0, "weight_decay": 0.0, "clip_norm": 1.0} | changes
    model = notes.Model(notes.Config.model_validate(values), FIELDS, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model


def make_piece(frames: int, seed: int = 0) -> Tensor:
    return torch.randint(40, 60, (frames, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_an_untrained_model_pays_the_logarithm_of_the_vocabulary_for_each_note_and_the_end() -> None:
    config = make_model().config
    nats = notes.Model(config, FIELDS, 0).score(make_piece(50), 64)
    assert nats.dtype == torch.float64
    assert nats.tolist() == pytest.approx([math.log(VOCABULARY)] * 101)


@pytest.mark.parametrize("frames", [1, 31, 32, 33, 80])
@pytest.mark.parametrize("stride", [32, 50, 64])
def test_each_note_is_scored_once_with_at_least_the_context_that_the_stride_leaves(frames: int, stride: int) -> None:
    model, piece = make_model(), make_piece(frames)
    tokens = to_tokens(piece[None])[0]
    found = model.score(piece, stride)
    assert len(found) == 2 * frames + 1
    step = stride // 32 * 32
    windows = [
        model.network(tokens[None, start : start + 64])[0].log_softmax(-1) for start in range(0, len(tokens) - 1, step)
    ]
    for place, nats in enumerate(found.tolist()):  # the same number from the first window that has the target
        window = max(0, -(-(place + 1 - 64) // step))
        assert nats == pytest.approx(float(-windows[window][place - window * step, tokens[place + 1]]), abs=1e-4)


def test_a_score_depends_on_the_piece_only() -> None:
    model, first, second = make_model(), make_piece(9, 1), make_piece(20, 2)
    alone = model.score(first, 32)
    assert torch.equal(music.trim(pad([first.numpy(), second.numpy()])[0]), first)
    model.score(second, 32)
    assert torch.equal(model.score(first, 32), alone)


def test_padding_adds_nothing_to_the_loss() -> None:
    """The loss of a padded batch is the mean over the targets of its pieces, each by itself and without padding."""
    model, pieces = make_model(), [make_piece(3, 1), make_piece(11, 2), make_piece(7, 3)]
    batch = music.Excerpts(pad([piece.numpy() for piece in pieces]), 64, 0).batch(torch.arange(3), 0)
    losses = torch.cat([model.score(piece, 64) for piece in pieces])
    assert len(losses) == 2 * (3 + 11 + 7) + 3 == int((batch["targets"] != music.IGNORED).sum())
    assert float(model.loss(batch)) == pytest.approx(float(losses.mean()), abs=1e-5)
    counted = batch | {"targets": batch["targets"].where(batch["targets"] != music.IGNORED, torch.tensor(END))}
    assert abs(float(model.loss(counted)) - float(losses.mean())) > 0.01  # a loss that counts padding is another one


def test_the_model_knows_the_place_in_the_bar() -> None:
    """With one token in all places, a model without places would give equal logits in a window of one token."""
    model = make_model()
    rows = model.network(torch.full((1, 64), 50))[0]
    places = model.network.place.weight
    with torch.no_grad():
        places.copy_(places[:1].expand_as(places))
    same = model.network(torch.full((1, 64), 50))[0]
    assert torch.allclose(same, same[:1].expand_as(same), atol=1e-4)
    assert not torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-2)


@pytest.mark.parametrize("frames", [20, 60])
def test_the_likeliest_piece_is_the_one_that_the_network_says_note_by_note(frames: int) -> None:
    model = make_model(seed=3)
    drawn = model.sample(1, torch.Generator().manual_seed(0), {}, frames=frames, temperature=0.0)["notes"][0]
    length = len(music.trim(drawn))
    assert length > 1
    tokens = to_tokens(drawn[None])[0]
    start = 0
    for place in range(2 * length):
        if place - start + 1 > 64:  # the context is full: from the first bar in its last half on
            start = place + 1 - 32 + -(place + 1 - 32) % 32
        logits = model.network(tokens[None, start : place + 1])[0, -1]
        if place % 2 or not place:
            logits[END] = -torch.inf
        assert int(logits.argmax()) == int(tokens[place + 1])


def test_samples_follow_from_the_generator_and_end_in_all_voices() -> None:
    model = make_model(seed=1)
    with torch.no_grad():
        model.network.head.weight[END] += 0.3
    first, again, other = (
        model.sample(20, torch.Generator().manual_seed(seed), {}, frames=30)["notes"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.uint8
    assert first.shape == (20, 30, 2)
    music.check("samples", first)
    lengths = {len(music.trim(piece)) for piece in first}
    assert len(lengths) > 2
    assert min(lengths) >= 1


def test_kept_notes_stay_and_the_others_are_drawn_to_the_end() -> None:
    model, piece = make_model(), make_piece(60)
    piece[5, 0] = REST
    kept = piece.clone()
    kept[:, 1:] = END
    drawn = model.sample(3, torch.Generator().manual_seed(0), {}, frames=60, kept=kept)["notes"]
    assert torch.equal(drawn[..., 0], piece[:, 0].expand(3, -1))
    assert int(drawn.max()) < END
    assert len(drawn[..., 1].unique()) > 10


@pytest.mark.parametrize(("context", "would"), [(32, 64), (70, 64), (130, 128)])
def test_a_context_that_is_not_of_whole_bars_is_refused(context: int, would: int) -> None:
    config = make_model().config.model_copy(update={"context": context})
    with pytest.raises(ArtifactError, match=f"multiple of 32 tokens.*got {context}; {would} would do"):
        notes.require(config, FIELDS)


def test_data_that_are_no_music_are_refused() -> None:
    with pytest.raises(ArtifactError, match="expected a field of the kind music"):
        notes.require(make_model().config, text_kind.make_fields(65))
