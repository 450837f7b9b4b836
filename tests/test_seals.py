"""Folders between stages: what was sealed is what is read."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.artifacts import ArtifactError


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def write(folder: Path) -> Path:
    """Write and seal two files, one in a subfolder; return the folder."""
    (folder / "inner").mkdir(parents=True)
    (folder / "abc").write_bytes(b"abc")
    (folder / "inner" / "empty").touch()
    artifacts.seal(folder)
    return folder


def test_a_seal_has_the_sha256_of_every_file_and_equal_folders_have_equal_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert artifacts.read_json(one / artifacts.SEAL) == {
        # FIPS 180-2, appendix B.1, and the hash of nothing
        "abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "inner/empty": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert (one / artifacts.SEAL).read_bytes() == (two / artifacts.SEAL).read_bytes()
    artifacts.seal(one)  # a second time: the manifest does not hash itself
    assert (one / artifacts.SEAL).read_bytes() == (two / artifacts.SEAL).read_bytes()


def test_an_untouched_folder_is_verified(tmp_path: Path) -> None:
    artifacts.verify(write(tmp_path / "one"))


@pytest.mark.fault(14)
@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_changed_file_is_refused_with_its_name_and_both_hashes(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = write(tmp_path / "one") / "abc"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    damage(path)
    with pytest.raises(ArtifactError) as caught:
        artifacts.verify(tmp_path / "one")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(part in str(caught.value) for part in (str(path), expected, found, "pipeline verify"))


@pytest.mark.parametrize("name", ["abc", "inner/empty", artifacts.SEAL])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (write(tmp_path / "one") / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        artifacts.verify(tmp_path / "one")


@pytest.mark.fault(66)
@pytest.mark.parametrize("sealed", [{}, {"inner/empty": hashlib.sha256(b"").hexdigest()}, [], "abc"])
def test_a_file_that_the_seal_does_not_name_is_refused(tmp_path: Path, sealed: object) -> None:
    folder = write(tmp_path / "one")
    artifacts.write_json(folder / artifacts.SEAL, sealed)
    with pytest.raises(ArtifactError, match=r"abc: expected SHA-256 none|expected a hash for each file"):
        artifacts.verify(folder)


def test_a_name_of_the_seal_is_no_path(tmp_path: Path) -> None:
    folder = write(tmp_path / "one")
    outside = tmp_path / "secret"
    outside.write_text("secret")
    sealed = artifacts.read_json(folder / artifacts.SEAL)
    for name in ("../secret", str(outside)):
        artifacts.write_json(folder / artifacts.SEAL, sealed | {name: hashlib.sha256(b"secret").hexdigest()})
        with pytest.raises(ArtifactError, match="found no file"):
            artifacts.verify(folder)


def test_hidden_files_that_systems_leave_break_no_seal(tmp_path: Path) -> None:
    folder = write(tmp_path / "one")
    (folder / ".DS_Store").touch()
    artifacts.verify(folder)
