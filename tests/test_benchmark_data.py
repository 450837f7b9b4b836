"""The command benchmarks/data.py, on little data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

COMMAND = [sys.executable, str(ROOT / "benchmarks" / "data.py")]


def test_the_command_explains_itself() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "--pictures" in done.stdout
    assert "a training step" in done.stdout


@pytest.mark.slow
def test_a_row_of_the_table_stands_for_each_measurement(tmp_path: Path) -> None:
    options = ["--pictures", "300", "--megabytes", "2", "--steps", "10", "--out", str(tmp_path)]
    done = subprocess.run([*COMMAND, *options], env=os.environ, capture_output=True, text=True, check=False)
    results = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert set(results) == {"gan", "vae", "transformer", "pictures", "character", "bpe"}
    assert all(0 < results[name]["share"] < 1 for name in ("gan", "vae", "transformer"))
    table = (tmp_path / "data.md").read_text(encoding="utf-8")
    assert done.stdout == table
    assert table.count("| data's share of a step, run ") == 3
    assert "| 300 PNG files of 28x28 pixels" in table
