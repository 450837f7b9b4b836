"""The shape of the code: imports point down, files explain themselves, the README shows the folders."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {path.relative_to(ROOT / "pipeline").as_posix(): path for path in sorted((ROOT / "pipeline").rglob("*.py"))}
RANKS = {  # of a folder, a file in the root, or one file of a folder
    "": 0,
    "versions": 0,
    "plugins": 0,
    "artifacts": 0,
    "randomness": 0,
    "params": 1,
    "code": 2,
    "formats": 2,
    "layers": 2,
    "runtime": 2,
    "batches": 3,
    "kinds": 4,
    "weights": 5,
    "backbones": 5,
    "data": 5,
    "models": 6,
    "networks": 6,
    "evidence": 6,
    "metrics": 7,
    "evidence.selftest": 8,
    "evidence.selftest_audio": 8,
    "training": 4,
    "history": 8,
    "pages": 8,
    "stages": 9,
    "commands": 10,
    "server": 9,
    "__main__": 11,
}
ROOT_FILES = 11
FAMILIES = ("kinds", "data", "models", "networks", "metrics")


def module_name(file: str) -> str:
    """pipeline.data.mnist of data/mnist.py, pipeline.data of data/__init__.py."""
    parts = ["pipeline", *file.removesuffix(".py").split("/")]
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(file): file for file in FILES}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at any depth: `from pipeline import params` is pipeline.params."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            parent = str(node.module)
            modules = {f"{parent}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= modules
            if len(modules) < len(node.names):
                found.add(parent)
    return found


def part(module: str) -> str:
    """The word below `pipeline`: data of pipeline.data.mnist."""
    return f"{module}.".split(".")[1]


def rank(module: str) -> int:
    """The rank of a file, or of its folder."""
    return RANKS.get(module.removeprefix("pipeline."), RANKS[part(module)])


IMPORTS = {module: imported(FILES[file]) for module, file in MODULES.items()}
LINKS = [(module, target) for module, targets in IMPORTS.items() for target in targets if target in MODULES]


def test_the_reader_of_imports_sees_them() -> None:
    # The other tests pass on code without imports: these are known.
    assert ("pipeline.stages.train", "pipeline.params") in LINKS  # from pipeline import params
    assert ("pipeline.models.gan", "pipeline.layers.blocks") in LINKS  # from pipeline.layers.blocks import ...
    assert ("pipeline.stages.train", "pipeline.code") in LINKS
    assert len(LINKS) > 50


def test_every_file_has_a_rank() -> None:
    assert {part(module) for module in MODULES} == {name.partition(".")[0] for name in RANKS}


def test_the_root_has_few_files() -> None:
    assert len([file for file in FILES if "/" not in file]) <= ROOT_FILES


def test_every_import_of_the_package_exists() -> None:
    ours = {target for targets in IMPORTS.values() for target in targets if target.split(".")[0] == "pipeline"}
    assert ours <= set(MODULES)


def test_imports_point_down() -> None:
    assert [(a, b) for a, b in LINKS if rank(a) < rank(b)] == []


def test_imports_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, target in LINKS:
        graph[module].add(target)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_stages_never_import_one_another() -> None:
    between = [(a, b) for a, b in LINKS if part(a) == part(b) == "stages" and b != "pipeline.stages"]
    assert between == []


@pytest.mark.parametrize("family", FAMILIES)
def test_plug_ins_of_one_family_do_not_need_one_another(family: str) -> None:
    # Sources share MNIST's files, points are shown as images are, and other fields than the main one have a kind too.
    # FID's formula measures sound, too, and verse is text.
    # Images as tokens are learned by the transformer, and so are notes and codes.
    known = {("mnist", "stacked_mnist"), ("mnist", "fashion_mnist"), ("images", "points"), ("images", "audio")}
    known |= {("text", "verse")}
    known |= {("transformer", "pixels"), ("transformer", "notes"), ("pixels", "codes_prior"), ("codes", "codes_prior")}
    between = {
        (b.rpartition(".")[2], a.rpartition(".")[2])
        for a, b in LINKS
        if part(a) == part(b) == family and a != f"pipeline.{family}" and b != f"pipeline.{family}"
    }
    assert {pair for pair in between if pair[0] != "labels"} <= known


def test_a_kind_of_data_is_named_in_its_own_files_only() -> None:
    kinds = {Path(file).stem for file in FILES if file.startswith("kinds/")} - {"__init__", "labels"}
    assert len(kinds) >= 3
    word = re.compile(rf"[\"']({'|'.join(kinds)})[\"']")
    apart = [
        file for file in FILES if "/" not in file or file.startswith(("stages/", "commands/", "history/", "runtime/"))
    ]
    found = [file for file in apart if word.search(FILES[file].read_text(encoding="utf-8"))]
    assert found == []


def test_what_can_change_no_number_is_used_by_what_can_only_through_the_stages() -> None:
    # history and runtime record, show and start: what computes must not depend on them.
    machinery = {"history", "runtime"}
    used = {
        (a, b)
        for a, b in LINKS
        if part(b) in machinery and part(a) not in {*machinery, "stages", "commands", "server", "__main__"}
    }
    assert {part(a) for a, _ in used} <= {"training", "models"}  # the loop's callbacks, and an error's class


def test_only_history_and_the_server_import_mlflow() -> None:
    users = {module for module, targets in IMPORTS.items() if any(name.split(".")[0] == "mlflow" for name in targets)}
    allowed = ("load", "mlflow_files", "mlflow_run", "mlflow_store", "mlflow_sync", "serving")
    assert users == {*(f"pipeline.history.{name}" for name in allowed), "pipeline.server.app"}


def test_nothing_imports_the_server() -> None:
    assert [(a, b) for a, b in LINKS if part(b) == "server" and part(a) != "server"] == []


@pytest.mark.parametrize("file", FILES)
def test_every_file_opens_with_what_it_is(file: str) -> None:
    assert ast.get_docstring(ast.parse(FILES[file].read_text(encoding="utf-8")))


def test_no_file_is_named_after_nothing() -> None:
    stems = {path.stem for path in FILES.values()} | {path.parent.name for path in FILES.values()}
    assert not stems & {"util", "utils", "common", "helper", "helpers", "misc", "shared", "core", "base"}


# --- README ------------------------------------------------------------------


def read_code(markdown: str) -> str:
    """Code of a Markdown text: fenced and indented blocks and spans, without shell comments."""
    fences = re.findall(r"^```.*?\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}(.*)$", rest, flags=re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", rest)
    return "\n".join(line.split("#")[0] for line in "\n".join([*fences, *indented, *spans]).splitlines())


def read_tree(markdown: str) -> list[str]:
    """Paths of the first fenced block under a heading with the word tree: two spaces of indentation a level."""
    under = re.split(r"^#+ .*tree.*$", markdown, maxsplit=1, flags=re.MULTILINE | re.IGNORECASE)[1]
    block = re.findall(r"^```.*?\n(.*?)^```", under, flags=re.MULTILINE | re.DOTALL)[0]
    paths: list[str] = []
    folders: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        level = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        paths.append("".join([*folders[:level], name]))
        folders = [*folders[:level], name]
    return paths


def test_the_reader_of_trees_joins_folders_and_files() -> None:
    text = "# A tree\n\n```\na/   folder\n  b/\n    c.py   file\n  d.py\ne.yaml\n```\n\n```\nother\n```\n"
    assert read_tree(text) == ["a/", "a/b/", "a/b/c.py", "a/d.py", "e.yaml"]


def test_the_make_commands_of_the_pages_are_targets() -> None:
    targets = set(
        re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    code = "\n".join(read_code(page.read_text(encoding="utf-8")) for page in pages)
    commands = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", code))
    assert {"repro", "test"} <= commands
    assert commands <= targets


def test_the_tree_of_the_readme_is_there() -> None:
    paths = read_tree((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(paths) > 10
    missing = [
        path for path in paths if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())
    ]
    assert missing == []


def test_the_tree_of_the_readme_shows_every_folder_of_the_package() -> None:
    shown = {
        path for path in read_tree((ROOT / "README.md").read_text(encoding="utf-8")) if path.startswith("pipeline/")
    }
    assert shown == {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in FILES.values()}
