"""Verified downloads: a mirror first, then each address; resumed, retried, hashed; https only.

DATA_MIRROR, a folder or an https address, is tried first: <mirror>/<data set>/<file>. Content with a wrong hash never
gets the file's name. The part that came before an address failed or the process ended is in .state/fetch/, and the
next address, or the next process, asks for the rest.
"""

import gzip
import hashlib
import os
import queue
import re
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3
from filelock import FileLock
from tqdm import tqdm  # type: ignore[import-untyped]

from pipeline.artifacts import STATE, ArtifactError

T = TypeVar("T")
PARTIAL = STATE / "fetch"
ATTEMPTS = 3  # that one address gets in a row without progress
PROGRESS = 1 << 16  # new bytes that count as progress; fewer would let a server hold the process forever
REDIRECTS = 10
TIMEOUT = 30.0  # seconds without a byte
HEADERS = 60.0  # seconds until an answer begins, however its headers drip
PATIENCE = 30.0  # seconds over which the speed is taken
SLOWEST = 10_000  # bytes a second; some servers give 50,000 for hours
LONGEST_WAIT = 60.0  # seconds that Retry-After may ask for before the next address is tried instead
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
CHUNK = 1 << 18  # bytes
AGENT = "Mozilla/5.0 (compatible; generative-experiment-pipeline)"  # wikitext.smerity.com refuses Python's own


@dataclass(frozen=True)
class Source:
    """A file, its SHA-256 and the addresses (folders, each with its last /) that have it.

    gunzip: whether the SHA-256 is that of the decompressed content, which is stored without the ending .gz, because
    gzip headers differ between mirrors; archives and everything else are hashed and stored as they are. limit: bytes
    that neither the file nor its content may exceed.
    """

    name: str
    sha256: str
    addresses: Sequence[str]
    gunzip: bool = False
    limit: int = 1 << 30

    @property
    def stored(self) -> str:
        """Name of the file that `fetch_all` leaves."""
        return self.name.removesuffix(".gz") if self.gunzip else self.name


@dataclass(frozen=True)
class _Failure:
    """Why an attempt failed, and after how many seconds the same address may be asked again; None: never.

    received: bytes of the file that are there afterwards.
    """

    problem: str
    wait: float | None
    received: int = 0


def fetch_all(dataset: str, sources: Sequence[Source], folder: Path) -> None:
    """Bring every file into `folder`, from DATA_MIRROR or the first address that has the right content.

    Raises:
        ArtifactError: with the file, its hash, what each address answered, and what to do.
    """
    for source in sources:
        _fetch(dataset, source, folder / source.stored)


