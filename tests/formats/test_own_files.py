"""Files of one's own, on a real file system: odd names, links, pipes, and what is said of them."""

import hashlib
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artifacts import ArtifactError
from pipeline.formats.own_files import (
    AHEAD,
    LISTED,
    THREADS,
    FileReport,
    examine,
    leaves,
    list_files,
    map_in_threads,
    open_file,
    read_reports,
    refuse_if_broken,
    write_reports,
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))  # a stage that stops leaves its reports in .state


ODD = ["a b", "it's", 'say "x"', "two\nlines", "🙂", "Ü", "-rf", "$HOME", os.fsdecode(b"\xff\xfe")]


def fill(root: Path, *names: str) -> list[str]:
    """Write a file of each name, its own name in it; names that this file system refuses are left out."""
    written = []
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(os.fsencode(name))
        except OSError:  # macOS takes no names that are not UTF-8
            continue
        written.append(name)
    return written


def test_every_file_is_listed_in_byte_order_of_its_name_but_hidden_ones(tmp_path: Path) -> None:
    names = fill(tmp_path, *ODD, "b/1", "b/c/2", "b-", "B", "a")
    fill(tmp_path, ".DS_Store", ".git/config", "b/.hidden")
    listed = list(list_files(tmp_path))
    assert [name for name, _ in listed] == sorted(names, key=os.fsencode)
    assert all(path.read_bytes() == os.fsencode(name) for name, path in listed)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    for name, found in (("file", "a file"), ("absent", "nothing")):
        with pytest.raises(ArtifactError, match=f"{name}: expected a folder, found {found}"):
            list(list_files(tmp_path / name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_named_and_not_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, "a", "closed/b")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(ArtifactError, match="closed': cannot read the folder: Permission denied"):
            list(list_files(tmp_path))
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_links_are_followed_inside_the_folder_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(tmp_path, "outside", "root/inside", "root/folder/file")
    targets = {"good": "inside", "out": "../outside", "absolute": "/etc/passwd", "gone": "nothing", "self": "self"}
    for name, target in targets.items():
        (root / name).symlink_to(target)
    (root / "linked").symlink_to("folder", target_is_directory=True)  # its files are listed at their own place
    found = {name: path for name, path in list_files(root) if path.is_symlink()}
    assert set(found) == set(targets)
    assert {name for name, path in found.items() if leaves(root, path)} == {"out", "absolute", "gone", "self"}
    reasons = {name: examine(root, name, path).reason for name, path in found.items()}
    assert reasons.pop("good") == ""
    assert set(reasons.values()) == {"a link out of the folder, or to nothing"}
    (root / "folder" / "up").symlink_to("../..", target_is_directory=True)
    with pytest.raises(ArtifactError, match=r"up': a link to a folder outside of .*root"):
        list(list_files(root))


def test_a_link_through_the_folders_own_link_stays_inside(tmp_path: Path) -> None:
    fill(tmp_path, "root/inside")
    (tmp_path / "root" / "good").symlink_to("inside")
    (tmp_path / "other").symlink_to("root", target_is_directory=True)
    assert not leaves(tmp_path / "other", tmp_path / "other" / "good")


def test_pipes_and_devices_are_refused_and_nobody_waits_for_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (report,) = (examine(tmp_path, *found) for found in list_files(tmp_path))
    assert report.reason == "cannot be read: no regular file but a folder, pipe, socket or device"
    for path in ("/dev/zero", "/dev/null"):
        with pytest.raises(OSError, match="no regular file"):
            open_file(Path(path))


def test_a_file_is_reported_with_its_size_and_sha_256(tmp_path: Path) -> None:
    for name in fill(tmp_path, *ODD):
        content = os.fsencode(name)
        report = examine(tmp_path, name, tmp_path / name)
        assert report == FileReport(name, len(content), hashlib.sha256(content).hexdigest())


def test_an_empty_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert examine(tmp_path, "empty", tmp_path / "empty").reason == "an empty file"


def test_results_come_in_the_order_of_the_items_whichever_is_ready_first() -> None:
    def work(item: int) -> int:
        time.sleep((item % 3) / 1000)
        return item * item

    assert list(map_in_threads(work, range(50), total=50, description="")) == [item * item for item in range(50)]


def test_no_more_is_worked_ahead_than_is_allowed() -> None:
    done: list[int] = []
    results = map_in_threads(done.append, range(10_000), total=10_000, description="")
    next(results)
    time.sleep(0.05)
    assert len(done) <= AHEAD * THREADS + 1
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def work(item: int) -> int:
        if item == 5:
            raise ArtifactError("file 5")
        return item

    with pytest.raises(ArtifactError, match="file 5"):
        list(map_in_threads(work, range(10), total=10, description=""))


def reports(good: int, broken: int) -> list[FileReport]:
    fine = [FileReport(f"good {index}", 1, "") for index in range(good)]
    return fine + [FileReport(f"bad\n{index}", 1, "", reason=f"because {index}") for index in range(broken)]


@pytest.mark.parametrize(("good", "broken", "limit"), [(99, 1, 0.01), (1, 0, 0.0), (1, 1, 0.5), (200, 2, 0.01)])
def test_up_to_the_threshold_files_may_be_broken(good: int, broken: int, limit: float) -> None:
    refuse_if_broken(Path("root"), reports(good, broken), limit, "key")


@pytest.mark.parametrize(("good", "broken", "limit"), [(98, 1, 0.01), (1000, 1, 0.0), (0, 1, 0.99), (0, 3, 1.0)])
def test_above_the_threshold_or_without_a_file_left_it_stops(good: int, broken: int, limit: float) -> None:
    with pytest.raises(ArtifactError) as caught:
        refuse_if_broken(Path("root"), reports(good, broken), limit, "key")
    message = str(caught.value)
    assert f"root: {broken} of {good + broken} files cannot be used, allowed is a share of {limit:g}" in message
    assert "'bad\\n0': because 0" in message
    assert "max_broken" in message


def test_a_long_list_is_cut_and_its_rest_counted() -> None:
    with pytest.raises(ArtifactError) as caught:
        refuse_if_broken(Path("root"), reports(0, LISTED + 5), 0.5, "key")
    assert len(str(caught.value).splitlines()) == 1 + LISTED + 1
    assert str(caught.value).endswith("and 5 more")
    assert ".state/prepare-key/files.json has the report of each file" in str(caught.value)
    assert read_reports(Path(".state/prepare-key")) == reports(0, LISTED + 5)


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(ArtifactError, match="root: no file found"):
        refuse_if_broken(Path("root"), [], 0.5, "key")


def test_reports_are_read_back_as_they_were_written_whatever_the_names(tmp_path: Path) -> None:
    written = [FileReport(name, index, "ab", "m", "n", "r" * (index % 2)) for index, name in enumerate(ODD)]
    written[0] = replace(written[0], split="train")  # the only one that was used, and changed
    written += [FileReport("copy", 1, "ab", duplicate_of=ODD[0]), FileReport("empty folder/", 0, "")]
    summary = write_reports(tmp_path / "new", written)
    assert read_reports(tmp_path / "new") == written
    assert summary == {"files": {"count": len(ODD) + 1, "quarantined": len(ODD) // 2, "duplicates": 1, "changed": 1}}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["files.json"]
    text = (tmp_path / "new" / "files.json").read_text(encoding="ascii")
    assert [entry["path"] for entry in json.loads(text)] == [report.path for report in written]
    assert len(text.splitlines()) == len(written) + 2  # one file a line


def test_without_files_of_ones_own_nothing_is_written(tmp_path: Path) -> None:
    assert write_reports(tmp_path, []) == {}
    assert list(tmp_path.iterdir()) == []
