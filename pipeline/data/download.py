"""Verified downloads: a mirror first, then each address; resumed, retried, hashed; https only.

DATA_MIRROR, a folder or an https address, is tried first: <mirror>/<data set>/<file>.
"""

import gzip
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pooch
import requests

from pipeline.artifacts import ArtifactError

ATTEMPTS = 3
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """A file, the SHA-256 of its decompressed content and the addresses (folders) that have it."""

    name: str
    sha256: str
    addresses: Sequence[str]


def fetch_all(dataset: str, sources: Sequence[Source], folder: Path) -> None:
    """Bring every file into `folder`, from DATA_MIRROR or the first address that has the right content.

    Raises:
        ArtifactError: with the file, what each address answered, and what to do.
    """
    for source in sources:
        _fetch(dataset, source, folder / source.name)


def _fetch(dataset: str, source: Source, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    mirror = os.environ.get("DATA_MIRROR", "")
    places = [f"{mirror.rstrip('/')}/{dataset}/{source.name}"] if mirror else []
    places += [address + source.name for address in source.addresses]
    partial = target.with_name(target.name + ".part")
    tried = []
    for place in places:
        problem = _try(place, source, partial)
        if problem is None:
            os.replace(partial, target)
            return
        tried.append(f"  {place}: {problem}")
    msg = "\n".join(
        [
            f"{dataset}: could not get {source.name} (SHA-256 of the content {source.sha256}). Tried:",
            *tried,
            f"Without a network, put the file at <folder>/{dataset}/{source.name} and set DATA_MIRROR=<folder>.",
        ]
    )
    raise ArtifactError(msg)


def _try(place: str, source: Source, partial: Path) -> str | None:
    """Bring one place's file to `partial`; return what went wrong, or nothing."""
    if "://" not in place:
        if not Path(place).is_file():
            return "no such file"
        shutil.copyfile(place, partial)
        return _check(partial, source)
    try:
        require_https(place)
    except ValueError as error:
        return str(error)
    problem: str | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2**attempt - 1)
        try:
            _download(place, partial)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            problem = f"HTTP status {status}"
            if status == 416:  # the partial file is longer than the served one
                partial.unlink(missing_ok=True)
            elif status not in {408, 429, 500, 502, 503, 504}:
                break
        except (requests.RequestException, ValueError, OSError) as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            problem = _check(partial, source)
            if problem is None:
                return None
    partial.unlink(missing_ok=True)  # the next address may serve other bytes
    return problem


def _download(address: str, partial: Path) -> None:
    """Append what is missing of `address` to `partial`; pooch streams it with a progress bar."""
    have = partial.stat().st_size if partial.exists() else 0

    def check(response: requests.Response, **_: Any) -> None:
        require_https(response.url)
        if response.is_redirect:  # refused before it is followed
            require_https(urljoin(response.url, response.headers["location"]))
        if have and response.ok and response.status_code != 206 and not response.is_redirect:
            file.truncate(0)  # the server sends the whole file again

    with partial.open("ab") as file:
        headers = {"Accept-Encoding": "identity"}  # a range counts the bytes that are sent
        if have:
            headers["Range"] = f"bytes={have}-"
        downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT, headers=headers, hooks={"response": check})
        downloader(address, file, None)


def require_https(address: str) -> None:
    """Refuse plain http, also after a redirect; this machine's own loopback address is exempt.

    Raises:
        ValueError: naming the address.
    """
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname != "127.0.0.1":
        msg = f"refused {address}: only https is allowed"
        raise ValueError(msg)


def _check(path: Path, source: Source) -> str | None:
    try:
        content = path.read_bytes()
        if source.name.endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        path.unlink()
        return f"not a gzip file: {error}"
    found = hashlib.sha256(content).hexdigest()
    if found == source.sha256:
        return None
    path.unlink()
    return f"wrong content: expected SHA-256 {source.sha256}, found {found}"
