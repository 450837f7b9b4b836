"""pipeline own: sections of params.yaml that fit the user's files, and everything else as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipeline import params, plugins
from pipeline.__main__ import main
from pipeline.artifacts import ArtifactError
from pipeline.commands import own
from pipeline.stages import check, fetch, prepare
from tests.conftest import write_pictures

LEAST = {"metrics.images.kid_subset_size": 20, "metrics.images.sampling.count": 50}


@pytest.fixture
def project(workdir: Path, edit_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which `dvc repro prepare@...` is a call, and pictures of few examples can be compared."""
    edit_params(LEAST)

    def repro(*targets: str) -> None:
        name = targets[0].partition("@")[2]
        fetch.main(name)
        prepare.main(name)

    monkeypatch.setattr(own, "repro", repro)
    return workdir


def look(path: Path, *others: str) -> params.Params:
    assert main(["own", str(path), "--look", *others]) == 0
    return params.load()


def flatten(folder: Path) -> None:
    for path in sorted(folder.glob("*/*")):
        path.rename(folder / f"{path.parent.name}{path.name}")
    for path in folder.glob("*/"):
        path.rmdir()


@pytest.mark.parametrize("labelled", [True, False])
def test_pictures_get_a_network_and_models_with_the_classes_that_they_have(
    project: Path, labelled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(project / "Mine 1", 200, side=20)
    if not labelled:
        flatten(project / "Mine 1")
    settings = look(project / "Mine 1", "--steps", "5")
    data: Any = settings.data["mine-1"]
    assert (data.path, data.size, data.channels, data.test) == ("Mine 1", 16, 1, 0.38)
    network = "mine-1-classifier" if labelled else "mine-1-rotation"
    assert network == f"mine-1-{settings.networks[network].network}"
    added = {name: run for name, run in settings.runs.items() if run.data == "mine-1"}
    assert list(settings.runs)[:3] == list(added)
    assert set(added) == {"mine-1-gan", "mine-1-vae", "mine-1-flow_matching"}  # codes are parts of others
    assert {run.network for run in added.values()} == {network}
    gan, vae, flow = (settings.models[f"mine-1-{name}"].model_dump() for name in ("gan", "vae", "flow_matching"))
    assert (flow["conditional"], flow["guidance"]) == ((True, 1.5) if labelled else (False, 1.0))
    assert gan["conditional"] == labelled
    assert {key: gan[key] for key in own.FEW_PICTURES} == own.FEW_PICTURES
    assert vae["likelihood"] == "discretized_logistic"
    assert (gan["steps"], vae["steps"]) == (5, 5)
    assert "200 pictures, grey, about 20 pixels" in (said := capsys.readouterr().out)
    assert f"pipeline repro {' '.join(f'evaluate@{name}' for name in added)}" in said


def test_the_same_command_again_replaces_the_sections(workdir: Path) -> None:
    for steps in (5, 6):
        own.write({"runs": {"x": {"model": "gan", "changes": {"steps": steps}}}})
    content = (workdir / "params.yaml").read_text()
    assert "  x: {model: gan, changes: {steps: 6}}\n  gan: {" in content
    assert "steps: 5}" not in content


def test_a_text_gets_the_models_that_learn_texts(project: Path) -> None:
    (project / "novel.txt").write_text("It was a dark and stormy night; the rain fell in torrents. " * 400)
    settings = look(project / "novel.txt", "tokenizer=byte")
    assert settings.data["novel"].source == "text_file"
    assert settings.data["novel"].tokenizer == "byte"  # type: ignore[attr-defined]
    assert [name for name, run in settings.runs.items() if run.data == "novel"] == ["novel-transformer"]


def test_pictures_that_are_too_few_to_compare_get_no_network_and_the_reason(
    project: Path, edit_params: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_params({"metrics.images.kid_subset_size": 50})
    write_pictures(project / "few", 250)
    flatten(project / "few")
    edit_params({"metrics.images.sampling.count": 500, "metrics.images.kid_subset_size": 500})
    assert look(project / "few").runs["few-gan"].network == "none"
    assert "no features are compared: metrics.images.kid_subset_size: expected at most" in capsys.readouterr().out


@pytest.mark.parametrize("count", [0, 4])
def test_a_failure_leaves_the_committed_files_as_they_were(
    count: int, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    before = {path: path.read_bytes() for path in (project / "params.yaml", project / "dvc.lock")}
    (project / "some").mkdir()
    if count:
        write_pictures(project / "some", count)
    assert main(["own", str(project / "some"), "--look"]) == 1
    assert {path: path.read_bytes() for path in before} == before
    expected = (
        "every split needs a picture"
        if count
        else "expected a folder of pictures, sounds or texts, or one text; found no such file"
    )
    assert expected in capsys.readouterr().err


def test_keys_of_a_section_are_checked_before_dvc_runs(project: Path) -> None:
    write_pictures(project / "some", 4)
    with pytest.raises(params.ParamsError, match=r"data\.some\.sise: unknown key, did you mean 'size'\?"):
        own.main([str(project / "some"), "sise=64", "--look"])
    with pytest.raises(ArtifactError, match=r"size=\[: expected a value as in YAML, got '\['"):
        own.read_keys(["size=["])
    with pytest.raises(ArtifactError, match="expected KEY=VALUE, such as size=64, got '64'"):
        own.main([str(project / "some"), "64", "--look"])


def test_all_comments_of_the_shipped_params_stay(workdir: Path) -> None:
    own.write({"runs": {"x": {"model": "gan", "changes": {}}}}, workdir / "other.yaml")
    lines = (workdir / "params.yaml").read_text().splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("runs:"))
    lines.insert(place + 1, "  x: {model: gan, changes: {}}")
    assert (workdir / "other.yaml").read_text().splitlines() == lines


def test_a_flat_folder_is_refused_by_check_before_a_stage_removes_its_outputs(
    workdir: Path, edit_params: Callable[..., None]
) -> None:
    write_pictures(workdir / "flat", 4)
    flatten(workdir / "flat")
    edit_params({"data.images": {"source": "image_folder", "path": "flat", "split_seed": 0, "validation": 0.1}})
    with pytest.raises(ArtifactError, match="the data have 1"):
        check.main()
    with pytest.raises(ArtifactError, match="`pipeline own flat` writes sections that fit"):
        check.main()


def write_sounds(folder: Path, count: int) -> None:
    """Tones of two classes, low and high, of 0.3 seconds at 22,050 Hz."""
    for number in range(count):
        path = folder / ("low", "high")[number % 2] / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        frequency = (200, 2000)[number % 2] + 3 * number
        soundfile.write(path, 0.5 * np.sin(2 * np.pi * frequency * np.arange(6615) / 22050), 22050)


def test_sounds_are_found_with_their_source_even_with_a_text_for_each(tmp_path: Path) -> None:
    write_sounds(tmp_path / "own", 40)
    for path in list((tmp_path / "own").rglob("*.flac")):
        path.with_suffix(".txt").write_text("a tone")
    found = own.find_source(tmp_path / "own")
    assert found.source == "audio_folder"
    assert found.keys == {"split_seed": 0, "validation": 0.1, "test": 0.6, "samples": 8192, "rate": 8000}
    assert found.said == "40 recordings of 0.3 to 0.3 s, most at 22050 Hz"


@pytest.mark.skipif("audio" not in plugins.names("metrics"), reason="no metric measures sound")
def test_sounds_get_a_network_that_hears_their_classes_and_the_models_that_learn_sound(
    project: Path, edit_params: Callable[..., None]
) -> None:
    edit_params({"metrics.audio": {"sampling": {"count": 100, "sets": 2, "labels": "test"}, "neighbours": 3}})
    write_sounds(project / "tones", 200)
    settings = look(project / "tones", "--steps", "5", "samples=4096")
    data: Any = settings.data["tones"]
    assert (data.source, data.path, data.samples, data.rate) == ("audio_folder", "tones", 4096, 8000)
    network: Any = settings.networks["tones-classifier"]
    assert (network.width, network.steps, network.shift) == (8, 5, 800)
    added = {name: run for name, run in settings.runs.items() if run.data == "tones"}
    assert added
    assert {(run.metric, run.network) for run in added.values()} == {("audio", "tones-classifier")}


@pytest.mark.skipif("audio" in plugins.names("metrics"), reason="a metric measures sound")
def test_sounds_without_a_metric_are_refused_and_nothing_is_changed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sounds(project / "tones", 200)
    before = (project / "params.yaml").read_text()
    assert main(["own", str(project / "tones"), "--look"]) == 1
    assert "params.yaml has no metric that measures audio; it has images, text" in capsys.readouterr().err
    assert (project / "params.yaml").read_text() == before


def test_a_colour_picture_stays_in_colour(project: Path) -> None:
    (project / "red").mkdir()
    Image.new("RGB", (40, 30), "red").save(project / "red" / "a.png")
    found = own.find_source(project / "red")
    assert (found.keys["channels"], found.keys["size"]) == (3, 28)


def test_names_of_sections_come_from_the_whole_name_of_a_folder(tmp_path: Path) -> None:
    names = {"holiday.2023": "holiday-2023", "holiday.2024": "holiday-2024", "none": "own-none", "图片": "own"}
    for folder, name in names.items():
        (tmp_path / folder).mkdir()
        assert own.name_section(tmp_path / folder) == name
    assert own.name_section(tmp_path / "novel.txt") == "novel"


def test_a_name_of_other_data_is_refused_and_a_changed_run_is_shown_before_it_is_lost(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (project / "params.yaml").read_bytes()
    write_pictures(project / "images", 200, side=20)
    assert main(["own", "images", "--look"]) == 1
    message = "params.yaml: data.images is mnist5k at data/own/pictures; --name chooses another name for images"
    assert message in capsys.readouterr().err
    assert (project / "params.yaml").read_bytes() == before
    look(Path("images"), "--name", "mine", "--steps", "20")
    vae: Any = params.load().models["mine-vae"]
    assert (vae.steps, vae.warmup) == (20, 2)  # not the 100 of params.yaml, which 20 steps would never leave
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("warmup: 2", "warmup: 3", 1))
    look(Path("images"), "--name", "mine", "--steps", "20")
    assert "is replaced; it was " in (said := capsys.readouterr().out)
    assert '"warmup": 3' in said


@pytest.mark.parametrize("steps", ["0", "-5", "x"])
def test_steps_are_a_number_from_1_on(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["own", ".", f"--steps={steps}"])
    assert f"expected a number from 1 on, got '{steps}'" in capsys.readouterr().err
