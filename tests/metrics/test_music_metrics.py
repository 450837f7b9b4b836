"""The metrics of music, next to closed forms, a bootstrap, and sums that are written out."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.artifacts import ArtifactError
from pipeline.kinds.music import END, REST, VOCABULARY, pad
from pipeline.metrics import music
from pipeline.metrics.music import Evidence

CONFIG = music.Config(sampling=music.Sampling(count=1, frames=16, temperature=1.0, top_k=0, top_p=1.0, stride=0.5))


def make_pieces(lengths: list[int], seed: int = 0, voices: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pieces = [torch.randint(50, 70, (frames, voices), dtype=torch.uint8, generator=generator) for frames in lengths]
    return pad([piece.numpy() for piece in pieces])


def make_nats(pieces: Tensor, seed: int = 0) -> Tensor:
    count = int((pieces != END).sum()) + len(pieces)
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def measure(nats: Tensor, pieces: Tensor, train: Tensor | None = None) -> dict[str, float]:
    train = make_pieces([10, 12], 9, pieces.size(2)) if train is None else train
    found = music.compute(Evidence({"test": nats}, {"train": train, "test": pieces}), CONFIG)
    return {name.removeprefix("test_"): value for name, [value] in found.items()}


def test_a_uniform_guess_pays_the_logarithm_of_the_vocabulary_for_each_note() -> None:
    pieces = make_pieces([16, 20, 8])
    found = measure(torch.full_like(make_nats(pieces), math.log(VOCABULARY)), pieces)
    assert found["nats_a_note"] == pytest.approx(math.log(130))
    assert found["nats_a_frame"] == pytest.approx(4 * math.log(130))
    assert found["nats_a_chorale"] == pytest.approx((4 * 44 / 3 + 1) * math.log(130))  # with the end
    assert found["nats_a_note_se"] == pytest.approx(0, abs=1e-12)
    assert found["pieces"] == 3
    assert found["notes"] == 4 * 44


def test_padding_never_counts() -> None:
    """A split of pieces of unequal length has the sums of its pieces, each by itself and without padding."""
    pieces = make_pieces([16, 40, 7])
    nats = make_nats(pieces)
    parts = nats.split([4 * 16 + 1, 4 * 40 + 1, 4 * 7 + 1])
    alone = [
        measure(part, piece[None, : int((piece[:, 0] != END).sum())]) for part, piece in zip(parts, pieces, strict=True)
    ]
    found = measure(nats, pieces)
    total = sum(each["nats_a_note"] * each["notes"] for each in alone)
    assert found["nats_a_note"] == pytest.approx(total / (4 * 63))
    assert found["nats_a_note"] != pytest.approx(total / (4 * 3 * 40), rel=0.1)  # if padding counted
    assert found["nats_a_chorale"] == pytest.approx(sum(each["nats_a_chorale"] for each in alone) / 3)
    assert found["copy_nats_a_note"] == pytest.approx(
        sum(each["copy_nats_a_note"] * each["notes"] for each in alone) / (4 * 63)
    )


def test_the_end_of_a_piece_counts_for_the_piece_and_not_for_a_note() -> None:
    pieces = make_pieces([16, 16])
    nats = make_nats(pieces)
    before = measure(nats, pieces)
    nats[[64, 129]] += 5
    after = measure(nats, pieces)
    assert after["nats_a_note"] == before["nats_a_note"]
    assert after["nats_a_chorale"] == pytest.approx(before["nats_a_chorale"] + 5)


def test_the_standard_errors_are_those_of_a_bootstrap_over_pieces() -> None:
    lengths = torch.randint(20, 60, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    pieces = make_pieces(lengths)
    sizes = [4 * length + 1 for length in lengths]
    scale = 1 + torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))  # hard and easy pieces
    nats = make_nats(pieces) * scale.repeat_interleave(torch.tensor(sizes))
    found = measure(nats, pieces)
    sums = torch.stack([part[:-1].sum() for part in nats.split(sizes)])
    whole = torch.stack([part.sum() for part in nats.split(sizes)])
    rows = torch.randint(40, (4000, 40), generator=torch.Generator().manual_seed(3))
    notes = torch.tensor([size - 1.0 for size in sizes], dtype=torch.float64)
    ratios = sums[rows].sum(dim=1) / notes[rows].sum(dim=1)
    assert found["nats_a_note_se"] == pytest.approx(float(ratios.std()), rel=0.06)
    assert found["nats_a_chorale_se"] == pytest.approx(float(whole[rows].mean(dim=1).std()), rel=0.06)
    assert found["nats_a_note_se"] > 3 * float(nats.std()) / len(nats) ** 0.5  # notes of a piece are alike


def test_copying_pays_nearly_nothing_for_a_piece_that_always_copies() -> None:
    held = torch.tensor([72, 67, 60, 48], dtype=torch.uint8).expand(1, 100, 4)
    moving = make_pieces([100], 5)
    train = held.expand(20, -1, -1).contiguous()
    same, other = (measure(make_nats(piece), piece, train)["copy_nats_a_note"] for piece in (held.clone(), moving))
    repeats, begin = (20 * 99 + 1) / (20 * 99 + 2), (20 * 100 + 1) / (20 * 100 + 129)
    assert same == pytest.approx(-(99 * math.log(repeats) + math.log(begin)) / 100)
    assert same < 0.002
    assert other > 5


def test_copying_is_a_distribution_that_is_fitted_on_the_training_pieces() -> None:
    """The probabilities of all next notes add up to one, and follow from counts."""
    train = torch.tensor([[60, 60, 62, 60, REST]], dtype=torch.uint8)[..., None]  # repeats 1 of 4 times
    following = torch.arange(END, dtype=torch.uint8)
    pairs = torch.stack([torch.full_like(following, 60), following], dim=1)[..., None]  # (129, 2, 1)
    begin = math.log((3 + 1) / (5 + 129))
    chances = [math.exp(-2 * music.score_copying(train, pair[None]) - begin) for pair in pairs]
    assert sum(chances) == pytest.approx(1)
    assert chances[60] == pytest.approx((1 + 1) / (4 + 2))
    assert chances[62] == pytest.approx(4 / 6 * (1 + 1) / (134 - 4))
    assert chances[REST] == pytest.approx(chances[62])
    assert chances[99] == pytest.approx(chances[62] / 2)


@pytest.mark.parametrize(("change", "message"), [(-1, "expected 66 nats"), (1, "expected 66 nats"), (0, "not finite")])
def test_missing_double_and_infinite_nats_are_refused(change: int, message: str) -> None:
    pieces = make_pieces([8, 8])
    nats = torch.full((66 + change,), 1.0 if change else math.inf)
    with pytest.raises(ArtifactError, match=f"test: .*{message}"):
        measure(nats, pieces)
