"""The table of all rows: speed.json and speed.md, with the commit and machine of each row."""

import json
import operator
import re
import subprocess
from dataclasses import asdict
from typing import Any

from pipeline import artifacts
from pipeline.history.record import describe_environment
from speed.timing import HERE, Row

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def read_rows() -> dict[str, dict[str, Any]]:
    """Return the rows of speed.json, by name."""
    path = HERE / "speed.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}


def describe_circumstances() -> dict[str, str]:
    """Return what each row says of the machine and the code."""
    environment = describe_environment()
    return {name: environment[name] for name in ("processor", "threads", "torch")} | {"commit": describe_commit()}


def add_circumstances(row: Row, circumstances: dict[str, str]) -> dict[str, Any]:
    """Return a row as speed.json holds it."""
    return asdict(row) | circumstances


def write_rows(rows: dict[str, dict[str, Any]]) -> None:
    """Write speed.json and speed.md."""
    artifacts.write_json(HERE / "speed.json", {"rows": rows})
    (HERE / "speed.md").write_text(render(rows), encoding="utf-8")


def describe_commit() -> str:
    """Return the short commit that is measured, with -dirty if tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]  # of no tag: the commit itself
    return subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown"


def is_missed(row: dict[str, Any]) -> bool:
    """Say whether a row's median is not what was wanted: `<= x`, `>= x`, `< x` or `> x`, words may follow."""
    wanted = re.match(r"([<>]=?) ([\d.]+)", row["wanted"])
    return wanted is not None and not OPERATORS[wanted[1]](row["ratio"], float(wanted[2]))


def render(rows: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| compared | ratio | least to largest | repeats | of | wanted | | on |",
        "|---|---:|---:|---:|---:|---:|---|---|",
    ]
    line = (
        "| {title} (`{name}`) | {found} | {low:.3g} to {high:.3g} | {repeats} | {count} | {wanted} | {detail} | {on} |"
    )
    for row in rows.values():
        on = f"{row['processor']}, {row['threads']} threads"
        if "commit" in row:  # rows of older versions have none
            on += f", commit `{row['commit']}`"
        found = f"{row['ratio']:.3g}{' (missed)' if is_missed(row) else ''}"
        lines.append(line.format(**{"count": ""} | row, found=found, on=on))  # nor a count
    return "\n".join(lines) + "\n"
