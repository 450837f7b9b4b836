"""Clips as a kind: what is refused, what can be heard, what the manifest says; SciPy reads the WAV files."""

import base64
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from scipy.io import wavfile

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.history.mlflow_store import connect
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from pipeline.kinds import Pool, audio, parse_fields
from pipeline.kinds.audio import AudioConfig, Clips
from pipeline.pages.exhibits import show_exhibit

RATE = 8000
CONFIG = AudioConfig(source="x", path="x", split_seed=0, validation=0.1, test=0.2, samples=400, rate=RATE)


def make_clips(count: int, seed: int = 0, *, samples: int = 400) -> torch.Tensor:
    """Sines of different frequencies, int16 (N, T), at half of the range."""
    frequencies = 137 + 31 * torch.arange(count)[:, None] + seed
    return (16000 * (2 * torch.pi * frequencies * torch.arange(samples) / RATE).sin()).short()


class Model:
    """Makes the clips of a seed, of which the first ones are silent."""

    makes, given, device = "clips", (), torch.device("cpu")

    def __init__(self, silent: int = 0) -> None:
        self.silent = silent

    def sample(self, count: int, generator: torch.Generator, given: Any = None) -> torch.Tensor:
        del given
        clips = make_clips(count, int(torch.randint(1000, (), generator=generator)))
        clips[: self.silent] = 0
        return clips


def load(silent: int = 0) -> Any:
    """What the stages hand to a kind: a model with the fields of its data."""
    model = Model(silent)
    return SimpleNamespace(model=model, fields=audio.make_fields(400, RATE, 10), sample=model.sample, pool=Pool())


def read(content: bytes) -> np.ndarray:
    rate, samples = wavfile.read(io.BytesIO(content))
    assert rate == RATE
    assert samples.dtype == np.int16
    return samples


# --- heard ---------------------------------------------------------------------


def test_shown_clips_are_one_wav_with_silence_after_each() -> None:
    clips = make_clips(3)
    exhibit = audio.show("samples", clips, load())
    assert (exhibit.name, exhibit.suffix) == ("samples", ".wav")
    samples = read(exhibit.content).reshape(3, 400 + RATE // 4)
    assert np.array_equal(samples[:, :400], clips.numpy())
    assert not samples[:, 400:].any()


def test_one_clip_survives_the_served_text() -> None:
    text = audio.encode(load(), torch.Generator().manual_seed(3), None)
    expected = Model().sample(1, torch.Generator().manual_seed(3))[0]
    assert np.array_equal(read(base64.b64decode(text)), expected.numpy())


def test_a_wav_plays_in_the_report_and_is_an_artifact_in_mlflow(workdir: Path) -> None:
    exhibit = audio.show("samples", make_clips(2), load())
    path = artifacts.REPORTS / "runs" / "x" / "samples" / f"{exhibit.name}{exhibit.suffix}"
    artifacts.write_bytes(path, exhibit.content)
    shown = show_exhibit(path)
    player, _, rest = str(shown.html).partition("data:audio/wav;base64,")
    assert player.startswith("<audio controls ")
    assert base64.b64decode(rest.partition('"')[0]) == exhibit.content
    about = {"name": "x", "tags": {}, "parameters": {}, "config": {}, "datasets": [], "environment": {}}
    record = Record(workdir / "record", about)
    record.exhibit(exhibit.name, 7, exhibit.suffix, exhibit.content)
    MlflowSync(record).send()
    client, experiment = connect()
    (run,) = client.search_runs([experiment])
    (item,) = MlflowClient().list_artifacts(run.info.run_id, "exhibits/samples")
    assert item.path == "exhibits/samples/0000007.wav"
    assert Path(client.download_artifacts(run.info.run_id, item.path)).read_bytes() == exhibit.content


def test_a_preview_is_20_clips_and_alarms_when_most_are_silent() -> None:
    for silent, share in ((0, 0.0), (10, 0.5), (11, 0.55)):
        look = audio.look(load(silent), {}, {}, 0, None)
        assert look.values == {"silent_share": pytest.approx(share)}
        heard, seen = look.exhibits
        assert (heard.name, heard.suffix, seen.name, seen.suffix) == ("samples", ".wav", "samples", ".png")
        assert len(read(heard.content)) == 20 * (400 + RATE // 4)
        found = audio.find_alarms({name: (5, value) for name, value in look.values.items()}, {})
        assert found == (["step 5: 55% of the samples are silent"] if silent == 11 else [])
    assert audio.find_alarms({}, {}) == []


def test_independent_sets_are_drawn_and_the_first_is_heard() -> None:
    manifest = {"splits": {"test": {"count": 40}, "train": {"count": 90}}}
    drawn = audio.draw(load(), SimpleNamespace(count=30, sets=2), 0, manifest, lambda _: None)
    sets = drawn.files["generated"]
    assert {name: values.shape for name, values in sets.items()} == {"0": (30, 400), "1": (30, 400)}
    assert not torch.equal(sets["0"], sets["1"])
    samples = read(drawn.exhibits[0].content).reshape(20, -1)
    assert np.array_equal(samples[:, :400], sets["0"][:20].numpy())
    fewer = audio.draw(load(), SimpleNamespace(count=50, sets=1), 0, manifest, lambda _: None)
    assert len(fewer.files["generated"]["0"]) == 40  # as many as the test split has


def test_labelled_clips_are_heard_and_seen_class_by_class() -> None:
    loaded = load()
    loaded.pool = Pool({"labels": torch.arange(2)}, [1.0, 1.0])
    manifest = {"splits": {"test": {"count": 40}, "train": {"count": 90}}, "classes": ["a", "b"]}
    drawn = audio.draw(loaded, SimpleNamespace(count=30, sets=1), 0, manifest, lambda _: None)
    labels = drawn.files["given_labels"]["0"][:20]
    clips = drawn.files["generated"]["0"][:20]
    heard, seen = drawn.exhibits
    expected = torch.cat([clips[labels == 0], clips[labels == 1]]).numpy()
    assert np.array_equal(read(heard.content).reshape(20, -1)[:, :400], expected)
    assert Image.open(io.BytesIO(seen.content)).size == (5 * 130, 4 * 144)


def test_a_spectrogram_is_dark_where_a_tone_is() -> None:
    time = torch.arange(8192) / RATE
    clips = (10000 * (2 * torch.pi * torch.tensor([[1000.0], [3000.0]]) * time).sin()).short()
    clips[:, 4096:] = 0
    grid = np.asarray(Image.open(io.BytesIO(audio.draw_spectrograms("x", clips, RATE).content)).convert("L"))
    assert grid.shape == (130, 260)
    for tile, frequency in ((grid[:128, :128], 1000), (grid[:128, 130:258], 3000)):
        assert abs(int(tile[:, 20:50].mean(axis=1).argmin()) - (127 - 128 * frequency / 4000)) <= 2
        assert tile[:, 20:50].min() < 20
        assert (tile[:, 90:] > 200).all()  # 80 dB less: silence


# --- checked -------------------------------------------------------------------


def break_clips(index: int, value: int, count: int = 1) -> torch.Tensor:
    """Good clips, of which some are a constant."""
    clips = make_clips(100)
    clips[index : index + count] = value
    return clips


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (make_clips(100).float() / 2**15, r"x: expected int16 clips, got torch.float32 in \[-0.488, 0.488\]"),
        (make_clips(100)[None], r"x: expected clips \(N, T\), got \(1, 100, 400\)"),
        (make_clips(49), "x: 49 clips are too few, expected 50 or more"),
        (break_clips(30, 0, 11), "x: 11 of 100 clips are silent, the first is clip 30"),
        (break_clips(30, 326, 11), "x: 11 of 100 clips are silent, the first is clip 30"),
        (break_clips(60, 32767, 11), "x: 11 of 100 clips are clipped, the first is clip 60"),
        (break_clips(60, -32768, 40), "x: 40 of 100 clips are clipped, the first is clip 60"),
    ],
)
def test_nonsense_is_refused_in_one_line(clips: torch.Tensor, message: str) -> None:
    with pytest.raises(ArtifactError, match=f"^{message}$"):
        audio.check("x", clips)


