"""Archives, honest and hostile: each hostile one is refused by name, and nothing is ever written to disk."""

import gzip
import stat
import tarfile
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import ArtifactError
from pipeline.formats import archives
from pipeline.formats.archives import RATIO, read_files, read_members

LIMIT = 1 << 28
NOISE = np.random.default_rng(0).bytes(300_000)  # does not compress
FILES = {"data/one.bin": NOISE, "data/two words.txt": "naïve\n".encode(), "data/empty": b"", "data/\u4e09.txt": b"3"}


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, target
    return member


def write_tar(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """Write headers and contents as they are given, honest or not; gzipped if the name says so."""
    content = b"".join(
        header.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % tarfile.BLOCKSIZE) for header, body in members
    )
    content += bytes(2 * tarfile.BLOCKSIZE)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def write_zip(path: Path, members: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members:
            archive.writestr(name, body)
    return path


def write(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return write_zip(path, files.items())
    return write_tar(path, [(info(name, len(body)), body) for name, body in files.items()])


def read_all(path: Path, limit: int = LIMIT) -> dict[str, bytes]:
    return {member.name: b"".join(member.blocks) for member in read_members(path, limit)}


def refusal(path: Path, limit: int = LIMIT) -> str:
    """The message about an archive that is refused; it names the archive, and nothing is written anywhere near."""
    before = sorted(path.parents[1].rglob("*"))
    with pytest.raises(ArtifactError) as caught:
        read_all(path, limit)
    assert str(path) in str(caught.value)
    assert sorted(path.parents[1].rglob("*")) == before
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.mkdir()
    return path


KINDS = ["x.tar", "x.tar.gz", "x.zip"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_an_archive_come_in_its_order(folder: Path, kind: str) -> None:
    path = write(folder / kind, FILES)
    assert list(read_all(path).items()) == list(FILES.items())
    assert [(member.name, member.size) for member in read_members(path, LIMIT)] == [
        (name, len(body)) for name, body in FILES.items()
    ]


@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_that_pythons_tarfile_writes_are_read(folder: Path, kind: str, layout: int) -> None:
    long = "/".join(["folder" * 5] * 4) + "/file.bin"  # longer than the 100 bytes of the old header
    (folder / "file").write_bytes(NOISE)
    with tarfile.open(folder / kind, "w:gz" if kind.endswith("gz") else "w", format=layout) as archive:
        archive.add(folder / "file", "./" + long)
        archive.add(folder / "file", "b/./c.bin")
    assert read_all(folder / kind) == {long: NOISE, "b/c.bin": NOISE}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_are_no_files(folder: Path, kind: str) -> None:
    path = folder / kind
    if kind == "x.zip":
        write_zip(path, [("data/", b""), ("data/one", b"1")])
    else:
        write_tar(path, [(info("./", kind=tarfile.DIRTYPE), b""), (info("data/one", 1), b"1")])
    assert read_all(path) == {"data/one": b"1"}


def test_read_files_returns_those_that_are_asked_for_and_names_those_that_are_missing(folder: Path) -> None:
    path = write(folder / "x.zip", FILES)
    assert read_files(path, ["data/one.bin", "data/empty"], LIMIT) == {"data/one.bin": NOISE, "data/empty": b""}
    with pytest.raises(ArtifactError, match=r"x\.zip: .*missing: data/four, data/three$"):
        read_files(path, ["data/three", "data/one.bin", "data/four"], LIMIT)


def test_a_large_file_passes_through_little_memory(folder: Path) -> None:
    block = np.random.default_rng(0).bytes(1 << 18)
    path = write(folder / "x.zip", {"large": block * 64})  # 16 MiB
    tracemalloc.start()
    sizes = [sum(map(len, member.blocks)) for member in read_members(path, LIMIT)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [len(block) * 64]
    assert peak < 1 << 21


# --- paths -------------------------------------------------------------------

PATHS = [
    "../evil",
    "a/../../evil",
    "a/..",
    "/etc/evil",
    "//evil",
    "C:/evil",
    "c:evil",
    "..\\evil",
    "\\evil",
    "a\\..\\b",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.fault(33)
def test_a_path_that_leads_out_is_refused(folder: Path, kind: str, name: str) -> None:
    path = write(folder / kind, {"good": b"1", name: b"2"})
    assert f"refused, member {name!r} has a" in refusal(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names",
    [
        ("a", "a"),
        ("a/b", "a/./b"),
        ("read.me", "READ.me"),  # one file on macOS
        (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(folder: Path, kind: str, names: tuple[str, str]) -> None:
    members = [(name, bytes([index])) for index, name in enumerate(names)]
    if kind == "x.zip":
        path = write_zip(folder / kind, members)
    else:
        path = write_tar(folder / kind, [(info(name, 1), body) for name, body in members])
    assert "is there twice" in refusal(path)


def test_a_zero_byte_in_a_name_is_refused(folder: Path) -> None:
    path = write(folder / "x.zip", {"goodXevil": b"1"})
    path.write_bytes(path.read_bytes().replace(b"goodXevil", b"good\0evil"))
    assert "member 'good\\x00evil' has a path with .. or a zero byte" in refusal(path)


# --- kinds -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize(
    "member",
    [
        info("evil", kind=tarfile.SYMTYPE, target="/etc/passwd"),
        info("evil", kind=tarfile.SYMTYPE, target="good"),
        info("evil", kind=tarfile.LNKTYPE, target="../../etc/passwd"),
        info("evil", kind=tarfile.LNKTYPE, target="good"),
        info("evil", kind=tarfile.CHRTYPE),
        info("evil", kind=tarfile.BLKTYPE),
        info("evil", kind=tarfile.FIFOTYPE),
        info("evil", kind=tarfile.GNUTYPE_SPARSE),
    ],
    ids=["symlink out", "symlink", "link out", "link", "character device", "block device", "fifo", "sparse"],
)
@pytest.mark.fault(33)
def test_a_tar_member_that_is_no_plain_file_is_refused(folder: Path, kind: str, member: tarfile.TarInfo) -> None:
    path = write_tar(folder / kind, [(info("good", 1), b"1"), (member, b"")])
    assert "refused, member 'evil' is a link, a device or sparse" in refusal(path)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
@pytest.mark.fault(33)
def test_a_zip_member_that_is_no_plain_file_is_refused(folder: Path, mode: int) -> None:
    member = zipfile.ZipInfo("evil")
    member.external_attr = (mode | 0o777) << 16
    path = write_zip(folder / "x.zip", [("good", b"1"), (member, b"/etc/passwd")])
    assert "refused, member 'evil' is a link or a device" in refusal(path)


def test_a_zip_member_that_is_encrypted_or_packed_by_another_method_is_refused(folder: Path) -> None:
    path = write(folder / "x.zip", {"evil": b"1"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "member 'evil' is encrypted" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("evil", bytes(1 << 20))
    assert "another method than deflate" in refusal(path)


# --- bombs -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
@pytest.mark.fault(33)
def test_an_archive_that_unpacks_to_much_more_than_its_size_is_refused(folder: Path, kind: str) -> None:
    path = write(folder / kind, {"good": b"1", "evil": bytes(30_000_000)})
    assert path.stat().st_size * RATIO < 30_000_000
    assert "allowed" in refusal(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fault(33)
def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(folder: Path, kind: str) -> None:
    path = write(folder / kind, {"one": NOISE, "two": NOISE[:-1]})
    assert "allowed" in refusal(path, limit=500_000)
    assert set(read_all(path, limit=605_000)) == {"one", "two"}  # 600,000 bytes and a tar's headers


@pytest.mark.parametrize("size", [1 << 40, -512])
@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz"])
def test_an_announced_size_of_a_terabyte_or_below_zero_is_refused(folder: Path, kind: str, size: int) -> None:
    # A size below zero sends Python's tarfile round in a circle (CVE-2025-8194), or is refused by a newer one.
    path = write_tar(folder / kind, [(info("evil", size), b"1"), (info("good", 1), b"1")])
    message = refusal(path)
    assert f"member 'evil' announces {size} bytes" in message or (size < 0 and "invalid offset" in message)


@pytest.mark.parametrize("change", [-1, 1, 1 << 20])
def test_a_zip_that_announces_another_size_than_it_has_is_refused(folder: Path, change: int) -> None:
    path = write(folder / "x.zip", {"evil": NOISE})
    content, size = path.read_bytes(), len(NOISE)
    position = content.index(b"PK\x01\x02") + 24
    assert content[position : position + 4] == size.to_bytes(4, "little")
    path.write_bytes(content[:position] + (size + change).to_bytes(4, "little") + content[position + 4 :])
    assert "'evil'" in refusal(path)


def test_many_zip_members_that_share_their_bytes_are_refused(folder: Path) -> None:
    # A bomb without recursion: each entry of the directory leads to the same compressed bytes.
    content = write(folder / "x.zip", {"evil": bytes(500_000)}).read_bytes()
    begin, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    directory = content[begin:end] * 1000
    tail = bytearray(content[end:])
    tail[8:16] = (1000).to_bytes(2, "little") * 2 + len(directory).to_bytes(4, "little")
    (folder / "x.zip").write_bytes(content[:begin] + directory + tail)
    assert "'evil'" in refusal(folder / "x.zip")


@pytest.mark.parametrize("kind", KINDS)
def test_more_members_than_anyone_needs_are_refused(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MEMBERS", 3)
    path = write(folder / kind, {str(index): b"" for index in range(4)})
    assert "member '3' is one of more than 3" in refusal(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_name_of_many_megabytes_is_refused_before_it_is_read(folder: Path, kind: bytes) -> None:
    size = 1 << 25
    path = write_tar(folder / "x.tar", [(info("evil", size, kind), bytes(size)), (info("good", 1), b"1")])
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"a header announces a name of {size} bytes" in message
    assert peak < 1 << 20


def test_headers_within_headers_without_end_are_refused(folder: Path) -> None:
    path = write_tar(folder / "x.tar", [(info("evil", 1, tarfile.GNUTYPE_LONGNAME), b"n")] * 3000)
    assert "RecursionError" in refusal(path)


# --- broken ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.0005, 0.3, 0.9, 0.99])
def test_an_archive_that_is_cut_off_is_refused(folder: Path, kind: str, share: float) -> None:
    path = write(folder / kind, {"one": NOISE, "two": NOISE})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refusal(path)


@pytest.mark.parametrize("length", [1024, 2048, 2560])
def test_a_tar_that_is_cut_off_between_two_files_is_refused(folder: Path, length: int) -> None:
    # Python's tarfile takes that for the end.
    path = write(folder / "x.tar", {"one": NOISE[:512], "two": NOISE[:512], "three": b""})
    path.write_bytes(path.read_bytes()[:length])
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["one", "two", "three"][: length // 1000 + length // 2500]
    assert "broken archive: it ends in the middle" in refusal(path)


def test_a_tar_with_a_broken_header_in_the_middle_is_refused(folder: Path) -> None:
    path = write(folder / "x.tar", {"one": NOISE[:512], "two": NOISE[:512]})
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["one"]
    assert "broken archive: it ends in the middle or has a broken header" in refusal(path)


def test_bytes_behind_the_end_are_refused(folder: Path) -> None:
    content = write(folder / "x.tar", FILES).read_bytes()
    (folder / "x.tar").write_bytes(content + b"more")
    refusal(folder / "x.tar")
    (folder / "x.tar.gz").write_bytes(gzip.compress(content) + b"more")
    refusal(folder / "x.tar.gz")


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.zip"])
def test_a_changed_byte_is_noticed(folder: Path, kind: str) -> None:
    path = write(folder / kind, {"evil": NOISE})
    content = bytearray(path.read_bytes())
    content[1000] ^= 1  # within the file's bytes
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>" * 100, b"PK\x03\x04", b"\x1f\x8b"])
def test_what_is_no_archive_is_refused(folder: Path, content: bytes) -> None:
    (folder / "x.tar.gz").write_bytes(content)
    assert "broken archive" in refusal(folder / "x.tar.gz")


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_is_refused_or_harmless(folder: Path, kind: str) -> None:
    files = {"one": NOISE[:600], "two": b"2"}
    path = write(folder / kind, files)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(len(damaged), size=3):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            found = read_all(path)
        except ArtifactError:  # no other error leaves the reader
            refused += 1
        else:
            assert kind == "x.tar" or set(found.values()) <= set(files.values())  # a tar has no checksum of contents
    assert refused > 100


def test_a_reader_that_stops_early_leaves_the_file_closed(folder: Path) -> None:
    members = read_members(write(folder / "x.zip", FILES), LIMIT)
    first = next(members)
    assert next(first.blocks) == NOISE[: archives.CHUNK]
    del members
    with pytest.raises(ArtifactError, match=r"data/one\.bin"):
        next(first.blocks)
