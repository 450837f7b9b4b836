"""Stage prepare: turns the raw files of one data set into checked tensors and a manifest in data/prepared/<data>.

    python -m pipeline.stages prepare images

Each split becomes one file of named fields: see pipeline/kinds. manifest.json holds SHA-256, shapes, value range,
duplicates, class or character counts, and doubts: possible mistakes in the data, each with the key that changes it.
files.json holds what became of each file, fetched or your own. reports/data/<data> shows some examples.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline import artifacts, params, plugins
from pipeline.formats.own_files import examine, list_files, write_reports
from pipeline.kinds import Exhibit

SHOWN = (  # and examples shared with other splits
    *("count", "tokens", "characters", "unknown_characters", "clipped_samples", "minimum", "maximum", "duplicates"),
)
LISTED = 20  # classes that are printed


def main(key: str) -> None:
    """Prepare the section data.<key>."""
    config = params.load_data(key)
    artifacts.verify(artifacts.RAW / key)
    prepared = plugins.load("data", config.source).prepare(artifacts.RAW / key, config)
    folder = artifacts.PREPARED / key
    shutil.rmtree(folder, ignore_errors=True)
    kind = plugins.load("kinds", config.KIND)
    manifest = kind.write(folder, prepared, config)
    if "files" not in manifest:
        manifest |= report_raw(key, list(manifest["splits"]))
    if doubts := kind.question_data(key, manifest, config):
        manifest["doubts"] = doubts
    about = {"source": config.source, "kind": config.KIND, "config": config}
    artifacts.write_json(folder / "manifest.json", {**about, **manifest})
    sheet = write_sheet(key, kind.show_data(folder, manifest))
    for line in describe(manifest):
        print(f"{key} {line}")
    print(f"{key}: {sheet} shows examples")
    for doubt in doubts:
        print(f"warning: {doubt}")


def report_raw(key: str, splits: list[str]) -> dict[str, Any]:
    """Write files.json on the fetched files, each of which goes to all splits, unless the data are drawn."""
    raw = artifacts.RAW / key
    reports = [examine(raw, name, path) for name, path in list_files(raw) if name != artifacts.SEAL]
    return write_reports(artifacts.PREPARED / key, [replace(report, split=", ".join(splits)) for report in reports])


def write_sheet(key: str, sheet: Exhibit) -> str:
    """Write the exhibit of a data set to a folder of its own; return its path."""
    folder = artifacts.REPORTS / "data" / key
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / f"{sheet.name}{sheet.suffix}"
    artifacts.write_bytes(path, sheet.content)
    return str(path)


def describe(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what the manifest says of splits, classes, the source's findings and files, a line each."""
    splits = manifest["splits"]
    for name, entry in splits.items():
        shown = [what for what in entry if what in SHOWN or what.startswith("shared_with")]
        yield f"{name}: {', '.join(f'{what} {entry[what]:.10g}' for what in shown)}"
    if all("per_class" in entry for entry in splits.values()):
        totals = [sum(counts) for counts in zip(*(entry["per_class"] for entry in splits.values()), strict=True)]
        names = manifest.get("classes") or range(len(totals))
        named = [f"{name!r} {total}" for name, total in zip(names, totals, strict=True)][:LISTED]
        more = ", ..." if len(totals) > LISTED else ""
        yield f"classes: {len(totals)}, with examples of each: {', '.join(named)}{more}"
    for name, value in manifest.get("known", {}).items():
        if not isinstance(value, list):
            parts = value.items() if isinstance(value, dict) else [("", value)]
            yield f"{name.replace('_', ' ')}: {', '.join(f'{part} {said}'.strip() for part, said in parts)}"
    yield from manifest.get("changes", ())
    if "files" in manifest:
        files = manifest["files"]
        ignored = [f"{count} ignored as {what}" for what, count in files.get("ignored", {}).items()]
        quarantined = f"{files['quarantined']} of {files['count']} files quarantined"
        found = [quarantined, f"{files['changed']} changed", *ignored]
        yield f"files: {', '.join(found)}, see files.json"
