"""Parts of the pages: exhibits by suffix, bars, differences, on values whose answer is known."""

import math
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline import params
from pipeline.kinds import Exhibit
from pipeline.pages.cards import read_summary
from pipeline.pages.changes import compare_commit, compare_runs, flatten, make_grid
from pipeline.pages.charts import make_bar, make_plane, place_values
from pipeline.pages.exhibits import mark_prompt, show
from pipeline.pages.results import make_pages, make_tables, read_frames


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("To be <b>", "To be", '<mark title="prompt">To be</mark> &lt;b&gt;'),
        ("\na", "\n", '<mark title="prompt">\u23ce</mark>a'),
        ("<i>", "To be", "&lt;i&gt;"),
        ("a", "", "a"),
    ],
)
def test_a_prompt_is_marked_and_no_text_is_markup(text: str, prompt: str, expected: str) -> None:
    assert str(mark_prompt(text, prompt)) == expected


def test_attention_goes_through_an_attribute_unchanged_and_an_unknown_suffix_is_a_link() -> None:
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(dict(attrs))

    content = '{"tokens": ["\'", "\\"", "<", "&amp;"], "layers": 1, "heads": 2, "weights": ""}'
    shown = show(Exhibit("attention", ".json", content.encode()), "attention of x", "runs/x/audit/attention.json")
    Reader().feed(str(shown.html))
    assert found[0]["data-attention"] == content
    link = show(Exhibit("shape", ".glb", b""), "shape of x", 'runs/x/samples/a"b.glb')
    assert str(link.html) == '<a href="runs/x/samples/a&#34;b.glb">a&#34;b.glb</a>'


@pytest.mark.usefixtures("here")
def test_bars_share_a_scale_that_holds_zero_the_intervals_and_real_data() -> None:
    settings = params.load()
    table = make_tables(make_pages(settings))["images"]
    fid = {bar.run: bar for bar in make_bar(table, "fid_classifier", list(settings.runs)).bars}
    pages = {page.name: page for page in table.pages}
    most = pages["vae"].interval("fid_classifier")[1]  # the largest number of all
    for name, bar in fid.items():
        low, high = pages[name].interval("fid_classifier")
        places = [100 * value / most for value in (pages[name].metrics["fid_classifier"], low, high)]
        assert [bar.end, bar.low, bar.high] == pytest.approx(places, abs=0.001)
        assert bar.real == pytest.approx(100 * pages[name].metrics["fid_classifier_floor"] / most, abs=0.001)
        assert bar.start == 0
    kid = {bar.run: bar for bar in make_bar(table, "kid_classifier", list(settings.runs)).bars}
    assert 0 < kid["gan"].start < kid["gan"].end  # below zero are the floor and an interval
    assert make_plane(table, list(settings.runs)) is None  # one record only


@pytest.mark.usefixtures("here")
def test_runs_differ_in_what_params_say() -> None:
    settings = params.load()
    [of_runs] = compare_runs(make_pages(settings), settings)
    assert of_runs.columns == ["gan", "transformer", "vae"]
    assert ["metric", "images", "text", "images"] in of_runs.rows
    assert "seed" not in [row[0] for row in of_runs.rows]
    grid = make_grid("x", {"a": {"loss": "hinge", "steps": 5}, "b": {"loss": "minimax", "steps": 5, "new": []}})
    assert grid.rows == [["loss", "hinge", "minimax"], ["new", "none", "[]"]]
    assert flatten({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "a.c": {}, "d": 2}


def test_changed_numbers_and_parameters_are_told_from_the_last_commit(project: Path, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", *arguments]
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        pages = make_pages(params.load())
        text = (project / "params.yaml").read_text()
    git("init", "-q")
    (tmp_path / "params.yaml").write_text(text)
    for page in pages:
        target = tmp_path / "reports" / "runs" / page.name / "metrics.json"
        target.parent.mkdir(parents=True)
        target.write_bytes((project / "reports" / "runs" / page.name / "metrics.json").read_bytes())
    git("add", ".")
    git("commit", "-qm", "a <first> commit")
    (tmp_path / "params.yaml").write_text(text.replace("latent: 32", "latent: 8"))
    [gan] = [page for page in pages if page.name == "gan"]
    gan.metrics["fid_classifier"] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        since = compare_commit(pages)
    value = gan.metrics["fid_classifier"]
    gan.metrics["fid_classifier"] -= 1
    assert since.commit.endswith(" a <first> commit")
    assert since.numbers == [["gan", "fid_classifier", f"{value - 1:.4g}", f"{value:.4g}"]]
    assert since.parameters == [["models.vae.latent", "32", "8"]]


def test_previews_are_thinned_to_a_budget_and_keep_the_last(tmp_path: Path) -> None:
    for step in range(10, 101, 10):
        (tmp_path / f"{step:07}.txt").write_text("x" * 100)
    assert [frame.step for frame in read_frames(tmp_path, "a", "", 400)] == [30, 50, 80, 100]
    assert [frame.step for frame in read_frames(tmp_path, "a", "", 10)] == [100]
    assert len(read_frames(tmp_path, "a", "", 10_000)) == 10
    assert read_frames(tmp_path / "none", "a", "", 400) == []


def test_the_card_of_a_plug_in_of_another_package_has_its_docstring(brought: Callable[[str], Path]) -> None:
    brought('"""Flows\nwell.\n\nMore."""\n')
    assert read_summary("models", "tiny_flow") == "Flows well."
    assert read_summary("models", "gan").startswith("Generative adversarial network")


def test_one_bad_run_does_not_hide_how_the_others_differ() -> None:
    heights, ticks, is_logarithmic = place_values([4.0, 8.0, 400.0])
    assert is_logarithmic
    assert heights[1] - heights[0] == pytest.approx(100 * math.log(2) / math.log(1.3**2 * 100), abs=0.01)
    assert [text for _, text in ticks] == ["3.08", "40", "520"]
    assert place_values([4.0, 8.0, 40.0]) == ([9.09, 18.18, 90.91], [(0.0, "0"), (50.0, "22"), (100.0, "44")], False)
    assert not place_values([-1.0, 400.0])[2]  # KID may be negative