def test_good_clips_and_a_few_broken_ones_are_accepted() -> None:
    for clips in (make_clips(100), break_clips(0, 0, 10), break_clips(0, 32767, 10)):
        audio.check("x", clips)


# --- written -------------------------------------------------------------------


def make_splits() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    sizes = {"train": 20, "validation": 6, "test": 8}
    return {
        name: (make_clips(size, seed), torch.arange(size) % 2)
        for seed, (name, size) in enumerate(sizes.items(), start=1)
    }


def test_the_manifest_describes_the_files(tmp_path: Path) -> None:
    splits = make_splits()
    splits["test"][0][5] = splits["train"][0][3]  # a leak
    splits["test"][0][6] = splits["test"][0][5]  # and a duplicate
    splits["test"][0][0, :2] = torch.tensor([32767, -32768])
    manifest = audio.write(tmp_path, Clips(splits, ("a", "b"), "a sine", ["made louder"]), CONFIG)
    fields = {
        "clips": {"kind": "audio", "samples": 400, "rate": RATE},
        "labels": {"kind": "labels", "classes": 2},
    }
    assert manifest["fields"] == fields
    assert parse_fields(fields)["clips"] == audio.Spec(samples=400, rate=RATE)
    about = [manifest[key] for key in ("classes", "origin", "changes")]
    assert about == [["a", "b"], "a sine", ["made louder"]]
    assert [entry["clipped_samples"] for entry in manifest["splits"].values()] == [0, 0, 2]
    assert list(manifest["splits"]) == ["train", "validation", "test"]
    for name, entry in manifest["splits"].items():
        path = tmp_path / f"{name}.safetensors"
        tensors = artifacts.read_tensors(path)
        assert torch.equal(tensors["clips"], splits[name][0])
        assert torch.equal(tensors["labels"], splits[name][1])
        assert entry["sha256"] == artifacts.digest(path)
        assert entry["shape"] == [entry["count"], 400]
    test = manifest["splits"]["test"]
    assert (test["count"], test["per_class"]) == (8, [4, 4])
    assert (test["duplicates"], test["shared_with_train"], test["shared_with_validation"]) == (1, 1, 0)
    assert (test["minimum"], test["maximum"]) == (int(splits["test"][0].min()), int(splits["test"][0].max()))


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (make_clips(8, samples=300), r"test: expected \(8, 400\) samples and as many labels, got \(8, 300\)"),
        (make_clips(7), r"test: expected \(8, 400\) samples and as many labels, got \(7, 400\)"),
        (break_clips(3, 0)[:8], "test: 1 of 8 clips are silent, the first is clip 3"),
        (make_clips(8).float(), "test: expected int16 clips"),
    ],
)
def test_real_clips_that_are_broken_are_not_written(clips: torch.Tensor, message: str, tmp_path: Path) -> None:
    splits = make_splits()
    splits["test"] = clips, splits["test"][1]
    with pytest.raises(ArtifactError, match=message):
        audio.write(tmp_path, Clips(splits, ("a", "b"), "a sine"), CONFIG)
    assert not (tmp_path / "test.safetensors").exists()
