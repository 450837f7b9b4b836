"""Proves that a change of code changed no bit of any result, and only then enters the new code in dvc.lock.

    pipeline prove main~3                # a few steps of each kind of training, under that revision and under HEAD
    pipeline prove main~3 --steps 50
    pipeline prove main~3 --no-commit    # compare only

Both revisions prepare the data, train, sample, evaluate and audit one run of each kind of params.yaml, with few steps
and few samples, as far as dvc.lock has these stages and their code is another one now. What stands on the same code
takes no part. The command compares the SHA-256 of weights, samples, scores, numbers and audits, and prints a table. If
all are equal, the stages of dvc.lock get the hash of the code as it is now: their outputs stay valid, and nothing
trains again. Stages that stood on other code than that of the revision have no proof and stay as they are. The status
is 0 if all are equal. In a subfolder that is a DVC project of its own, the command is about that project.
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import artifacts, code, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import DVC, align_table, call, make_parser, require_repository, run_in_clone
from pipeline.evidence.protocol import check_content, describe_values
from pipeline.evidence.values import load_values
from pipeline.history import dvc_lock
from pipeline.params import Params

STEPS = 8
SMALL = {  # what is drawn and compared in a proof; each value is lowered to this one
    "count": 100,
    "sets": 2,
    "importance_samples": 3,
    "length": 20,
    "random_windows": 5,
    "kid_subset_size": 20,
    "kid_subsets": 3,
    "isc_splits": 2,
}
# The stage that is run to see what a change of a stage's code does.
LAST = {"train": "evaluate", "sample": "evaluate", "evaluate": "evaluate", "audit": "audit"}
SHARED = ("data/prepared/*/*", "data/networks/*/*", "reports/networks/*.json")  # results that must be equal, ...
OWN = (  # ... and those of a run
    "data/runs/{run}/model/*",
    "data/runs/{run}/samples/*",
    "reports/runs/{run}/metrics.json",
    "reports/runs/{run}/sets.json",
    "reports/runs/{run}/audit/*",
)


def main(arguments: list[str]) -> int:
    """Compare two revisions, print the table, and enter the new code."""
    parser = make_parser("prove", __doc__)
    parser.add_argument("revision", help="the revision whose results are valid")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each training; default: {STEPS}")
    parser.add_argument("--no-commit", action="store_true", help="leave dvc.lock as it is")
    options = parser.parse_args(arguments)
    settings = params.load()
    root = require_repository()
    if call(["git", "status", "--porcelain", "--untracked-files=no"], root):
        msg = "expected committed changes, since a proof is about commits: `git commit` first"
        raise ArtifactError(msg)
    prefix = call(["git", "rev-parse", "--show-prefix"], Path.cwd()).strip()
    changed = find_changed(settings)
    if not changed:
        print(f"no stage of {dvc_lock.PATH} stands on other code than it did: there is nothing to prove")
        return 0
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        clones = {side: Path(folder) / side for side in ("before", "after")}
        for (side, clone), revision in zip(clones.items(), (options.revision, "HEAD"), strict=True):
            call(["git", "clone", "--quiet", "--no-checkout", str(root), str(clone)], root)
            commit = call(["git", "rev-parse", revision], root).strip()
            call(["git", "checkout", "--quiet", commit], clone)
            print(f"{side}: {commit[:12]}", file=sys.stderr)
        standing = keep_standing(changed, clones["before"] / prefix)
        runs, shared, targets = choose_targets(standing, settings)
        hashes = []
        for clone in clones.values():
            remove_committed(clone / prefix)
            shrink(clone / prefix / params.PATH, runs, shared, options.steps)
            run_in_clone([*DVC, "repro", *targets], clone / prefix)
            hashes.append(hash_results(clone / prefix, runs))
    differing = compare(*hashes)
    print(format_table(*hashes), end="")
    if differing:
        print(f"{len(differing)} of {len(hashes[0])} results differ: dvc.lock stays as it is", file=sys.stderr)
        return 1
    print(f"{len(hashes[0])} results of {len(runs)} runs are equal, {options.steps} steps each")
    if not options.no_commit:
        count = enter_code(settings, changed.keys() - standing.keys())
        print(f"{count} stage instances of {dvc_lock.PATH} have the new code; now run `dvc repro`")
    return 0


def find_changed(settings: Params) -> dict[str, str]:
    """Write data/code; return the instances of dvc.lock that stood on other code, with the hash of its file.

    The report is left out, since `dvc repro` makes it again.
    """
    code.write_all(settings)
    changed = {}
    for name, entry in dvc_lock.read_stages().items():
        stage, _, key = name.partition("@")
        path = code.name_file(stage, key)
        before = dvc_lock.list_hashes({name: entry}, name, "deps").get(path.as_posix())
        if key and before and path.is_file() and before != dvc_lock.hash_file(path):
            changed[name] = before
    return changed


def keep_standing(changed: Mapping[str, str], project: Path) -> dict[str, str]:
    """Return the instances that stand on the code of a clone, by the hashes of their files; name the others.

    Raises:
        ArtifactError: if none does.
    """
    run_in_clone([sys.executable, "-m", "pipeline.stages", "check"], project)
    standing = {}
    for name, before in changed.items():
        stage, _, key = name.partition("@")
        path = project / code.name_file(stage, key)
        if path.is_file() and dvc_lock.hash_file(path) == before:
            standing[name] = before
    if not standing:
        msg = f"{dvc_lock.PATH}: expected results of that revision's code, but {', '.join(changed)} stand on other code"
        raise ArtifactError(msg)
    if others := changed.keys() - standing.keys():
        said = f"{len(others)} instances stand on the code of another revision, and stay as they are"
        print(f"{said}: {', '.join(sorted(others))}", file=sys.stderr)
    return standing


def choose_targets(changed: Iterable[str], settings: Params) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Return the runs, the instances of data and networks, and the targets of DVC that show what a change does."""
    pairs = [(stage, key) for stage, _, key in (name.partition("@") for name in changed)]
    trained = [name.partition("@")[2] for name in dvc_lock.read_stages() if name.startswith("train@")]
    runs = choose_runs(settings, [key for stage, key in pairs if stage in LAST] or trained)
    sections: dict[str, Mapping[str, Any]] = {"prepare": settings.data, "networks": settings.networks}
    made = [("prepare" if stage == "fetch" else stage, key) for stage, key in pairs]  # raw files are no result
    shared = sorted({(stage, key) for stage, key in made if stage in sections})
    last = sorted({LAST[stage] for stage, _ in pairs if stage in LAST})
    return runs, shared, [f"{stage}@{key}" for stage, key in [*shared, *itertools.product(last, runs)]]


