"""Several processes on one machine (gloo, CPU): one MLflow run, and the data of a single process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stages import fetch, prepare
from pipeline.tracking import connect
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("run", ["gan", "transformer"])
def test_two_processes_train_one_model_in_one_run(run: str, workdir: Path) -> None:
    data = "text" if run == "transformer" else "images"
    fetch.main(data)
    prepare.main(data)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PIPELINE_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    losses = {}
    for devices in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.stages.train", run],
            cwd=workdir,
            env=environment | {"PIPELINE_DEVICES": devices},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (workdir / "data" / "runs" / run / "record" / "metrics.jsonl").read_text().splitlines()
        losses[devices] = [json.loads(line)["values"] for line in lines]
    client, experiment = connect()
    assert len(client.search_runs([experiment])) == 2  # one for each training, not one for each process
    assert len(losses["1"]) == len(losses["2"])
    if run == "transformer":
        # No batch statistics: after the same global batches the models agree, here on the validation text.
        ends = [[line["validation_nats"] for line in losses[n] if "validation_nats" in line][-1] for n in ("1", "2")]
        assert ends[0] == pytest.approx(ends[1], abs=1e-5)
