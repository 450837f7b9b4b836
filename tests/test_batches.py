"""Batches by step: every example once an epoch, the same ones for every world size and after every resume."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import artifacts
from pipeline.batches import Batch, Data, Examples, Rows, Steps
from pipeline.kinds.text import Windows

COUNT = 10


@pytest.fixture
def images() -> Rows:
    """Ten images; the label says which one it is."""
    pixels = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2)
    return Rows({"images": pixels, "labels": torch.arange(COUNT)})


@pytest.fixture
def text() -> Windows:
    """103 tokens in windows of 8; the token says where it stands."""
    return Windows(torch.arange(103, dtype=torch.int32), context=8, seed=0)


def labels(batches: Iterable[Batch]) -> list[int]:
    return torch.cat([batch["labels"] for batch in batches]).tolist()


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 25])  # 3 and 4 do not divide 10; 25 is more than an epoch
def test_every_example_comes_exactly_once_an_epoch(images: Rows, batch_size: int) -> None:
    batches = list(Steps(images, steps=60, batch_size=batch_size, seed=0))
    assert [len(batch["labels"]) for batch in batches] == [batch_size] * 60
    stream = labels(batches)
    for epoch in range(len(stream) // COUNT):
        assert sorted(stream[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))


def test_images_and_labels_stay_together(images: Rows) -> None:
    for batch in Steps(images, steps=10, batch_size=7, seed=0):
        assert batch["images"].dtype == torch.uint8
        assert torch.equal(batch["images"][:, 0, 1, 1].long(), batch["labels"])


@pytest.mark.fault(30)
def test_the_order_of_an_epoch_is_the_permutation_of_seed_and_epoch(images: Rows) -> None:
    stream = labels(Steps(images, steps=12, batch_size=5, seed=3))
    for epoch in range(6):
        seed = int(hashlib.sha256(f"3/order/{epoch}".encode()).hexdigest(), 16) >> (256 - 63)
        expected = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
        assert stream[epoch * COUNT : (epoch + 1) * COUNT] == expected.tolist()


def test_epochs_and_seeds_differ(images: Rows) -> None:
    orders = {
        tuple(labels(Steps(images, steps=8, batch_size=COUNT, seed=seed))[epoch * COUNT :][:COUNT])
        for seed in range(4)
        for epoch in range(8)
    }
    assert len(orders) == 32


def test_the_batch_size_does_not_change_the_order(images: Rows) -> None:
    streams = [labels(Steps(images, steps=60 // size, batch_size=size, seed=0)) for size in (1, 4, 6, 15)]
    assert all(stream == streams[0] for stream in streams)


def test_the_global_generator_neither_matters_nor_moves(images: Rows, text: Windows) -> None:
    for examples in (images, text):
        torch.manual_seed(1)
        first = list(Steps(examples, steps=9, batch_size=4, seed=0))
        torch.manual_seed(2)
        before = torch.get_rng_state()
        assert_equal(first, list(Steps(examples, steps=9, batch_size=4, seed=0)))
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [2, 3, 6])
@pytest.mark.fault(30)
def test_the_shares_of_all_processes_put_together_are_the_batches_of_one(
    images: Rows, text: Windows, world: int
) -> None:
    for examples in (images, text):
        alone = list(Steps(examples, steps=20, batch_size=12, seed=0))
        shares = [Steps(examples, steps=20, batch_size=12, seed=0, rank=rank, world=world) for rank in range(world)]
        together = [
            {key: torch.cat([share[key] for share in parts]) for key in parts[0]} for parts in zip(*shares, strict=True)
        ]
        assert_equal(alone, together)


@pytest.mark.parametrize("start", [0, 1, 2, 7, 19, 20])
@pytest.mark.fault(8, 23)
def test_a_later_start_continues_exactly(images: Rows, text: Windows, start: int) -> None:
    for examples in (images, text):
        whole = list(Steps(examples, steps=20, batch_size=4, seed=0))
        rest = Steps(examples, steps=20, batch_size=4, seed=0, start=start)
        assert_equal(whole[start:], list(rest))
        assert_equal(whole[start:], list(rest))  # and again: iterating changes nothing


def test_a_batch_that_cannot_be_shared_is_refused(images: Rows) -> None:
    with pytest.raises(ValueError, match="10 cannot be shared by 4"):
        Steps(images, steps=1, batch_size=10, seed=0, world=4)


def test_targets_are_the_next_tokens(text: Windows) -> None:
    for batch in Steps(text, steps=30, batch_size=4, seed=0):
        assert batch["inputs"].shape == batch["targets"].shape == (4, 8)
        assert batch["inputs"].dtype == batch["targets"].dtype == torch.int64
        # The tokens of this text count its positions, so the next token is one more.
        assert torch.equal(batch["targets"], batch["inputs"] + 1)


def epoch_targets(text: Windows, epoch: int) -> Tensor:
    return text.batch(torch.arange(len(text)), epoch)["targets"].flatten().sort().values


def test_an_epoch_covers_the_text_from_its_offset_on_without_gap_or_overlap(text: Windows) -> None:
    for epoch in range(50):
        targets = epoch_targets(text, epoch)
        assert torch.equal(targets, torch.arange(int(targets[0]), int(targets[0]) + len(targets)))
        assert 1 <= targets[0] <= 8  # the offset is less than the context
        assert 102 - int(targets[-1]) < 2 * 8  # and so is what stays unread at the end, with the last window's rest


def test_offsets_differ_by_epoch_and_reach_every_token_but_the_rest_of_the_last_window(text: Windows) -> None:
    assert {int(epoch_targets(text, epoch)[0]) for epoch in range(100)} == set(range(1, 9))
    seen = torch.cat([epoch_targets(text, epoch) for epoch in range(100)]).unique()
    # Nothing comes before the first token; 103 % 8 tokens at the end fit into no window, whatever the offset.
    assert torch.equal(seen, torch.arange(1, 103 - 103 % 8))


@pytest.mark.parametrize("length", [17, 18, 24, 25, 103])
def test_no_window_reaches_beyond_the_text(length: int) -> None:
    text = Windows(torch.arange(length), context=8, seed=0)
    assert len(text) >= 1
    for epoch in range(100):
        assert int(epoch_targets(text, epoch)[-1]) < length  # an index error otherwise


@pytest.mark.parametrize("length", [0, 1, 8, 16])
def test_a_text_that_is_too_short_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} tokens, expected more than twice the context of 8"):
        Windows(torch.arange(length), context=8, seed=0)


def test_the_data_module_hands_out_the_same_steps(images: Rows) -> None:
    examples: Examples = images
    data = Data(examples, steps=12, batch_size=4, seed=5, start=3)
    expected = list(Steps(images, steps=12, batch_size=4, seed=5))[3:]
    assert_equal(list(data.train_dataloader()), expected)
    assert len(data.train_dataloader()) == 12  # Lightning counts a resumed training's batches from the first step on


def find_mapping(tensor: Tensor) -> tuple[str, int]:
    """The file that a tensor's memory is, and how many KiB of the mapping are resident."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    found = ("", 0)
    for number, line in enumerate(lines):
        first, _, last = line.split()[0].partition("-")
        if last and int(first, 16) <= tensor.data_ptr() < int(last, 16):
            resident = next(line for line in lines[number:] if line.startswith("Rss:"))
            found = line.split(maxsplit=5)[-1], int(resident.split()[1])
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="mappings are read from /proc")  # noqa: PTH110
def test_a_split_is_a_memory_mapped_file_of_which_a_batch_reads_its_own_pages_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = artifacts.PREPARED / "big"
    count = 40_000
    layout = {"images": (torch.uint8, (count, 1, 28, 28)), "labels": (torch.int64, (count,))}
    with artifacts.create_tensors(folder / "train.safetensors", layout) as tensors:
        tensors["labels"].copy_(torch.arange(count))
    entry = {"sha256": artifacts.digest(folder / "train.safetensors")}
    artifacts.write_json(
        folder / "manifest.json", {"source": "own", "kind": "images", "fields": {}, "splits": {"train": entry}}
    )
    split = artifacts.read_split("big", "train")
    path, before = find_mapping(split["images"])
    assert path == str(tmp_path / folder / "train.safetensors")
    (batch,) = Steps(Rows(split), steps=1, batch_size=8, seed=0)
    assert len(batch["labels"]) == 8
    assert before < find_mapping(split["images"])[1] < 8192  # KiB, of 31,000
