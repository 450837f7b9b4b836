"""Notes the cost of each stage's last run on this machine in data/costs/<stage>.json, which no stage reads.

`pipeline costs` prints them; with `--save` it writes reports/costs.json, which git keeps.
"""

import contextlib
import resource
import sys
import time
from typing import Any

import psutil

from pipeline import artifacts

FOLDER = artifacts.RAW.parent / "costs"
COMMITTED = artifacts.REPORTS / "costs.json"


def measure_memory(who: int = resource.RUSAGE_SELF) -> float:
    """Return the peak memory in MiB of this process, or of its largest child (RUSAGE_CHILDREN)."""
    return resource.getrusage(who).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # bytes; KiB on Linux


def read_known() -> dict[str, Any]:
    """Return the costs of stages and of trainings by name: those noted in this folder, and the committed ones."""
    known: dict[str, Any] = artifacts.read_json(COMMITTED) if COMMITTED.exists() else {"stages": {}, "runs": {}}
    for path in sorted(FOLDER.glob("*.json")):
        known["stages"][path.stem] = artifacts.read_json(path)
    return known


def note(stage: str) -> None:
    """Write seconds since the start of this process, and the peak memory of it or of its largest child in MiB."""
    memory = max(measure_memory(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cost = {"seconds": time.time() - psutil.Process().create_time(), "peak_memory_mib": memory}
    with contextlib.suppress(OSError):  # a full disk must not undo a stage that is done
        artifacts.write_json(FOLDER / f"{stage}.json", cost)
    print(f"{stage}: {cost['seconds']:.0f} s, at most {cost['peak_memory_mib']:.0f} MiB of memory")
