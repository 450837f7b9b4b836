"""The share of samples that keep a form, on samples of known form and on planted failures."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.artifacts import ArtifactError
from pipeline.formats.tokenizers import Kind
from pipeline.kinds import text
from pipeline.kinds.text import TextConfig, show
from pipeline.metrics import verse
from tests.formats.test_verses import POEMS
from tests.metrics.test_declarations import TEXTS, score_text

CONFIG = verse.Config(sampling=TEXTS)
PROSE = "話說天下大勢，分久必合，合久必分。周末七國分爭，並入於秦。"
FORM = list(POEMS.values())


def measure(samples: list[str], known: str = "") -> dict[str, float]:
    evidence = verse.Evidence(samples, FORM, frozenset(known.split("\n")), score_text())
    return {name: value for name, (value,) in verse.compute(evidence, CONFIG).items()}


def test_poems_of_known_form_have_the_share_1_and_prose_has_0() -> None:
    found = measure([f"{poem}\n\n{PROSE}" for poem in FORM])
    assert found["form_share"] == found["form_share_real"] == found["couplet_share"] == 1
    assert found["samples"] == len(FORM)
    found = measure([f"{PROSE}\n\n{poem}" for poem in FORM])
    assert found["form_share"] == found["couplet_share"] == found["copied_share"] == 0
    assert found["form_share_real"] == 1


@pytest.mark.parametrize("broken", range(len(FORM) + 1))
def test_the_share_falls_with_each_planted_failure(broken: int) -> None:
    # One character too many in the last couplet: all the other couplets of the poem are whole.
    samples = [f"{poem[:-1]}春。\n\n" if number < broken else f"{poem}\n\n" for number, poem in enumerate(FORM)]
    found = measure(samples)
    assert found["form_share"] == pytest.approx(1 - broken / len(FORM))
    lines = sum(len(poem.split("\n")) for poem in FORM)
    assert found["couplet_share"] == pytest.approx(1 - broken / lines)


def test_a_sample_that_does_not_end_keeps_no_form() -> None:
    assert measure([FORM[0]])["form_share"] == 0
    assert measure([f"{FORM[0]}\n"])["form_share"] == 0
    assert measure(["\n\n"])["form_share"] == 0


def test_copies_of_the_training_text_are_told() -> None:
    found = measure([f"{poem}\n\n" for poem in FORM[:2]], known=f"{FORM[0]}\n{PROSE}")
    assert found["copied_share"] == 2 / 4
    assert found["copied_share_real"] == 2 / sum(len(poem.split("\n")) for poem in FORM)


def test_the_error_is_that_of_agresti_and_coull() -> None:
    samples = [f"{FORM[0]}\n\n"] * 7 + [PROSE] * 13
    share = (7 + 2) / (20 + 4)
    assert measure(samples)["form_share_se"] == pytest.approx(math.sqrt(share * (1 - share) / 24))
    assert measure([PROSE])["form_share_se"] > 0


def test_no_samples_are_refused() -> None:
    with pytest.raises(ArtifactError, match="expected samples and test poems, got 0 and 5"):
        measure([])


@pytest.mark.parametrize("kind", ["character", "byte"])
def test_samples_and_poems_are_read_from_files(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, test = f"{FORM[0]}\n\n{FORM[-1]}", "\n\n".join(FORM)
    splits = {"train": [train], "validation": [PROSE], "test": [test]}
    config = TextConfig(
        source="own", path="own", split_seed=0, validation=0.1, test=0.1, tokenizer=kind, vocabulary=300
    )
    folder = artifacts.PREPARED / "poems"
    written = text.write(folder, text.Texts(splits), config)
    artifacts.write_json(folder / "manifest.json", dict.fromkeys(artifacts.MANIFEST, "") | written)
    sampling = TEXTS.model_copy(update={"count": 2, "prompt": "\n\n"})
    settings: Any = SimpleNamespace(
        runs={"x": SimpleNamespace(data="poems", metric="verse")}, metrics={"verse": SimpleNamespace(sampling=sampling)}
    )
    monkeypatch.setattr(verse.text, "gather", lambda *_: score_text())
    with pytest.raises(ArtifactError, match=r"samples\.yaml: expected the samples, found no file"):
        verse.gather("x", settings, {})
    path = artifacts.REPORTS / "runs" / "x" / "samples" / "samples.yaml"
    artifacts.write_bytes(path, show("samples", [f"\n\n{FORM[0]}\n\n", f"\n\n{PROSE}"], None).content)
    evidence = verse.gather("x", settings, {})
    assert evidence.samples == [f"{FORM[0]}\n\n", PROSE]
    assert len(evidence.real) == len(FORM)
    found = verse.compute(evidence, CONFIG)
    assert found["form_share"] == [0.5]
    assert found["form_share_real"] == [1.0]  # with characters that the training text lacks
    assert found["copied_share"] == [1.0]
    artifacts.write_bytes(path, show("samples", [f"\n\n{FORM[0]}"], None).content)
    with pytest.raises(ArtifactError, match=r"samples\.yaml: expected 2 texts that begin with '\\n\\n', got 1"):
        verse.gather("x", settings, {})
