"""The stages fetch and prepare as processes of their own: what they take of memory, whatever the size of the data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
MEGABYTES = 64  # of text; benchmarks/data.py does the same with a gigabyte, and with BPE
STAGE = """
import runpy, sys
runpy.run_module("pipeline.stages", run_name="__main__")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_of(folder: Path, stage: str, key: str) -> float:
    """Run a stage; return its peak resident memory in MB."""
    command = [sys.executable, "-c", STAGE, stage, key]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.rpartition("VmHWM:")[2].split()[0]) * 1024 / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_long_text_is_prepared_in_less_than_500_megabytes(tmp_path: Path) -> None:
    values = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    values["data"]["text"] |= {"source": "text_file", "path": "long.txt"}
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)
    chapter = "".join(f"Line {number} says {number * number} in so many words.\n" for number in range(25_000))
    with (tmp_path / "long.txt").open("w", encoding="ascii") as file:
        for _ in range(MEGABYTES * 10**6 // len(chapter)):
            file.write(chapter)
    assert peak_of(tmp_path, "fetch", "text") < 500
    assert peak_of(tmp_path, "prepare", "text") < 500
    assert (tmp_path / "data" / "prepared" / "text" / "train.safetensors").stat().st_size > MEGABYTES * 10**6 / 2
