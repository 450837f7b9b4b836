"""The stages one after another in one process, on the shipped params with trainings of a second."""

import json
import math
import re
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from pipeline import artifacts, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.evidence import real_cache
from pipeline.evidence.features import extract
from pipeline.evidence.uncertainty import format_number
from pipeline.evidence.values import Values, load_values
from pipeline.history.mlflow_store import connect
from pipeline.kinds import images as images_kind
from pipeline.kinds import read_fields, text
from pipeline.kinds.text import show as show_texts
from pipeline.models import transformer, vae
from pipeline.networks import inception
from pipeline.pages import charts, results
from pipeline.randomness import make_generator
from pipeline.stages import audit, check, evaluate, fetch, networks, prepare, report, sample, train
from tests.conftest import MORE_IMAGE_RUNS, ROOT

RUNS = ("gan", "vae", "transformer")
# Equal bits are promised for these; records hold times and report pages show them.
PROMISED = ("data/prepared", "data/networks", "data/runs/*/model", "data/runs/*/samples", "reports/runs")


def run_all() -> None:
    check.main()
    for data in ("images", "text"):
        fetch.main(data)
        prepare.main(data)
    networks.main("classifier")
    for run in RUNS:
        train.main(run)
        sample.main(run)
        evaluate.main(run)
    report.main()


