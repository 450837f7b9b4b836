"""pipeline generate: samples of a model in a folder, one file each and a sheet."""

import csv
import errno
import hashlib
import json
import os
import re
import shlex
import struct
import zlib
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from ruamel.yaml import YAML

from pipeline import artifacts
from pipeline.__main__ import main
from pipeline.commands.generate import parse
from pipeline.formats import provenance
from pipeline.formats.tokenizers import ByteTokenizer
from pipeline.history import choices
from pipeline.kinds import Pool
from pipeline.kinds.images import make_fields as image_fields
from pipeline.kinds.text import make_fields as text_fields
from pipeline.weights import save_model
from tests.conftest import ROOT
from tests.history.test_serving import make_generator_of
from tests.models.test_flow_matching import make_model as make_flow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder data/ of two runs: of three classes, one with a name that is a path, and of text."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_generator_of("gan", image_fields((1, 8, 8), 3), artifacts.RUNS / "gan" / "model")
        flow, fields = make_flow(), image_fields((1, 8, 8), 2)
        pool = Pool({"labels": torch.arange(2)}, [1.0, 1.0])
        save_model(artifacts.RUNS / "flow" / "model", "flow_matching", flow, flow.config, fields, pool=pool)
        section = {"source": "image_folder", "fit": "pad", "background": 255, "test": 0.1}
        about = {"name": "flow", "config": {"data": section}}
        artifacts.write_json(artifacts.RUNS / "flow" / "record" / "run.json", about)
        tokenizer = ByteTokenizer("abc\n").state()
        make_generator_of("transformer", text_fields(256), artifacts.RUNS / "text" / "model", tokenizer)
        config = {"run": {"data": "pets"}, "data": {"source": "optdigits"}}
        tags = {"mlflow.source.git.commit": "c0ffee", "git.dirty": "true"}
        learnt = [{"context": "train", "sha256": "ab"}, {"context": "validation", "sha256": "cd"}]
        about = {"name": "gan", "config": config, "tags": tags, "datasets": learnt}
        artifacts.write_json(artifacts.RUNS / "gan" / "record" / "run.json", about)
        splits = {"train": {"sha256": "ab"}}
        manifest = dict.fromkeys(artifacts.MANIFEST) | {"classes": ["cat", "dog", "../owl"], "splits": splits}
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
    assert list_files("generated") == ["00007.png", "00008.png", "00009.png", "samples.csv", "sheet.png"]
    assert Image.open("generated/00008.png").size == (8, 8)
    assert Image.open("generated/sheet.png").size == (22, 22)  # two rows of two, and two pixels between and around
    assert capsys.readouterr().out == "gan: 3 samples in generated\n"
    assert main(["generate", "gan", "--count", "1", "--seed", "8", "--out", "other"]) == 0
    assert Path("other/00008.png").read_bytes() == Path("generated/00008.png").read_bytes()


def test_classes_go_by_number_or_name_or_all_and_their_names_are_no_paths() -> None:
    for label, out in (("dog", "a"), ("1", "b"), ("../owl", "c")):
        assert main(["generate", "gan", "--count", "1", "--label", label, "--out", out]) == 0
    assert list_files("a") == list_files("b") == ["labels-1-00000.png", "samples.csv", "sheet.png"]
    assert Path("a/sheet.png").read_bytes() == Path("b/sheet.png").read_bytes()
    assert main(["generate", "gan", "--count", "2", "--label", "all", "--out", "d"]) == 0
    names = [f"labels-{each}-0000{seed}.png" for each in range(3) for seed in (0, 1)]
    assert list_files("d") == [*names, "samples.csv", "sheet.png"]
    assert Path("d/labels-2-00000.png").read_bytes() == Path("c/labels-2-00000.png").read_bytes()


