"""Downloads from a real HTTP server on this machine that answers wrongly in every way that servers do."""

import gzip
import hashlib
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from pipeline.artifacts import ArtifactError
from pipeline.formats import download
from pipeline.formats.download import ATTEMPTS, LONGEST_WAIT, Source, fetch_all, fetch_archive, require_https

ROOT = Path(__file__).resolve().parents[2]
CONTENT = bytes(range(256)) * 800  # 200 KiB: several network packets
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ELSEWHERE = "http://192.0.2.1/"  # TEST-NET-1 of RFC 5737, nobody's; a connection there fails the test in conftest.py

Answer = Callable[[BaseHTTPRequestHandler], None]


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"content_length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def whole(body: bytes) -> Answer:
    """Answer with the whole file, whatever range was asked for."""
    return lambda handler: send(handler, 200, body)


def ranged(body: bytes, **headers: str) -> Answer:
    """Answer with the bytes that were asked for, as RFC 9110 says."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        if asked is None:
            send(handler, 200, body, **headers)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            send(handler, 416, content_range=f"bytes */{len(body)}")
        else:
            send(handler, 206, body[start:], content_range=f"bytes {start}-{len(body) - 1}/{len(body)}", **headers)

    return answer


def broken_off(body: bytes, length: int, **headers: str) -> Answer:
    """Announce the whole file and close the connection after `length` bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, body[:length], content_length=str(len(body)), **headers)

    return answer


def compressing(answer: Callable[..., Answer]) -> Answer:
    """Answer with CONTENT, compressed for the transfer if the client accepts that, as servers of text do."""

    def compressed(handler: BaseHTTPRequestHandler) -> None:
        if "gzip" in handler.headers.get("Accept-Encoding", ""):
            answer(gzip.compress(CONTENT), content_encoding="gzip")(handler)
        else:
            answer(CONTENT)(handler)

    return compressed


def status(code: int, **headers: str) -> Answer:
    return lambda handler: send(handler, code, b"<html>not the file</html>", **headers)


def dripping(body: bytes, size: int, seconds: float) -> Answer:
    """Announce the whole file, and send `size` bytes every few `seconds` until the client goes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, b"", content_length=str(len(body)))
        with suppress(OSError):
            for start in range(0, len(body), size):
                handler.wfile.write(body[start : start + size])
                threading.Event().wait(seconds)

    return answer


def unannounced(body: bytes) -> Answer:
    """Send bytes without their number: the end of the connection is their end."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(body)

    return answer


def reset(body: bytes) -> Answer:
    """Send bytes of a longer file and break the connection as a machine that restarts does (RST)."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, body, content_length=str(len(CONTENT)))
        handler.wfile.flush()
        threading.Event().wait(0.05)  # a reset discards what has not been read
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return answer


def redirect(address: str) -> Answer:
    return lambda handler: send(handler, 302, location=address)


class Server:
    """Answers each path with its list of answers in turn, the last one for ever, and keeps what was asked."""

    def __init__(self, watched: Path) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.target_seen: list[bool] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Range")))
                outer.target_seen.append(watched.exists())
                answers = outer.answers.get(self.path, [status(404)])
                (answers.pop(0) if len(answers) > 1 else answers[0])(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    @property
    def starts(self) -> list[int]:
        """The byte that each request began with."""
        return [int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0 for _, asked in self.asked]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "raw" / "digits" / "file.bin"


@pytest.fixture
def server(target: Path) -> Iterator[Server]:
    yield from serve(target)


@pytest.fixture
def other(target: Path) -> Iterator[Server]:
    yield from serve(target)


def serve(target: Path) -> Iterator[Server]:
    server = Server(target)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """A folder of its own, no mirror, no proxy, and no waiting: the pauses between attempts are only kept."""
    monkeypatch.chdir(tmp_path)
    seconds: list[float] = []
    monkeypatch.setattr("pipeline.formats.download.time.sleep", seconds.append)
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")
    return seconds


@pytest.fixture
def closed() -> str:
    """An address of this machine where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"


def fetch(target: Path, *addresses: str, sha256: str = SHA256, limit: int = 1 << 20) -> None:
    """Fetch one file; that of packed.txt is served as packed.txt.gz."""
    packed = target.name == "packed.txt"
    source = Source(target.name + ".gz" * packed, sha256, addresses, gunzip=packed, limit=limit)
    fetch_all("digits", [source], target.parent)


