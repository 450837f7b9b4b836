"""Fills the README's figures from reports/ and benchmarks/, so that none is typed by hand.

    pipeline readme                  # after `make repro`: gathers the costs into reports/costs.json, writes README.md
    pipeline readme --check          # changes nothing; status 1 if README.md is not what the committed files say

A figure stands in a block between `<!-- name -->` and `<!-- end of name -->`: costs, results, benchmarks, inception,
augmentation, speed and data benchmark where there are some.
"""

import re
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.commands.reproduce import REPORT as REPRODUCTION
from pipeline.evidence.protocol import require_equal
from pipeline.evidence.uncertainty import format_number, summarize
from pipeline.history import costs
from pipeline.params import Params, Run

README, COSTS, BENCHMARKS = Path("README.md"), artifacts.REPORTS / "costs.json", Path("benchmarks")
SHOWN = {  # metrics of the table, and what must be known of them
    "samples": "images a side",
    "fid_classifier": "",
    "fid_classifier_ratio": "FID over its floor",
    "precision_classifier": "",
    "recall_classifier": "",
    "class_share_min_classifier": "least frequent digit",
    "class_share_max_classifier": "most frequent digit",
    "iw500_nats": "",
    "elbo_nats": "",
    "active_units": "latent units",
    "test_bits_per_character": "",
    "test_perplexity": "a character",
}
WANTED = {
    ("gan", "fid_classifier_ratio"): "at most 10",
    ("gan", "precision_classifier"): "at least 0.85",
    ("gan", "recall_classifier"): "at least 0.85",
    ("vae", "iw500_nats"): "at most 105",
    ("transformer", "test_bits_per_character"): "at most 1.75",
}
COMPARED = ("fid_classifier", "precision_classifier", "recall_classifier")


