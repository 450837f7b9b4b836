"""The README's numbers are those of the committed reports."""

import re

from pipeline import artifacts
from pipeline.stages.report import show
from tests.conftest import ROOT


def test_every_number_of_the_results_table_stands_in_the_reports() -> None:
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \| ([\d.,]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) >= 8
    for run, metric, text in rows:
        metrics = artifacts.read_json(ROOT / "reports" / "runs" / run / "metrics.json")
        assert show(metrics[metric]) == text, (run, metric)