def test_texts_continue_a_prompt_at_a_temperature() -> None:
    assert main(["generate", "text", "--count", "2", "--prompt", "ab", "--temperature", "0"]) == 0
    assert list_files("generated") == ["00000.txt", "00001.txt", "origin.json", "samples.csv", "sheet.yaml"]
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
        (["text", "--prompt", "x"], "text: --prompt: expected characters of the training text, 'abc\\n'; got U+0078"),
        (["text", "--prompt", ""], "expected characters of the training text, got an empty text"),
        (["gan", "--complete", "file"], "gan: this model completes nothing; runs here whose models do: flow"),
        (["text", "--complete", "file"], "text: this model completes nothing; runs here whose models do: flow"),
        (["flow", "--complete", "file"], "file: no readable picture of a known format, it begins with b''"),
        (["flow", "--complete", "none"], "none: cannot be read: No such file or directory"),
        (["flow", "--complete", "empty"], "empty: expected pictures, found none"),
        (["flow", "--complete", "file", "--label", "2"], "flow: --label: expected all or one of 0, 1, got 2"),
        (["gone"], "gone: no model is there; expected a run in data/runs"),
        (["text", "--interpolate"], "text: there is no way between two samples of this model: pipeline/models/transf"),
        (["--read", "file"], "file: says nothing of its origin, and neither does origin.json in its folder"),
        (["--read", "gone"], "gone: cannot be read: No such file or directory"),
        (["gan", "--out", "data"], "data: expected a new or an empty folder"),
        (["gan", "--out", "file"], "file: expected a new or an empty folder"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line_and_nothing_is_written(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    Path("empty").mkdir()
    assert main(["generate", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("generated").exists()


def test_the_commands_of_the_page_are_understood() -> None:
    page = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    pipeline generate (.*)$", page, re.MULTILINE)
    assert len(lines) == 8
    for line in lines:
        parse(shlex.split(line, comments=True))


@pytest.mark.parametrize(
    "option",
    [
        *("--count=0", "--count=-1", "--count=x", "--seed=-1"),
        *("--temperature=nan", "--temperature=warm", "--temperature=-1"),
        *("--interpolate=0", "--read=file", "--complete=a --interpolate", "--complete=a --prompt=b"),
    ],
)
def test_options_out_of_range_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "gan", *option.split()])
    assert option.partition("=")[0] in capsys.readouterr().err


def read_origin(path: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert main(["generate", "--read", path]) == 0
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def test_a_picture_says_in_itself_which_model_made_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "gan", "--count", "2", "--seed", "4", "--label", "../owl"]) == 0
    found = read_origin("generated/labels-2-00005.png", capsys)
    aigc = json.loads(found.pop("AIGC"))
    weights = Path("data/runs/gan/model/model.safetensors").read_bytes()
    assert found == {
        "generator": f"generative-experiment-pipeline {version('generative-experiment-pipeline')}",
        "model_sha256": hashlib.sha256(weights).hexdigest(),
        "run": "gan",
        "commit": "c0ffee-dirty",
        "data_licence": "Creative Commons Attribution 4.0, E. Alpaydin and C. Kaynak",
        "label": "../owl",
        "seed": "5",
        "DigitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    }
    assert aigc["Label"] == "1"
    assert re.fullmatch(rf"{found['model_sha256']}/[0-9a-f]{{64}}", aigc["ProduceID"])
    assert read_origin("generated/sheet.png", capsys)["seed"] == "4 to 5"


def test_readers_of_xmp_find_the_mark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "gan", "--count", "1"]) == 0
    content = Path("generated/00000.png").read_bytes()
    [packet] = re.findall(rb"XML:com\.adobe\.xmp\0{5}(.*?<\?xpacket end=\"w\"\?>)", content, re.DOTALL)
    description = ET.fromstring(packet.decode())[0][0]  # noqa: S314 - our own
    found = {child.tag: child.text for child in description}
    source = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert str(found[source]).endswith("/trainedAlgorithmicMedia")
    aigc = json.loads(str(found["{http://www.tc260.org.cn/ns/AIGC/1.0/}AIGC"]))
    assert list(aigc) == [
        *("Label", "ContentProducer", "ProduceID", "ReservedCode1", "ContentPropagator", "PropagateID", "ReservedCode2")
    ]
    assert read_origin("generated/00000.png", capsys)["AIGC"] == json.dumps(aigc)


