"""DVC's cache on a full disk, and with flipped bits: the next stage stops, with file and hash."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.test_dvc import copy_project, run
from tests.test_seals import flip, truncate

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a small disk needs root: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.fault(5)
def test_what_a_full_cache_does_not_store_stops_the_next_stage_until_it_is_stored(
    tmp_path: Path, small_disk: Path
) -> None:
    project = tmp_path / "project"
    copy_project(project)
    run(project, "dvc", "cache", "dir", "--local", str(small_disk))
    # The bare DVC: an error in the text, status 0.
    assert "No space left on device" in run(project, "dvc", "repro", "fetch@text")
    output = run(project, "dvc", "repro", "prepare@text", status=255)
    assert "DVC has not stored the inputs of prepare@text; free space, then `dvc commit fetch@text`" in output
    assert re.search(r"data/raw/text\S*: its object [0-9a-f]{32} is not in DVC's cache", output)
    assert not (project / "data" / "prepared" / "text" / "manifest.json").exists()
    assert "missing or broken" in run(project, "python", "-m", "pipeline", "verify", status=1)
    run(project, "dvc", "cache", "dir", "--local", str(tmp_path / "large"))
    run(project, "dvc", "commit", "--force", "check", "fetch@text")
    run(project, "dvc", "repro", "prepare@text")
    assert "none missing or broken" in run(project, "python", "-m", "pipeline", "verify")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the raw text."""
    folder = tmp_path_factory.mktemp("store") / "project"
    copy_project(folder)
    run(folder, "dvc", "repro", "fetch@text")
    return folder


@pytest.mark.fault(14)
@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_object_stops_the_stage_that_reads_it_and_can_be_made_again(
    project: Path, damage: Callable[[Path], None]
) -> None:
    path = project / "data" / "raw" / "text" / "docstrings.json"
    whole = path.read_bytes()
    (md5,) = [line.split()[0] for line in run(project, "md5sum", str(path)).splitlines()]
    cached = project / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    damage(cached)
    cached.chmod(0o444)
    path.unlink()
    run(project, "dvc", "checkout", "--force", "fetch@text")
    assert path.read_bytes() != whole  # the bare DVC brings it without a word
    output = run(project, "dvc", "repro", "--force", "--single-item", "prepare@text", status=255)
    assert "data/raw/text/docstrings.json: expected SHA-256" in output
    assert f"expected md5 {md5}, found " in run(project, "python", "-m", "pipeline", "verify", status=1)
    cached.unlink()
    path.unlink()
    run(project, "dvc", "repro", "fetch@text")
    assert path.read_bytes() == cached.read_bytes() == whole
    lock = YAML(typ="safe").load(project / "dvc.lock")["stages"]
    assert "prepare@text" not in lock


NO_LINKS = """import errno, os, sys
def refuse(*arguments, **options):
    raise OSError(errno.EPERM, "Operation not permitted")
os.link = refuse
from dvc.cli import main
sys.exit(main(sys.argv[1:]))
"""  # a dvc on a file system such as vfat


@pytest.mark.fault(61)
def test_a_cache_on_a_file_system_without_hard_links_stores_and_brings_back(project: Path, tmp_path: Path) -> None:
    clone, dvc = tmp_path / "clone", tmp_path / "dvc"
    shutil.copytree(project, clone)
    dvc.write_text(NO_LINKS)
    run(clone, "dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
    run(clone, "python", str(dvc), "repro", "--force", "--no-run-cache", "fetch@text")
    assert "none missing or broken" in run(clone, "python", "-m", "pipeline", "verify")
    shutil.rmtree(clone / "data" / "raw")
    run(clone, "python", str(dvc), "checkout", "fetch@text")
    assert list((clone / "data" / "raw" / "text").iterdir())


@pytest.mark.fault(60)
def test_two_clones_that_reproduce_at_once_over_one_cache_both_find_it_whole(project: Path, tmp_path: Path) -> None:
    clones = [tmp_path / name for name in ("one", "two")]
    for clone in clones:
        shutil.copytree(project, clone)
        run(clone, "dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda clone: run(clone, "dvc", "repro", "--force", "--no-run-cache", "fetch@text"), clones))
    assert len({(clone / "dvc.lock").read_text() for clone in clones}) == 1
    for clone in clones:
        assert "none missing or broken" in run(clone, "python", "-m", "pipeline", "verify")
