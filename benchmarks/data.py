"""What the data cost: seconds and memory of the stages fetch and prepare, and the data's share of a training step.

    python benchmarks/data.py                                   # or: make benchmark-data
    python benchmarks/data.py --pictures 600 --megabytes 10     # a look, in half a minute

Writes pictures in ten class folders and a long text into a temporary folder, runs the project's stages on them as
processes of their own, trains each default run for a few steps, and writes the table to benchmarks/data.md, its values
to benchmarks/data.json. Ends with status 1 if a limit is exceeded. Reads peak memory from /proc, so it needs Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[1]
CLASSES = 10
SIDE = 28  # pixels
WORDS = 50_000  # of the text's language
CHAPTER = 200_000  # words that are drawn at once
THREADS = os.environ.get("OMP_NUM_THREADS", "2")
SECONDS, MEMORY, SHARE = 60.0, 500.0, 0.02  # limits: of the pictures, MB of the text, of a step
STAGE = """
import runpy, sys
runpy.run_module("pipeline.stages", run_name="__main__")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
TRAINING = """
import json, statistics, sys, time
from pipeline.history import recorder
from pipeline.batches import Steps
from pipeline.stages import train

recorder.PREVIEWS = 1  # they take longer than the steps that are measured
waits, steps, iterate, found = [], [], Steps.__iter__, {}

def timed(self):
    batches = iterate(self)
    begin = time.perf_counter()
    for batch in batches:
        given = time.perf_counter()
        waits.append(given - begin)
        yield batch
        begin = time.perf_counter()
        steps.append(begin - given)

Steps.__iter__ = timed
for name in sys.argv[1:]:
    train.main(name)
    found[name] = {"data": statistics.median(waits), "step": statistics.median(steps)}
    waits.clear()
    steps.clear()
print(json.dumps(found))
"""


def run(folder: Path, code: str, *arguments: str) -> str:
    """Run code of the project as a process of its own in a folder; return what it prints."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_", "PIPELINE_"))}
    mine |= {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": THREADS, "PIPELINE_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=mine, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(folder: Path, key: str) -> dict[str, float]:
    """Run fetch and prepare; return the seconds of both and the higher of their peaks of resident memory in MB."""
    begin = time.perf_counter()
    peaks = [
        int(run(folder, STAGE, stage, key).rpartition("VmHWM:")[2].split()[0]) * 1024 / 1e6
        for stage in ("fetch", "prepare")
    ]
    return {"seconds": round(time.perf_counter() - begin, 1), "megabytes": round(max(peaks))}


def configure(folder: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Write the project's params.yaml into a folder with other values in the sections at dotted keys."""
    values = YAML(typ="safe", pure=True).load(PROJECT / "params.yaml")
    for key, section in changes.items():
        family, name = key.split(".")
        values[family][name] |= section
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def write_pictures(folder: Path, count: int) -> None:
    """Write so many PNG files of noise in class folders."""
    generator = np.random.default_rng(0)
    for number in range(CLASSES):
        (folder / str(number)).mkdir(parents=True)
    for number in range(count):
        pixels = generator.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / str(number % CLASSES) / f"{number}.png")


def write_text(path: Path, megabytes: int) -> None:
    """Write a text of so many MB: random words, as often as Zipf's law says."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(["".join(generator.choice(letters, length)) for length in generator.integers(1, 12, WORDS)])
    weights = 1 / np.arange(1, WORDS + 1)
    with path.open("w", encoding="ascii") as file:
        while file.tell() < megabytes * 10**6:
            drawn = generator.choice(words, CHAPTER, p=weights / weights.sum())
            file.write("\n".join(" ".join(line) for line in drawn.reshape(-1, 20)) + "\n")


def measure_all(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield name and numbers of each measurement."""
    yield from measure_steps(folder, options.steps)
    write_pictures(folder / "pictures", options.pictures)
    images = {"source": "image_folder", "path": "pictures", "size": SIDE, "channels": 1}
    configure(folder, {"data.images": images})
    yield "pictures", {"count": options.pictures, **measure(folder, "images")}
    write_text(folder / "text.txt", options.megabytes)
    for tokenizer in ("character", "bpe"):
        text = {"source": "text_file", "path": "text.txt", "tokenizer": tokenizer}
        configure(folder, {"data.text": text})
        yield tokenizer, {"text": options.megabytes, **measure(folder, "text")}


def measure_steps(folder: Path, steps: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each default run with the medians of the seconds that a batch and the rest of its step take."""
    (folder / "requirements.lock").write_bytes((PROJECT / "requirements.lock").read_bytes())
    models = ("gan", "vae", "transformer")
    configure(folder, {f"models.{name}": {"steps": steps} for name in models})
    for key in ("images", "text"):
        measure(folder, key)
    for name, seconds in json.loads(run(folder, TRAINING, *models).strip().splitlines()[-1]).items():
        yield name, {**seconds, "share": seconds["data"] / (seconds["data"] + seconds["step"])}


def show(results: dict[str, dict[str, float]]) -> str:
    """Return the table, in Markdown."""
    rows = ["| what | result | beside it | limit |", "|---|---:|---|---:|"]
    found = results["pictures"]
    what = f"{found['count']:,} PNG files of {SIDE}x{SIDE} pixels in {CLASSES} class folders, fetch and prepare"
    rows.append(f"| {what} | {found['seconds']:.1f} s | {found['megabytes']} MB at most | {SECONDS:.0f} s |")
    for tokenizer in ("character", "bpe"):
        found = results[tokenizer]
        what = f"text of {found['text']:,} MB, `tokenizer: {tokenizer}`, fetch and prepare"
        rows.append(f"| {what} | {found['megabytes']} MB at most | {found['seconds']:.0f} s | {MEMORY:.0f} MB |")
    for name in ("gan", "vae", "transformer"):
        found = results[name]
        beside = f"{1e3 * found['data']:.2f} ms beside a step of {1e3 * found['step']:.1f} ms"
        rows.append(f"| data's share of a step, run {name} | {found['share']:.2%} | {beside} | {SHARE:.0%} |")
    return "\n".join(rows) + "\n"


def describe(steps: int) -> str:
    """Say where the numbers come from."""
    load = os.getloadavg()[2]  # of the last quarter of an hour
    return f"{os.cpu_count()} cores at a load of {load:.1f}; {THREADS} threads a step, medians of {steps} steps.\n"


def is_kept(results: dict[str, dict[str, float]]) -> bool:
    """Say whether every limit is kept."""
    shares = [found["share"] for found in results.values() if "share" in found]
    memory = [results[tokenizer]["megabytes"] for tokenizer in ("character", "bpe")]
    return results["pictures"]["seconds"] < SECONDS and max(memory) < MEMORY and max(shares) <= SHARE


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60_000, help="PNG files (default 60000)")
    parser.add_argument("--megabytes", type=int, default=1000, help="of text (default 1000)")
    parser.add_argument("--steps", type=int, default=30, help="of each training (default 30)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of data.md and data.json")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, found in measure_all(Path(folder), options):
            print(name, found, file=sys.stderr, flush=True)
            results[name] = found
    table = show(results) + "\n" + describe(options.steps)
    (options.out / "data.md").write_text(table, encoding="utf-8")
    (options.out / "data.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table, end="")
    return 0 if is_kept(results) else 1


if __name__ == "__main__":
    sys.exit(main())
