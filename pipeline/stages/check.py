"""Stage check: refuses a params.yaml that any later stage would refuse, before DVC removes that stage's outputs.

    python -m pipeline.stages.check

Every other stage comes after it. What it writes never changes, so a new value makes only its own stages stale.
"""

import sys

from pipeline import artifacts, params


def main() -> None:
    """Check every section, and write data/checked."""
    settings = params.load()
    artifacts.write_json(artifacts.CHECKED, "params.yaml is valid")
    print(f"params.yaml: {len(settings.runs)} runs, all keys known and in range")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(__doc__)
        sys.exit(0 if "--help" in sys.argv else 2)
    try:
        main()
    except params.ParamsError as problem:
        sys.exit(f"error: {problem}")