def _fetch(dataset: str, source: Source, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    places = [*_list_mirror(dataset, source), *(address + source.name for address in source.addresses)]
    tried = []
    for place in places:
        problem = _download(place, source, target) if "://" in place else _copy(Path(place), source, target)
        if problem is None:
            _partial(source).unlink(missing_ok=True)
            return
        tried.append(hide_login(f"  {place}: {problem}", place))
    raise ArtifactError(_explain(dataset, source, "the decompressed content" if source.gunzip else "the file", tried))


def _list_mirror(dataset: str, source: Source) -> list[str]:
    """Return the place of a file in the mirror; none without a mirror."""
    mirror = os.path.expanduser(os.environ.get("DATA_MIRROR", ""))  # noqa: PTH111 - may be an address
    return [f"{mirror.rstrip('/')}/{dataset}/{source.name}"] if mirror else []


def _explain(dataset: str, source: Source, hashed: str, tried: Sequence[str]) -> str:
    """Return the message about a file that no place had; hashed: what its hash is of."""
    return "\n".join(
        [
            f"{dataset}: could not get {source.name} (SHA-256 of {hashed} {source.sha256}). Tried:",
            *tried,
            f"Without a network, put the file at <folder>/{dataset}/{source.name} and set DATA_MIRROR=<folder>.",
        ]
    )


def hide_login(text: str, address: str) -> str:
    """Return a text without the name and the password that an address has between :// and @.

    A message may quote them as they are, decoded, or in part: a password with a slash ends where a host's name would.
    """
    login = address.partition("://")[2].rpartition("@")[0]
    parts = {login, *(part for part in re.split("[:/?#@]", login) if len(part) > 3)} - {""}  # shorter ones are in words
    for part in sorted({*parts, *map(unquote, parts)}, key=len, reverse=True):
        text = text.replace(part, "***")
    return text


def _partial(source: Source) -> Path:
    return PARTIAL / f"{source.sha256}.part"


def _copy(path: Path, source: Source, target: Path) -> str | None:
    """Copy a mirror's file; return what is wrong with it, or nothing."""
    return _accept(path, source, target) if path.is_file() else "no such file"


def _download(address: str, source: Source, target: Path) -> str | None:
    """Bring one address's file, in several attempts; return what went wrong, or nothing."""
    partial = _partial(source)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(partial.with_suffix(".lock")):  # two processes never write one file
        most, failures = _size(partial), 0
        while True:
            failure = _attempt(address, source, partial, target, pause=2.0 ** (failures + 1) - 1)
            if failure is None:
                return None
            failures = 1 if failure.received >= most + PROGRESS else failures + 1
            most = max(most, failure.received)
            if failure.wait is None or failures == ATTEMPTS:
                return failure.problem
            time.sleep(failure.wait)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(address: str, source: Source, partial: Path, target: Path, pause: float) -> _Failure | None:
    have = _size(partial)
    try:
        _append(address, partial, have, source)
    except requests.HTTPError as error:
        if _is_beyond_the_end(error) and _accept(partial, source, target) is None:
            return None  # the former process had all of it
        return _judge(error, partial, pause)
    except ValueError as error:  # a refusal, or no address at all
        return _Failure(str(error), wait=None)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        return _Failure(f"{type(error).__name__}: {error}", pause, _size(partial))
    received = _size(partial)
    problem = _accept(partial, source, target)
    if problem is None:
        return None
    partial.unlink()
    return _Failure(problem, pause if have else None, received)  # a whole file that is wrong stays wrong


def _is_beyond_the_end(error: requests.HTTPError) -> bool:
    return error.response is not None and error.response.status_code == 416


def _judge(error: requests.HTTPError, partial: Path, pause: float) -> _Failure:
    """Say what an answer that is no success means for the next attempt."""
    response = error.response
    if response is None:
        return _Failure(str(error), wait=None)
    problem = f"HTTP status {response.status_code}"
    if _is_beyond_the_end(error):  # the partial file is longer than the served one
        partial.unlink(missing_ok=True)
        return _Failure(problem, pause)
    if response.status_code not in BUSY:
        return _Failure(problem, wait=None)
    asked = _read_retry_after(response.headers.get("Retry-After", ""))
    if asked > LONGEST_WAIT:
        return _Failure(f"{problem}, asks to come back after {asked:.0f} s", wait=None)
    return _Failure(problem, max(asked, pause))


def _read_retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 if it says nothing readable."""
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _append(address: str, partial: Path, have: int, source: Source) -> None:
    """Append to `partial`, which has `have` bytes, what is missing of `address`, with a progress bar."""
    with _open(address, have) as response, partial.open("ab") as file:
        begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and (response.status_code != 206 or not begins):
            file.truncate(0)
            if response.status_code == 206:
                msg = f"asked for bytes from {have}, got {response.headers.get('Content-Range')!r}"
                raise OSError(msg)
            have = 0  # the server sends the whole file again
        length = int(response.headers.get("Content-Length", -1))
        total = have + length if length >= 0 else None
        with tqdm(total=total, initial=have, desc=source.name, unit="B", unit_scale=True, disable=None) as bar:
            for block in _read_blocks(response):
                if have + len(block) > source.limit:
                    file.truncate(0)
                    msg = f"refused: longer than {source.limit} bytes"
                    raise ValueError(msg)
                file.write(block)
                have += len(block)
                bar.update(len(block))


def _open(address: str, start: int) -> requests.Response:
    """Ask for a file from byte `start` on, through redirects of which each is checked before it is followed."""
    headers = {"Accept-Encoding": "identity", "User-Agent": AGENT}  # a range counts the bytes that are sent
    if start:
        headers["Range"] = f"bytes={start}-"
    encrypted = False
    for _ in range(REDIRECTS + 1):
        require_https(address, even_here=encrypted)
        encrypted = urlsplit(address).scheme == "https"
        response = _ask(address, headers)
        if response.ok and not response.is_redirect:
            return response
        response.close()
        response.raise_for_status()
        address = urljoin(address, response.headers["Location"])
    msg = f"refused: more than {REDIRECTS} redirects"
    raise ValueError(msg)


def _ask(address: str, headers: dict[str, str]) -> requests.Response:
    """Send one GET with the environment's proxies and certificates; the body is still to be read.

    The adapter is asked itself, because a session reads the body of a redirect, however long it is.

    Raises:
        TimeoutError: if the headers are not there after HEADERS seconds.
    """

    def send() -> requests.Response:
        session = requests.Session()
        request = session.prepare_request(requests.Request("GET", address, headers=headers))
        settings = session.merge_environment_settings(address, {}, stream=True, verify=None, cert=None)
        return session.get_adapter(address).send(request, timeout=TIMEOUT, **settings)

    return _within(HEADERS, send)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns, or raise what it raises.

    No library bounds the time of headers, of a chunk's size line or of a trailer, but only that between two bytes. So
    a thread waits for them, and is left to itself in the end.

    Raises:
        TimeoutError: if the call takes longer.
    """
    answers: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            answers.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty:
        msg = f"no answer within {seconds:g} s"
        raise TimeoutError(msg) from None
    if error is not None:
        raise error
    return cast("T", value)


def _read_blocks(response: requests.Response) -> Iterator[bytes]:
    """Yield the bytes of an answer as they come.

    Raises:
        TimeoutError: if fewer than SLOWEST bytes a second came during PATIENCE seconds; a server that sends a byte now
            and then would hold the process for ever.
    """
    since, received = time.monotonic(), 0
    while block := _read_block(response):
        yield block
        received += len(block)
        seconds = time.monotonic() - since
        if seconds >= PATIENCE:
            if received < SLOWEST * seconds:
                msg = f"slower than {SLOWEST} bytes a second: {received} bytes in {seconds:.0f} s"
                raise TimeoutError(msg)
            since, received = time.monotonic(), 0


def _read_block(response: requests.Response) -> bytes:
    try:
        return _within(TIMEOUT, lambda: response.raw.read1(CHUNK))
    except TimeoutError:
        response.raw.shutdown()  # else closing would wait for the thread that still reads
        raise


def require_https(address: str, *, even_here: bool = False) -> None:
    """Refuse plain http, also after a redirect; this machine's own loopback address is exempt, unless `even_here`.

    A server that was asked through https must not lead to a port of this machine, where anybody may listen.

    Raises:
        ValueError: naming the address.
    """
    parts = urlsplit(address)
    if parts.scheme != "https" and (even_here or parts.hostname != "127.0.0.1"):
        msg = f"refused {address}: only https is allowed"
        raise ValueError(msg)


def _accept(path: Path, source: Source, target: Path) -> str | None:
    """Copy a file, decompressed if the source asks for it, to `target` if its content is right; else say what is wrong.

    The copy gets its name when it is whole, and hashed.
    """
    found, size = hashlib.sha256(), 0
    copy = target.with_name(target.name + ".tmp")
    try:
        with gzip.open(path) if source.gunzip else path.open("rb") as file, copy.open("wb") as written:
            while block := file.read(CHUNK):
                size += len(block)
                if size > source.limit:
                    return f"longer than {source.limit} bytes"
                found.update(block)
                written.write(block)
        if found.hexdigest() != source.sha256:
            return f"wrong content: expected SHA-256 {source.sha256}, found {found.hexdigest()}"
        os.replace(copy, target)
    except (OSError, EOFError, zlib.error) as error:
        return f"not a gzip file: {error}" if source.gunzip else f"not readable: {type(error).__name__}: {error}"
    finally:
        copy.unlink(missing_ok=True)
    return None


def fetch_archive(dataset: str, source: Source, measure: Callable[[Path], str], folder: Path) -> None:
    """Bring an archive into `folder` whose bytes change when a server packs it, while its content has a known hash.

    Nothing is resumed, because two answers may differ in their bytes.

    Args:
        dataset: folder of the mirror.
        source: the hash of the content; the addresses are those of the archive itself, whatever its name there.
        measure: returns the hash of the content of an archive, or raises ArtifactError.
        folder: gets the archive under the source's name.

    Raises:
        ArtifactError: with the file, its hash, what each address answered, and what to do.
    """
    target, partial = folder / source.name, _partial(source)
    partial.parent.mkdir(parents=True, exist_ok=True)
    tried = []
    for place in [*_list_mirror(dataset, source), *source.addresses]:
        try:
            with FileLock(partial.with_suffix(".lock")):
                if "://" in place:
                    _append(place, partial, 0, source)
                else:
                    shutil.copyfile(place, partial)
                found = measure(partial)
                if found == source.sha256:
                    os.replace(partial, target)
                    return
                problem = f"wrong content: expected SHA-256 {source.sha256}, found {found}"
        except (ArtifactError, ValueError, OSError, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            problem = str(error)
        finally:
            partial.unlink(missing_ok=True)
        tried.append(hide_login(f"  {place}: {problem}", place))
    raise ArtifactError(_explain(dataset, source, "the content", tried))
