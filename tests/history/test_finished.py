"""The state of a finished training: it stays until DVC has stored the outputs, and not a stage longer."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import artifacts
from pipeline.history import dvc_cache, finished
from pipeline.history.dvc_cache import Entry


@pytest.mark.fault(52)
def test_a_state_is_removed_when_the_lock_names_each_file_and_the_cache_holds_it(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, output = artifacts.STATE / "train-gan" / "0123", workdir / "data" / "model"
    output.mkdir(parents=True)
    contents = {"a": b"1", "b": b"2"}
    for name, content in contents.items():
        (output / name).write_bytes(content)
    md5s = {"a": "c4ca4238a0b923820dcc509a6f75849b", "b": "c81e728d9d4c2f636f067f89cc14862c"}  # of md5sum
    entries = {name: Entry(f"data/model/{name}", md5, workdir / md5) for name, md5 in md5s.items()}
    named: list[Entry] = []
    monkeypatch.setattr(dvc_cache, "read_index", lambda: SimpleNamespace(outs=[]))
    monkeypatch.setattr(dvc_cache, "list_entries", lambda _: iter(named))

    state.mkdir(parents=True)
    finished.end(state, Path("data/model"))
    assert not state.exists()  # without DVC nobody stores anything

    state.mkdir(parents=True)
    monkeypatch.setenv("DVC_STAGE", "train@gan")
    finished.end(state, Path("data/model"))
    finished.remove_stored()
    assert finished.is_marked(state)  # the lock names nothing
    named[:] = entries.values()
    finished.remove_stored()
    assert finished.is_marked(state)  # the cache is full: it holds nothing
    for name, md5 in md5s.items():
        (workdir / md5).write_bytes(contents[name])
    named[:] = [entries["a"], Entry("data/model/b", md5s["a"], workdir / md5s["a"])]
    finished.remove_stored()
    assert finished.is_marked(state)  # these are another training's
    named[:] = entries.values()
    mark = (state / finished.MARK).read_bytes()
    (state / finished.MARK).write_bytes(mark[:10])
    finished.remove_stored()
    assert finished.is_marked(state)  # a power cut broke the mark
    (state / finished.MARK).write_bytes(mark)
    finished.remove_stored()
    assert [path.name for path in state.parent.iterdir()] == []
