"""Music through all stages, from the fetched chorales on; without a mirror it is skipped."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.stages import audit, check, evaluate, fetch, prepare, sample, train

HAS_MIRROR = (Path(os.environ.get("DATA_MIRROR", "none")) / "jsb_chorales").is_dir()
SAMPLING = {"count": 2, "frames": 16, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stride": 1.0}
MODEL = {"layers": 1, "heads": 2, "width": 16, "context": 128, "dropout": 0.0, "steps": 3, "batch_size": 8}
MODEL |= {"optimizer": "muon", "learning_rate": 1e-2, "matrix_learning_rate": 1e-2, "warmup": 1}
MODEL |= {"final_learning_rate": 0.0, "weight_decay": 0.0, "clip_norm": 1.0, "ema": 0.0}
RUN = {"model": "notes", "data": "chorales", "start": "none", "metric": "music", "network": "none", "seed": 0}


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MIRROR, reason="DATA_MIRROR has no jsb_chorales")
def test_chorales_pass_all_stages_and_are_harmonised(edit_params: Callable[..., None]) -> None:
    edit_params(
        {
            "data": {"chorales": {"source": "jsb_chorales", "path": "data/own", "transpose": 0}},
            "networks": {},
            "models": {"notes": MODEL},
            "metrics": {"music": {"sampling": SAMPLING}},
            "runs": {"notes": {**RUN, "changes": {}}},
        }
    )
    Path("data/own").mkdir(parents=True)
    check.main()
    fetch.main("chorales")
    prepare.main("chorales")
    for stage in (train, sample, evaluate, audit):
        stage.main("notes")
    folder = artifacts.REPORTS / "runs" / "notes"
    metrics = artifacts.read_json(folder / "metrics.json")
    assert (metrics["test_pieces"], metrics["test_notes"]) == (77, 75600)
    assert 0 < metrics["test_nats_a_note"] < 4.87  # ln 130, the guess of a model that has learnt nothing
    assert metrics["test_copy_nats_a_note"] == pytest.approx(1.137, abs=1e-3)
    shown = {path.name for path in (folder / "samples").iterdir()}
    assert {f"{name}{ending}" for name in ("samples", "harmonisations") for ending in (".png", ".wav", ".mid")} <= shown
