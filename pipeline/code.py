"""Finds the code that the result of a stage instance depends on, as one digest.

    python -m pipeline.code train gan        # list the definitions that the training of runs.gan reaches

The digest covers the top-level statements that an instance reaches from its stage and its plug-ins, name by name. It
leaves out comments, docstrings, blank lines and the place of a file, so that only an edit of the code itself makes a
result stale. The stage `check` writes one file per instance, data/code/<stage>/<key>.json, and the instance depends on
it. The same digest names a training's resume state, and digests of its parts are in an evaluation's protocol.

Statements are compared as text, because `ast.dump` differs between versions of Python. A plug-in of another installed
package counts with all modules of that package, and with what these reach here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import sys
import tokenize
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import artifacts, params, plugins

if TYPE_CHECKING:
    from pipeline.params import Params

FOLDER = Path("data/code")
JUDGES = plugins.PACKAGE / "judges"  # feature networks whose weights git keeps
# Modules that check, find, start, record or show, and never change a number.
MACHINERY = ("versions", "params", "plugins", "code", "stages", "runtime", "history", "commands")
ENTRY = "main"  # of a stage
TAG = "code.model"  # of a record, and of a LoggedModel: the digest of the model's code when it was trained
CALLED_OF_SOURCES: dict[str, tuple[str, ...]] = {  # of the source's kind
    "fetch": (),
    "prepare": ("write", "question_data", "show_data"),
}
CALLED_OF_KINDS = {"train": ("examples", "look"), "sample": ("draw",), "audit": ("show",)}
# Functions of a model that are only for the eye, which audits show: no training and no sample stands on them.
LOOKS = ("decode", "find_latent")
PROBED = ("find_features",)  # functions of a model that only `pipeline probe` calls, and no stage
Roots = dict[str, tuple[str, ...]]  # module: the definitions that are called; none named: all of them


class Statement(NamedTuple):
    """A top-level statement of a module of the package, by its position in it."""

    module: str
    position: int


@dataclass(frozen=True)
class Module:
    """What one file defines.

    texts: of each top-level statement, without comments, docstrings and imports.
    used: of each statement the names that it uses, `a` or `a.b`.
    names: positions of the statements that define a name. always: those that run on import.
    ours: of each imported name the module of the package, and the name in it, if it is no module.
    foreign: of each name imported from elsewhere the import.
    """

    texts: list[str]
    titles: list[str]
    used: list[set[str]]
    names: dict[str, list[int]]
    always: list[int]
    ours: dict[str, tuple[str, str]]
    foreign: dict[str, str]


def digest(stage: str, key: str, settings: Params) -> str:
    """Return the digest of one stage instance, 16 hex digits."""
    return str(describe(find_roots(stage, key, settings))["digest"])


def write_all(settings: Params) -> list[str]:
    """Write data/code/<stage>/<key>.json for every instance; return what changed, one line per instance."""
    changes = []
    known = set()
    for stage, key in list_instances(settings):
        path = name_file(stage, key)
        known.add(path)
        value = describe(find_roots(stage, key, settings)) | _find_others(stage, key, settings)
        before = artifacts.read_json(path) if path.exists() else None
        if before != value:
            artifacts.write_json(path, value)
        if before and before.get("digest") != value["digest"]:
            named = {line.split()[0] for line in set(before["definitions"]) ^ set(value["definitions"])}
            changes.append(f"{stage}@{key}: {', '.join(sorted(named)) or 'what the definitions refer to'}")
    for path in set(FOLDER.rglob("*.json")) - known:
        path.unlink()
    return changes


def name_file(stage: str, key: str) -> Path:
    """Return the file that an instance depends on for its code; a stage without keys has an empty one."""
    return FOLDER / stage / f"{key}.json" if key else FOLDER / f"{stage}.json"


def _find_others(stage: str, key: str, settings: Params) -> dict[str, list[str]]:
    """Return what an instance stands on and dvc.yaml cannot name.

    That is the optional keys `skip`, `freeze`, `resume` and `weights` of a run; of a feature network the weights that
    git keeps for a section like its own, trained on the same source; and of a metric of exhibits the code that draws
    them.
    """
    if stage == "evaluate":
        metric = plugins.load("metrics", settings.runs[key].metric)
        return {"exhibits": [digest("sample", key, settings)]} if getattr(metric, "READS_EXHIBITS", False) else {}
    if stage == "networks":
        section = artifacts.encode(settings.networks[key])
        kept = sorted(JUDGES.glob(f"{settings.data[section['data']].source}-*/recipe.json"))  # of the same data source
        paths = [path for path in kept if section.items() >= _read_section(path).items()]
        return {"judges": [artifacts.digest(path.with_name(artifacts.SEAL)) for path in paths]} if paths else {}
    if stage != "train":
        return {}
    run = settings.runs[key]
    resumed = [run.start] if run.resume else []
    brought = [run.weights.address, run.weights.sha256] if run.weights else []
    others = {"freeze": run.freeze, "skip": run.skip, "resume": resumed, "weights": brought}
    return {name: value for name, value in others.items() if value}


def _read_section(recipe: Path) -> dict[str, Any]:
    return dict(artifacts.read_json(recipe)["recipe"]["config"])


def list_instances(settings: Params) -> Iterator[tuple[str, str]]:
    """List (stage, key) of every stage instance after `check`; the report has no key."""
    yield from ((stage, key) for stage in ("fetch", "prepare") for key in settings.data)
    yield from (("networks", key) for key in settings.networks)
    yield from ((stage, key) for stage in ("train", "sample", "evaluate", "audit") for key in settings.runs)
    yield "report", ""


def find_roots(stage: str, key: str, settings: Params) -> Roots:
    """Return where the code of an instance begins: its stage, and the plug-ins that it loads by name."""
    roots: Roots = {_name("stages", stage): (ENTRY,)}
    if stage in CALLED_OF_SOURCES:
        config = settings.data[key]
        roots[_name("data", config.source)] = (stage,)
        if called := CALLED_OF_SOURCES[stage]:
            roots[_name("kinds", config.KIND)] = called
    elif stage == "networks":
        roots |= _find_network(key, settings, "examples")
    elif stage == "report":
        roots |= {_name("metrics", run.metric): () for run in settings.runs.values()}
        roots |= {_name("kinds", config.KIND): ("question_data",) for config in settings.data.values()}
    elif stage == "evaluate":
        for part in find_parts(key, settings).values():
            roots |= part
        roots[_name("models", settings.runs[key].model)] = ("describe_scores",)
    else:
        run = settings.runs[key]
        roots |= _find_model("models", run.model, settings.data[run.data].KIND, *CALLED_OF_KINDS[stage])
        if stage == "audit":
            model = _name("models", run.model)
            roots[model] = tuple(each for each in read_module(model).names if each not in PROBED)
            for name, called in (_find_network(run.network, settings) if run.network != params.NONE else {}).items():
                roots[name] = tuple(dict.fromkeys([*roots.get(name, ()), *called]))  # model and network share backbones
    return roots


def find_parts(key: str, settings: Params) -> dict[str, Roots]:
    """Return where the code that a run's numbers go through begins: of the metric, and of its feature network."""
    run = settings.runs[key]
    parts: dict[str, Roots] = {"metric": {_name("stages", "evaluate"): (ENTRY,), _name("metrics", run.metric): ()}}
    if run.network != params.NONE:
        parts["network"] = _find_network(run.network, settings)
    return parts


