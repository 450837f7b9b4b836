"""The report, the cards and the audit of a small project, against what was planted in it."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from pipeline import artifacts

MOST = 5 * 2**20  # bytes of a report
pytestmark = pytest.mark.usefixtures("here")


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pick(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def page(here: Path) -> Elements:
    return Elements((here / "reports" / "index.html").read_text())


def test_the_report_is_one_file_that_says_each_run_and_loads_nothing(here: Path, page: Elements) -> None:
    content = (here / "reports" / "index.html").read_bytes()
    assert len(content) < MOST
    for attributes in (attributes for _, attributes in page.found):
        for name in ("src", "href"):
            value = str(attributes.get(name) or "data:")
            assert value.startswith(("data:", "#", "cards/")), value
    assert not re.findall(rb"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", content)
    identifiers = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert {"gan", "vae", "transformer", "summary", "parameters", "changes"} <= {*identifiers}
    links = [str(each["href"]) for each in page.pick("a")]
    assert [link for link in links if link.startswith("#") and link[1:] not in identifiers] == []
    assert [link for link in links if link.startswith("cards/") and not (here / "reports" / link).exists()] == []


def test_every_picture_has_a_text_and_an_alarm_and_a_sample_run_nothing(page: Elements) -> None:
    pictures = page.pick("img")
    assert len(pictures) == 6  # samples, three previews, interpolations and neighbours
    assert all(each["alt"] for each in pictures)
    assert len(page.pick("script")) == 1  # that of the page itself
    assert "alert(1)" in page.text
    assert "<b>mode collapse</b>" in page.text
    assert len(page.pick("mark")) == 4  # the prompt in two samples and two previews


def test_numbers_intervals_real_data_and_verdicts_are_said_in_words(page: Elements) -> None:
    text = " ".join(page.text.split())
    metrics = json.loads((artifacts.REPORTS / "runs" / "gan" / "metrics.json").read_text())
    sets = json.loads((artifacts.REPORTS / "runs" / "gan" / "sets.json").read_text())["fid_classifier"]
    half = 4.302652729911275 * np.std(sets, ddof=1) / 3**0.5  # Student's t for three sets
    low, high = metrics["fid_classifier"] - half, metrics["fid_classifier"] + half
    said = f"fid_classifier is {metrics['fid_classifier']:.4g}, with 95 % confidence {low:.4g} to {high:.4g}; lower is"
    assert f"{said} better; real data have {metrics['fid_classifier_floor']:.4g}." in text
    assert "copies of training data" in text
    assert "samples lie 0.00 times as far from training data as test data do" in text
    assert "not audited" in text  # vae
    assert "no secret in the training text" in text
    assert "This folder has no commit to compare with." in text


def test_curves_of_one_metric_share_a_chart_and_no_other(page: Elements) -> None:
    charts = [json.loads(str(each["data-chart"])) for each in page.pick("figure") if "data-chart" in each]
    assert [[series["name"] for series in chart["series"]] for chart in charts] == [["gan", "vae"], ["transformer"]]
    assert charts[0]["series"][0]["x"] == [10, 20, 30]
    assert charts[0]["series"][0]["y"] == [3.5, 2.5, 2.0]


def test_the_audit_pairs_each_sample_with_the_training_picture_that_it_copies() -> None:
    folder = artifacts.REPORTS / "runs" / "gan" / "audit"
    assert artifacts.read_json(folder / "verdicts.json")["copies"]["verdict"] == "copies"
    grid = np.asarray(Image.open(io.BytesIO((folder / "neighbours.png").read_bytes())).convert("L"))
    cells = grid[2:, 2:].reshape(8, 30, 8, 30).swapaxes(1, 2)[:, :, :28, :28]
    assert np.array_equal(cells[:, 0::2], cells[:, 1::2])  # the samples are training pictures
    assert len(np.unique(cells[:, 0::2].reshape(32, -1), axis=0)) == 32


def test_attention_of_the_report_is_causal_and_of_a_sentence_of_the_held_out_text() -> None:
    about = artifacts.read_json(artifacts.REPORTS / "runs" / "transformer" / "audit" / "attention.json")
    assert "".join(about["tokens"]) == "Return the mean of an array."
    size = len(about["tokens"])
    weights = np.frombuffer(__import__("base64").b64decode(about["weights"]), np.uint8)
    weights = weights.reshape(about["layers"], about["heads"], size, size)
    assert np.array_equal(weights, np.tril(weights))
    assert np.allclose(weights.sum(axis=-1, dtype=np.int64), 255, atol=size / 2)


def test_a_card_of_each_recorded_run_and_data_set_has_no_empty_field(here: Path) -> None:
    cards = sorted(path.relative_to(here / "reports" / "cards").as_posix() for path in here.glob("reports/cards/*/*"))
    assert cards == ["data/images.md", "data/text.md", "runs/gan.md", "runs/transformer.md"]
    for name in cards:
        text = (here / "reports" / "cards" / name).read_text()
        rows = [row.split("|")[1:-1] for row in text.splitlines() if row.startswith("|")]
        assert [row for row in rows if not all(cell.strip() for cell in row)] == [], name
        assert not re.findall(r"None|\{\}|\[\]|(?::|\*)\s*$", text.partition("\n---\n")[2], re.MULTILINE), name
    card = ModelCard.load(here / "reports" / "cards" / "runs" / "gan.md")
    results = {each.metric_type: each.metric_value for each in card.data.eval_results or []}
    assert (
        results["fid_classifier"]
        == artifacts.read_json(artifacts.REPORTS / "runs" / "gan" / "metrics.json")["fid_classifier"]
    )
    assert "Alarms of the training: step 12: <b>mode collapse</b>." in card.text
    assert (
        f"| count | {3500:,} | {500:,} | {1000:,} |" in (here / "reports" / "cards" / "data" / "images.md").read_text()
    )


def test_the_samples_of_the_report_are_not_made_again() -> None:
    # The audit reads them: its exhibits must not change what the metrics read.
    generated = artifacts.read_tensors(artifacts.RUNS / "gan" / "samples" / "generated.safetensors")["0"]
    assert torch.equal(generated, artifacts.read_split("images", "train")["images"][:100])
