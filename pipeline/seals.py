"""The seal of a folder between two stages: manifest.json with the SHA-256 of every file in it, written last.

DVC checks out whatever its cache holds under an object's name, flipped bits and cut-off files included. So who writes a
folder seals it, and who reads it verifies it first. The folders of prepared data have a manifest of their own, with
more in it: see artifacts.read_split.
"""

from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import ArtifactError

SEAL = "manifest.json"
MEND = "`pipeline verify` says whether DVC's cache is broken too; if not, `dvc checkout --force` brings the file back"


def seal(folder: Path) -> None:
    """Write the manifest of a complete folder; equal files give equal bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    artifacts.write_json(folder / SEAL, {path.relative_to(folder).as_posix(): artifacts.digest(path) for path in paths})


def verify(folder: Path) -> None:
    """Check that a folder holds what was sealed.

    Raises:
        ArtifactError: if the manifest or a file is missing, or a file is not the sealed one.
    """
    for name, expected in artifacts.read_json(folder / SEAL).items():
        path = folder / name
        found = artifacts.digest(path) if path.is_file() else "no file"
        if found != expected:
            msg = f"{path}: expected SHA-256 {expected}, found {found}; {MEND}"
            raise ArtifactError(msg)
