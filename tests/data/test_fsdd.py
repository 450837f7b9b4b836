"""The Free Spoken Digit Dataset: splits as a function of the config, planted archives, and the real one if here."""

import os
import shutil
import zipfile
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.artifacts import ArtifactError
from pipeline.data import fsdd
from pipeline.data.fsdd import NUMBERS, SPEAKERS, WORDS, Config, choose_splits
from pipeline.formats.wav import encode_wav
from pipeline.kinds import audio, parse_fields
from pipeline.kinds.audio import Clips, is_silent

MIRROR = os.environ.get("DATA_MIRROR", "")
needs_mirror = pytest.mark.skipif(
    not (Path(MIRROR or "absent") / "fsdd").is_dir(),
    reason=f"set DATA_MIRROR to a folder that has fsdd/{fsdd.FILE}: tests use no network",
)
TOP = "free-spoken-digit-dataset-1.0.10"


def make_config(**changes: Any) -> Config:
    keys = {"split_seed": 0, "validation": 0.1, "test": 0.1, "samples": 8192, "rate": 8000, **changes}
    return Config.model_validate({"source": "fsdd", "path": "none"} | keys)


# --- splits --------------------------------------------------------------------


def test_the_official_test_split_has_the_first_five_recordings_of_every_speaker() -> None:
    splits = choose_splits("digits", make_config())
    assert {key for key, split in splits.items() if split == "test"} == {(s, n) for s in SPEAKERS for n in range(5)}
    assert Counter(splits.values()) == {"train": 243, "validation": 27, "test": 30}  # of ten words each


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_a_speaker_is_never_on_both_sides_if_one_is_held_out(speaker: str) -> None:
    for seed in range(3):
        splits = choose_splits("digits", make_config(held_out_speaker=speaker, split_seed=seed))
        sides = {name: {key[0] for key, split in splits.items() if split == name} for name in set(splits.values())}
        assert sides["test"] == {speaker}
        assert len(sides["validation"]) == 1
        assert sum(map(len, sides.values())) == len(set().union(*sides.values())) == 6
        assert Counter(splits.values()) == {"train": 200, "validation": 50, "test": 50}


