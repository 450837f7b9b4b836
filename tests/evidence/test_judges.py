"""Feature networks whose weights git keeps: taken where section and training split are the same, else trained."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import artifacts, code, params
from pipeline.artifacts import ArtifactError
from pipeline.code import JUDGES
from pipeline.commands import judge as command
from pipeline.evidence import judges
from pipeline.stages import networks, prepare

NETWORK = artifacts.NETWORKS / "classifier"


def find_judge() -> Path | None:
    return judges.find(judges.describe_recipe(params.load().networks["classifier"]))


@pytest.mark.usefixtures("prepared")
def test_the_default_classifier_is_the_one_in_git(capsys: pytest.CaptureFixture[str]) -> None:
    networks.main("classifier")
    about = artifacts.read_json(artifacts.REPORTS / "networks" / "classifier.json")
    (path,) = JUDGES.glob("mnist5k-*")
    assert about["weights_sha256"] == artifacts.digest(path / "model.safetensors")
    assert path.name.endswith(about["weights_sha256"][:8])
    assert about["test_accuracy"] > 0.97
    assert f"took the weights that git keeps in {path}" in capsys.readouterr().out


@pytest.mark.usefixtures("prepared")
def test_a_probe_is_measured_on_the_judge_s_features(edit_params: Callable[..., None]) -> None:
    edit_params({"networks.classifier.probe": [1]})
    networks.main("classifier")
    about = artifacts.read_json(artifacts.REPORTS / "networks" / "classifier.json")
    assert about["weights_sha256"] == artifacts.digest(find_judge() / "model.safetensors")  # type: ignore[operator]
    assert about["probe_10_labels_accuracy"] > about["raw_10_labels_accuracy"] + 0.2  # features that were learnt


@pytest.mark.usefixtures("prepared")
def test_another_section_or_another_split_has_no_judge(edit_params: Callable[..., None]) -> None:
    assert find_judge()
    edit_params({"networks.classifier.seed": 1})
    assert find_judge() is None
    edit_params({"networks.classifier.seed": 0})
    assert find_judge()
    edit_params({"data.images.split_seed": 1})
    prepare.main("images")
    assert find_judge() is None


@pytest.mark.usefixtures("prepared")
def test_a_section_of_another_name_has_the_same_judge(workdir: Path) -> None:
    text = (workdir / "params.yaml").read_text()
    for old, new in (("  images:\n    source", "  digits:\n    source"), ("data: images", "data: digits")):
        assert old in text
        text = text.replace(old, new)
    (workdir / "params.yaml").write_text(text)
    (artifacts.PREPARED / "images").rename(artifacts.PREPARED / "digits")
    assert find_judge()


@pytest.mark.usefixtures("prepared")
def test_a_damaged_judge_is_refused_by_its_file(tmp_path: Path) -> None:
    place = tmp_path / "judges"
    shutil.copytree(JUDGES, place)
    (path,) = place.glob("mnist5k-*/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{path}: expected SHA-256"):
        judges.find(judges.describe_recipe(params.load().networks["classifier"]), place)


@pytest.mark.usefixtures("prepared")
def test_a_network_that_was_trained_is_kept_and_found(edit_params: Callable[..., None], tmp_path: Path) -> None:
    edit_params({"networks.classifier.steps": 2, "networks.classifier.width": 4})
    with pytest.raises(ArtifactError, match=r"data/networks/classifier/manifest.json: not found"):
        command.main(["classifier"])
    networks.main("classifier")
    recipe = judges.describe_recipe(params.load().networks["classifier"])
    folder = judges.keep(NETWORK, "mine", recipe, {}, tmp_path)
    weights = artifacts.digest(NETWORK / "model.safetensors")
    shutil.rmtree(NETWORK)
    assert judges.find(recipe, tmp_path) == folder
    judges.take(folder, NETWORK)
    assert artifacts.digest(NETWORK / "model.safetensors") == weights


def test_a_new_judge_makes_only_networks_like_it_run_again(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = workdir / "judges"
    shutil.copytree(JUDGES, place)
    monkeypatch.setattr(code, "JUDGES", place)
    settings = params.load()
    code.write_all(settings)
    path = code.FOLDER / "networks" / "classifier.json"
    (known,) = place.glob("mnist5k-*")
    assert artifacts.read_json(path)["judges"] == [artifacts.digest(known / artifacts.SEAL)]  # not that of sound
    for name, changes, others in (
        ("mnist5k-1", {"seed": 1}, []),
        ("fashion_mnist-2", {}, []),  # equal sections of other data
        ("mnist5k-3", {}, [path]),
    ):
        before = {each: each.read_bytes() for each in code.FOLDER.rglob("*.json")}
        recipe = artifacts.read_json(known / judges.RECIPE)
        recipe["recipe"]["config"] |= changes
        recipe["recipe"]["trained_on"] = "another split"
        artifacts.write_json(place / name / judges.RECIPE, recipe)
        artifacts.write_json(place / name / artifacts.SEAL, {})
        code.write_all(settings)
        assert [each for each, content in before.items() if each.read_bytes() != content] == others
