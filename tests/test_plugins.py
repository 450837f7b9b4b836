"""A plug-in is a file with a Config, found by its name."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from pipeline import plugins

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter that finds `pipeline` in `folder`."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("models", {"gan", "vae", "transformer"}),
        ("networks", {"classifier", "inception", "rotation"}),
        ("kinds", {"images", "text", "points", "labels"}),
        ("data", {"mnist5k", "numpy_docs", "mnist", "shakespeare"}),
        ("metrics", {"images", "text"}),
    ],
)
def test_names_are_the_files_of_the_folder(family: str, expected: set[str]) -> None:
    assert set(plugins.names(family)) >= expected
    files = {path.stem for path in (ROOT / "pipeline" / family).glob("*.py")} - {"__init__"}
    assert set(plugins.names(family)) == files


def test_names_come_in_a_fixed_order() -> None:
    for family in plugins.FAMILIES:
        assert plugins.names(family) == sorted(plugins.names(family))


def test_load_returns_the_module_of_the_file() -> None:
    module = plugins.load("data", "mnist5k")
    assert module.__name__ == "pipeline.data.mnist5k"
    assert Path(module.__file__ or "") == ROOT / "pipeline" / "data" / "mnist5k.py"
    assert module.Config.__module__ == module.__name__


@pytest.mark.parametrize("name", ["flow", "layers", "__init__", "", "Gan", "../data/mnist", "gan.py"])
def test_an_unknown_name_lists_those_that_exist(name: str) -> None:
    with pytest.raises(ValueError, match="pipeline/models/ has ") as caught:
        plugins.load("models", name)
    assert repr(name) in str(caught.value)
    assert str(caught.value).split(" has ")[1].split(", ") == plugins.names("models")


def test_another_package_adds_a_plug_in_but_not_under_a_name_that_is_taken(
    brought: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    brought('"""A model."""\n\nConfig = Model = require = print\nLEARNS = ()\n')
    assert "tiny_flow" in plugins.names("models")
    assert "tiny_flow" not in plugins.names("data")
    assert plugins.load("models", "tiny_flow").__name__ == "brought_package.flow"
    entry = EntryPoint("gan", "brought_package.flow", f"{plugins.GROUP}.models")
    monkeypatch.setattr(plugins, "_read_entry_points", lambda: EntryPoints([entry]))
    with pytest.raises(ValueError, match=r"two models plug-ins 'gan': pipeline/models/gan.py and brought_package.flow"):
        plugins.load("models", "gan")


@pytest.mark.parametrize(("line", "error"), [("import no_such_module", "ModuleNotFoundError"), ("x =", "SyntaxError")])
def test_a_file_that_cannot_be_imported_is_named(brought: Callable[[str], Path], line: str, error: str) -> None:
    brought(line)
    with pytest.raises(ValueError, match=rf"brought_package\.flow .*: cannot be imported: {error}"):
        plugins.load("models", "tiny_flow")


def test_listing_imports_no_plug_in() -> None:
    # A typing error in params.yaml must not cost the import of torch and every model.
    code = (
        "import sys; from pipeline import plugins; [plugins.names(family) for family in plugins.FAMILIES]; "
        "print([name for name in sys.modules if name.split('.')[0] in {'torch', 'numpy'} or name.count('.') > 1 "
        "and name.startswith('pipeline')])"
    )
    assert run_python(code, ROOT) == "[]"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package `pipeline` with nothing but the finding of plug-ins; returns its folder of data."""
    (tmp_path / "pipeline" / "data").mkdir(parents=True)
    for name in ("__init__.py", "versions.py", "plugins.py", "data/__init__.py"):
        shutil.copy(ROOT / "pipeline" / name, tmp_path / "pipeline" / name)
    return tmp_path / "pipeline" / "data"


def test_a_new_file_is_a_plug_in_without_another_change(package: Path, tmp_path: Path) -> None:
    zeros = '"""Zeros."""\n\n\nclass Config:\n    size = 3\n\n\nfetch = prepare = print\n'
    (package / "zeros.py").write_text(zeros)
    code = "from pipeline import plugins; print(plugins.names('data'), plugins.load('data', 'zeros').Config.size)"
    assert run_python(code, tmp_path) == "['zeros'] 3"


def test_a_plug_in_without_what_its_family_needs_is_refused_when_it_is_loaded(package: Path, tmp_path: Path) -> None:
    (package / "half.py").write_text('"""Half."""\n\n\nclass Config:\n    pass\n\n\nfetch = print\n')
    code = "from pipeline import plugins\ntry: plugins.load('data', 'half')\nexcept ValueError as error: print(error)"
    assert run_python(code, tmp_path) == "pipeline/data/half.py: expected Config, fetch, prepare; it lacks prepare"


def test_a_model_that_scores_and_does_not_say_what_its_scores_are_of_is_refused_when_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugins.load("models", "gan")  # has no scores
    monkeypatch.delattr(plugins.load("models", "vae"), "describe_scores")
    with pytest.raises(ValueError, match=r"models/vae\.py: its Model has score, expected describe_scores"):
        plugins.load("models", "vae")


@pytest.mark.parametrize("family", plugins.FAMILIES)
def test_every_plug_in_has_what_its_family_needs(family: str) -> None:
    for name in plugins.names(family):
        plugins.load(family, name)
