"""Stage prepare: turns the raw files of one data set into checked tensors and a manifest in data/prepared/<data>.

    python -m pipeline.stages prepare images

Each split becomes one file of named fields: see pipeline/kinds. manifest.json holds SHA-256, shapes, value range,
duplicates and class or character counts; files.json holds what became of each file, fetched or your own.
"""

import shutil
from dataclasses import replace
from typing import Any

from pipeline import artifacts, params, plugins
from pipeline.formats.own_files import examine, list_files, write_reports

SHOWN = {
    *("count", "tokens", "characters", "unknown_characters"),
    *("duplicates", "shared_with_train", "shared_with_validation"),
}


def main(key: str) -> None:
    """Prepare the section data.<key>."""
    config = params.load_data(key)
    artifacts.verify(artifacts.RAW / key)
    prepared = plugins.load("data", config.source).prepare(artifacts.RAW / key, config)
    folder = artifacts.PREPARED / key
    shutil.rmtree(folder, ignore_errors=True)
    manifest = plugins.load("kinds", config.KIND).write(folder, prepared, config)
    if "files" not in manifest:
        manifest |= report_raw(key, list(manifest["splits"]))
    about = {"source": config.source, "kind": config.KIND, "config": config}
    artifacts.write_json(folder / "manifest.json", {**about, **manifest})
    for name, entry in manifest["splits"].items():
        print(f"{key} {name}: {', '.join(f'{what} {value}' for what, value in entry.items() if what in SHOWN)}")
    for change in manifest.get("changes", ()):
        print(f"{key}: {change}")
    if "files" in manifest:
        counts = "{quarantined} of {count} files quarantined, {changed} changed, see files.json"
        print(f"{key}: {counts.format(**manifest['files'])}")


def report_raw(key: str, splits: list[str]) -> dict[str, Any]:
    """Write files.json on the fetched files, each of which goes to all splits, unless the data are drawn."""
    raw = artifacts.RAW / key
    reports = [examine(raw, name, path) for name, path in list_files(raw) if name != artifacts.SEAL]
    return write_reports(artifacts.PREPARED / key, [replace(report, split=", ".join(splits)) for report in reports])
