"""Spoken digits: sound that is there, splits without a shared voice, and a classifier that hears the words."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from scipy.io import wavfile

from pipeline import artifacts, params
from pipeline.artifacts import ArtifactError
from pipeline.data import spoken_digits
from pipeline.data.spoken_digits import WORDS, Config
from pipeline.formats.wav import encode_wav, read_wav
from pipeline.kinds import parse_fields
from pipeline.kinds.audio import Clips, is_clipped, is_silent
from pipeline.params import ParamsError
from pipeline.stages import networks, prepare
from tests.conftest import ROOT

Edit = Callable[[dict[str, Any]], None]
DATA = {"source": "spoken_digits", "path": "none", "split_seed": 0, "validation": 0.1, "test": 0.2}
DATA |= {"samples": 8192, "rate": 8000}
HEARING = {"network": "classifier", "data": "spoken", "seed": 0, "width": 8, "steps": 80, "batch_size": 32}
HEARING |= {"learning_rate": 3e-3, "weight_decay": 0.05, "shift": 800}


def make_config(**changes: Any) -> Config:
    return Config.model_validate(DATA | changes)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    spoken_digits.fetch(folder, make_config())
    return folder


@pytest.fixture(scope="module")
def clips(raw: Path) -> Clips:
    return spoken_digits.prepare(raw, make_config())


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the 12 voices of one accent."""
    folder = tmp_path_factory.mktemp("few")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spoken_digits, "ACCENTS", ("en",))
        spoken_digits.fetch(folder, make_config())
    return folder


