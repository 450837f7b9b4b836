"""Speed, side by side in one run: each number is a ratio of two ways to do the same thing, on this machine, now.

    cd benchmarks && dvc repro prepare@shakespeare prepare@digits networks@mnist_classifier && python -m speed
    python -m speed --only cache fid          # two of the benchmarks

Each benchmark is a file of benchmarks/speed. The two ways are measured in turn, several times: the table has the median
ratio, and the smallest and largest. Writes speed.json and speed.md. Nothing else should run on the machine meanwhile.
"""

import argparse
import importlib

from speed import dvc, table

NAMES = ("overhead", "data", "plain", "tracking", "cache", "fid", "dvc", "seeds", "compile", "rates")  # as measured


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="measure only these")
    options = parser.parse_args()
    is_part = len(options.only) < len(NAMES)  # then the other rows stay
    rows = table.read_rows() if is_part else {}
    circumstances = table.describe_circumstances()
    if "dvc" in options.only:
        dvc.require_reproduced()  # before the minutes that other benchmarks take
    for name in options.only:
        for row in importlib.import_module(f"speed.{name}").measure():
            rows[row.name] = table.add_circumstances(row, circumstances)
            print(f"{row.title}: {row.ratio:.3g} ({row.low:.3g} to {row.high:.3g}), wanted {row.wanted}", flush=True)
    table.write_rows(rows)


if __name__ == "__main__":
    main()
