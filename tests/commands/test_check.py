"""The contract of a model: the shipped models keep it, so does the one of docs/extend.md, and each breach is named."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from pipeline import params, plugins
from pipeline.artifacts import SPLITS, ArtifactError
from pipeline.commands import check
from pipeline.commands.check import Subject, find_problems
from pipeline.formats.tokenizers import ByteTokenizer
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.text import make_fields as text_fields
from tests.conftest import ROOT, TINY, set_value

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
MODEL, _ = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SECTIONS = YAML(typ="safe", pure=True).load(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0])
MEASURE = params.load(ROOT / "params.yaml").metrics


def read_images(split: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(split))
    images = torch.randint(256, (24, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return {"images": images, "labels": torch.arange(24) % 2}


def read_text(split: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(split))
    return {"tokens": torch.randint(97, 123, (200,), generator=generator, dtype=torch.int32)}


def make_images(plug_in: str, config: Any) -> Subject:
    entry = {"count": 24, "per_class": [12, 12]}
    manifest = {"kind": "images", "splits": dict.fromkeys(SPLITS, entry)}
    sampling = MEASURE["images"].sampling.model_copy(update={"importance_samples": 2})
    return Subject(plug_in, config, image_fields((1, 8, 8), 2), manifest, read_images, sampling)


def make_text(plug_in: str, config: Any) -> Subject:
    manifest = {"kind": "text", "splits": {split: {"tokens": 200} for split in SPLITS}}
    sampling = MEASURE["text"].sampling.model_copy(update={"length": 4, "count": 1, "prompt": "a"})
    state = ByteTokenizer("abc").state()
    return Subject(plug_in, config, text_fields(256), manifest, read_text, sampling, state)


def add_model(path: Path, **changes: int) -> None:
    """Add the page's section and run to a params.yaml."""
    values = YAML(typ="safe", pure=True).load(path)
    values["models"] |= {"tiny_flow": SECTIONS["models"]["tiny_flow"] | changes}
    values["runs"] |= SECTIONS["runs"]
    YAML(typ="safe", pure=True).dump(values, path)


@pytest.mark.parametrize(("name", "make"), [("gan", make_images), ("vae", make_images), ("transformer", make_text)])
def test_the_shipped_models_keep_the_contract(
    name: str, make: Callable[[str, Any], Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.kinds.text.PREVIEW_LENGTH", 8)
    values = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    for key, value in TINY.items():
        set_value(values, key, value)
    subject = make(name, plugins.load("models", name).Config.model_validate(values["models"][name]))
    assert [line for line in find_problems(subject) if line[1]] == []


@pytest.fixture
def bring(brought: Callable[[str], Path]) -> Callable[[str], Subject]:
    """Make a text the model `tiny_flow` of another installed package; return a subject with a tiny config."""

    def write(text: str) -> Subject:
        brought(text)
        small = {"width": 4, "sampling_steps": 2, "batch_size": 8, "ema": 0.5, "warmup": 0}
        config = plugins.load("models", "tiny_flow").Config
        return make_images("tiny_flow", config.model_validate(SECTIONS["models"]["tiny_flow"] | small))

    return write


def test_the_model_of_the_page_has_forty_lines_and_keeps_the_contract(bring: Callable[[str], Subject]) -> None:
    assert len(MODEL.splitlines()) <= 40
    assert [line for line in find_problems(bring(MODEL)) if line[1]] == []


SHIFT = """        self.shift = nn.Parameter(torch.rand(1))
        sizes ="""
COUNTING = """        self.steps = getattr(self, "steps", 0) + 1
        velocity = velocity / self.steps
        return nn.functional"""
BREACHES = {  # edits of the page's model, and the words of the line that fails
    "dtype": ([(".round().byte()", ".round()")], "samples like.* 4 samples uint8 .4, 1, 8, 8., got .* float32"),
    "global generator": (
        [("*self.shape, generator=generator", "*self.shape")],
        "samples.*equal samples for equal",
    ),
    "unknown field": ([("batch[self.makes]", 'batch["picture"]')], "trains.*KeyError: 'picture', line 29 of flow.py"),
    "state outside": ([("        return nn.functional", COUNTING)], "resumes.*weights of an uninterrupted"),
    "weights outside": (
        [
            ("        sizes =", SHIFT),
            ("return ((x.clamp", "x = x + self.shift\n        return ((x.clamp"),
        ],
        "is saved.*is something outside `kept`",
    ),
    "no field": ([("    def find_velocity", "    given = 3\n\n    def find_velocity")], "names.*given to be a tuple"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_named_in_one_line(breach: str, bring: Callable[[str], Subject]) -> None:
    edits, words = BREACHES[breach]
    text = MODEL
    for old, new in edits:
        assert text.count(old) == 1
        text = text.replace(old, new)
    problems = [f"{title}: {problem}" for title, problem in find_problems(bring(text)) if problem]
    assert any(re.search(words, line) for line in problems), problems
    assert "\n" not in "".join(problems)


def test_a_file_that_lacks_a_name_or_a_run_is_refused_with_the_reason(
    bring: Callable[[str], Subject], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del workdir
    bring(MODEL)
    with pytest.raises(ArtifactError, match="no run has the model tiny_flow; add one"):
        check.read_subject("tiny_flow")
    with pytest.raises(ValueError, match="it lacks Config"):
        bring(MODEL.replace("class Config", "class Settings"))
    with pytest.raises(ArtifactError, match=r"brought_package\.flow \(generative_pipeline\.models\): .* lacks Config"):
        check.read_subject("tiny_flow")
    assert capsys.readouterr().out == ""


def test_the_command_checks_a_run_with_its_prepared_data(
    prepared: Path, bring: Callable[[str], Subject], capsys: pytest.CaptureFixture[str]
) -> None:
    bring(MODEL)
    add_model(prepared / "params.yaml", width=2, sampling_steps=1)
    assert check.main(["model", "tiny_flow"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(check.DEMANDS)
