"""Downloads from a real HTTP server on this machine that answers wrongly in every way that servers do."""

import gzip
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.artifacts import ArtifactError
from pipeline.data.download import ATTEMPTS, Source, fetch_all, require_https

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


def status(code: int) -> Answer:
    return lambda handler: send(handler, code, b"<html>not the file</html>")


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
    server = Server(target)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No mirror, no proxy, and no waiting: the pauses between attempts are only kept."""
    seconds: list[float] = []
    monkeypatch.setattr("pipeline.data.download.time.sleep", seconds.append)
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


def fetch(target: Path, *addresses: str, sha256: str = SHA256) -> None:
    fetch_all("digits", [Source(target.name, sha256, addresses)], target.parent)


def refusal(target: Path, *addresses: str, sha256: str = SHA256) -> str:
    """The message of a download that fails; it must leave nothing behind."""
    with pytest.raises(ArtifactError) as caught:
        fetch(target, *addresses, sha256=sha256)
    assert list(target.parent.iterdir()) == []
    return str(caught.value)


def assert_fetched(target: Path, content: bytes = CONTENT) -> None:
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]  # no partial file is left


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
    path = target.with_name("file.gz")
    body = gzip.compress(CONTENT, compresslevel=1 + seconds % 9, mtime=seconds)
    server.answers["/file.gz"] = [whole(body)]
    fetch(path, server.address)
    assert_fetched(path, body)


def test_a_gz_file_of_other_content_is_refused(server: Server, target: Path) -> None:
    server.answers["/file.gz"] = [whole(gzip.compress(CONTENT + b"."))]
    message = refusal(target.with_name("file.gz"), server.address)
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
    path = target.with_name("file.gz")
    right = gzip.compress(CONTENT)
    server.answers = {"/one/file.gz": [whole(body)], "/two/file.gz": [whole(right)]}
    fetch(path, server.address + "one/", server.address + "two/")
    assert_fetched(path, right)


def test_wrong_bytes_at_the_first_address_lead_to_the_second(server: Server, target: Path) -> None:
    changed = bytearray(CONTENT)
    changed[1000] ^= 1
    server.answers = {"/one/file.bin": [whole(bytes(changed))], "/two/file.bin": [whole(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)
    assert server.paths[-1] == "/two/file.bin"
    assert {asked for _, asked in server.asked} == {None}  # nothing of the wrong file is continued


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


def test_what_broke_off_at_one_address_is_not_continued_at_another(server: Server, target: Path) -> None:
    other = CONTENT[::-1]
    server.answers = {"/one/file.bin": [broken_off(other, 70_000)], "/two/file.bin": [ranged(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)
    assert server.asked[-1] == ("/two/file.bin", None)


@pytest.mark.parametrize(
    "leftover", [CONTENT[:500], CONTENT, CONTENT + b"more", b"of another file"], ids=["begun", "all", "more", "other"]
)
@pytest.mark.parametrize("answer", [ranged, whole])
def test_a_leftover_of_a_process_that_was_killed_does_no_harm(
    server: Server, target: Path, leftover: bytes, answer: Callable[[bytes], Answer]
) -> None:
    target.parent.mkdir(parents=True)
    target.with_name(target.name + ".part").write_bytes(leftover)
    server.answers["/file.bin"] = [answer(CONTENT)]
    fetch(target, server.address)
    assert_fetched(target)


def test_a_redirect_on_the_same_machine_is_followed(server: Server, target: Path) -> None:
    server.answers = {"/file.bin": [redirect("/moved/file.bin")], "/moved/file.bin": [whole(CONTENT)]}
    fetch(target, server.address)
    assert_fetched(target)


def test_a_redirect_to_plain_http_is_refused_before_anyone_is_asked(server: Server, target: Path) -> None:
    # The connection itself, before any hash is checked, would tell the network what is fetched.
    server.answers["/file.bin"] = [redirect(ELSEWHERE + "file.bin")]
    assert f"refused {ELSEWHERE}file.bin: only https is allowed" in refusal(target, server.address)


def test_a_redirect_to_plain_http_leads_to_the_next_address(server: Server, target: Path) -> None:
    server.answers = {"/one/file.bin": [redirect(ELSEWHERE + "file.bin")], "/two/file.bin": [whole(CONTENT)]}
    fetch(target, server.address + "one/", server.address + "two/")
    assert_fetched(target)


def test_a_redirect_in_a_circle_ends(server: Server, target: Path) -> None:
    server.answers["/file.bin"] = [redirect("/file.bin")]
    assert "redirects" in refusal(target, server.address)


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