def main(arguments: list[str]) -> int:
    """Write README.md, or compare it."""
    parser = make_parser("readme", __doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, say whether the README is up to date")
    options = parser.parse_args(arguments)
    if not options.check:
        gather_costs(params.load())
    text = README.read_text(encoding="utf-8")
    filled = fill(text, make_blocks())
    if options.check and filled != text:
        print("README.md: figures differ from reports/ and benchmarks/; run `pipeline readme`", file=sys.stderr)
        return 1
    if not options.check:
        README.write_text(filled, encoding="utf-8")
    return 0


def gather_costs(settings: Params) -> None:
    """Write reports/costs.json from the records and the stages' notes; what this folder does not have stays.

    Runs and stages that params.yaml or dvc.yaml no longer has go.
    """
    runs = list(settings.runs)
    known: dict[str, Any] = artifacts.read_json(COSTS) if COSTS.exists() else {"stages": {}, "runs": {}}
    for path in sorted(costs.FOLDER.glob("*.json")):
        known["stages"][path.stem] = artifacts.read_json(path)
    for run in runs:
        path = artifacts.RUNS / run / "record" / "run.json"
        if path.exists():
            about = artifacts.read_json(path)
            known["runs"][run] = about["totals"] | {
                name: about["environment"][name] for name in ("processor", "threads")
            }
    known["runs"] = {run: known["runs"][run] for run in runs if run in known["runs"]}
    present = list_stages(settings)
    known["stages"] = {stage: cost for stage, cost in known["stages"].items() if stage in present}
    artifacts.write_json(COSTS, known)


def list_stages(settings: Params) -> set[str]:
    """Return the names of all stages: those of dvc.yaml, one an item where they are for each of a section."""
    names: set[str] = set()
    for name, stage in YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"].items():
        section = stage["foreach"].strip("${}") if "foreach" in stage else ""
        names |= {f"{name}@{item}" for item in getattr(settings, section)} if section else {name}
    return names


def make_blocks() -> dict[str, str]:
    """Return the content of each block, Markdown that ends with a line's end."""
    runs = params.load().runs
    known = artifacts.read_json(COSTS)
    blocks = {"costs": render_costs(known), "results": render_results(runs, known["runs"])}
    files = {"benchmarks": "results.md", "inception": "inception/results.md"}
    for name, file in (files | {"speed": "speed.md", "data benchmark": "data.md"}).items():
        if (BENCHMARKS / file).exists():
            blocks[name] = (BENCHMARKS / file).read_text(encoding="utf-8")
    if REPRODUCTION.exists():
        blocks["reproduction"] = fold(REPRODUCTION.read_text(encoding="utf-8"))
    blocks["augmentation"] = render_policies(BENCHMARKS / artifacts.REPORTS / "runs")
    return blocks


def fold(report: str) -> str:
    """Return what `pipeline reproduce --save` wrote as what made it, its totals, and a table that a click opens."""
    made, *table, totals = report.rstrip().splitlines()
    lines = "\n".join(table).strip()
    return f"{made} **{totals}**.\n\n<details>\n<summary>Each claim</summary>\n\n{lines}\n\n</details>\n"


def fill(text: str, blocks: dict[str, str]) -> str:
    """Put each content into its block.

    Raises:
        ArtifactError: if the text lacks a block.
    """
    for name, content in blocks.items():
        parts = re.split(rf"(<!-- {name} -->\n|<!-- end of {name} -->)", text)
        if len(parts) != 5:
            msg = f"{README}: expected one block <!-- {name} --> ... <!-- end of {name} -->"
            raise ArtifactError(msg)
        parts[2] = content
        text = "".join(parts)
    return text


def render_costs(known: dict[str, Any]) -> str:
    """Return one sentence on what all stages took, or what the trainings took where no stage has noted its cost."""
    parts, what = (known["stages"], "stages") if known["stages"] else (known["runs"], "trainings")
    minutes = sum(cost["seconds"] for cost in parts.values()) / 60
    memory = max(cost["peak_memory_mib"] for cost in parts.values()) / 1024
    machine = next(iter(known["runs"].values()))
    return (
        f"The {len(parts)} {what} took {minutes:.1f} minutes and at most {memory:.1f} GiB of memory "
        f"on {machine['threads']} threads of an {machine['processor']}.\n"
    )


def render_results(runs: dict[str, Run], known: dict[str, Any]) -> str:
    """Return the table of the runs' headline metrics, with what each stands beside, and of their training."""
    lines = ["| run | metric | value | beside it |", "|---|---|---:|---|"]
    for run in runs:
        folder = artifacts.REPORTS / "runs" / run
        metrics, sets = (artifacts.read_json(folder / f"{stem}.json") for stem in ("metrics", "sets"))
        about = artifacts.read_json(folder / "protocol.json")
        for name, note in SHOWN.items():
            if name in metrics:
                beside = "; ".join([*describe(name, metrics, sets), *filter(None, [note, wish(run, name)])])
                lines.append(f"| {run} | `{name}` | {format_number(metrics[name])} | {beside} |")
        cost = known[run]
        lines.append(
            f"| {run} | training, seed {about['run']['seed']}, protocol `{about['hash']}` | {cost['seconds']:.0f} s "
            f"| {cost['peak_memory_mib']:,.0f} MiB of memory, {cost['kept_parameters']:,.0f} parameters |"
        )
    return "\n".join(lines) + "\n"


def describe(name: str, metrics: dict[str, float], sets: dict[str, list[float]]) -> list[str]:
    """Return a metric's interval over sets of samples, its standard error and its floor, those that it has."""
    found = []
    if name in sets:
        interval = summarize([sets[name]])
        low, high = format_number(interval.low), format_number(interval.high)
        found.append(f"95 % interval over {interval.sets} sets {low} to {high}")
    if f"{name}_se" in metrics:
        found.append(f"\u00b1 {format_number(metrics[f'{name}_se'])}")
    if f"{name}_floor" in metrics:
        found.append(f"floor {format_number(metrics[f'{name}_floor'])}")
    return found


def wish(run: str, name: str) -> str:
    """Return what was wanted of a run's metric."""
    return f"wanted {WANTED[run, name]}" if (run, name) in WANTED else ""


def render_policies(folder: Path) -> str:
    """Return the table of the GANs that differ in their augmentation: means and intervals over the seeds.

    Raises:
        ProtocolError: if they were evaluated by different protocols.
    """
    paths = sorted(folder.glob("augment_*"))
    require_equal({path.name: artifacts.read_json(path / "protocol.json")["protocol"] for path in paths})
    lines = [f"| augmentation |{'|'.join(f' `{name}` ' for name in COMPARED)}|", f"|---|{'---:|' * len(COMPARED)}"]
    policies = dict.fromkeys(path.name.split("_")[1] for path in paths)
    for policy in policies:
        cells = []
        for name in COMPARED:
            seeds = [
                artifacts.read_json(path / "sets.json")[name] for path in sorted(folder.glob(f"augment_{policy}_*"))
            ]
            found = summarize(seeds)
            cells.append(f" {found.mean:.3g} ({found.low:.3g} to {found.high:.3g}; {found.seeds} seeds) ")
        lines.append(f"| {policy} |{'|'.join(cells)}|")
    return "\n".join(lines) + "\n"
