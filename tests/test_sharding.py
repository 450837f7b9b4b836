"""Which models can be cut into parts; what the processes then do is in test_processes.py."""

from datetime import timedelta

import pytest

from pipeline import sharding
from pipeline.processes import HardwareError
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


def test_one_process_holds_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_STRATEGY", "fsdp")
    model = make("transformer")[0]
    assert sharding.copy_whole(model) is model
    assert not sharding.is_sharded(model)
