"""benchmarks/augmentation.py: its committed table is that of the committed runs, by one protocol."""

import runpy
import shutil
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.evidence.protocol import ProtocolError
from tests.conftest import ROOT

FOLDER = ROOT / "benchmarks"
render_policies = runpy.run_path(str(FOLDER / "augmentation.py"))["render_policies"]


def test_the_committed_table_is_that_of_the_committed_runs() -> None:
    table = render_policies(FOLDER / "reports" / "runs")
    assert table == (FOLDER / "augmentation.md").read_text(encoding="utf-8")
    assert "| plain | " in table


def test_runs_of_different_protocols_are_in_no_table(tmp_path: Path) -> None:
    for path in (FOLDER / "reports" / "runs").glob("augment_plain_*"):
        (tmp_path / path.name).mkdir()
        for name in ("sets.json", "protocol.json"):
            shutil.copy(path / name, tmp_path / path.name)
    changed = tmp_path / "augment_plain_1" / "protocol.json"
    values = artifacts.read_json(changed)
    values["protocol"]["metric"]["neighbours"] += 1
    artifacts.write_json(changed, values)
    with pytest.raises(ProtocolError, match=r"augment_plain_1 .*: metric\.neighbours is"):
        render_policies(tmp_path)