def digest_parts(key: str, settings: Params) -> dict[str, str]:
    """Return the digest of each part of the code that a run's numbers go through, for its protocol."""
    return {name: str(describe(roots)["digest"]) for name, roots in find_parts(key, settings).items()}


def digest_model(name: str, kind: str) -> str:
    """Return the digest of the definitions that a model of a kind reaches, whatever it is trained or sampled with."""
    return str(describe(_find_model("models", name, kind))["digest"])


def _find_network(name: str, settings: Params, *called: str) -> Roots:
    network = settings.networks[name]
    return _find_model("networks", network.network, settings.data[network.data].KIND, *called)


def _find_model(family: str, name: str, kind: str, *called: str) -> Roots:
    """Return a model or network, what it takes from the backbone of a kind, and what is called of the kind."""
    module = read_module(_name(family, name))
    own = tuple(each for each in module.names if each not in {*LOOKS, *PROBED})
    roots: Roots = {_name(family, name): own, _name("kinds", kind): ("Spec", "make_fields", *called)}
    roots |= {_name("kinds", other): () for other in getattr(plugins.load("kinds", kind), "WITH", ())}
    if taken := getattr(plugins.load(family, name), "BACKBONE", ()):
        roots[_name("backbones", kind)] = taken
    return roots


def _name(family: str, name: str) -> str:
    return plugins.find_module(family, name)


