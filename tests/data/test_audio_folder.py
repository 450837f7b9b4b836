"""Folders of recordings brought through the stages fetch and prepare for real: classes, splits, clips, refusals."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.data import audio_folder
from pipeline.data.audio_folder import Config
from pipeline.formats.own_files import FileReport
from pipeline.formats.wav import encode_wav, read_wav
from pipeline.kinds import audio, parse_fields
from pipeline.kinds.audio import Clips
from pipeline.stages import fetch as fetch_stage
from pipeline.stages import prepare as prepare_stage
from tests.conftest import prepare_own

RATE, SAMPLES = 8000, 1000
SPLITS = ("train", "validation", "test")


def play(number: int, seconds: float = 0.1, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A chord of its own for each number, float64 (T, C), loudest in the middle."""
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * frequency * time) for frequency in (150 + 17 * number, 2100 + 13 * number))
    return np.stack([0.2 * tones * np.hanning(len(time))] * channels, axis=1)


def save(root: Path, name: str, values: np.ndarray, rate: int = RATE) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, values, rate)


def configure(root: Path, **changes: Any) -> Config:
    keys = {"split_seed": 0, "validation": 0.25, "test": 0.25, "samples": SAMPLES, "rate": RATE, **changes}
    return Config.model_validate({"source": "audio_folder", "path": str(root)} | keys)


def run(root: Path, **changes: Any) -> Clips:
    """Fetch and prepare a folder of recordings."""
    prepared: Clips = prepare_own(audio_folder, configure(root, **changes))
    return prepared


def report_of(clips: Clips) -> dict[str, FileReport]:
    return {report.path: report for report in clips.files}


def collect(clips: Clips) -> dict[bytes, tuple[str, str]]:
    """Each clip's bytes with its split and the name of its class."""
    return {
        clip.numpy().tobytes(): (split, clips.names[label] if clips.names else "")
        for split, (values, labels) in clips.splits.items()
        for clip, label in zip(values, labels.tolist(), strict=True)
    }


def count(clips: Clips) -> dict[str, int]:
    return {split: len(labels) for split, (_, labels) in clips.splits.items()}