def refusal(target: Path, *addresses: str, sha256: str = SHA256, limit: int = 1 << 20) -> str:
    """The message of a download that fails; it must leave nothing behind."""
    with pytest.raises(ArtifactError) as caught:
        fetch(target, *addresses, sha256=sha256, limit=limit)
    assert list(target.parent.iterdir()) == []
    return str(caught.value)


def failure(target: Path, *addresses: str) -> str:
    """The message of a download that fails beside what is there."""
    with pytest.raises(ArtifactError) as caught:
        fetch(target, *addresses)
    return str(caught.value)


def assert_fetched(target: Path, content: bytes = CONTENT) -> None:
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]  # no partial file is left, here ...
    assert list(download.PARTIAL.glob("*.part")) == []  # ... or there


def test_the_right_file_is_kept_after_one_request(server: Server, target: Path, waits: list[float]) -> None:
    server.answers["/file.bin"] = [whole(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert server.asked == [("/file.bin", None)]
    assert waits == []


def test_every_file_of_a_data_set_is_fetched(server: Server, tmp_path: Path) -> None:
    bodies = {f"part{index}": bytes([index]) * 10 for index in range(3)}
    server.answers = {f"/v1/{name}": [whole(body)] for name, body in bodies.items()}
    sources = [
        Source(name, hashlib.sha256(body).hexdigest(), [server.address + "v1/"]) for name, body in bodies.items()
    ]
    fetch_all("parts", sources, tmp_path / "raw")
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()} == bodies


@pytest.mark.parametrize("seconds", [0, 1_234_567_890])
def test_the_hash_of_a_gz_file_is_that_of_its_content_whatever_its_header_says(
    server: Server, target: Path, seconds: int
) -> None:
    path = target.with_name("packed.txt")
    body = gzip.compress(CONTENT, compresslevel=1 + seconds % 9, mtime=seconds)
    server.answers["/packed.txt.gz"] = [whole(body)]
    fetch(path, server.address)
    assert_fetched(path)


def test_a_gz_file_of_other_content_is_refused(server: Server, target: Path) -> None:
    server.answers["/packed.txt.gz"] = [whole(gzip.compress(CONTENT + b"."))]
    message = refusal(target.with_name("packed.txt"), server.address)
    assert hashlib.sha256(CONTENT + b".").hexdigest() in message


def damaged(position: int, value: int) -> bytes:
    body = bytearray(gzip.compress(CONTENT, mtime=0))
    body[position] = value
    return bytes(body)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Too many downloads</html>",
        damaged(10, 0x07),  # the first deflate block has the type 3, which does not exist
        damaged(-8, 0),  # another CRC
        gzip.compress(CONTENT)[:-20],
        gzip.compress(CONTENT) + b"more",
        b"",
    ],
    ids=["html", "deflate", "crc", "short", "long", "empty"],
)
def test_a_damaged_gz_file_is_refused_and_the_next_address_used(server: Server, target: Path, body: bytes) -> None:
    path = target.with_name("packed.txt")
    right = gzip.compress(CONTENT)
    server.answers = {"/one/packed.txt.gz": [whole(body)], "/two/packed.txt.gz": [whole(right)]}
    fetch(path, server.address + "one/", server.address + "two/")
    assert_fetched(path)