def describe(roots: Roots) -> dict[str, Any]:
    """Return the digest of the reached definitions, and each definition with its own hash."""
    lines: set[str] = set()
    definitions: set[str] = set()
    reached = reach(roots)
    for statement in reached:
        module = read_module(statement.module)
        own = _hash(module.texts[statement.position])
        lines.add(own)
        definitions.add(f"{module.titles[statement.position]} {own[:8]}")
        for name in module.used[statement.position]:
            lines |= {f"{own} {name} {_hash(_text(target))}" for target in resolve(statement.module, name)}
            first = name.partition(".")[0]
            if first in module.foreign:
                lines.add(f"{own} {module.foreign[first]}")
    for path in (file for name in {*roots, *(each.module for each in reached)} for file in list_templates(name)):
        lines.add(f"{path.suffix} {_hash(path.read_text(encoding='utf-8'))}")
        definitions.add(f"{path.name} {_hash(path.read_text(encoding='utf-8'))[:8]}")
    text = "\n".join(sorted(lines))
    return {"digest": _hash(text)[:16], "definitions": sorted(definitions)}


def reach(roots: Roots) -> set[Statement]:
    """Return every statement that the roots reach; what runs when a module is imported counts once it is reached."""
    found: set[Statement] = set()
    entered: set[str] = set()
    waiting: deque[Statement] = deque()
    for name, called in roots.items():
        if not is_own(name):
            for each in list_package(name):
                waiting.extend(Statement(each, position) for position in range(len(read_module(each).texts)))
            continue
        module = read_module(name)
        wanted = called or module.names
        waiting.extend(Statement(name, position) for entry in wanted for position in module.names.get(entry, ()))
    while waiting:
        statement = waiting.popleft()
        if statement in found:
            continue
        found.add(statement)
        module = read_module(statement.module)
        if statement.module not in entered:
            entered.add(statement.module)
            waiting.extend(Statement(statement.module, position) for position in module.always)
        for name in module.used[statement.position]:
            waiting.extend(resolve(statement.module, name))
    return found


def resolve(module_name: str, name: str) -> list[Statement]:
    """Return the statements that define a name as a module sees it; none for a name from elsewhere."""
    here = read_module(module_name)
    first, _, rest = name.partition(".")
    if first in here.names:
        return [Statement(module_name, position) for position in here.names[first]]
    if first not in here.ours:
        return []
    target, inner = here.ours[first]
    if is_machinery(target):
        return []
    if inner:
        return resolve(target, inner)
    module = read_module(target)
    if rest in module.names or rest in module.ours:
        return resolve(target, rest)
    return [Statement(target, position) for position in range(len(module.texts))]  # a module as a value


def is_machinery(module: str) -> bool:
    """Return whether a module of the package can change no number; a stage can."""
    words = module.split(".")
    return len(words) < 2 or (words[1] in MACHINERY and not (words[1] == "stages" and len(words) > 2))


@functools.cache
def read_module(name: str) -> Module:
    """Parse one module of the package."""
    path = find_file(name)
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    blank = _find_blanks(source, tree)
    ours: dict[str, tuple[str, str]] = {}
    foreign: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            _note_import(node, ours, foreign)
    if any(is_own(text.split()[1]) for text in foreign.values() if text.startswith("import ")):
        msg = f"{path}: expected `from {plugins.OWN}... import ...`, which names the code that is used, got `import`"
        raise artifacts.ArtifactError(msg)
    module = Module([], [], [], {}, [], ours, foreign)
    for node in tree.body:
        text = _cut(source, node, blank)
        if not text:
            continue
        position = len(module.texts)
        defined = list(_list_defined(node))
        for each in defined:
            module.names.setdefault(each, []).append(position)
        if not defined and not _is_type_checking(node):
            module.always.append(position)
        module.texts.append(text)
        module.titles.append(defined[0] if defined else "(runs on import)")
        module.used.append(set(_list_used(node, ours)))
    return module


def find_file(name: str) -> Path:
    """Return the file of a module of this package, or of the package of a plug-in."""
    path = plugins.find_package(name).joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_own(module: str) -> bool:
    """Return whether a module is of this package."""
    return module.partition(".")[0] == plugins.OWN


