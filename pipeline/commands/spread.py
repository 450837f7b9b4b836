"""Trains runs again with other seeds, and writes how far their numbers spread over trainings.

    pipeline spread                    # every run of params.yaml, with two further seeds
    pipeline spread gan vae -j 2       # two runs, two stages side by side
    pipeline spread gan --seeds 3 4    # more seeds, added to those that are known

On another kind of machine a training gives other numbers, as one with another seed does. The committed interval is over
samples of one training, so it does not say how different they may be; the spread does. `pipeline reproduce` and
`pipeline claims` read it from reports/runs/<run>/spread.json, which belongs in git.

The run's own numbers must be in git. The trainings run in a clone of the last commit and leave this folder's results as
they are. Finished trainings stay in DVC's cache, so that the same command makes only the others. A run that starts from
another one is trained with it, under the same seed.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import DVC, align_table, call, clone_project, make_parser, require_runs, run_in_clone
from pipeline.commands.reproduce import list_chain, read_claims
from pipeline.evidence import trainings
from pipeline.evidence.uncertainty import LEAST, format_interval, format_number
from pipeline.evidence.values import is_measurement, load_values, sort_names
from pipeline.params import Params


def main(arguments: list[str]) -> int:
    """Train, write the files and print a table."""
    parser = make_parser("spread", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs of params.yaml; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: the two after the run's own")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="number of stages that run at a time; default: 1")
    options = parser.parse_args(arguments)
    if wrong := [seed for seed in options.seeds or () if seed < 0]:
        msg = f"--seeds: expected numbers of 0 or more, got {wrong[0]}"
        raise ArtifactError(msg)
    params.load()  # a wrong params.yaml is worth knowing now
    with clone_project("spread", "trained") as project:
        settings = params.load(project / params.PATH)
        plan = plan_seeds(options.runs or list(settings.runs), options.seeds, settings)
        claims = {run: read_committed(project, run) for run in plan[0]}
        spreads = {run: trainings.describe(claim) for run, claim in claims.items()}
        call([*DVC, "cache", "dir", "--local", call([*DVC, "cache", "dir"], Path.cwd()).strip()], project)
        for seeds in plan:
            set_seeds(project / params.PATH, seeds, settings)
            targets = [f"evaluate@{run}" for run in seeds]
            run_in_clone([sys.executable, "-m", "pipeline", "repro", "-j", str(options.jobs), *targets], project)
            for run, claim in claims.items():
                training = trainings.describe(read_claims(project, run))
                if not trainings.fits(spreads[run], training):
                    msg = f"{run}: its committed numbers are of other settings; run `dvc repro`, and commit them first"
                    raise ArtifactError(msg)
                spreads[run] = save(run, trainings.add(spreads[run], training), claim)
    metrics = {run: claim["protocol"]["protocol"]["metric"]["name"] for run, claim in claims.items()}
    rows = [row for run in claims for row in list_rows(run, metrics[run], spreads[run])]
    print(align_table(["run", "metric", "seeds", "trainings", "one more (95 %)"], rows), end="")
    return 0


def plan_seeds(runs: Sequence[str], wanted: Sequence[int] | None, settings: Params) -> list[dict[str, int]]:
    """Return the seed of each run in each round of trainings.

    Args:
        runs: of params.yaml.
        wanted: seeds of all runs; None: for each run the ones after its own.
        settings: of params.yaml.

    Raises:
        ArtifactError: if a run is unknown, or a run or one that it starts from would have its committed seed, or two.
    """
    require_runs(runs, settings)
    if wanted:
        plan = [dict.fromkeys(runs, seed) for seed in dict.fromkeys(wanted)]
    else:
        plan = [{run: settings.runs[run].seed + more for run in runs} for more in range(1, LEAST)]
    for seeds in plan:
        given: dict[str, int] = {}
        for run, seed in seeds.items():
            for name in list_chain(run, settings):
                if seed == settings.runs[name].seed or given.setdefault(name, seed) != seed:
                    other = "its committed seed" if seed == settings.runs[name].seed else f"seed {given[name]} too"
                    msg = f"--seeds: {seed} for {run}: {name} has {other}; choose other seeds, or fewer runs at a time"
                    raise ArtifactError(msg)
    return plan


def read_committed(project: Path, run: str) -> dict[str, Any]:
    """Return the metrics, sets and protocol of a run in a clone.

    Raises:
        ArtifactError: if the last commit has no numbers of it.
    """
    if not (project / artifacts.REPORTS / "runs" / run / "metrics.json").exists():
        msg = f"{run}: the last commit has no numbers of it: `dvc repro evaluate@{run}`, then commit them"
        raise ArtifactError(msg)
    return read_claims(project, run)


def set_seeds(path: Path, seeds: Mapping[str, int], settings: Params) -> None:
    """Rewrite a params.yaml so that these runs, and those that they start from, have these seeds."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(path)
    for run, seed in seeds.items():
        for name in list_chain(run, settings):
            values["runs"][name]["seed"] = seed
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(values, file)


def save(run: str, spread: dict[str, Any], claim: Mapping[str, Any]) -> dict[str, Any]:
    """Write a run's spread and return it, with the seeds that its file already has if they belong to the same claim."""
    path = artifacts.REPORTS / "runs" / run / trainings.NAME
    former = artifacts.read_json(path) if path.exists() else spread
    if trainings.belongs(former, claim) and former["values"].keys() >= spread["values"].keys():
        spread = trainings.add(former, spread)
    artifacts.write_json(path, spread)
    return spread


def list_rows(run: str, metric: str, spread: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield a row per measurement."""
    declared = load_values(metric)
    for name in sort_names(declared, spread["values"]):
        if not is_measurement(declared, name):
            continue
        numbers = ", ".join(map(format_number, spread["values"][name]["trainings"]))
        low, high = trainings.find_prediction(spread, name)
        yield [run, name, ", ".join(map(str, spread["seeds"])), numbers, format_interval(low, high)]
