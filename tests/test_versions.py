"""Versions with known holes are refused before they are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline import versions
from pipeline.versions import VersionError
from tests.conftest import ROOT


def install(folder: Path, name: str, version: str) -> None:
    """Put metadata of a package of that name and version, and a module that must not be imported, into a folder."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    code = f"open({str(folder / 'imported')!r}, 'w')\n"
    (folder / f"{name.replace('-', '_')}.py").write_text(code)


def import_pipeline(folder: Path) -> str:
    """Import a model, with the packages of `folder` before the installed ones; return what it said."""
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", "import pipeline.models.gan"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.fault(35)
@pytest.mark.parametrize(
    ("name", "version"),
    [("torch", "2.9.1"), ("pytorch-lightning", "2.6.2"), ("pytorch-lightning", "2.6.3"), ("mlflow", "3.17.1")],
)
def test_a_version_with_holes_is_refused_before_it_is_imported(tmp_path: Path, name: str, version: str) -> None:
    install(tmp_path, name, version)
    message = import_pipeline(tmp_path)
    assert f"{name}: expected {versions.MINIMUM[name][0]} or newer" in message
    assert f"found {version}" in message
    assert not (tmp_path / "imported").exists()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.MINIMUM, "no-such-library", ("1.0", "a test"))
    with pytest.raises(VersionError, match=r"no-such-library: expected 1.0 or newer .* found none"):
        versions.require()


def test_numbers_are_compared_and_not_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", {"torch": "2.14.0+cpu", "pytorch-lightning": "2.10", "mlflow": "10.0"}.get)
    versions.require()


def test_the_locked_versions_are_safe() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = [Requirement(line.rstrip(" \\")) for line in lines if "==" in line and line[0].isalpha()]
    pins = {entry.name: str(entry.specifier).removeprefix("==") for entry in locked}
    for name, (least, _) in versions.MINIMUM.items():
        assert versions.Version(pins[name]) >= versions.Version(least)
