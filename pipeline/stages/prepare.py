"""Stage prepare: turns the raw files of one data set into checked tensors and a manifest in data/prepared/<data>.

    python -m pipeline.stages.prepare images

Images become uint8 (N, C, H, W) with labels int64 (N,), points float32 (N, D); text becomes tokens int32 (N,) and a
tokenizer that was made from the training split alone. manifest.json holds SHA-256, shapes, value range, duplicates and
class or character counts; files.json what became of each file of one's own.
"""

import importlib
import shutil

from pipeline import artifacts, params, plugins, seals
from pipeline.stages import run_stage

WRITERS = {"images": "image_sets", "points": "point_sets", "text": "text_sets"}  # text_sets needs no torch
SHOWN = {"count", "tokens", "characters", "duplicates", "shared_with_train"}


def main(key: str) -> None:
    """Prepare the section data.<key>."""
    config = params.load_data(key)
    values = config.model_dump()
    seals.verify(artifacts.RAW / key)
    prepared = plugins.load("data", values["source"]).prepare(artifacts.RAW / key, config)
    kind = type(config).KIND  # type: ignore[attr-defined]
    folder = artifacts.PREPARED / key
    shutil.rmtree(folder, ignore_errors=True)
    manifest = importlib.import_module(f"pipeline.data.{WRITERS[kind]}").write(folder, prepared, config)
    artifacts.write_json(
        folder / "manifest.json", {"source": values["source"], "kind": kind, "config": values, **manifest}
    )
    for name, entry in manifest["splits"].items():
        print(f"{key} {name}: {', '.join(f'{what} {value}' for what, value in entry.items() if what in SHOWN)}")
    if "files" in manifest:
        print("{}: {quarantined} of {count} files quarantined, see files.json".format(key, **manifest["files"]))


if __name__ == "__main__":
    run_stage(main)