def list_package(module: str) -> list[str]:
    """Return the names of all modules of the package that a module is in."""
    folder, top = plugins.find_package(module), module.partition(".")[0]
    paths = [path.relative_to(folder).with_suffix("").parts for path in sorted(folder.rglob("*.py"))]
    return [".".join([top, *(part for part in parts if part != "__init__")]) for parts in paths] or [module]


def list_templates(module: str) -> list[Path]:
    """Return the files next to a module that have its name and are no Python, such as the report's templates."""
    path = find_file(module)
    return sorted(each for each in path.parent.glob(f"{path.stem}.*") if each.suffix != ".py")


def _note_import(node: ast.Import | ast.ImportFrom, ours: dict[str, tuple[str, str]], foreign: dict[str, str]) -> None:
    for alias in node.names:
        bound = alias.asname or alias.name
        if isinstance(node, ast.Import):
            foreign[bound.partition(".")[0] if not alias.asname else bound] = f"import {alias.name} as {bound}"
        elif node.level or not is_own(str(node.module)):
            foreign[bound] = f"from {node.module} import {alias.name} as {bound}"
        elif find_file(f"{node.module}.{alias.name}").exists():
            ours[bound] = f"{node.module}.{alias.name}", ""
        else:
            ours[bound] = str(node.module), alias.name


def _find_blanks(source: str, tree: ast.Module) -> dict[int, list[tuple[int, int]]]:
    """Return by line the columns, in bytes, of comments, docstrings and imports."""
    blank: dict[int, list[tuple[int, int]]] = {}
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            blank.setdefault(row, []).append((len(lines[row - 1][:column].encode()), 1 << 30))
    for node in ast.walk(tree):
        removed: list[ast.stmt] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            removed.append(node)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                removed.append(first)
        for each in removed:
            for row in range(each.lineno, (each.end_lineno or each.lineno) + 1):
                start = each.col_offset if row == each.lineno else 0
                end = (each.end_col_offset or 0) if row == each.end_lineno else 1 << 30
                blank.setdefault(row, []).append((start, end))
    return blank


def _cut(source: str, node: ast.stmt, blank: dict[int, list[tuple[int, int]]]) -> str:
    """Return the lines of a statement without what is blank in them."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(each.lineno for each in decorators)])
    lines = source.splitlines()
    kept = []
    for row in range(first, (node.end_lineno or first) + 1):
        line = lines[row - 1].encode()
        for start, end in sorted(blank.get(row, ()), reverse=True):
            line = line[:start] + line[end:]
        if text := line.decode().rstrip(" \t;"):
            kept.append(text)
    return "\n".join(line for line in kept if line.strip())


def _list_defined(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement defines; none where it only runs."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (each.id for each in ast.walk(target) if isinstance(each, ast.Name))
    elif isinstance(node, ast.TypeAlias if hasattr(ast, "TypeAlias") else ()):
        yield node.name.id


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _list_used(node: ast.stmt, ours: dict[str, tuple[str, str]]) -> Iterator[str]:
    """Yield the names that a statement uses; of a module of the package, the name in it: `artifacts.read_json`."""
    inner = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
            target = ours.get(each.value.id)
            if target and not target[1]:
                inner.add(id(each.value))
                yield f"{each.value.id}.{each.attr}"
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and id(each) not in inner:
            yield each.id


def _text(statement: Statement) -> str:
    return read_module(statement.module).texts[statement.position]


@functools.cache
def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def list_modules(roots: Roots) -> dict[str, list[str]]:
    """Return the names of the definitions that are reached, by module."""
    found: dict[str, list[str]] = {}
    for statement in sorted(reach(roots)):
        found.setdefault(statement.module, []).append(read_module(statement.module).titles[statement.position])
    return found


def main(arguments: list[str]) -> int:
    """Print the digest of an instance and the definitions that it reaches."""
    instances = list(list_instances(settings := params.load()))
    stage, key = (*arguments, "", "")[:2]
    if (stage, key) not in instances:
        print(f"usage: python -m pipeline.code STAGE KEY\n{', '.join(' '.join(each).strip() for each in instances)}")
        return 2
    roots = find_roots(stage, key, settings)
    print(describe(roots)["digest"])
    for module, names in list_modules(roots).items():
        print(f"  {module}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