def test_a_text_has_its_origin_next_to_it_until_it_is_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "text", "--count", "2", "--prompt", "a\nb"]) == 0
    found = read_origin("generated/00001.txt", capsys)
    assert (found["seed"], found["prompt"], found["data_licence"]) == ("1", '"a\\nb"', "not stated")
    assert found["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert read_origin("generated/sheet.yaml", capsys)["seed"] == "0 to 1"
    Path("generated/00001.txt").write_text("mine", encoding="utf-8")
    assert main(["generate", "--read", "generated/00001.txt"]) == 1
    assert "00001.txt: generated/origin.json is about SHA-256" in capsys.readouterr().err


def test_the_table_has_the_class_that_each_seed_draws() -> None:
    assert main(["generate", "gan", "--count", "9"]) == 0
    rows = list(csv.DictReader(Path("generated/samples.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["file"] for row in rows] == [f"0000{seed}.png" for seed in range(9)]
    assert [(row["seed"], row["index"]) for row in rows] == [(str(seed), str(seed)) for seed in range(9)]
    assert {row["label"] for row in rows} == {"cat", "dog"}  # the third class is never drawn
    for row in rows:  # the seed and the class of a row make its picture again
        out = f"again-{row['seed']}"
        assert main(["generate", "gan", "--count=1", "--seed", row["seed"], "--label", row["label"], "--out", out]) == 0
        [again] = Path(out).glob("labels-*.png")
        assert again.read_bytes() == Path("generated", row["file"]).read_bytes()


def test_a_walk_leads_from_seed_to_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "gan", "--count", "3", "--seed", "2", "--label", "1", "--interpolate", "4"]) == 0
    names = [f"labels-1-walk-{index:05}.png" for index in range(9)]
    assert list_files("generated") == [*names, "samples.csv", "strip.png", "walk.png"]
    assert main(["generate", "gan", "--count", "3", "--seed", "2", "--label", "1", "--out", "ends"]) == 0
    ends = [Path(f"ends/labels-1-0000{seed}.png").read_bytes() for seed in (2, 3, 4)]
    walk = [Path("generated", name).read_bytes() for name in names]
    assert walk[::4] == ends
    assert len(set(walk)) == 9
    strip = Image.open("generated/strip.png")
    assert strip.size == (5 * 8, 2 * 8)
    second = Image.open("generated/labels-1-walk-00005.png")
    assert strip.crop((8, 8, 16, 16)).tobytes() == second.tobytes()
    with Image.open("generated/walk.png") as animation:
        assert animation.n_frames == 9
    assert read_origin("generated/walk.png", capsys)["seed"] == "2 to 4"
    assert read_origin(f"generated/{names[5]}", capsys)["seed"] == "3 to 4, 1/4"


def test_pictures_of_any_size_are_completed_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine", "more").mkdir(parents=True)
    upper = np.tile(np.arange(0, 256, 32, dtype=np.uint8), (8, 1))
    Image.fromarray(upper).save("mine/a.png")
    Image.fromarray(upper).resize((80, 160)).convert("RGB").save("mine/more/b.jpg")
    Path("mine", "notes.txt").touch()
    assert main(["generate", "flow", "--complete", "mine", "--count", "2", "--seed", "5", "--label", "1"]) == 0
    names = [f"labels-1-complete-0000{index}-0000{seed}.png" for index in (0, 1) for seed in (5, 6)]
    assert list_files("generated") == [*names, "samples.csv", "sheet.png"]
    drawn = [np.asarray(Image.open(Path("generated", name))) for name in names]
    assert [each.shape for each in drawn] == [(8, 8)] * 4
    assert np.array_equal(drawn[0][:4], upper[:4])  # as it is, since it has the model's size
    assert np.array_equal(drawn[1][:4], upper[:4])
    assert not np.array_equal(drawn[0][4:], drawn[1][4:])  # by the seed
    assert (drawn[2][:4, [0, 1, 6, 7]] == 255).all()  # twice as high as wide, between white bars as in the training
    assert (drawn[2][:4, 2:6] < 255).all()
    origin = read_origin(f"generated/{names[2]}", capsys)
    assert (origin["completed"], origin["label"], origin["seed"]) == ("more/b.jpg", "1", "5")
    assert origin["DigitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")
    assert read_origin("generated/sheet.png", capsys)["completed"] == "2 files"
    rows = list(csv.DictReader(Path("generated/samples.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["completed"] for row in rows] == ["a.png", "a.png", "more/b.jpg", "more/b.jpg"]
    sheet = np.asarray(Image.open("generated/sheet.png"))[..., 0]
    assert np.array_equal(sheet[2:6, 2:10], upper[:4])  # the upper half, the completion, the picture
    assert (sheet[6:10, 2:10] == 128).all()
    assert np.array_equal(sheet[2:10, 11:19], drawn[0])
    assert np.array_equal(sheet[2:10, 20:28], upper)


def test_a_picture_is_completed_as_its_upper_half_has_it_without_a_class_and_equally_for_equal_seeds() -> None:
    picture = np.zeros((8, 8), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(name)
        picture[4:] = 200  # the lower half does not count
        assert main(["generate", "flow", "--complete", name, "--out", name[0]]) == 0
        assert list_files(name[0]) == ["complete-00000-00000.png", "samples.csv", "sheet.png"]
    one, other = (np.asarray(Image.open(f"{out}/complete-00000-00000.png")) for out in "ab")
    assert np.array_equal(one, other)
    picture[:4] = 255
    Image.fromarray(picture).save("c.png")
    assert main(["generate", "flow", "--complete", "c.png", "--out", "c"]) == 0
    assert not np.array_equal(one[4:], np.asarray(Image.open("c/complete-00000-00000.png"))[4:])


def test_a_walk_of_a_flow_ends_at_the_samples_of_its_seeds() -> None:
    assert main(["generate", "flow", "--count", "2", "--label", "1", "--interpolate", "3"]) == 0
    assert main(["generate", "flow", "--count", "2", "--label", "1", "--out", "ends"]) == 0
    walk = [Path(f"generated/labels-1-walk-0000{index}.png").read_bytes() for index in range(4)]
    assert walk[::3] == [Path(f"ends/labels-1-0000{seed}.png").read_bytes() for seed in (0, 1)]
    assert len(set(walk)) == 4


def test_names_sort_where_there_are_ten_classes_or_more() -> None:
    make_generator_of("gan", image_fields((1, 8, 8), 11), Path("many"))
    assert main(["generate", "many", "--label", "9", "--count", "1"]) == 0
    assert list_files("generated")[0] == "labels-09-00000.png"


def test_a_picture_of_others_is_read_and_one_that_lies_in_its_size_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    chunks = PngInfo()
    address = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    chunks.add_itxt("XML:com.adobe.xmp", f"<x Iptc4xmpExt:DigitalSourceType='' a:DigitalSourceType=\"{address}\"/>")
    chunks.add_text("Comment", "a\x1b[2J")
    Image.new("L", (2, 2)).save("other.png", pnginfo=chunks)
    assert read_origin("other.png", capsys) == {"Comment": '"a\\u001b[2J"', "DigitalSourceType": address}
    content = Path("other.png").read_bytes()
    size = struct.pack(">II", 60_000, 60_000)
    head = b"IHDR" + size + content[24:29]
    Path("bomb.png").write_bytes(content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:])
    assert main(["generate", "--read", "bomb.png"]) == 1
    assert "bomb.png: says nothing of its origin" in capsys.readouterr().err


def test_names_of_classes_are_those_of_the_data_that_the_model_has_learnt() -> None:
    about = artifacts.read_json(artifacts.RUNS / "gan" / "record" / "run.json")
    assert choices.list_classes(about) == ["cat", "dog", "../owl"]
    about["datasets"][0]["sha256"] = "ef"  # the section names other data now, or it is another project
    assert choices.list_classes(about) == []


def test_each_content_has_a_number_of_its_own() -> None:
    numbers = set()
    for prompt in "ab":
        assert main(["generate", "text", "--prompt", prompt, "--count", "1", "--out", prompt]) == 0
        for origin in artifacts.read_json(Path(prompt) / provenance.SIDECAR).values():
            numbers.add(json.loads(origin[provenance.AIGC])["ProduceID"])
    assert len(numbers) == 4  # a text and a sheet of each prompt


def test_reading_takes_no_other_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--read", "a.png", "--count", "9", "--label", "7"])
    assert "--read: takes no other option, got --count, --label" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(path: Path, content: bytes) -> None:
        if path.name.endswith("2.txt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(artifacts, "write_bytes", write)
    assert main(["generate", "text", "--count", "5"]) == 1
    assert capsys.readouterr().err.endswith("error: No space left on device\n")
    assert not Path("generated").exists()
