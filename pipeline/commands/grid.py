"""Adds a run to params.yaml for each combination of values, or takes these runs away again.

    pipeline grid gan loss=relativistic,hinge seed=0,1,2     # six runs like `gan`
    pipeline grid gan loss=relativistic,hinge seed=0,1,2 --dry-run
    pipeline grid gan loss=relativistic,hinge seed=0,1,2 --remove

A key is one of a run (seed, data, start, metric, network) or of its model's section; a list is a value in brackets,
`'augment=[],[translation]'`. A run is named after the first one and its values, such as gan_hinge_2 or vae_latent-8_0.
Only lines are added: comments and layout stay. A combination that a run already has is named, but not added, so that
repeating a command adds nothing. Nothing is written if a key or a value is not valid.

--remove takes away the lines that the same command has added, if they are still as it wrote them. The next
`pipeline repro` moves their results to .state/removed.
"""

import difflib
import io
import itertools
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.params import Params, Run

KEYS = ("data", "start", "metric", "network", "seed")  # of a run, which a grid may vary
Axis = tuple[str, list[Any]]  # a key and its values


def main(arguments: list[str]) -> int:
    """Change params.yaml and say what comes next."""
    parser = make_parser("grid", __doc__)
    parser.add_argument("run", metavar="RUN", help="the run that the new ones are like")
    parser.add_argument("values", nargs="+", metavar="KEY=VALUE,...", help="a key and its values")
    parser.add_argument("--dry-run", action="store_true", help="print the lines and write nothing")
    parser.add_argument("--remove", action="store_true", help="take the lines of this grid away")
    options = parser.parse_args(arguments)
    settings = params.load()
    runs = make_runs(options.run, read_axes(options.run, options.values, settings), settings)
    text = params.PATH.read_bytes().decode()
    if options.remove:
        names = [name for name, run in runs.items() if settings.runs.get(name) == run and name != options.run]
        new, expected = remove_lines(text, names), {name: settings.runs[name] for name in settings.runs.keys() - names}
    else:
        names, known = choose_new(runs, text, settings)
        for name, other in known.items():
            print(f"{name}: already there" + (f" as {other}" if other != name else ""))
        new = insert_lines(text, {name: runs[name] for name in names})
        expected = settings.runs | {name: runs[name] for name in names}
    if check_text(new).runs != expected:
        msg = f"{params.PATH}: runs: expected a line per run; this layout cannot be changed line by line"
        raise ArtifactError(msg)
    done = "removed" if options.remove else "added"
    if options.dry_run:
        print("".join(difflib.unified_diff(text.splitlines(True), new.splitlines(True), "now", done, n=0)), end="")
    elif names:
        artifacts.write_bytes(params.PATH, new.encode())
    print(f"{params.PATH}: {len(names)} runs {'would be ' * options.dry_run}{done}: {', '.join(names) or 'none'}")
    if names and not options.dry_run:
        print("next: `pipeline repro -j 2`" + ("" if options.remove else f", then `pipeline compare {options.run}`"))
    return 0


def read_axes(base: str, words: Sequence[str], settings: Params) -> list[Axis]:
    """Return the keys and values of the command line; seed comes last, as in the names.

    Raises:
        ArtifactError: if the run or a key is unknown, a key comes twice, or a value is not valid.
    """
    if base not in settings.runs:
        msg = f"{params.PATH}: no run {base!r}{suggest(base, settings.runs)}"
        raise ArtifactError(msg)
    model = settings.runs[base].model
    config = plugins.load("models", model).Config
    axes: dict[str, list[Any]] = {}
    problems: list[str] = []
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not all(split_values(values)) or key in axes:
            problems.append(f"{word}: expected a key once, = and its values, such as seed=0,1,2")
        elif key not in KEYS and key not in config.model_fields:
            problems.append(f"{key}: no key of a run or of models.{model}{suggest(key, [*KEYS, *config.model_fields])}")
        else:
            axes[key] = [read_value(text) for text in split_values(values)]
            kind, start = (Run, settings.runs[base]) if key in KEYS else (config, settings.models[base])
            for value in axes[key]:
                params.check_section(kind, {**start.model_dump(), key: value}, f"grid of {base}", problems)
            problems += [f"{word}: a value comes twice"] if len(set(map(repr, axes[key]))) < len(axes[key]) else []
    if problems:
        raise ArtifactError("\n  ".join(problems))
    return sorted(axes.items(), key=lambda axis: axis[0] == "seed")


def split_values(text: str) -> list[str]:
    """Split at the commas that are not in brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def read_value(text: str) -> Any:
    """Return a value as params.yaml would read it; what is not YAML is a text."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text


