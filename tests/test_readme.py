"""What README and docs/ say is true: numbers, pictures, links, commands and names."""

import hashlib
import json
import lzma
import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pipeline import artifacts, params, plugins
from pipeline.__main__ import FOLDER
from pipeline.commands import RESULTS
from pipeline.evidence import trainings
from pipeline.evidence.uncertainty import LEAST, format_number
from pipeline.evidence.values import find_interval, load_values
from pipeline.history import dvc_lock
from tests.conftest import ROOT
from tests.test_architecture import MODULES, read_code

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
HEADLINES = {
    "gan": "fid_classifier",
    "flow_matching": "fid_classifier",
    "vae": "iw500_nats",
    "codes_prior": "elbo_nats",
    "speech": "agreement_listener",
    "transformer": "test_bits_per_character",
}


def read_committed(path: str) -> str:
    """A file of the last commit: `make repro` on another machine has other numbers, and makes no claim false."""
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def read_run(run: str) -> dict[str, dict[str, float]]:
    """The committed metrics of a run, and the values of its sets."""
    return {name: json.loads(read_committed(f"reports/runs/{run}/{name}.json")) for name in ("metrics", "sets")}


@pytest.mark.parametrize("run", HEADLINES)
def test_the_row_of_a_run_has_its_committed_value_and_interval(run: str) -> None:
    claim, metric = read_run(run), HEADLINES[run]
    values = load_values(params.load(ROOT / "params.yaml").runs[run].metric)
    low, high = find_interval(values, metric, claim)
    value, ends = format_number(claim["metrics"][metric]), f"{format_number(low)} to {format_number(high)}"
    spread = json.loads(read_committed(f"reports/runs/{run}/{trainings.NAME}"))
    others = {seed: numbers for seed, numbers in trainings.by_seed(spread).items() if seed}
    shown = "; ".join(format_number(others[seed][metric]) for seed in (1, 2))
    assert re.search(rf"^\| `{run}`.*\| {value} \({ends}\) \| {shown} \|", README, re.MULTILINE)


@pytest.mark.parametrize("run", params.load(ROOT / "params.yaml").runs)
def test_the_trainings_with_other_seeds_belong_to_the_committed_numbers(run: str) -> None:
    claim = {stem: json.loads(read_committed(f"reports/runs/{run}/{stem}.json")) for stem in RESULTS}
    spread = json.loads(read_committed(f"reports/runs/{run}/{trainings.NAME}"))
    assert trainings.belongs(spread, claim)
    assert len(spread["seeds"]) >= LEAST


def test_the_gan_is_compared_with_its_floor() -> None:
    assert f"| {format_number(read_run('gan')['metrics']['fid_classifier_floor'])}: real digits" in README


def test_the_vae_is_compared_with_independent_pixels(tmp_path: Path) -> None:
    config = params.load(ROOT / "params.yaml").data["images"]
    source = plugins.load("data", config.source)
    source.fetch(tmp_path, config)
    splits = source.prepare(tmp_path, config).splits
    train, test = (splits[name][0].double() / 255 for name in ("train", "test"))
    mean = (train.sum(dim=0) + 0.5) / (len(train) + 1)  # add-half smoothing
    nats = -(torch.xlogy(test, mean) + torch.xlogy(1 - test, 1 - mean)).sum(dim=(1, 2, 3)).mean()
    assert f"| {format_number(float(nats))}: each pixel predicted on its own |" in README
    assert f"{format_number(float(nats))} nats" in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_language_model_is_compared_with_a_table_of_pairs_and_with_xz(tmp_path: Path) -> None:
    config = params.load(ROOT / "params.yaml").data["text"]
    source = plugins.load("data", config.source)
    source.fetch(tmp_path, config)
    texts = {name: "".join(pieces) for name, pieces in source.prepare(tmp_path, config).splits.items()}
    numbers = {character: number for number, character in enumerate(sorted(set(texts["train"])))}
    unknown = len(numbers)
    train, test = (np.array([numbers.get(each, unknown) for each in texts[name]]) for name in ("train", "test"))
    counts = np.ones((unknown + 1, unknown + 1))  # add-one smoothing
    np.add.at(counts, (train[:-1], train[1:]), 1)
    chances = counts / counts.sum(axis=1, keepdims=True)
    pairs = -np.log2(chances[test[:-1], test[1:]]).mean()
    assert f"| {format_number(float(pairs))}: predicted from one character |" in README

    def compress(text: str) -> int:
        return len(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))

    added = 8 * (compress(texts["train"] + texts["test"]) - compress(texts["train"])) / len(texts["test"])
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert f"{format_number(float(pairs))} bits" in page
    assert f"only {format_number(added)}" in page