def fit(values: np.ndarray) -> np.ndarray:
    """A short recording (T,) as a clip: the peak at 0.9 of the range, in the middle of silence."""
    scaled = np.rint(values / np.abs(values).max() * 0.9 * 32767).astype(np.int16)
    before = (SAMPLES - len(scaled)) // 2
    return np.concatenate([np.zeros(before), scaled, np.zeros(SAMPLES - len(scaled) - before)]).astype(np.int16)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 short recordings in three classes, one of them two folders deep."""
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        save(tmp_path / "own", f"{['cat', 'dog/brown', 'Eel'][number % 3]}/{number}.wav", play(number))
    return tmp_path / "own"


# --- clips, classes, splits ----------------------------------------------------


def test_every_recording_arrives_once_with_the_class_of_its_first_folder(root: Path) -> None:
    clips = run(root)
    expected = {}
    for path in root.rglob("*.wav"):
        values, _ = soundfile.read(path)
        expected[fit(values).tobytes()] = path.relative_to(root).parts[0]
    assert {content: name for content, (_, name) in collect(clips).items()} == expected
    assert len(expected) == sum(count(clips).values()) == 30
    assert clips.names == ["Eel", "cat", "dog"]  # in byte order: capitals first
    assert all(values.dtype == torch.int16 for values, _ in clips.splits.values())


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"])
def test_any_format_rate_and_number_of_channels_becomes_a_clip(root: Path, name: str) -> None:
    stereo = play(99, 0.12, 44100, 2) * [0.5, 1.5]
    save(root / "cat", name, stereo, 44100)
    clips = run(root, max_broken=0.0)
    report = report_of(clips)[f"cat/{name}"]
    assert report.note == "2 channels mixed into one; resampled from 44100 Hz"
    assert "44100 Hz, 2 channels, 0.1" in report.mode
    expected = fit(resample_poly(stereo.mean(axis=1), 80, 441)).astype(float)
    found = max(np.corrcoef(np.frombuffer(clip, dtype=np.int16), expected)[0, 1] for clip in collect(clips))
    assert found > (0.98 if name.endswith(("ogg", "mp3")) else 0.99999)
    assert clips.changes[:2] == [
        "1 recordings of several channels mixed into one",
        "1 recordings resampled to 8000 samples per second",
    ]


def test_the_projects_own_wav_files_are_read(root: Path) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 700).astype(np.int16)
    (root / "cat" / "own.wav").write_bytes(encode_wav(samples, RATE))
    assert fit(samples.astype(float)).tobytes() in collect(run(root))


def test_recordings_without_folders_are_one_class_with_the_label_0(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / "own", f"{number}.wav", play(number))
    clips = run(tmp_path / "own")
    assert list(clips.names) == []
    assert all(labels.unique().tolist() == [0] for _, labels in clips.splits.values())
    manifest = audio.write(tmp_path / "prepared", clips, configure(tmp_path / "own"))
    assert parse_fields(manifest["fields"]) == audio_folder.foresee(configure(tmp_path / "own"))
    assert manifest["fields"]["labels"]["classes"] == 1


def test_folders_named_train_val_and_test_are_the_splits(tmp_path: Path) -> None:
    counts = {"train/cat": 9, "train/dog": 5, "val/cat": 2, "val/dog": 1, "test/cat": 3, "test/dog": 4}
    numbers = iter(range(100))
    for folder, files in counts.items():
        for _ in range(files):
            save(tmp_path / "own" / folder, f"{files}.wav", play(number := next(numbers)))
            (tmp_path / "own" / folder / f"{files}.wav").rename(tmp_path / "own" / folder / f"{number}.wav")
    clips = run(tmp_path / "own")
    per_class = {split: labels.bincount().tolist() for split, (_, labels) in clips.splits.items()}
    assert per_class == {"train": [9, 5], "validation": [2, 1], "test": [3, 4]}
    assert clips.known["splits"] == {"train": "train/", "validation": "val/", "test": "test/"}
    shutil.copy(next((tmp_path / "own" / "test" / "cat").iterdir()), tmp_path / "own" / "train" / "cat" / "copy.wav")
    assert count(run(tmp_path / "own")) == count(clips)
    moved = "data.own.path: 1 recordings of one split's folder are in another's too, and used there"
    assert moved in find_doubts(tmp_path / "own")


def test_a_further_recording_moves_no_other_one_and_equal_seeds_give_equal_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(root)
    monkeypatch.setattr("pipeline.formats.own_files.THREADS", 1)
    again = run(root)
    for split in SPLITS:
        assert torch.equal(before.splits[split][0], again.splits[split][0])
    save(root, "cat/0 before all others.wav", play(500))
    after = collect(run(root))
    assert {content: after[content] for content in collect(before)} == collect(before)
    assert collect(run(root, split_seed=1)) != after


# --- long recordings ---------------------------------------------------------


def test_a_long_recording_becomes_clips_that_follow_one_another_in_one_split(root: Path) -> None:
    values = play(77, 0.7)[:, 0]  # 5600 samples: 5 clips, from where they are loudest
    save(root, "cat/long.flac", values)
    clips = run(root)
    report = report_of(clips)["cat/long.flac"]
    assert report.note == "5 clips, 0.07 s left out"
    quantised, _ = soundfile.read(root / "cat" / "long.flac")
    start = max(range(601), key=lambda start: (quantised[start : start + 5000] ** 2).sum())
    kept = quantised[start : start + 5000]
    expected = np.rint(kept / np.abs(kept).max() * 0.9 * 32767).astype(np.int16).reshape(5, SAMPLES)
    found = collect(clips)
    assert {found[clip.tobytes()] for clip in expected} == {(report.split, "cat")}
    assert sum(count(clips).values()) == 35
    assert "1 recordings longer than a clip cut into clips, 0.1 s left out" in clips.changes


def test_only_the_loudest_clip_is_kept_if_the_key_says_so(root: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 4000)
    noise[2300:2900] += play(5, 600 / RATE)[:, 0]
    save(root, "cat/long.wav", noise)
    clips = run(root, long="loudest")
    assert sum(count(clips).values()) == 31
    quantised, _ = soundfile.read(root / "cat" / "long.wav")
    start = max(range(3001), key=lambda start: (quantised[start : start + SAMPLES] ** 2).sum())
    assert 1900 <= start <= 2300
    assert fit(quantised[start : start + SAMPLES]).tobytes() in collect(clips)
    assert "1 recordings longer than a clip cut to their loudest clip, 0.4 s left out" in clips.changes


def test_silent_clips_of_a_long_recording_are_left_out_and_counted(root: Path) -> None:
    values = np.concatenate([play(40, SAMPLES / RATE), np.zeros((3 * SAMPLES, 1)), play(41, SAMPLES / RATE)])
    save(root, "cat/pause.wav", values)
    clips = run(root)
    assert report_of(clips)["cat/pause.wav"].note == "2 clips, 0.38 s left out"
    assert clips.known["left_out"]["silent_clips"] == 3
    assert not any(audio.is_silent(values).any() for values, _ in clips.splits.values())


# --- what is not used ----------------------------------------------------------


@pytest.mark.fault(31)
def test_broken_files_are_quarantined_with_their_reasons_and_the_others_used(root: Path) -> None:
    before = collect(run(root))
    (root / "cat" / "empty.wav").touch()
    (root / "cat" / "page.mp3").write_bytes(b"<!DOCTYPE html>")
    (root / "dog" / "half.wav").write_bytes((root / "cat" / "0.wav").read_bytes()[:1000])
    save(root, "dog/silent.wav", np.zeros(800))
    save(root, "dog/clipped.wav", np.clip(20 * play(3), -1, 1))
    save(root, "dog/high.wav", 0.5 * np.sin(2 * np.pi * 9000 * np.arange(44100) / 44100), 44100)
    (root / "dog" / "out.wav").symlink_to("/etc/passwd")
    (root / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (root / "cat" / "0.txt").write_text("miaow")
    clips = run(root, max_broken=0.2)
    assert collect(clips) == before
    reasons = {path: report.reason for path, report in report_of(clips).items() if report.reason}
    clipped = reasons.pop("dog/clipped.wav")
    assert clipped.startswith("clipped: ")
    assert clipped.endswith("% of the samples are at full scale, allowed are 1.0%")
    assert reasons == {
        "cat/empty.wav": "an empty file",
        "cat/page.mp3": "no readable sound of a known format, it begins with b'<!DOCTYPE html>'",
        "dog/half.wav": "cut off: 956 of 1600 bytes of sound are there",
        "dog/silent.wav": "silent: no sample is above 0.1% of the range",
        "dog/high.wav": "silent at 8000 samples per second: it has nothing below 4000 Hz",
        "dog/out.wav": "a link out of the folder, or to nothing",
    }
    others = {path: report.other for path, report in report_of(clips).items() if report.other}
    assert others == {"cat/Thumbs.db": "litter", "cat/0.txt": "caption"}
    with pytest.raises(ArtifactError, match=r"7 of 37 files cannot be used, allowed is a share of 0\.1"):
        run(root, max_broken=0.1)


@pytest.mark.fault(36)
def test_equal_sound_in_another_format_is_one_recording_and_cannot_leak_between_splits(root: Path) -> None:
    for number in range(0, 30, 3):
        values, _ = soundfile.read(root / "cat" / f"{number}.wav")
        save(root, f"cat/{number} copy.flac", values)
        save(root, f"cat/{number} louder.wav", np.stack([values, values], axis=1))
    clips = run(root, max_broken=0.0)
    assert sum(count(clips).values()) == 30
    duplicates = {path: report.duplicate_of for path, report in report_of(clips).items() if report.duplicate_of}
    assert duplicates == {
        f"cat/{number}{name}.wav": f"cat/{number} copy.flac" for number in range(0, 30, 3) for name in ("", " louder")
    }
    manifest = audio.write(root.parent / "prepared", clips, configure(root))
    assert "data.own.path: 20 of 50 files repeat another one, and are not used" in audio.question_data(
        "own", manifest, configure(root)
    )


def test_a_sound_in_two_classes_is_used_in_neither(root: Path) -> None:
    shutil.copy(root / "cat" / "0.wav", root / "Eel" / "copy.wav")
    reports = report_of(run(root, max_broken=0.1))
    for name in ("cat/0.wav", "Eel/copy.wav"):
        assert reports[name].reason == "the same recording is in the classes 'Eel', 'cat'"


BAD: dict[str, tuple[dict[str, Any], Callable[[Path], Any], str]] = {
    "no folder": ({}, shutil.rmtree, "own: expected a folder, found nothing"),
    "an empty folder": ({}, lambda root: (shutil.rmtree(root), root.mkdir()), "own: no file found"),
    "one recording": (
        {"folders": "none"},
        lambda root: [path.unlink() for path in root.rglob("*.wav") if path.stem != "0"],
        r"own: every split needs a recording, got train \d, validation \d, test \d by .*; add recordings, raise",
    ),
    "no split folders": (
        {"folders": "splits"},
        lambda _: None,
        "own: `folders: splits` expects folders named train and validation or test, found Eel, cat, dog",
    ),
    "only pictures": (
        {},
        lambda root: [path.write_bytes(b"\x89PNG\r\n\x1a\n") for path in root.rglob("*.wav")],
        r"own: 30 of 30 files cannot be used, allowed is a share of 0\.01; mend or remove them, or raise max_broken; ",
    ),
    "a stray file": (
        {},
        lambda root: shutil.copy(root / "cat" / "0.wav", root / "stray.wav"),
        r".*'stray.wav': next to class folders: its class is not known; `folders: none` takes all recordings without",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_cannot_be_used_is_refused_by_its_path(name: str, root: Path) -> None:
    changes, spoil, message = BAD[name]
    spoil(root)
    with pytest.raises(ArtifactError, match=f"(?s){message}"):
        run(root, **changes)


def test_a_recording_that_changed_after_the_listing_is_refused(root: Path) -> None:
    run(root)
    save(root, "cat/0.wav", play(1000))
    with pytest.raises(ArtifactError, match=r"own: 'cat/0.wav' changed after it was listed: expected SHA-256 \w{64}"):
        audio_folder.prepare(root.parent / "raw" / "key", configure(root))


@pytest.mark.parametrize(
    "changes",
    [
        *({"samples": 0}, {"rate": 10}, {"long": "shortest"}, {"folders": "some"}, {"test": 0.0}),
        *({"max_broken": 1.0}, {"max_minutes": 0.0}, {"max_clipped": 2.0}),
    ],
)
def test_nonsense_is_refused_by_its_key(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        configure(Path("own"), **changes)


# --- doubts ------------------------------------------------------------------


def find_doubts(root: Path, **changes: Any) -> list[str]:
    clips, config = run(root, **changes), configure(root, **changes)
    found = audio.question_data("own", audio.write(root.parent / "prepared", clips, config), config)
    few = f"data.own.path: {count(clips)['train']} training examples are few, a model may copy them"
    return [doubt for doubt in found if doubt != few and "split has no example" not in doubt]


def test_an_ordinary_set_raises_no_doubt_but_that_it_is_small(root: Path) -> None:
    assert find_doubts(root) == []


def test_each_doubt_names_its_key(root: Path) -> None:
    assert find_doubts(root, samples=4096) == [
        "data.own.samples: 95% of the recordings last at most 0.1 s, a clip 0.512 s; 1024 would hold 95% of them"
    ]
    assert find_doubts(root, samples=600) == [
        "data.own.samples: 25% of the sound is left out, a clip lasts 0.075 s; 1024 would hold 95% of them"
    ]
    low = "30 of 30 recordings have fewer samples per second, from 8000 on"
    assert find_doubts(root, rate=16000, samples=2000) == [f"data.own.rate: {low}, so they have nothing above 4000 Hz"]
    assert find_doubts(root, folders="none") == [
        "data.own.folders: one class only, so models learn no labels and the classifier cannot be trained"
    ]
    values = play(3)
    save(root, "cat/clipped.wav", np.clip(values / np.quantile(np.abs(values), 0.995), -1, 1))  # 4 of 800 samples
    assert find_doubts(root) == ["data.own.path: 1 recordings are clipped in parts"]


def test_sound_that_was_once_at_a_lower_rate_is_doubtful(tmp_path: Path) -> None:
    for number in range(20):
        values = np.random.default_rng(number).normal(0, 0.1, 400)
        save(tmp_path / "own" / "ab"[number % 2], f"{number}.wav", resample_poly(values, 4, 1), 16000)  # of 4 kHz
    (doubt,) = find_doubts(tmp_path / "own", rate=16000, samples=2000)
    highest = int(doubt.split()[5])
    assert 1900 < highest < 2600  # the filter's slope goes beyond 2000 Hz
    assert doubt == f"data.own.rate: the sound is below {highest} Hz, clips reach up to 8000 Hz"
    assert find_doubts(tmp_path / "own", rate=4000, samples=500) == []


# --- stages --------------------------------------------------------------------


def test_the_stages_write_clips_reports_and_a_sheet_that_can_be_heard(
    workdir: Path, edit_params: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):
        save(workdir / "my sounds" / "ab"[number % 2], f"{number}.ogg", play(number, 0.1, 22050, 2), 22050)
    (workdir / "my sounds" / "a" / "broken.wav").write_bytes(b"nothing")
    keys = {"split_seed": 0, "validation": 0.2, "test": 0.2, "samples": SAMPLES, "rate": RATE, "max_broken": 0.02}
    edit_params({"data.sounds": {"source": "audio_folder", "path": "my sounds", **keys}})
    fetch_stage.main("sounds")
    prepare_stage.main("sounds")
    manifest = artifacts.read_manifest("sounds")
    assert manifest["fields"]["clips"] == {"kind": "audio", "samples": SAMPLES, "rate": RATE}
    assert manifest["files"] == {"count": 61, "quarantined": 1, "duplicates": 0, "changed": 60}
    assert manifest["classes"] == ["a", "b"]
    assert manifest["known"] == {
        "seconds": {"shortest": 0.1, "median": 0.1, "95%": 0.1, "longest": 0.1},
        "rates": {"22050": 60},
    }
    assert sum(len(artifacts.read_split("sounds", split)["clips"]) for split in SPLITS) == 60
    samples, rate = read_wav(workdir / "reports" / "data" / "sounds" / "sheet.wav")
    assert (len(samples), rate) == (2 * (SAMPLES + RATE // 4), RATE)
    said = capsys.readouterr().out
    assert "sounds files: 1 of 61 files quarantined, 60 changed, see files.json" in said
    assert "sounds rates: 22050 60" in said
    assert "sounds 60 recordings resampled to 8000 samples per second" in said
    assert [path.name for path in (workdir / "data/raw").iterdir()] == ["sounds"]
