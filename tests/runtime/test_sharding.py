"""Which models can be cut into parts; what the processes then do is in test_processes.py."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.layers.blocks import Muon
from pipeline.runtime import processes, sharding
from pipeline.runtime.environment import HardwareError
from pipeline.stages import networks, train
from tests.test_training import make


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gan", "a model of two optimizers does not allow"),
        ("vae", "pipeline.models.vae does not say how its weights are cut into parts"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(name: str, reason: str) -> None:
    with pytest.raises(HardwareError, match=reason):
        sharding.make_strategy(make(name)[0], 2, timedelta(seconds=10))


@pytest.mark.usefixtures("tiny", "prepared")
def test_a_training_that_cannot_be_cut_is_refused_before_its_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DEVICES": "2", "STRATEGY": "fsdp", "ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(f"PIPELINE_{name}", value)
    monkeypatch.setattr(processes, "supervise", lambda *_: pytest.fail("processes were started"))
    for stage, key in ((train, "gan"), (networks, "classifier")):
        with pytest.raises(HardwareError, match="expected auto or ddp"):
            stage.main(key)


def test_a_precision_that_sharding_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_PRECISION", "16-mixed")
    with pytest.raises(HardwareError, match="16-true with PIPELINE_STRATEGY fsdp, got '16-mixed'"):
        sharding.make_strategy(make("transformer")[0], 2, timedelta(seconds=10))


def test_muon_updates_many_matrices_cut_into_more_than_two_parts() -> None:
    """One of four processes, without the others: DTensor left to itself would cut the stack into its matrices."""
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (4,))
        matrices = [nn.Parameter(distribute_tensor(torch.randn(576, 192), mesh, [Shard(0)])) for _ in range(12)]
        for matrix in matrices:
            matrix.grad = torch.ones_like(matrix)
        before = [matrix.to_local().clone() for matrix in matrices]
        Muon(matrices, [], lr=0.1, adam_lr=0.1).step()
        assert all(matrix.placements == (Shard(0),) for matrix in matrices)
        assert not any(torch.equal(a, b.to_local()) for a, b in zip(before, matrices, strict=True))
    finally:
        dist.destroy_process_group()


def test_one_process_holds_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_STRATEGY", "fsdp")
    model = make("transformer")[0]
    assert sharding.copy_whole(model) is model
    assert not sharding.is_sharded(model)


def test_only_the_first_process_has_a_whole_model_whose_adapters_it_may_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "is_asked_for", lambda: True)
    model = make("transformer")[0]
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        whole = sharding.copy_whole(model)
        assert whole is not model
        assert hasattr(whole, "end") is (rank == 0)
