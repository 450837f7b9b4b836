"""The oldest versions without known holes through which a file runs code; they are checked at every start.

Python itself is not among them: the holes of tarfile's filters before 3.11.13 need an extraction to the disk, and
formats/archives.py reads the members that it knows by name and extracts nothing.
"""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

MINIMUM = {
    "torch": ("2.10", "weights_only loading of older ones can be made to corrupt memory, CVE-2026-24747"),
    "pytorch-lightning": (
        "2.6.6",
        "hyper-parameters of older ones run code, CVE-2026-58659, and 2.6.2 and 2.6.3 were malicious uploads",
    ),
    "mlflow": ("3.17.2", "servers of older ones can be made to read files and run code"),
}


class VersionError(RuntimeError):
    """An installed library is too old to be safe; the message says which, what is needed and why."""


def require() -> None:
    """Look up the installed versions, without importing the libraries.

    Raises:
        VersionError: if one is missing or older than MINIMUM.
    """
    for name, (least, reason) in MINIMUM.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        if found == "none" or Version(found) < Version(least):
            msg = f"{name}: expected {least} or newer ({reason}), found {found}; `make repro` installs the locked one"
            raise VersionError(msg)
