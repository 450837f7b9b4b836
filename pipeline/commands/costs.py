"""Prints the seconds and the memory of each stage, and their total.

    pipeline costs            # of the stages that ran here; of the others as committed
    pipeline costs --save     # and write them to reports/costs.json, from which a test takes the README's price

Each stage notes its own cost in data/costs/, and each training in its record.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import align_table, make_parser
from pipeline.history import costs
from pipeline.params import Params

PATH = costs.COMMITTED


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = make_parser("costs", __doc__)
    parser.add_argument("--save", action="store_true", help=f"write {PATH}")
    options = parser.parse_args(arguments)
    known = gather(params.load())
    if not known["stages"]:
        msg = f"no stage has noted its cost in {costs.FOLDER} or {PATH}; run `dvc repro`"
        raise ArtifactError(msg)
    print(render(known["stages"]), end="")
    if options.save:
        artifacts.write_json(PATH, known)
    return 0


def gather(settings: Params) -> dict[str, Any]:
    """Return the costs of stages and trainings: those noted in this folder, and the committed ones of the rest.

    Costs of runs and stages that params.yaml or dvc.yaml no longer names are left out.
    """
    known = costs.read_known()
    for run in settings.runs:
        path = artifacts.RUNS / run / "record" / "run.json"
        if path.exists():
            record = artifacts.read_json(path)
            machine = {name: record["environment"][name] for name in ("processor", "threads")}
            known["runs"][run] = record["totals"] | machine
    stages = list_stages(settings)
    return {
        "runs": {run: known["runs"][run] for run in settings.runs if run in known["runs"]},
        "stages": {stage: cost for stage, cost in known["stages"].items() if stage in stages},
    }


def list_stages(settings: Params) -> set[str]:
    """Return the names of all stages of dvc.yaml; a stage that runs for each entry of a section has one name each."""
    names: set[str] = set()
    for name, stage in YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"].items():
        section = stage["foreach"].strip("${}") if "foreach" in stage else ""
        names |= {f"{name}@{item}" for item in getattr(settings, section)} if section else {name}
    return names


def render(stages: dict[str, Any]) -> str:
    """Return the Markdown table of the stages, the most expensive first, and their total in one sentence."""
    rows = [
        [name, f"{cost['seconds']:.0f}", f"{cost['peak_memory_mib']:,.0f}"]
        for name, cost in sorted(stages.items(), key=lambda item: -item[1]["seconds"])
    ]
    table = align_table(["stage", "seconds", "memory, MiB"], rows, numbers=["seconds", "memory, MiB"])
    minutes = sum(cost["seconds"] for cost in stages.values()) / 60
    memory = max(cost["peak_memory_mib"] for cost in stages.values()) / 1024
    total = f"{len(stages)} stages took {minutes:.1f} minutes and at most {memory:.1f} GiB of memory."
    return f"{table}\n{total}\n"
