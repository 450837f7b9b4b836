"""The cost of a stage is that of its process and its children."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.history import costs

SCRIPT = """
import time
from pipeline.history import costs
held = bytearray(200 * 2**20)
time.sleep(1)
costs.note("train@x")
"""


@pytest.mark.usefixtures("workdir")
def test_seconds_and_peak_memory_of_a_process_are_noted() -> None:
    root = str(Path(costs.__file__).parents[1])
    run = subprocess.run([sys.executable, "-c", SCRIPT], env={"PYTHONPATH": root}, check=True, capture_output=True)
    found = artifacts.read_json(costs.FOLDER / "train@x.json")
    assert 1 <= found["seconds"] < 60
    assert found["peak_memory_mib"] > 200
    assert b"train@x: " in run.stdout
