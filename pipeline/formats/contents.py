"""One hash for several files, whatever archive or package they come in."""

from collections.abc import Mapping
from hashlib import sha256


def hash_files(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of the list of files by their names: a line `<SHA-256>  <name>` for each, sorted by name."""
    lines = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return sha256("".join(lines).encode()).hexdigest()
