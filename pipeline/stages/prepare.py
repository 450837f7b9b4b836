"""Stage prepare: turns the raw files of one data set into checked tensors and a manifest in data/prepared/<data>.

    python -m pipeline.stages.prepare images

Images become uint8 (N, C, H, W) with labels int64 (N,), points float32 (N, D); text becomes tokens int32 (N,) and a
tokenizer that was made from the training split alone. manifest.json holds SHA-256, shapes, value range, duplicates and
class or character counts; files.json what became of each file, fetched or of one's own.
"""

import importlib
import shutil
from dataclasses import replace
from typing import Any

from pipeline import artifacts, params, plugins
from pipeline.formats.own_files import examine, list_files, write_reports
from pipeline.stages import run_stage

WRITERS = {"images": "image_sets", "points": "point_sets", "text": "text_sets"}  # text_sets needs no torch
SHOWN = {"count", "tokens", "characters", "duplicates", "shared_with_train", "shared_with_validation"}


def main(key: str) -> None:
    """Prepare the section data.<key>."""
    config = params.load_data(key)
    values = config.model_dump()
    artifacts.verify(artifacts.RAW / key)
    prepared = plugins.load("data", values["source"]).prepare(artifacts.RAW / key, config)
    kind = type(config).KIND  # type: ignore[attr-defined]
    folder = artifacts.PREPARED / key
    shutil.rmtree(folder, ignore_errors=True)
    manifest = importlib.import_module(f"pipeline.data.{WRITERS[kind]}").write(folder, prepared, config)
    if "files" not in manifest:
        manifest |= report_raw(key, list(manifest["splits"]))
    artifacts.write_json(
        folder / "manifest.json", {"source": values["source"], "kind": kind, "config": values, **manifest}
    )
    for name, entry in manifest["splits"].items():
        print(f"{key} {name}: {', '.join(f'{what} {value}' for what, value in entry.items() if what in SHOWN)}")
    if "files" in manifest:
        print("{}: {quarantined} of {count} files quarantined, see files.json".format(key, **manifest["files"]))


def report_raw(key: str, splits: list[str]) -> dict[str, Any]:
    """Write files.json on the fetched files, each of which goes to all splits, unless the data are drawn."""
    raw = artifacts.RAW / key
    reports = [examine(raw, name, path) for name, path in list_files(raw) if name != artifacts.SEAL]
    return write_reports(artifacts.PREPARED / key, [replace(report, split=", ".join(splits)) for report in reports])


if __name__ == "__main__":
    run_stage(main)