def test_the_price_is_that_of_the_committed_costs() -> None:
    costs = artifacts.read_json(ROOT / artifacts.REPORTS / "costs.json")
    minutes = sum(cost["seconds"] for cost in costs["stages"].values()) / 60
    threads = {run["threads"] for run in costs["runs"].values()}
    assert f"**{minutes:.0f} minutes on {threads.pop()} cores, without a network**" in README
    assert not threads


def test_the_text_is_one_that_the_language_model_wrote() -> None:
    path = ROOT / "docs" / "samples" / "transformer" / "samples.yaml"
    shown = re.search(r"(?:^ {4}.*\n|^\n)+", README[README.index("<img") :], re.MULTILINE)
    assert shown
    text = re.sub(r"^ {4}", "", shown[0].strip("\n"), flags=re.MULTILINE)
    assert len(text) > 100
    assert any(text in sample for sample in YAML(typ="safe", pure=True).load(path))


@pytest.mark.parametrize("run", HEADLINES)
def test_the_shown_samples_are_those_of_the_committed_run(run: str) -> None:
    folder = ROOT / "docs" / "samples" / run
    files = [{"md5": digest_md5(path.read_bytes()), "relpath": path.name} for path in sorted(folder.iterdir())]
    listed = digest_md5(json.dumps(files, sort_keys=True).encode())  # as DVC hashes a folder
    stages = dvc_lock.parse_stages(read_committed("dvc.lock"), "dvc.lock")
    assert dvc_lock.list_hashes(stages, f"sample@{run}", "outs")[f"reports/runs/{run}/samples"] == f"{listed}.dir"


def digest_md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_the_readme_is_a_door() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:60])
    assert [
        word for word in ("<img", "make repro", "make test", "| `vae`", "write this one file") if word not in first
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    missing = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if "://" in link or (target.exists() and (not anchor or anchor in read_anchors(target))):
            continue
        missing.append(link)
    assert missing == []


def read_anchors(page: Path) -> set[str]:
    """The addresses of a page's headings: small letters, without punctuation, with - for spaces."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_source_is_in_the_table_of_sources() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert [name for name in plugins.names("data") if name not in rows] == []


def test_the_commands_of_the_pages_exist() -> None:
    code = read_code("\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md"))
    commands = set(re.findall(r"^\s*pipeline ([a-z]+)", code, re.MULTILINE))
    assert [name for name in commands if not (FOLDER / f"{name}.py").exists()] == []
    modules = set(re.findall(r"python -m (pipeline[\w.]*)", code))
    assert "pipeline.params" in modules
    assert modules <= MODULES.keys()


def test_the_readme_shows_every_command_but_that_of_the_benchmarks() -> None:
    commands = set(re.findall(r"^\s*pipeline ([a-z]+)", read_code(README), re.MULTILINE))
    assert {path.stem for path in FOLDER.glob("*.py")} - commands == {"__init__", "results"}


def test_the_environment_variables_of_the_pages_are_read_by_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").rglob("*.py"))
    named = {name for page in PAGES for name in re.findall(r"\bPIPELINE_[A-Z]+\b", page.read_text(encoding="utf-8"))}
    assert len(named) > 5
    assert [name for name in named if f'"{name}"' not in code] == []


def test_the_changelog_begins_with_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[0] == version


def test_the_sections_of_the_page_of_models_are_right(tmp_path: Path) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml")
    blocks = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs" / "models.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 3
    for block in blocks:
        for section, entries in yaml.load(block).items():
            values[section] |= entries
    with (tmp_path / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    loaded = params.load(tmp_path / "params.yaml")
    assert {"one_step", "pixels", "notes"} <= loaded.runs.keys()
