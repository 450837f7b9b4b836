"""Compares the benchmarks' GANs that differ only in their augmentation, and writes the table to augmentation.md.

    cd benchmarks && python augmentation.py       # part of `make benchmark`

The runs are augment_<policy>_<seed> of params.yaml. A cell is a mean over seeds with its 95 % interval.
"""

from pathlib import Path

from pipeline import artifacts
from pipeline.evidence.protocol import require_equal
from pipeline.evidence.uncertainty import summarize

METRICS = ("fid_classifier", "precision_classifier", "recall_classifier")
TARGET = Path("augmentation.md")


def main() -> None:
    """Write the table."""
    TARGET.write_text(render_policies(artifacts.REPORTS / "runs"), encoding="utf-8")


def render_policies(folder: Path) -> str:
    """Return the Markdown table of the runs in a folder, one row per policy.

    Raises:
        ProtocolError: if the runs were evaluated by different protocols.
    """
    paths = sorted(folder.glob("augment_*"))
    require_equal({path.name: artifacts.read_json(path / "protocol.json")["protocol"] for path in paths})
    lines = [f"| augmentation |{'|'.join(f' `{name}` ' for name in METRICS)}| seeds |"]
    lines.append(f"|---|{'---:|' * len(METRICS)}---:|")
    for policy in dict.fromkeys(path.name.split("_")[1] for path in paths):
        runs = [artifacts.read_json(path / "sets.json") for path in sorted(folder.glob(f"augment_{policy}_*"))]
        found = {name: summarize([sets[name] for sets in runs]) for name in METRICS}
        cells = [f" {value.mean:.3g} ({value.low:.3g} to {value.high:.3g}) " for value in found.values()]
        lines.append(f"| {policy} |{'|'.join(cells)}| {len(runs)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
