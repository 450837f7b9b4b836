"""Speed, side by side in one run: one file per benchmark, started by `python -m speed` in benchmarks/."""
