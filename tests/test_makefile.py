"""The environment that make installs: where DVC keeps its table of hashes."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT

CODE = """
from dvc.dirs import site_cache_dir
print(site_cache_dir())
"""


@pytest.mark.fault(70)
@pytest.mark.parametrize("name", ["project", "it's a $project"])
def test_dvc_keeps_its_table_of_hashes_where_no_other_account_can_write(tmp_path: Path, name: str) -> None:
    # DVC lets everybody write into the folder, and unpickles what it finds in it.
    project = tmp_path / name
    project.mkdir()
    venv.create(project / ".venv", system_site_packages=True)
    subprocess.run(["make", "-s", "-f", str(ROOT / "Makefile"), ".venv/dvc"], cwd=project, check=True)
    table = project / ".venv" / "dvc"
    assert table.stat().st_mode & 0o777 == 0o700
    packages = Path(pytest.__file__).parents[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    command = [str(project / ".venv" / "bin" / "python"), "-c", CODE]
    found = subprocess.run(
        command, cwd="/", env=environment | {"PYTHONPATH": str(packages)}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(table)
    assert sys.prefix not in found.stdout
