"""The README's numbers are those of the committed reports."""

import re

from pipeline import artifacts, plugins
from pipeline.stages.report import show
from tests.conftest import ROOT


def test_every_number_of_the_results_table_stands_in_the_reports() -> None:
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \| ([\d.,]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) >= 8
    for run, metric, text in rows:
        metrics = artifacts.read_json(ROOT / "reports" / "runs" / run / "metrics.json")
        assert show(metrics[metric]) == text, (run, metric)


def test_the_example_source_of_the_readme_is_the_one_that_a_test_runs() -> None:
    example = (ROOT / "tests" / "data" / "example_source.py").read_text(encoding="utf-8")
    indented = "".join(f"    {line}" if line.strip() else line for line in example.splitlines(keepends=True))
    assert indented in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_source_stands_in_the_readme_s_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = "".join(re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE))
    assert [name for name in plugins.names("data") if f"`{name}`" not in rows] == []


def test_the_benchmark_table_is_the_one_that_the_results_stage_wrote() -> None:
    table = (ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8")
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
    results = artifacts.read_json(ROOT / "benchmarks" / "results.json")
    assert all(f"`{name}`" in table for name in results)
