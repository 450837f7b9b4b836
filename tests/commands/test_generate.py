"""pipeline generate: samples of a model in a folder, one file each and a sheet."""

from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.formats.tokenizers import ByteTokenizer
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.text import make_fields as text_fields
from tests.history.test_serving import make_generator_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder data/ of two runs: of three classes, one with a name that is a path, and of text."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_generator_of("gan", image_fields((1, 8, 8), 3), artifacts.RUNS / "gan" / "model")
        tokenizer = ByteTokenizer("abc\n").state()
        make_generator_of("transformer", text_fields(256), artifacts.RUNS / "text" / "model", tokenizer)
        artifacts.write_json(artifacts.RUNS / "gan" / "record" / "run.json", {"config": {"run": {"data": "pets"}}})
        manifest = dict.fromkeys(artifacts.MANIFEST) | {"classes": ["cat", "dog", "../owl"]}
        artifacts.write_json(artifacts.PREPARED / "pets" / "manifest.json", manifest)
    return folder / "data"


@pytest.fixture(autouse=True)
def _place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.kinds.text.PREVIEW_LENGTH", 10)
    Path("data").symlink_to(made)


def list_files(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_pictures_are_one_file_each_and_a_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "gan", "--count", "3", "--seed", "7"]) == 0
    assert list_files("generated") == ["00007.png", "00008.png", "00009.png", "sheet.png"]
    assert Image.open("generated/00008.png").size == (8, 8)
    assert Image.open("generated/sheet.png").size == (22, 22)  # two rows of two, and two pixels between and around
    assert capsys.readouterr().out == "gan: 3 samples in generated\n"
    assert main(["generate", "gan", "--count", "1", "--seed", "8", "--out", "other"]) == 0
    assert Path("other/00008.png").read_bytes() == Path("generated/00008.png").read_bytes()


def test_classes_go_by_number_or_name_or_all_and_their_names_are_no_paths() -> None:
    for label, out in (("dog", "a"), ("1", "b"), ("../owl", "c")):
        assert main(["generate", "gan", "--count", "1", "--label", label, "--out", out]) == 0
    assert list_files("a") == list_files("b") == ["labels-1-00000.png", "sheet.png"]
    assert Path("a/sheet.png").read_bytes() == Path("b/sheet.png").read_bytes()
    assert main(["generate", "gan", "--count", "2", "--label", "all", "--out", "d"]) == 0
    assert list_files("d") == [*(f"labels-{each}-0000{seed}.png" for each in range(3) for seed in (0, 1)), "sheet.png"]
    assert Path("d/labels-2-00000.png").read_bytes() == Path("c/labels-2-00000.png").read_bytes()


def test_texts_continue_a_prompt_at_a_temperature() -> None:
    assert main(["generate", "text", "--count", "2", "--prompt", "ab", "--temperature", "0"]) == 0
    assert list_files("generated") == ["00000.txt", "00001.txt", "sheet.yaml"]
    texts = [Path(f"generated/0000{seed}.txt").read_text(encoding="utf-8") for seed in (0, 1)]
    assert texts[0] == texts[1]  # the likeliest text, whatever the seed
    assert texts[0].startswith("ab")
    assert YAML(typ="safe", pure=True).load(Path("generated/sheet.yaml")) == texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gan", "--label", "3"], "gan: --label: expected all or one of cat, dog, ../owl, got 3"),
        (["gan", "--prompt", "a"], "gan: a sample of this model has no prompt"),
        (["text", "--label", "3"], "text: the model is given no class, got --label 3"),
        (["text", "--prompt", "x"], "expected characters of the training text, got U+0078"),
        (["text", "--prompt", ""], "expected characters of the training text, got an empty text"),
        (["gone"], "gone: no model is there; expected a run in data/runs"),
        (["gan", "--out", "data"], "data: expected a new or an empty folder"),
        (["gan", "--out", "file"], "file: expected a new or an empty folder"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line_and_nothing_is_written(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert main(["generate", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("generated").exists()


@pytest.mark.parametrize("option", ["--count=0", "--count=-1", "--count=x", "--temperature=nan", "--temperature=-1"])
def test_options_out_of_range_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "gan", option])
    assert option.partition("=")[0] in capsys.readouterr().err