def test_wrong_bytes_at_the_first_address_lead_to_the_second(server: Server, target: Path) -> None:
    changed = bytearray(CONTENT)
    changed[1000] ^= 1
    server.answers = {"/one/file.bin": [whole(bytes(changed))], "/two/file.bin": [whole(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)
    assert server.paths[-1] == "/two/file.bin"
    assert {asked for _, asked in server.asked} == {None}  # nothing of the wrong file is continued


@pytest.mark.fault(34)
def test_wrong_bytes_everywhere_are_refused_with_both_hashes(server: Server, target: Path) -> None:
    server.answers["/file.bin"] = [whole(b"something else")]
    message = refusal(target, server.address)
    assert f"expected SHA-256 {SHA256}, found {hashlib.sha256(b'something else').hexdigest()}" in message


@pytest.mark.parametrize("code", [403, 404, 410])
def test_an_address_without_the_file_is_asked_once(server: Server, target: Path, code: int, waits: list[float]) -> None:
    server.answers = {"/one/file.bin": [status(code)], "/two/file.bin": [whole(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)
    assert server.paths == ["/one/file.bin", "/two/file.bin"]
    assert waits == []


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again_after_growing_pauses(
    server: Server, target: Path, code: int, waits: list[float]
) -> None:
    server.answers["/file.bin"] = [status(code), status(code), whole(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert len(server.asked) == 3
    assert 0 < waits[0] < waits[1]


def test_a_server_that_stays_busy_is_given_up(server: Server, target: Path) -> None:
    server.answers = {"/one/file.bin": [status(500)], "/two/file.bin": [whole(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)
    assert server.paths == ["/one/file.bin"] * ATTEMPTS + ["/two/file.bin"]


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_asked_again_after_the_seconds_that_it_asks_for(
    server: Server, target: Path, code: int, waits: list[float]
) -> None:
    server.answers["/file.bin"] = [status(code, retry_after="17"), whole(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert waits == [17]


def test_a_busy_server_may_ask_for_a_date(server: Server, target: Path, waits: list[float]) -> None:
    date = formatdate(time.time() + 30, usegmt=True)
    server.answers["/file.bin"] = [status(429, retry_after=date), whole(CONTENT)]
    fetch(target, server.address)
    assert 25 < waits[0] <= 30


@pytest.mark.parametrize("value", ["soon", "-5", "1e9", "", "\xb2", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_wait_that_is_unreadable_or_over_is_not_honoured(
    server: Server, target: Path, value: str, waits: list[float]
) -> None:
    server.answers["/file.bin"] = [status(429, retry_after=value), whole(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert waits == [1]


def test_a_server_that_asks_for_an_hour_is_left_for_the_next(server: Server, target: Path, waits: list[float]) -> None:
    server.answers = {"/one/file.bin": [status(429, retry_after="3600")], "/two/file.bin": [whole(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)
    assert server.paths == ["/one/file.bin", "/two/file.bin"]
    assert waits == []
    assert LONGEST_WAIT < 3600
    server.answers["/two/file.bin"] = [status(404)]
    target.unlink()
    assert "HTTP status 429, asks to come back after 3600 s" in refusal(target, server.address + "one/")


def test_a_whole_file_that_is_wrong_is_not_downloaded_again(server: Server, target: Path) -> None:
    server.answers["/file.bin"] = [whole(b"something else")]
    refusal(target, server.address)
    assert len(server.asked) == 1


def test_a_server_that_drips_is_left_for_the_next_long_before_the_file_is_there(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A byte every 10 ms never runs into the time limit of a single read, and would take half an hour.
    monkeypatch.setattr("pipeline.formats.download.PATIENCE", 0.1)
    server.answers = {"/one/file.bin": [dripping(CONTENT, 1, 0.01)], "/two/file.bin": [whole(CONTENT)]}
    begin = time.monotonic()
    fetch(target, server.address + "one/", server.address + "two/")
    assert time.monotonic() - begin < 2
    assert_fetched(target)
    assert server.paths == ["/one/file.bin"] * ATTEMPTS + ["/two/file.bin"]
    server.answers["/two/file.bin"] = [status(404)]
    target.unlink()
    assert "/one/file.bin: TimeoutError: slower than 10000 bytes a second" in refusal(target, server.address + "one/")


@pytest.mark.fault(71)
@pytest.mark.parametrize("begin", [b"1;", b"1\r\na\r\n0\r\nx: "], ids=["size of a chunk", "trailer"])
def test_a_server_that_drips_what_is_not_the_file_is_left_for_the_next(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    # Python's http.client reads both to the end of the line, up to 65,536 bytes, before anyone sees a byte.
    monkeypatch.setattr("pipeline.formats.download.TIMEOUT", 0.05)
    monkeypatch.setattr("pipeline.formats.download.ATTEMPTS", 1)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + begin)
            for _ in range(200):
                handler.wfile.write(b"x")
                threading.Event().wait(0.02)

    server.answers = {"/one/file.bin": [drip], "/two/file.bin": [whole(CONTENT)]}
    start = time.monotonic()
    fetch(target, server.address + "one/", server.address + "two/")
    assert time.monotonic() - start < 2
    assert_fetched(target)


def test_a_server_of_50_kilobytes_a_second_is_waited_for(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That is what the home of CIFAR-10 gives.
    monkeypatch.setattr("pipeline.formats.download.PATIENCE", 0.2)
    body = CONTENT[:30_000]
    server.answers["/file.bin"] = [dripping(body, 500, 0.01)]
    fetch(target, server.address, sha256=hashlib.sha256(body).hexdigest())
    assert_fetched(target, body)
    assert len(server.asked) == 1


def test_a_server_that_falls_silent_is_asked_for_the_rest(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.formats.download.TIMEOUT", 0.2)
    server.answers["/file.bin"] = [dripping(CONTENT, 70_000, 1), ranged(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert server.starts == [0, 70_000]


def test_a_connection_that_is_reset_is_resumed(server: Server, target: Path) -> None:
    server.answers["/file.bin"] = [reset(CONTENT[:70_000]), ranged(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert server.starts[0] == 0
    assert 0 < server.starts[1] <= 70_000


def test_a_server_that_is_gone_in_the_middle_is_left_for_the_next(server: Server, other: Server, target: Path) -> None:
    def gone(handler: BaseHTTPRequestHandler) -> None:
        server.http.shutdown()
        server.http.server_close()  # nobody listens any more: the next connection is refused
        broken_off(CONTENT, 70_000)(handler)

    server.answers["/file.bin"] = [gone]
    other.answers["/file.bin"] = [ranged(CONTENT)]
    fetch(target, server.address, other.address)
    assert_fetched(target)
    assert len(server.asked) == 1
    assert other.starts == [70_000]


def test_a_file_that_is_cut_off_at_its_home_leads_to_the_next(server: Server, target: Path) -> None:
    for answer in (whole(CONTENT[:70_000]), unannounced(CONTENT[:70_000])):  # no length tells
        server.answers = {"/one/file.bin": [answer], "/two/file.bin": [whole(CONTENT)]}
        fetch(target, server.address + "one/", server.address + "two/")
        assert_fetched(target)


def test_a_chunked_transfer_without_its_last_chunk_is_not_complete(server: Server, target: Path) -> None:
    def chunked(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n" % (70_000, CONTENT[:70_000]))
        handler.close_connection = True

    server.answers["/file.bin"] = [chunked, ranged(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert server.starts == [0, 70_000]


def test_another_range_than_was_asked_for_is_not_glued_to_what_is_there(server: Server, target: Path) -> None:
    def shifted(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 206, CONTENT[-500:], content_range=f"bytes {len(CONTENT) - 500}-{len(CONTENT) - 1}/*")

    server.answers["/file.bin"] = [broken_off(CONTENT, 70_000), shifted, ranged(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert server.starts[2] == 0


@pytest.mark.fault(71)
@pytest.mark.parametrize("said", ["bytes 1000-204799/204800", "bytes 1000-999999999999/5", "bytes 1000-"])
def test_bytes_under_a_false_range_are_thrown_away_and_the_next_address_asked(
    server: Server, target: Path, said: str
) -> None:
    download.PARTIAL.mkdir(parents=True)
    (download.PARTIAL / f"{SHA256}.part").write_bytes(CONTENT[:1000])
    lie: Answer = lambda handler: send(handler, 206, CONTENT[5000:], content_range=said)  # noqa: E731
    server.answers = {"/one/file.bin": [lie, status(404)], "/two/file.bin": [ranged(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)
    assert server.starts == [1000, 0, 0]


def test_a_server_that_sends_without_end_is_stopped_at_the_limit(server: Server, target: Path) -> None:
    server.answers["/file.bin"] = [unannounced(bytes(1 << 22))]
    assert "refused: longer than 300000 bytes" in refusal(target, server.address, limit=300_000)
    assert len(server.asked) == 1


def test_a_gzip_bomb_is_stopped_at_the_limit(server: Server, target: Path) -> None:
    server.answers["/packed.txt.gz"] = [whole(gzip.compress(bytes(1 << 22)))]
    assert "longer than 300000 bytes" in refusal(target.with_name("packed.txt"), server.address, limit=300_000)


def test_hashing_a_large_file_takes_little_memory(server: Server, target: Path) -> None:
    content = bytes(1 << 25)
    server.answers["/packed.txt.gz"] = [whole(gzip.compress(content, compresslevel=1))]
    tracemalloc.start()
    fetch(target.with_name("packed.txt"), server.address, sha256=hashlib.sha256(content).hexdigest(), limit=1 << 26)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(content) / 8


def test_a_gz_file_that_the_server_calls_an_encoding_is_not_unpacked(server: Server, target: Path) -> None:
    # Some servers declare the compression of the file itself as one of the transfer.
    body = gzip.compress(CONTENT)
    server.answers["/packed.txt.gz"] = [lambda handler: send(handler, 200, body, content_encoding="gzip")]
    fetch(target.with_name("packed.txt"), server.address)
    assert_fetched(target.with_name("packed.txt"))


def test_the_body_of_a_redirect_is_not_read(server: Server, target: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 302, location="/moved/file.bin", content_length="1000000")
        threading.Event().wait(2)

    server.answers = {"/file.bin": [answer], "/moved/file.bin": [whole(CONTENT)]}
    begin = time.monotonic()
    fetch(target, server.address)
    assert time.monotonic() - begin < 1
    assert_fetched(target)


def test_python_is_not_named_to_servers_that_refuse_it(server: Server, target: Path) -> None:
    agents: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        agents.append(handler.headers["User-Agent"])
        whole(CONTENT)(handler)

    server.answers["/file.bin"] = [answer]
    fetch(target, server.address)
    assert "python" not in agents[0].lower()


def test_a_terminal_shows_the_progress_of_what_is_resumed_too(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    server.answers["/file.bin"] = [broken_off(CONTENT, 70_000), ranged(CONTENT)]
    fetch(target, server.address)
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("file.bin: 100%")
    assert "205k/205k" in last


def assert_resumed(begin: int, length: int) -> None:
    """Of the `length` bytes that came, all whole blocks that the client reads are kept."""
    assert length - 4096 < begin <= length


@pytest.mark.parametrize("length", [5000, 70_000, len(CONTENT) - 1])
def test_a_transfer_that_broke_off_goes_on_where_it_was(server: Server, target: Path, length: int) -> None:
    server.answers["/file.bin"] = [broken_off(CONTENT, length), ranged(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    first, second = server.starts
    assert first == 0
    assert_resumed(second, length)
    assert server.target_seen == [False, False]  # half a file never has the file's name


def test_a_server_that_ignores_ranges_sends_the_whole_file_again(server: Server, target: Path) -> None:
    server.answers["/file.bin"] = [broken_off(CONTENT, 70_000), whole(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    first, second = server.starts
    assert first == 0
    assert_resumed(second, 70_000)  # it was asked for the rest


def test_a_transfer_goes_on_behind_a_redirect(server: Server, target: Path) -> None:
    server.answers["/file.bin"] = [redirect(server.address + "moved/file.bin")]
    server.answers["/moved/file.bin"] = [broken_off(CONTENT, 70_000), ranged(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert server.paths == ["/file.bin", "/moved/file.bin"] * 2
    assert server.starts[:2] == [0, 0]
    assert_resumed(server.starts[3], 70_000)


def test_a_transfer_goes_on_from_a_server_that_would_compress_it(server: Server, target: Path) -> None:
    # A range counts the bytes that are sent: had they been compressed, the rest would not fit to what was unpacked.
    half = len(gzip.compress(CONTENT)) // 2
    server.answers["/file.bin"] = [
        compressing(lambda body, **headers: broken_off(body, half, **headers)),
        compressing(ranged),
    ]
    fetch(target, server.address)
    assert_fetched(target)
    assert len(server.asked) == 2


def test_what_broke_off_at_one_address_goes_on_at_the_next(server: Server, target: Path) -> None:
    server.answers = {"/one/file.bin": [broken_off(CONTENT, 70_000), status(404)], "/two/file.bin": [ranged(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)
    assert server.paths == ["/one/file.bin", "/one/file.bin", "/two/file.bin"]
    assert_resumed(server.starts[2], 70_000)


def test_a_wrong_beginning_is_thrown_away_and_the_file_asked_for_from_its_first_byte(
    server: Server, target: Path
) -> None:
    other = CONTENT[::-1]
    server.answers = {"/one/file.bin": [broken_off(other, 70_000), status(404)], "/two/file.bin": [ranged(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)
    assert server.starts[2] > 0
    assert server.asked[3:] == [("/two/file.bin", None)]


def test_attempts_that_bring_bytes_are_not_counted(server: Server, target: Path) -> None:
    lengths = [70_000, 140_000]  # each further by more than PROGRESS

    def piece(stop: int) -> Answer:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            rest = {"content_length": str(len(CONTENT) - start)}
            if start:
                rest["content_range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            send(handler, 206 if start else 200, CONTENT[start:stop], **rest)

        return answer

    server.answers["/file.bin"] = [status(503), *map(piece, lengths), status(503), ranged(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert len(server.asked) == 5 > ATTEMPTS


def test_a_server_that_brings_a_little_each_time_is_given_up(server: Server, target: Path) -> None:
    server.answers["/file.bin"] = [broken_off(CONTENT, 1000)]
    assert "IncompleteRead" in refusal(target, server.address)
    assert len(server.asked) == ATTEMPTS


@pytest.mark.parametrize(
    "leftover", [CONTENT[:500], CONTENT, CONTENT + b"more", b"of another file"], ids=["begun", "all", "more", "other"]
)
@pytest.mark.parametrize("answer", [ranged, whole])
def test_a_leftover_of_a_process_that_was_killed_does_no_harm(
    server: Server, target: Path, leftover: bytes, answer: Callable[[bytes], Answer]
) -> None:
    download.PARTIAL.mkdir(parents=True)
    (download.PARTIAL / f"{SHA256}.part").write_bytes(leftover)
    server.answers["/file.bin"] = [answer(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)


STAGE = """
import sys
from pipeline.data import shakespeare
from pipeline.stages import fetch
shakespeare.SHA256, shakespeare.ADDRESSES = sys.argv[1], ()
fetch.main("text")
"""


def test_a_fetch_that_was_killed_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    values = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("source: numpy_docs", "source: shakespeare")
    (tmp_path / "params.yaml").write_text(values, encoding="utf-8")
    server.answers["/shakespeare/input.txt"] = [dripping(CONTENT, 140_000, 60), ranged(CONTENT)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DATA_MIRROR": server.address}
    command = [sys.executable, "-c", STAGE, SHA256]
    partial = tmp_path / download.PARTIAL / f"{SHA256}.part"
    with subprocess.Popen(command, env=environment) as process:
        end = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size > 100_000) and time.monotonic() < end:
            threading.Event().wait(0.02)
        process.kill()
    assert partial.stat().st_size > 100_000
    subprocess.run(command, env=environment, check=True)
    assert server.starts[0] == 0
    assert server.starts[1] > 100_000
    assert (tmp_path / "data" / "raw" / "text" / "input.txt").read_bytes() == CONTENT
    assert not partial.exists()


def test_headers_that_drip_are_waited_for_a_bounded_time(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each byte comes in time for a single read; whole headers would take minutes.
    monkeypatch.setattr("pipeline.formats.download.HEADERS", 0.3)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(100):
                handler.wfile.write(b"X")
                threading.Event().wait(0.05)

    server.answers = {"/one/file.bin": [drip], "/two/file.bin": [whole(CONTENT)]}
    begin = time.monotonic()
    fetch(target, server.address + "one/", server.address + "two/")
    assert time.monotonic() - begin < 3
    assert_fetched(target)
    server.answers["/two/file.bin"] = [status(404)]
    assert "/one/file.bin: TimeoutError: no answer within 0.3 s" in failure(target, server.address + "one/")


def test_a_redirect_on_the_same_machine_is_followed(server: Server, target: Path) -> None:
    server.answers = {"/file.bin": [redirect("/moved/file.bin")], "/moved/file.bin": [whole(CONTENT)]}
    fetch(target, server.address)
    assert_fetched(target)


@pytest.mark.fault(34)
def test_a_redirect_to_plain_http_is_refused_before_anyone_is_asked(server: Server, target: Path) -> None:
    # The connection itself, before any hash is checked, would tell the network what is fetched.
    server.answers["/file.bin"] = [redirect(ELSEWHERE + "file.bin")]
    assert f"refused {ELSEWHERE}file.bin: only https is allowed" in refusal(target, server.address)


def test_a_redirect_to_plain_http_leads_to_the_next_address(server: Server, target: Path) -> None:
    server.answers = {"/one/file.bin": [redirect(ELSEWHERE + "file.bin")], "/two/file.bin": [whole(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)


@pytest.mark.fault(69)
@pytest.mark.parametrize("end", ["http://127.0.0.1:5000/file.bin", "HTTP://127.0.0.1/", "https://192.0.2.1/x"])
def test_https_never_leads_to_plain_http_on_this_machine(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    asked: list[str] = []

    def answer(address: str, _: dict[str, str]) -> requests.Response:
        asked.append(address)
        response = requests.Response()
        response.status_code = 302 if len(asked) == 1 else 200
        response.headers["Location"] = end
        response.raw = io.BytesIO()
        return response

    monkeypatch.setattr(download, "_ask", answer)
    if end.startswith("https"):
        download._open("https://example.com/x", 0)
        assert asked == ["https://example.com/x", end]
    else:
        with pytest.raises(ValueError, match=f"refused {end}: only https is allowed"):
            download._open("https://example.com/x", 0)
        assert asked == ["https://example.com/x"]


@pytest.mark.fault(68)
@pytest.mark.parametrize(
    "mirror",
    [
        "http://ada:s3cret%2Fword@{}",
        "http://ada:s3cret/word@{}",
        "http://ada:s3cret%2Fword@192.0.2.1",
        "https://ada:s3cret#word@{}",
        "ftp://ada:s3cret%2fword@{}",
    ],
)
def test_a_login_in_the_address_of_a_mirror_is_in_no_message(
    server: Server, target: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.formats.download.ATTEMPTS", 1)
    address = mirror.format(server.address.removeprefix("http://").rstrip("/"))
    monkeypatch.setenv("DATA_MIRROR", address)
    message = refusal(target)
    assert "s3cret" not in message
    assert "word@" not in message
    assert "://***@" in message


def test_a_redirect_in_a_circle_ends(server: Server, target: Path) -> None:
    server.answers["/file.bin"] = [redirect("/file.bin")]
    assert "redirects" in refusal(target, server.address)


@pytest.mark.fault(34)
def test_a_plain_http_address_is_refused_without_asking(target: Path) -> None:
    assert f"refused {ELSEWHERE}file.bin: only https is allowed" in refusal(target, ELSEWHERE)


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/x",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "http://127.0.0.1.example.com/x",
        "http://127.0.0.1@example.com/x",
        "//example.com/x",
    ],
)
@pytest.mark.fault(34)
def test_only_https_is_allowed(address: str) -> None:
    with pytest.raises(ValueError, match="only https is allowed") as caught:
        require_https(address)
    assert address in str(caught.value)


@pytest.mark.parametrize("address", ["https://example.com/x", "HTTPS://example.com/x", "http://127.0.0.1:8000/x"])
def test_https_and_this_machine_are_allowed(address: str) -> None:
    require_https(address)


def test_the_mirror_folder_comes_first(
    server: Server, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "digits").mkdir(parents=True)
    (mirror / "digits" / "file.bin").write_bytes(CONTENT)
    server.answers["/file.bin"] = [whole(CONTENT)]
    for spelling in (str(mirror), f"{mirror}/"):
        monkeypatch.setenv("DATA_MIRROR", spelling)
        fetch(target, server.address)
        assert_fetched(target)
        assert server.asked == []
        target.unlink()
    assert (mirror / "digits" / "file.bin").read_bytes() == CONTENT  # copied, not moved


def test_the_mirror_may_be_in_the_home_folder(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mirror" / "digits").mkdir(parents=True)
    (tmp_path / "mirror" / "digits" / "file.bin").write_bytes(CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_MIRROR", "~/mirror")
    fetch(target)
    assert_fetched(target)


@pytest.mark.parametrize("content", [b"something else", None])
def test_a_mirror_with_a_wrong_or_no_file_is_passed_over_and_left_alone(
    server: Server, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    path = tmp_path / "mirror" / "digits" / "file.bin"
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path / "mirror"))
    server.answers["/file.bin"] = [whole(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)
    assert server.asked == [("/file.bin", None)]
    assert (path.read_bytes() if path.exists() else None) == content


def test_a_mirror_may_be_an_address(server: Server, target: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_MIRROR", server.address + "mirror/")
    server.answers["/mirror/digits/file.bin"] = [whole(CONTENT)]
    fetch(target, closed)
    assert_fetched(target)


def test_a_mirror_with_a_plain_http_address_is_refused(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_MIRROR", ELSEWHERE)
    assert f"refused {ELSEWHERE}digits/file.bin" in refusal(target)


def test_without_a_network_one_error_says_what_is_needed_and_where_to_put_it(target: Path, closed: str) -> None:
    addresses = [closed, closed + "second/"]
    message = refusal(target, *addresses)
    assert SHA256 in message
    for address in addresses:
        assert f"{address}file.bin: ConnectionError" in message
    assert "put the file at <folder>/digits/file.bin and set DATA_MIRROR=<folder>" in message


def test_the_error_says_what_each_place_answered(
    server: Server, target: Path, tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path / "mirror"))
    server.answers = {"/two/file.bin": [status(503)], "/three/file.bin": [whole(b"other")]}
    places = [server.address + part for part in ("one/", "two/", "three/")]
    lines = refusal(target, *places, closed).splitlines()
    answers = [
        "no such file",
        "HTTP status 404",
        "HTTP status 503",
        "wrong content: expected SHA-256",
        "ConnectionError",
    ]
    for place, answer in zip([f"{tmp_path}/mirror/digits/", *places, closed], answers, strict=True):
        assert any(line.startswith(f"  {place}file.bin: {answer}") for line in lines)


def test_a_failed_download_leaves_the_file_that_was_there(server: Server, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(b"old")
    server.answers["/file.bin"] = [broken_off(CONTENT, 1000)]
    with pytest.raises(ArtifactError):
        fetch(target, server.address)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


# --- archives whose bytes differ from day to day -------------------------------


def fetch_content(target: Path, *addresses: str, limit: int = 1 << 20) -> None:
    """Fetch a file of which only the bytes behind the first ten have a pinned hash."""

    def measure(path: Path) -> str:
        content = path.read_bytes()
        if content.startswith(b"<"):
            msg = "broken archive"
            raise ArtifactError(msg)
        return hashlib.sha256(content[10:]).hexdigest()

    fetch_archive("digits", Source(target.name, SHA256, addresses, limit=limit), measure, target.parent)


def test_an_archive_is_known_by_its_content_and_comes_from_the_first_place_that_has_it(
    server: Server, target: Path, closed: str
) -> None:
    target.parent.mkdir(parents=True)
    server.answers |= {"/a.zip": [status(404)], "/b.zip": [whole(b"0123456789" + CONTENT[1:])]}
    server.answers |= {"/c.zip": [whole(b"of today  " + CONTENT)], "/page.zip": [whole(b"<html>")]}
    places = [f"{server.address}{name}.zip" for name in ("a", "b", "page", "c", "never")]
    fetch_content(target, closed + "x.zip", *places)
    assert_fetched(target, b"of today  " + CONTENT)
    assert server.paths == ["/a.zip", "/b.zip", "/page.zip", "/c.zip"]


def test_an_archive_that_no_place_has_is_refused_with_what_each_said(server: Server, target: Path) -> None:
    target.parent.mkdir(parents=True)
    server.answers |= {"/long.zip": [whole(bytes(2000))], "/half.zip": [broken_off(bytes(10) + CONTENT, 5000)]}
    server.answers |= {"/page.zip": [whole(b"<html>")]}
    places = [f"{server.address}{name}.zip" for name in ("a", "page", "half", "long")]
    with pytest.raises(ArtifactError) as caught:
        fetch_content(target, *places[:3])
    head, *tried, advice = str(caught.value).splitlines()
    assert head == f"digits: could not get file.bin (SHA-256 of the content {SHA256}). Tried:"
    assert "404" in tried[0]
    assert tried[1] == f"  {places[1]}: broken archive"
    assert tried[2].startswith(f"  {places[2]}: ")
    assert "DATA_MIRROR" in advice
    with pytest.raises(ArtifactError, match="refused: longer than 1000 bytes"):
        fetch_content(target, places[3], limit=1000)
    with pytest.raises(ArtifactError, match="only https is allowed"):
        fetch_content(target, f"{ELSEWHERE}a.zip")
    assert list(target.parent.iterdir()) == list(download.PARTIAL.glob("*.part")) == []
