"""Differences: parameters that differ between runs, and numbers and parameters that differ from the last commit."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML, YAMLError

from pipeline import artifacts, params
from pipeline.evidence.uncertainty import format_number
from pipeline.evidence.values import is_measurement
from pipeline.pages.results import Page
from pipeline.params import Params


@dataclass(frozen=True)
class Grid:
    """A table: what its columns are, and rows of texts, the first of which names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Since:
    """What differs from a commit: its first line, or why there is none; values before and now."""

    commit: str
    numbers: list[list[str]]
    parameters: list[list[str]]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found |= flatten(each, f"{prefix}.{key}" if prefix else str(key))
    return found


def compare_runs(pages: Sequence[Page], settings: Params) -> list[Grid]:
    """Return the parameters that differ: between all runs those of the run, and those of the model between its runs."""
    of_runs = {
        page.name: flatten(artifacts.encode(page.run.model_dump(mode="json", exclude={"changes"}))) for page in pages
    }
    grids = [make_grid("all runs", of_runs)]
    for model in dict.fromkeys(page.model for page in pages):
        chosen = [page.name for page in pages if page.model == model]
        configs = {name: flatten(artifacts.encode(settings.models[name])) for name in chosen}
        grids.append(make_grid(f"runs of {model}", configs))
    return [grid for grid in grids if grid.rows]


def make_grid(title: str, values: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return a row for each key whose values differ between the columns."""
    keys = dict.fromkeys(key for each in values.values() for key in each)
    rows = [[key, *(_say(each.get(key)) for each in values.values())] for key in keys]
    return Grid(title, list(values), [row for row in rows if len(set(row[1:])) > 1])


def compare_commit(pages: Sequence[Page]) -> Since:
    """Return the numbers and parameters that differ from those of the last commit."""
    commit = _git("log", "-1", "--format=%h %s")
    if not commit:
        return Since("", [], [])
    numbers = []
    for page in pages:
        text = _git("show", f"HEAD:./{artifacts.REPORTS}/runs/{page.name}/metrics.json")
        before = json.loads(text) if text else {}
        for name, value in page.metrics.items():
            if is_measurement(page.values, name) and before.get(name) != value:
                old = format_number(before[name]) if name in before else "none"
                numbers.append([page.name, name, old, format_number(value)])
    now = flatten(YAML(typ="safe", pure=True).load(params.PATH.read_text(encoding="utf-8")))
    try:
        old_params = flatten(YAML(typ="safe", pure=True).load(_git("show", f"HEAD:./{params.PATH}")) or {})
    except YAMLError:
        old_params = {}
    keys = [key for key in {**old_params, **now} if key and old_params.get(key) != now.get(key)]
    return Since(commit, numbers, [[key, _say(old_params.get(key)), _say(now.get(key))] for key in keys])


def _say(value: Any) -> str:
    return "none" if value is None else json.dumps(value) if isinstance(value, list | dict | bool) else str(value)


def _git(*arguments: str) -> str:
    """Return what git prints; nothing outside a repository, before the first commit, or without git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