def suggest(name: str, known: Any) -> str:
    """Return the nearest name, or all of them."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def make_runs(base: str, axes: Sequence[Axis], settings: Params) -> dict[str, Run]:
    """Return the run of each combination by its name.

    Raises:
        ArtifactError: if two combinations would have one name.
    """
    runs: dict[str, Run] = {}
    for values in itertools.product(*(values for _, values in axes)):
        chosen = dict(zip((key for key, _ in axes), values, strict=True))
        name = "_".join([base, *(format_part(key, value) for key, value in chosen.items())])
        own = {key: value for key, value in chosen.items() if key in KEYS}
        changes = {key: value for key, value in chosen.items() if key not in KEYS}
        if name in runs:
            msg = f"{name}: two combinations would have this name"
            raise ArtifactError(msg)
        run = settings.runs[base]
        runs[name] = run.model_copy(update={**own, "changes": {**run.changes, **changes}})
    return runs


def format_part(key: str, value: Any) -> str:
    """Return a value as a part of a name: `hinge`, `0` of a seed, `latent-8`, `r1-0p4`."""
    text = re.sub(r"[^a-z0-9]+", "-", str(value).lower().replace(".", "p")).strip("-") or "none"
    return text if isinstance(value, str) or key == "seed" else f"{key}-{text}"


def choose_new(runs: dict[str, Run], text: str, settings: Params) -> tuple[list[str], dict[str, str]]:
    """Return the names of the runs to add, and of the others the run that has the same settings already.

    Raises:
        ArtifactError: if a name is taken by a run of other settings.
    """
    free = {name: f"{name}-new" if name in settings.runs else name for name in runs}
    models = check_text(insert_lines(text, {free[name]: run for name, run in runs.items()})).models
    known: dict[str, str] = {}
    for name, run in runs.items():
        about = describe(run, models[free[name]])
        equal = [other for other in settings.runs if describe(settings.runs[other], settings.models[other]) == about]
        if equal:
            known[name] = equal[0]
        elif name in settings.runs:
            msg = f"{params.PATH}: runs.{name} has other settings; rename or remove it"
            raise ArtifactError(msg)
    return [name for name in runs if name not in known], known


def describe(run: Run, config: Any) -> dict[str, Any]:
    """Return everything that makes a run what it is, whether its changes name it or the model's section does."""
    return {**run.model_dump(exclude={"changes"}), "config": config.model_dump()}


def format_run(run: Run) -> str:
    """Return a run as the right side of its line."""
    yaml, stream = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = True, 10**6
    yaml.dump(run.model_dump(exclude_defaults=True), stream)
    return stream.getvalue().strip()


def check_text(text: str) -> Params:
    """Return the settings of a params file's text.

    Raises:
        ParamsError: if it is not usable.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / params.PATH.name
        path.write_bytes(text.encode())
        try:
            return params.load(path)
        except params.ParamsError as error:
            raise params.ParamsError(str(error).replace(str(path), f"{params.PATH} as changed")) from None


def insert_lines(text: str, new: Mapping[str, Run]) -> str:
    """Return the text with a line per new run after the last one, and no other byte changed.

    Raises:
        ArtifactError: if the section `runs` does not have a run per line.
    """
    lines, rows = find_runs(text)
    end, indent = rows[-1].stop, re.match(r"\s*", lines[rows[0].start])
    assert indent
    ending = "\r\n" if lines[rows[0].start].endswith("\r\n") else "\n"
    if new and not lines[end - 1].endswith("\n"):
        lines[end - 1] += ending
    added = [f"{indent[0]}{name}: {format_run(run)}{ending}" for name, run in new.items()]
    return "".join([*lines[:end], *added, *lines[end:]])


def remove_lines(text: str, names: Collection[str]) -> str:
    """Return the text without the lines of some runs."""
    lines, rows = find_runs(text)
    gone = {number for row in rows for number in row if lines[row.start].split(":")[0].strip() in names}
    return "".join(line for number, line in enumerate(lines) if number not in gone)


def find_runs(text: str) -> tuple[list[str], list[range]]:
    """Return the lines of a params file, and the numbers of the lines of each run.

    Raises:
        ArtifactError: if the section `runs` is not a block of lines.
    """
    lines = text.splitlines(keepends=True)
    runs = YAML().load(text)["runs"]
    if not runs or runs.fa.flow_style():
        msg = f"{params.PATH}: runs: expected a line per run, such as `  gan: {{model: gan, ...}}`"
        raise ArtifactError(msg)
    starts = sorted(runs.lc.key(name)[0] for name in runs)
    after = next((number for number in range(starts[-1] + 1, len(lines)) if _begins_section(lines[number])), len(lines))
    return lines, [range(start, _trim(lines, start, end)) for start, end in itertools.pairwise([*starts, after])]


def _begins_section(line: str) -> bool:
    return bool(line.strip()) and not line.startswith((" ", "#", "\t"))


def _trim(lines: Sequence[str], start: int, end: int) -> int:
    """Return the end of a run's lines without the comments and empty lines that follow."""
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return end