def remove_committed(project: Path) -> None:
    """Remove the numbers that git has from a clone, so that only those that are made there are compared."""
    for path in (project / artifacts.REPORTS).rglob("*.json"):
        path.unlink()


def choose_runs(settings: Params, trained: Collection[str]) -> list[str]:
    """Return the first run of each kind, and its start: runs that differ in name, seed and steps only are of one kind.

    `trained`: the runs that dvc.lock has.

    Raises:
        ArtifactError: if none of params.yaml is among them.
    """
    chosen: dict[str, str] = {}
    for name in settings.runs:
        if name in trained:
            chosen.setdefault(describe_kind(name, settings), name)
    if not chosen:
        msg = f"{dvc_lock.PATH}: expected a run of {params.PATH}, it has none: there is no result to keep"
        raise ArtifactError(msg)
    needed: set[str] = set()
    waiting = list(chosen.values())
    while waiting:
        needed.add(name := waiting.pop())
        waiting += {settings.runs[name].start} & settings.runs.keys() - needed
    return [name for name in settings.runs if name in needed]


def describe_kind(name: str, settings: Params) -> str:
    """Return what a run has in common with those of other names, seeds and steps; a start counts by its own kind."""
    run = settings.runs[name]
    start = describe_kind(run.start, settings) if run.start in settings.runs else run.start
    config = artifacts.encode(settings.models[name]) | {"steps": min(1, settings.models[name].steps)}
    return json.dumps(artifacts.encode(run) | {"seed": 0, "start": start, "changes": config}, sort_keys=True)