def test_the_validation_split_is_a_function_of_its_seed_and_its_share() -> None:
    for held_out in ("", "theo"):
        shares = [
            choose_splits("digits", make_config(held_out_speaker=held_out, validation=v)) for v in (0.4, 0.4, 0.2)
        ]
        assert shares[0] == shares[1] != choose_splits("digits", make_config(held_out_speaker=held_out, split_seed=1))
        large, small = ({key for key, split in each.items() if split == "validation"} for each in shares[1:])
        assert small < large


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a large share": (
        {"validation": 0.95, "held_out_speaker": "lucas"},
        r"data\.digits\.validation: 0\.95 of 5 speakers leaves none for the training split",
    ),
    "a small share": (
        {"validation": 0.001},
        r"data\.digits\.validation: 0\.001 of 270 groups of recordings leaves none for the validation split",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_share_that_leaves_nothing_is_refused_by_its_key(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(ArtifactError, match=f"^{message}$"):
        choose_splits("digits", make_config(**changes))


def test_an_unknown_speaker_is_refused_by_the_key() -> None:
    with pytest.raises(ValueError, match="held_out_speaker"):
        make_config(held_out_speaker="nobody")


# --- archive -------------------------------------------------------------------


def write_archive(path: Path, recordings: dict[str, bytes]) -> str:
    """Write an archive as GitHub makes them; return the hash of its recordings, found otherwise than by `measure`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{TOP}/README.md", b"digits")
        for name, content in recordings.items():
            archive.writestr(f"{TOP}/recordings/{name}", content)
    lines = "".join(f"{sha256(recordings[name]).hexdigest()}  {name}\n" for name in sorted(recordings))
    return sha256(lines.encode()).hexdigest()


def make_recordings(count: int, seed: int = 0) -> dict[str, bytes]:
    generator = np.random.default_rng(seed)
    names = [f"{number % 10}_theo_{number // 10}.wav" for number in range(count)]
    return {name: encode_wav(generator.integers(-9000, 9000, 100).astype(np.int16), 8000) for name in names}


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror's archive; the public addresses are out of reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(fsdd, "ADDRESSES", ("https://127.0.0.1:9/a.zip",))
    return tmp_path / "mirror" / "fsdd" / fsdd.FILE


def test_the_recordings_of_an_archive_become_files_whatever_else_it_has_and_however_it_is_packed(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = make_recordings(20)
    for order in (recordings, dict(reversed(recordings.items()))):
        monkeypatch.setattr(fsdd, "SHA256", write_archive(mirror, order))
        (tmp_path / "raw").mkdir()
        fsdd.fetch(tmp_path / "raw", make_config())
        assert {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()} == recordings
        shutil.rmtree(tmp_path / "raw")


@pytest.mark.parametrize("what", ["another recording", "no archive", "nothing", "a hostile name"])
def test_an_archive_of_other_content_is_refused_with_what_each_place_said(
    what: str, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    monkeypatch.setattr(fsdd, "SHA256", write_archive(mirror, make_recordings(20)))
    reason = "No such file or directory"
    if what == "another recording":
        reason = f"wrong content: expected SHA-256 {fsdd.SHA256}, found {write_archive(mirror, make_recordings(19))}"
    elif what == "no archive":
        mirror.write_bytes(b"<!DOCTYPE html>")
        reason = "broken archive"
    elif what == "a hostile name":
        write_archive(mirror, make_recordings(20) | {"../../../1_theo_1.wav": b""})
        reason = "has a path with .."
    else:
        mirror.unlink()
    with pytest.raises(ArtifactError) as caught:
        fsdd.fetch(tmp_path / "raw", make_config())
    head, first, second, advice = str(caught.value).splitlines()
    assert head == f"fsdd: could not get {fsdd.FILE} (SHA-256 of the content {fsdd.SHA256}). Tried:"
    assert first.startswith(f"  {mirror}: ")
    assert reason in first
    assert second.startswith("  https://127.0.0.1:9/a.zip: ")
    assert "DATA_MIRROR" in advice
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encode_wav(np.ones(9, np.int16), 16000), "0_george_0.wav: expected 8000 samples per second, found 16000"),
        (b"RIFF", "0_george_0.wav: cannot be read as a WAV file"),
        (None, "0_george_0.wav: cannot be read as a WAV file: No such file or directory"),
    ],
)
def test_a_recording_that_is_not_as_expected_is_refused_by_name(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "0_george_0.wav").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        fsdd.prepare(tmp_path, make_config())


# --- the real data -------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    fsdd.fetch(folder, make_config())
    return folder


@pytest.fixture(scope="module")
def clips(raw: Path) -> Clips:
    return fsdd.prepare(raw, make_config())


@needs_mirror
def test_the_real_data_have_3000_recordings_in_equal_classes(clips: Clips, tmp_path: Path) -> None:
    manifest = audio.write(tmp_path, clips, make_config())
    entries = manifest["splits"]
    per_class = {name: entry["per_class"] for name, entry in entries.items()}
    assert per_class == {"train": [243] * 10, "validation": [27] * 10, "test": [30] * 10}
    assert all(not value for entry in entries.values() for key, value in entry.items() if key.startswith("shared"))
    assert {entry["duplicates"] for entry in entries.values()} == {0}
    assert parse_fields(manifest["fields"]) == fsdd.foresee(make_config())
    assert manifest["classes"] == list(WORDS)
    assert "CC BY-SA 4.0" in manifest["origin"]
    assert manifest["changes"][0] == "17 recordings longer than 8192 samples cut to their loudest part"
    assert audio.question_data("digits", manifest, make_config()) == []


@needs_mirror
def test_each_real_clip_is_the_recording_of_its_label_and_split(raw: Path, clips: Clips) -> None:
    from scipy.io import wavfile

    known = {clip.numpy().tobytes(): (split, int(label)) for split, (values, labels) in clips.splits.items()
             for clip, label in zip(values, labels, strict=True)}  # fmt: skip
    assert len(known) == len(SPEAKERS) * NUMBERS * 10
    assert all(not is_silent(values).any() for values, _ in clips.splits.values())
    for word, speaker, number in [(0, "george", 0), (9, "yweweler", 4), (5, "lucas", 30), (7, "theo", 49)]:
        _, samples = wavfile.read(raw / f"{word}_{speaker}_{number}.wav")
        scaled = np.rint(samples / np.abs(samples.astype(float)).max() * 0.9 * 32767).astype(np.int16)
        before = (8192 - len(scaled)) // 2
        clip = np.pad(scaled, (before, 8192 - len(scaled) - before))
        split, label = known[clip.tobytes()]
        assert label == word
        assert (split == "test") == (number < 5)
    assert all(torch.equal(labels.bincount(), labels.bincount()[:1].expand(10)) for _, labels in clips.splits.values())