@pytest.fixture(scope="module")
def spoken(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose params.yaml has the data, fetched and prepared, and the network that learns them."""
    folder = tmp_path_factory.mktemp("spoken")
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml")
    values["data"]["spoken"], values["networks"]["hearing"] = DATA, HEARING
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    artifacts.seal(shutil.copytree(raw, folder / artifacts.RAW / "spoken"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.main("spoken")
    return folder


def test_the_source_foresees_its_fields(spoken: Path) -> None:
    manifest = artifacts.read_json(spoken / artifacts.PREPARED / "spoken" / "manifest.json")
    assert parse_fields(manifest["fields"]) == spoken_digits.foresee(make_config())


# --- fetched -------------------------------------------------------------------


def test_every_voice_says_every_word_for_a_plausible_time_at_a_plausible_level(raw: Path) -> None:
    about = artifacts.read_json(raw / "voices.json")
    assert about["engine"] == "eSpeak NG 1.52.0"
    voices = [tuple(voice) for voice in about["voices"]]
    assert len(voices) == len(set(voices)) == 72
    assert {120 <= speed <= 200 and 25 <= pitch <= 75 for _, speed, pitch in voices} == {True}
    paths = sorted(raw.glob("*.wav"))
    assert {path.stem for path in paths} == {f"{name}_{word}" for name, _, _ in voices for word in WORDS}
    for path in paths:
        rate, samples = wavfile.read(path)
        assert rate == 22050
        assert 0.2 < len(samples) / rate < 1
        assert 5000 < np.abs(samples.astype(int)).max() < 32767


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoken_digits, "ACCENTS", ("en",))
    monkeypatch.setattr(spoken_digits, "SPEAKERS", ("f1", "m3"))

    def read(name: str, seed: int) -> dict[str, bytes]:
        (tmp_path / name).mkdir()
        spoken_digits.synthesize(tmp_path / name, seed)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    first, second, other = read("first", 0), read("second", 0), read("other", 1)
    assert len(first) == 21
    assert first == second
    assert first.keys() == other.keys()
    assert [name for name in first if first[name] == other[name]] == []


# --- prepared ------------------------------------------------------------------


def test_each_split_has_every_digit_equally_often(clips: Clips) -> None:
    counts = {name: labels.bincount().tolist() for name, (_, labels) in clips.splits.items()}
    assert counts == {"train": [51] * 10, "validation": [7] * 10, "test": [14] * 10}
    assert clips.names == WORDS


def test_no_clip_is_silent_clipped_or_at_a_border(clips: Clips) -> None:
    for values, _ in clips.splits.values():
        assert values.dtype == torch.int16
        assert not is_silent(values).any()
        assert not is_clipped(values).any()
        assert (values.int().abs().amax(dim=1) == round(0.9 * 32767)).all()
        active = (values.int().abs() > 600).double()
        assert active[:, [0, -1]].sum() == 0
        seconds = (8192 - 2 * active.argmax(dim=1)) / 8000  # centred: as much silence before as after
        assert seconds.median() > 0.3


def test_no_voice_is_in_two_splits_and_each_clip_is_the_word_of_its_label(raw: Path, clips: Clips) -> None:
    names = [name for name, *_ in artifacts.read_json(raw / "voices.json")["voices"]]
    places: dict[bytes, tuple[str, str]] = {}
    for name in names:
        for word in WORDS:
            clip = spoken_digits._read_clip(raw / f"{name}_{word}.wav", make_config())
            places[clip.tobytes()] = name, word
    assert len(places) == 720
    voices: dict[str, set[str]] = {}
    for split, (values, labels) in clips.splits.items():
        found = [places[clip.numpy().tobytes()] for clip in values]
        assert [word for _, word in found] == [WORDS[label] for label in labels]
        voices[split] = {name for name, _ in found}
    assert sum(map(len, voices.values())) == len(set().union(*voices.values())) == 72


def test_the_split_is_a_function_of_its_seed(few: Path) -> None:
    first, again, other = (spoken_digits.prepare(few, make_config(split_seed=seed)) for seed in (0, 0, 1))
    for name, (values, _) in first.splits.items():
        assert torch.equal(again.splits[name][0], values)
        assert not torch.equal(other.splits[name][0], values)


def test_a_clip_keeps_its_pitch_and_its_time_at_another_rate(tmp_path: Path) -> None:
    sine = (8000 * np.sin(2 * np.pi * 1000 * np.arange(11025) / 22050)).astype(np.int16)  # half a second
    (tmp_path / "a.wav").write_bytes(encode_wav(sine, 22050))
    clip = spoken_digits._read_clip(tmp_path / "a.wav", make_config())
    assert np.abs(np.fft.rfft(clip.astype(float), 8000)).argmax() == 1000  # Hz
    assert np.abs(clip.astype(int)).max() == round(0.9 * 32767)
    first, last = np.flatnonzero(np.abs(clip.astype(int)) > 3000)[[0, -1]]
    assert (last - first) / 8000 == pytest.approx(0.5, abs=0.002)
    assert first == pytest.approx(8192 - last, abs=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 2000}, r"_zero.wav: \d+ samples at 8000 Hz, longer than the clips of 2000"),
        ({"test": 0.95}, "12 voices leave none for train: change validation or test"),
        ({"validation": 0.001}, "12 voices leave none for validation: change validation or test"),
    ],
)
def test_settings_that_leave_no_clips_are_refused(changes: dict[str, Any], message: str, few: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        spoken_digits.prepare(few, make_config(**changes))


# --- learnt --------------------------------------------------------------------


@pytest.fixture
def heard(spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which a test may change."""
    monkeypatch.chdir(shutil.copytree(spoken, tmp_path, dirs_exist_ok=True))
    return tmp_path


@pytest.mark.slow
def test_the_stages_make_a_network_that_understands_voices_that_it_never_heard(heard: Path, raw: Path) -> None:
    fetched = heard / artifacts.RAW / "spoken"
    shutil.rmtree(fetched)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pipeline.stages", "fetch", "spoken"]  # as DVC starts it
    subprocess.run(command, cwd=heard, env=os.environ | {"PYTHONPATH": path}, check=True)
    prepare.main("spoken")
    assert [path.name for path in raw.iterdir() if path.read_bytes() != (fetched / path.name).read_bytes()] == []
    manifest = artifacts.read_manifest("spoken")
    assert (manifest["kind"], manifest["source"], manifest["origin"]) == ("audio", "spoken_digits", "eSpeak NG 1.52.0")
    assert manifest["fields"]["clips"] == {"kind": "audio", "samples": 8192, "rate": 8000}
    assert manifest["files"] == {"count": 721, "quarantined": 0, "duplicates": 0, "changed": 0}
    assert {entry["duplicates"] for entry in manifest["splits"].values()} == {0}
    assert manifest["changes"][0] == "resampled from 22050 to 8000 samples per second"
    networks.main("hearing")
    about = artifacts.read_json(heard / artifacts.REPORTS / "networks" / "hearing.json")
    assert about["test_accuracy"] > 0.9  # chance is 0.1
    assert about["validation_accuracy"] > 0.9


def test_a_network_that_learnt_wrong_labels_is_at_chance(heard: Path) -> None:
    path = heard / artifacts.PREPARED / "spoken"
    tensors = artifacts.read_split("spoken", "train")
    tensors["labels"] = tensors["labels"][torch.randperm(510, generator=torch.Generator().manual_seed(0))]
    artifacts.write_tensors(path / "train.safetensors", tensors)
    manifest = artifacts.read_manifest("spoken")
    manifest["splits"]["train"]["sha256"] = artifacts.digest(path / "train.safetensors")
    artifacts.write_json(path / "manifest.json", manifest)
    networks.main("hearing")
    assert artifacts.read_json(heard / artifacts.REPORTS / "networks" / "hearing.json")["test_accuracy"] < 0.35


def test_a_broken_recording_stops_the_preparation_with_its_name(heard: Path) -> None:
    path = heard / artifacts.RAW / "spoken" / "en+f1_six.wav"
    samples, rate = read_wav(path)
    path.write_bytes(encode_wav(samples[::-1], rate))
    with pytest.raises(ArtifactError, match=r"spoken/en\+f1_six.wav: expected SHA-256 \w{64}, found \w{64}"):
        prepare.main("spoken")


def test_a_model_of_texts_is_refused_for_spoken_digits_with_the_kinds_that_the_model_learns(edit_params: Edit) -> None:
    edit_params({"data.spoken": DATA, "runs.vae.model": "transformer", "runs.vae.data": "spoken"})
    message = r"runs.vae: data spoken \(spoken_digits\) holds audio, model transformer learns text, metric images"
    with pytest.raises(ParamsError, match=message):
        params.load()