def shrink(path: Path, runs: Sequence[str], shared: Iterable[tuple[str, str]], steps: int) -> None:
    """Rewrite a params.yaml so that it has these runs only, with few steps and few samples.

    A training that goes on with a finished one has so many more steps, and one of no step stays one.

    Raises:
        ArtifactError: if it lacks one of the runs, or the data or the network of a stage instance in `shared`.
    """
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(path)
    wanted = [("runs", run) for run in runs] + [("data" if stage == "prepare" else stage, key) for stage, key in shared]
    if missing := [f"{section}.{key}" for section, key in wanted if key not in values[section]]:
        msg = f"{path}: no {', '.join(missing)}: expected a revision that has all that {dvc_lock.PATH} has"
        raise ArtifactError(msg)
    values["runs"] = kept = {name: values["runs"][name] for name in runs}

    def count_steps(run: Mapping[str, Any]) -> int:
        if not run["changes"].get("steps", values["models"][run["model"]].get("steps")):
            return 0
        return steps + (count_steps(kept[run["start"]]) if run.get("resume") else 0)

    for run in kept.values():
        run["changes"] = dict(run["changes"]) | {"steps": count_steps(run)}
    for section in values["networks"].values():
        if "steps" in section:
            section["steps"] = steps
    for metric in values["metrics"].values():
        for section in (metric, metric["sampling"]):
            section |= {key: min(section[key], most) for key, most in SMALL.items() if key in section}
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def hash_results(project: Path, runs: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each result by its path."""
    patterns = [*SHARED, *(pattern.format(run=run) for run in runs for pattern in OWN)]
    paths = [path for pattern in patterns for path in project.glob(pattern) if path.is_file()]
    return {path.relative_to(project).as_posix(): artifacts.digest(path) for path in paths}


def compare(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the results that differ, or that only one side has."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def format_table(before: dict[str, str], after: dict[str, str]) -> str:
    """Return the Markdown table of results, with the first digits of their hashes."""
    rows = []
    for name in sorted(before.keys() | after.keys()):
        hashes = [side.get(name, "")[:12] or "missing" for side in (before, after)]
        rows.append([name, *hashes, "equal" if before.get(name) == after.get(name) else "**differs**"])
    return align_table(["result", "before", "after", ""], rows)


def enter_code(settings: Params, others: Collection[str] = ()) -> int:
    """Write the hashes of data/code to dvc.lock and to the protocols; return how many instances changed.

    `others`: instances without a proof, which stay as they are.
    """
    yaml = YAML()
    lock = yaml.load(dvc_lock.PATH)
    changed = 0
    for name, entry in lock["stages"].items():
        if name in others:
            continue
        stage, _, key = name.partition("@")
        before = json.dumps(entry)
        if stage == "evaluate" and key in settings.runs:
            path = artifacts.REPORTS / "runs" / key / "protocol.json"
            enter_protocol(path, settings.runs[key].metric, code.digest_parts(key, settings))
        for file in [*entry.get("deps", ()), *entry.get("outs", ())] if key else []:
            path = Path(file["path"])
            if path.is_file() and (path.is_relative_to(code.FOLDER) or path.name == "protocol.json"):
                file |= {"md5": dvc_lock.hash_file(path), "size": path.stat().st_size}
        changed += before != json.dumps(entry)
    with artifacts.replace(dvc_lock.PATH) as partial, partial.open("w", encoding="utf-8") as file:
        yaml.dump(lock, file)
    run_in_clone([*DVC, "repro", "--quiet", "--single-item", "check"], Path.cwd())  # a fresh clone has no outputs of it
    return changed


def enter_protocol(path: Path, metric: str, digests: dict[str, str]) -> None:
    """Write the digests of the evaluation's code to a committed protocol, with the new hash of each value."""
    if not path.exists():
        return
    content = check_content(artifacts.read_json(path), str(path))
    protocol = content["protocol"] | {"code": digests}
    values = describe_values(load_values(metric), content["values"], protocol)
    artifacts.write_json(path, content | {"protocol": protocol, "values": values})
