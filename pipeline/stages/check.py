"""Stage check: refuses a params.yaml that any later stage would refuse, before DVC removes that stage's outputs.

    python -m pipeline.stages.check

Every other stage comes after it. What it writes never changes, so a new value makes only its own stages stale.
"""

from pipeline import artifacts, params
from pipeline.stages import run_stage


def main() -> None:
    """Check every section, and write data/checked."""
    settings = params.load()
    artifacts.write_json(artifacts.CHECKED, "params.yaml is valid")
    print(f"params.yaml: {len(settings.runs)} runs, all keys known and in range")


if __name__ == "__main__":
    run_stage(main)