def snapshot(folder: Path) -> dict[str, bytes]:
    paths = [path for pattern in PROMISED for top in folder.glob(pattern) for path in top.rglob("*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.usefixtures("prepared", "tiny")
@pytest.mark.slow
def test_the_other_runs_of_images_pass_all_stages_and_name_what_they_score(edit_params: Callable[..., None]) -> None:
    runs = artifacts.encode(params.load(ROOT / "params.yaml").runs)
    edit_params({"runs": {key: run for key, run in runs.items() if key != "speech"}})
    networks.main("classifier")
    found = {}
    for run in MORE_IMAGE_RUNS:
        for stage in (train, sample, evaluate, audit):
            stage.main(run)
        found[run] = artifacts.read_json(artifacts.REPORTS / "runs" / run / "metrics.json")
        assert found[run]["fid_classifier"] > 0
        assert (artifacts.REPORTS / "runs" / run / "samples" / "samples.png").exists()
        completes = (artifacts.REPORTS / "runs" / run / "samples" / "completions.png").exists()
        walks = (artifacts.REPORTS / "runs" / run / "audit" / "interpolations.png").exists()
        assert (completes, walks) == (run != "codes", run == "flow_matching")
    assert {"bits_per_dim", "levels_nats", "bits_per_dim_change"} <= found["flow_matching"].keys()
    for run in ("codes", "codes_prior"):
        assert found[run]["elbo_nats"] > 0
        assert 0 < found[run]["codes_used"] <= 1
    protocols = [artifacts.read_json(artifacts.REPORTS / "runs" / run / "protocol.json") for run in MORE_IMAGE_RUNS[1:]]
    assert len({content["values"]["elbo_nats"]["hash"] for content in protocols}) == 1  # comparable with a VAE's


@pytest.mark.usefixtures("prepared", "tiny")
@pytest.mark.slow
def test_the_runs_of_the_page_sample_the_weights_of_one_training_in_one_step_and_in_eight(
    edit_params: Callable[..., None],
) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    [text] = [each for each in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "one_step" in each]
    shipped = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")["runs"]
    runs = YAML(typ="safe", pure=True).load(text)["runs"]
    assert list(runs) == ["one_step", "eight_steps"]
    runs["one_step"]["changes"]["steps"] = 6
    edit_params({"runs": {"flow_matching": shipped["flow_matching"], **runs}})
    networks.main("classifier")
    weights, drawn, content = {}, {}, {}
    for run in ("flow_matching", *runs):
        train.main(run)
        sample.main(run)
        evaluate.main(run)
        folder = artifacts.RUNS / run
        weights[run] = artifacts.digest(folder / "model" / "model.safetensors")
        drawn[run] = artifacts.read_tensors(folder / "samples" / "generated.safetensors")["0"]
        content[run] = artifacts.read_json(artifacts.REPORTS / "runs" / run / "protocol.json")
        assert artifacts.read_json(artifacts.REPORTS / "runs" / run / "metrics.json")["fid_classifier_ratio"] > 0
    assert weights["one_step"] == weights["eight_steps"] != weights["flow_matching"]
    assert not torch.equal(drawn["one_step"], drawn["eight_steps"])
    hashes = {each["values"]["fid_classifier_ratio"]["hash"] for each in content.values()}
    assert len(hashes) == 1  # so that the ratio of the two is a claim


@pytest.mark.usefixtures("tiny")
@pytest.mark.slow
def test_the_whole_pipeline_gives_equal_bits_twice_and_one_mlflow_run_a_training(workdir: Path) -> None:
    run_all()
    first = snapshot(workdir)
    assert {"reports/runs/gan/metrics.json", "data/runs/vae/model/model.safetensors"} <= first.keys()
    for run in RUNS:
        metrics = json.loads(first[f"reports/runs/{run}/metrics.json"])
        assert all(isinstance(value, int | float) for value in metrics.values())
    assert read_fields("images") == plugins.load("data", "mnist5k").foresee(params.load().data["images"])
    contents = {run: json.loads(first[f"reports/runs/{run}/protocol.json"]) for run in RUNS}
    assert contents["vae"]["values"].items() > contents["gan"]["values"].items()  # FID may be compared
    assert contents["vae"]["protocol"]["scores"] == {"of": "bernoulli on binarised images"}
    assert contents["gan"]["protocol"]["counts"] == {"samples": 200, "floor_sets": 3}
    reference = contents["transformer"]["protocol"]["reference"]
    assert list(reference["sha256"]) == list(reference["content"]) == ["test", "validation"]
    client, experiment = connect()
    runs = client.search_runs([experiment])
    assert sorted(run.info.run_name for run in runs) == sorted(RUNS)
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_name = {run.info.run_name: run for run in runs}
    assert "quality/fid_classifier" in by_name["gan"].data.metrics  # the evaluation is in the training's run
    assert "quality/test_bits_per_character" in by_name["transformer"].data.metrics
    headlines = json.loads(first["reports/runs/vae/headline.json"])
    assert {"fid_classifier", "elbo_nats"} <= headlines.keys()
    assert len(headlines) <= 8
    hashes = {f"protocol.{name}": contents["vae"]["values"][name]["hash"] for name in headlines}
    assert hashes.items() <= by_name["vae"].data.tags.items()
    assert by_name["vae"].inputs.dataset_inputs
    page = (workdir / "reports" / "index.html").read_text()
    assert all(f'id="{run}"' in page for run in RUNS)
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page)  # opens offline
    readme = (workdir / "reports" / "README.md").read_text()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", readme)
    assert len(shown) == 6  # three pictures of curves, two of samples, one of reconstructions
    assert [name for name in shown if not (workdir / "reports" / name).exists()] == []
    assert "mode collapse" in by_name["gan"].data.tags["alarm"]  # what four steps lead to
    assert by_name["gan"].data.tags["alarm"] in readme
    texts = YAML(typ="safe", pure=True).load(workdir / "reports" / "runs" / "transformer" / "samples" / "samples.yaml")
    assert len(texts) == 4
    assert textwrap.indent(texts[0].strip("\n"), "    ").splitlines()[-1] in readme.splitlines()
    assert [out for run in RUNS for out in list_outs("sample", run) if not (workdir / out).exists()] == []
    assert not (workdir / ".state").exists() or not list((workdir / ".state").rglob("*.ckpt"))
    for model in client.search_logged_models([experiment]):
        loaded = mlflow.pyfunc.load_model(model.model_uri)
        once, again = loaded.predict([1, 2]), loaded.predict([1, 2])
        assert list(once) == list(again)
        assert once[0] != once[1]
        if "labels" in {each["name"] for each in loaded.metadata.get_params_schema().to_dict()}:
            asked = loaded.predict([1, 2], params={"labels": [3]})
            assert list(asked) == list(loaded.predict([1], params={"label": "3", "count": 2}))
            assert len({*asked, *loaded.predict([1, 2], params={"labels": [4, 5]})}) == 4
            assert asked[0] == loaded.predict([1], params={"labels": [3]})[0]
    labels = artifacts.read_tensors(artifacts.RUNS / "gan" / "samples" / "given_labels.safetensors")
    assert {name: len(each) for name, each in labels.items()} == {"0": 200, "1": 200, "2": 200}
    # As the test split, whose classes are equal: five standard deviations of 600 draws. None of the sets is alike.
    assert torch.cat(list(labels.values())).bincount(minlength=10).tolist() == pytest.approx([60] * 10, abs=37)
    assert not torch.equal(labels["0"], labels["1"])

    # Test and training images passed the classifier once, for both runs; and the floors.
    floors = len(json.loads(first["reports/runs/gan/sets.json"])["fid_classifier_floor"])
    assert len(list((workdir / real_cache.FOLDER).iterdir())) == 1 + 2 * floors
    for folder in ("data", "reports", real_cache.FOLDER):
        shutil.rmtree(workdir / folder)
    run_all()
    second = snapshot(workdir)
    assert second.keys() == first.keys()
    assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.usefixtures("tiny")
def test_a_split_that_the_data_do_not_have_is_said(edit_params: Callable[..., None]) -> None:
    edit_params({"data.text.test": 0.0})
    fetch.main("text")
    prepare.main("text")
    with pytest.raises(ArtifactError, match=r"data.text has no test split, it has train, validation"):
        artifacts.read_split("text", "test")


@pytest.mark.usefixtures("tiny")
def test_broken_prepared_data_stop_the_training_with_the_files_name(workdir: Path) -> None:
    fetch.main("text")
    prepare.main("text")
    path = workdir / artifacts.PREPARED / "text" / "train.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"text/train.safetensors: expected SHA-256 \w{64}, found \w{64}"):
        train.main("transformer")


def list_outs(stage: str, key: str) -> list[str]:
    """The paths that dvc.yaml says a stage leaves."""
    do = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"][stage]["do"]
    named = [name for kind in ("outs", "metrics", "plots") for name in do.get(kind, [])]
    return [(name if isinstance(name, str) else next(iter(name))).replace("${key}", key) for name in named]


def make_inception(edit_params: Callable[..., None], weights: inception.Config) -> None:
    edit_params({"networks.inception": weights.model_dump()})
    networks.main("inception")


@pytest.mark.usefixtures("tiny", "prepared")
def test_a_fetched_feature_network_leaves_every_out_of_its_stage(
    workdir: Path, edit_params: Callable[..., None], inception_weights: inception.Config
) -> None:
    make_inception(edit_params, inception_weights)
    outs = list_outs("networks", "inception")
    assert len(outs) == 2
    assert [out for out in outs if not (workdir / out).exists()] == []
    about = artifacts.read_json(workdir / "reports" / "networks" / "inception.json")
    assert about == {"weights_sha256": inception_weights.sha256}


@pytest.mark.slow
@pytest.mark.usefixtures("tiny", "prepared")
def test_a_run_is_evaluated_with_inception(
    workdir: Path, edit_params: Callable[..., None], inception_weights: inception.Config
) -> None:
    make_inception(edit_params, inception_weights)
    few = {"count": 50, "sets": 1, "importance_samples": 1}
    edit_params({"runs.gan.network": "inception", "metrics.images.sampling": few})
    edit_params({"metrics.images.kid_subset_size": 20, "metrics.images.isc_splits": 1})
    train.main("gan")
    sample.main("gan")
    evaluate.main("gan")
    metrics = artifacts.read_json(workdir / "reports" / "runs" / "gan" / "metrics.json")
    assert metrics["fid_inception"] > 0
    assert metrics["fid_inception_reliable"] == 0  # 50 images, 2048 features
    protocol = artifacts.read_json(workdir / "reports" / "runs" / "gan" / "protocol.json")["protocol"]
    assert protocol["network"]["weights_sha256"] == inception_weights.sha256


@pytest.mark.usefixtures("tiny", "prepared")
def test_a_feature_network_of_images_of_another_shape_is_refused_by_the_run_s_name(
    edit_params: Callable[..., None],
) -> None:
    edit_params({"networks.classifier.steps": 2})
    networks.main("classifier")
    colour = torch.zeros(60, 3, 28, 28, dtype=torch.uint8)
    artifacts.write_tensors(artifacts.RUNS / "gan" / "samples" / "generated.safetensors", {"0": colour})
    artifacts.seal(artifacts.RUNS / "gan" / "samples")
    with pytest.raises(ArtifactError, match=r"networks.classifier has learnt images \(1, 28, 28\) .* has \(3,"):
        evaluate.main("gan")


@pytest.mark.usefixtures("tiny", "prepared")
def test_another_feature_network_changes_the_protocols_of_the_values_that_look_through_it_only(
    edit_params: Callable[..., None],
) -> None:
    edit_params({"networks.classifier.steps": 2})
    sets = {"0": artifacts.read_split("images", "validation")["images"][:200]}
    folder = artifacts.RUNS / "vae"
    artifacts.write_tensors(folder / "samples" / "generated.safetensors", sets)
    scores = {name: torch.rand(1000) for name in ("elbo_nats", "iw4_nats", "kl_nats")}
    artifacts.write_tensors(folder / "samples" / "scores.safetensors", scores)
    artifacts.seal(folder / "samples")
    artifacts.write_json(folder / "model" / "config.json", {"model": "vae", "config": {}})
    contents = []
    for seed in range(2):
        edit_params({"networks.classifier.seed": seed})
        networks.main("classifier")
        evaluate.main("vae")
        contents.append(artifacts.read_json(artifacts.REPORTS / "runs" / "vae" / "protocol.json"))
    first, second = ({name: entry["hash"] for name, entry in content["values"].items()} for content in contents)
    equal = {name for name in first if first[name] == second[name]}
    assert equal == {f"{name}{end}" for name in scores for end in ("", "_se")}
    edit_params({"runs.vae.network": "none"})  # and without one, bounds have the protocol that they had
    evaluate.main("vae")
    content = artifacts.read_json(artifacts.REPORTS / "runs" / "vae" / "protocol.json")
    assert {name: entry["hash"] for name, entry in content["values"].items()} == {name: first[name] for name in equal}


@pytest.mark.usefixtures("tiny")
def test_random_windows_are_scored_alone_and_are_the_same_for_every_run() -> None:
    fetch.main("text")
    prepare.main("text")
    settings = params.load()
    model = transformer.Model(settings.models["transformer"], read_fields("text"), 0)
    for parameter in model.parameters():  # some begin as zeros, which would make the context count for nothing
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = artifacts.read_split("text", "test")["tokens"].long()
    found = text.score_windows(model, tokens, 600, make_generator(0, "windows", "test"))
    starts = torch.randint(len(tokens) - 32, (600,), generator=make_generator(0, "windows", "test"))
    for index in (0, 1, 599):
        window = tokens[starts[index] :][:33]
        with torch.inference_mode():
            chances = model.network(window[None, :-1])[0].double().softmax(dim=-1)
        nats = [-math.log(chances[place, window[place + 1]]) for place in range(32)]
        assert found[index] == pytest.approx(sum(nats) / 32, rel=1e-5)


@pytest.mark.usefixtures("tiny")
def test_random_windows_of_a_text_shorter_than_one_are_refused(workdir: Path, edit_params: Callable[..., None]) -> None:
    (workdir / "own.txt").write_text("a few words, and then some more. " * 60, encoding="utf-8")
    own = {"source": "text_file", "path": "own.txt", "split_seed": 0, "validation": 0.01, "test": 0.0}
    edit_params({"data.text": own | {"tokenizer": "byte", "vocabulary": 1024}})
    edit_params({"metrics.text.sampling.random_windows": 5})
    fetch.main("text")
    prepare.main("text")
    with pytest.raises(ArtifactError, match=r"random_windows: the validation split has \d+ tokens, expected"):
        train.main("transformer")


@pytest.mark.usefixtures("tiny")
def test_modes_are_counted_by_a_network_of_one_channel(workdir: Path, edit_params: Callable[..., None]) -> None:
    generator = np.random.default_rng(0)
    for number in range(800):
        path = workdir / "stacks" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(path)
    own = {"source": "image_folder", "path": "stacks", "size": 28, "split_seed": 0, "validation": 0.1}
    edit_params({"data.stacks": own, "networks.classifier.steps": 2, "runs.gan.data": "stacks"})
    sampling = {"count": 60, "sets": 2, "importance_samples": 1}
    edit_params({"metrics.modes": {"sampling": sampling}, "runs.gan.metric": "modes", "models.gan.conditional": False})
    for data in ("images", "stacks"):
        fetch.main(data)
        prepare.main(data)
    networks.main("classifier")
    train.main("gan")
    sample.main("gan")
    evaluate.main("gan")
    sets = artifacts.read_json(workdir / "reports" / "runs" / "gan" / "sets.json")
    assert {name: len(values) for name, values in sets.items()} == {
        "modes_covered_classifier": 2,
        "mode_kl_nats_classifier": 2,
    }
    protocol = artifacts.read_json(workdir / "reports" / "runs" / "gan" / "protocol.json")["protocol"]
    assert protocol["metric"]["name"] == "modes"


@pytest.mark.usefixtures("tiny")
def test_a_prompt_that_the_text_lacks_is_refused_before_training_and_before_sampling(
    workdir: Path, edit_params: Callable[..., None]
) -> None:
    (workdir / "own.txt").write_text("a few words, and then some more. " * 60, encoding="utf-8")
    own = {"source": "text_file", "path": "own.txt", "split_seed": 0, "validation": 0.1, "test": 0.0}
    edit_params({"data.text": own | {"tokenizer": "character", "vocabulary": 1024}})
    edit_params({"models.transformer.steps": 1, "metrics.text.sampling.length": 5, "metrics.text.sampling.prompt": "é"})
    fetch.main("text")
    prepare.main("text")
    refused = pytest.raises(ArtifactError, match=r"metrics.text.sampling.prompt: .* got U\+00E9 LATIN SMALL LETTER E")
    with refused:
        train.main("transformer")
    assert not (workdir / ".state").exists()
    assert not (workdir / "data" / "runs").exists()
    edit_params({"metrics.text.sampling.prompt": "\n"})  # the text is one line
    train.main("transformer")
    sample.main("transformer")
    (text, *_) = YAML(typ="safe").load(workdir / "reports" / "runs" / "transformer" / "samples" / "samples.yaml")
    assert text[0] == " "
    edit_params({"metrics.text.sampling.prompt": "é"})
    with refused:
        sample.main("transformer")


@pytest.fixture
def record(workdir: Path) -> train.Record:
    about = {"name": "x", "tags": {}, "parameters": {}, "config": {}, "datasets": [], "environment": {}}
    return train.Record(workdir / "record", about)


def test_curves_become_one_table_a_value(workdir: Path, record: train.Record) -> None:
    record.log(1, {"loss": 2.0, "kl": 1.0})
    record.log(2, {"loss": 1.5})
    train.write_curves(record, workdir / "curves")
    assert charts.read_table(workdir / "curves" / "loss.csv") == ([1, 2], [2.0, 1.5])
    assert charts.read_table(workdir / "curves" / "kl.csv") == ([1], [1.0])


def test_previews_become_pictures_numbered_by_their_step(workdir: Path, record: train.Record) -> None:
    for step in (0, 1500):
        record.exhibit("samples", step, ".png", bytes([step % 7]))
    record.exhibit("texts", 0, ".yaml", b"a text")
    (workdir / "previews" / "older").mkdir(parents=True)
    train.write_previews(record, workdir / "previews")
    files = [path for path in (workdir / "previews").rglob("*") if path.is_file()]
    assert {str(path.relative_to(workdir)): path.read_bytes() for path in files} == {
        "previews/samples/0.png": bytes([0]),
        "previews/samples/1500.png": bytes([1500 % 7]),
    }


def test_chosen_images_are_of_all_classes_when_the_split_is_sorted_by_class() -> None:
    labels = torch.arange(10).repeat_interleave(100)
    chosen = images_kind.spread(len(labels), 50)
    assert labels[chosen].bincount().tolist() == [5] * 10
    assert images_kind.spread(7, 50).tolist() == list(range(7))


@pytest.mark.parametrize("text", ["\nab\n  c \n", "", "\t\n", "a\x00b\x1b\r\n\x85", "- a: b\n---\n# c", "\ufffd\u2028"])
def test_texts_are_read_as_they_were_written(text: str) -> None:
    exhibit = show_texts("samples", [text, "another"], None)
    assert YAML(typ="safe", pure=True).load(exhibit.content) == [text, "another"]


def make_page(
    name: str, values: Values, metrics: dict[str, float], sets: dict[str, list[float]], content: Any = None
) -> results.Page:
    run = params.load(ROOT / "params.yaml").runs["vae"]
    return results.Page(name, run, "mnist5k", values, metrics, sets, content or {}, {}, [], [], None)


def test_the_report_shows_student_s_interval_over_the_sets_of_samples() -> None:
    sets = [3.0, 4.0, 5.0]  # t(0.975, 2) = 4.302653, standard deviation 1
    half = 4.302653 / math.sqrt(3)
    metrics = {"fid_x": 4.0, "fid_x_floor": 2.0, "iw5_nats": 100.0, "iw5_nats_se": 0.5}
    values = load_values("images")
    page = make_page("x", values, metrics, {"fid_x": sets})
    assert page.cell("fid_x") == f"4 [{4 - half:.4g}, {4 + half:.4g}] (floor 2)"
    assert page.cell("iw5_nats") == "100 \u00b1 0.5"
    assert page.cell("absent") == ""
    for sets, reason in (
        ([-171.0, 311.0], "2 sets: too few for an interval; 3 are needed"),
        ([4.0] * 3, "all 3 sets equal"),
    ):
        page = make_page("x", values, metrics, {"fid_x": sets})
        assert page.cell("fid_x") == f"4 ({reason}) (floor 2)"
    page = replace(page, metrics=metrics | {"fid_x_reliable": 0.0})
    assert page.cell("fid_x").endswith(" (floor 2) (not reliable)")


def test_the_report_names_the_values_of_a_row_that_are_not_comparable() -> None:
    def make(name: str, likelihood: str) -> results.Page:
        fields = {"iw5_nats": ["scores"], "fid_x": ["network"]}
        content = {
            "protocol": {"network": {"name": "x"}, "scores": {"of": likelihood}},
            "values": {value: {"fields": names} for value, names in fields.items()},
        }
        metrics = {"fid_x": 4.0, "iw5_nats": 100.0}
        return make_page(name, values, metrics, {}, content)

    values = load_values("images")
    table = results.Table(values, [make("a", "bernoulli"), make("b", "logistic"), make("c", "bernoulli")])
    assert table.list_refusals() == ["Not comparable: iw5_nats: scores.of is 'bernoulli' in a and 'logistic' in b"]
    assert results.Table(values, [make("a", "bernoulli"), make("b", "bernoulli")]).list_refusals() == []


def test_the_report_shows_numbers_whose_record_is_not_here(workdir: Path) -> None:
    # As in a clone: git has the numbers, DVC's cache no record.
    shutil.copytree(ROOT / "reports" / "runs", workdir / "reports" / "runs")
    report.main()
    page, readme = (workdir / "reports" / name for name in ("index.html", "README.md"))
    fid = artifacts.read_json(workdir / "reports" / "runs" / "gan" / "metrics.json")["fid_classifier"]
    assert f"| fid_classifier | {format_number(fid)} [" in readme.read_text()
    assert "| training: seconds |  |" in readme.read_text()
    assert page.read_text().count("the record of its training is not in this folder") == 3


@pytest.mark.usefixtures("tiny", "prepared")
def test_real_images_are_chosen_by_content_and_remembered_by_the_network_s_weights(
    workdir: Path, edit_params: Callable[..., None]
) -> None:
    def gather() -> Any:
        return plugins.load("metrics", "images").gather("gan", params.load(), {})

    def read(split: str) -> set[bytes]:
        return {image.numpy().tobytes() for image in artifacts.read_split("images", split)["images"]}

    edit_params({"networks.classifier.steps": 2})
    networks.main("classifier")
    sets = {str(index): torch.zeros(300, 1, 28, 28, dtype=torch.uint8) for index in range(2)}
    artifacts.write_tensors(artifacts.RUNS / "gan" / "samples" / "generated.safetensors", sets)
    evidence = gather()
    test, *train = ({image.numpy().tobytes() for image in images} for images in (evidence.test, *evidence.train))
    assert len(test) == 300
    assert test < read("test")
    assert len(train) == 2
    assert len(train[0] | train[1]) == 600  # disjoint
    assert train[0] | train[1] < read("train")

    shutil.copytree(workdir / artifacts.PREPARED / "images", workdir / artifacts.PREPARED / "others")
    own = {"source": "mnist5k", "path": "data/own/pictures", "split_seed": 0, "validation": 0.125}
    edit_params({"data.others": own, "runs.gan.data": "others"})
    renamed = gather()
    assert torch.equal(renamed.test, evidence.test)
    assert all(torch.equal(*pair) for pair in zip(renamed.train, evidence.train, strict=True))

    for seed, folders in ((0, 1), (0, 1), (1, 2)):
        edit_params({"networks.classifier.seed": seed})
        networks.main("classifier")
        evidence = gather()
        found = evidence.extract_real("classifier", evidence.test)
        assert torch.equal(found.logits, extract(evidence.networks["classifier"], evidence.test).logits)
        assert len(list((workdir / real_cache.FOLDER).iterdir())) == folders


@pytest.mark.usefixtures("tiny", "prepared")
def test_runs_of_all_seeds_are_scored_on_the_same_binary_images(
    edit_params: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[torch.Tensor] = []
    score = vae.Model.score

    def watch(
        self: vae.Model, images: torch.Tensor, samples: int, generator: torch.Generator, given: dict[str, torch.Tensor]
    ) -> Any:
        scored.append(images)
        return score(self, images, samples, generator, given)

    train.main("vae")
    monkeypatch.setattr(vae.Model, "score", watch)
    for seed in (0, 1):
        edit_params({"runs.vae.seed": seed})
        sample.main("vae")
    first, second = scored
    assert first.unique().tolist() == [0, 255]
    assert torch.equal(first, second)
