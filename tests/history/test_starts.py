"""A start from outside of the project: the weights of the hash arrive by name, and what is wrong is said by its key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from pipeline import artifacts, code, params
from pipeline.artifacts import ArtifactError
from pipeline.history import mlflow_files, starts
from pipeline.history.mlflow_names import name_parameters
from pipeline.history.mlflow_notes import describe_run
from pipeline.history.record import Record
from pipeline.kinds.points import make_fields
from pipeline.params import Run, Weights
from pipeline.stages import train
from pipeline.weights import CONFIG, WEIGHTS, Learnt, read_learnt
from tests.conftest import ROOT
from tests.test_weights import save

ELSEWHERE = Path("elsewhere/data/runs/gan")  # a checkout next to this one
SIZES = {"generator_width": 4, "discriminator_width": 4}


def make_run(address: str, sha256: str = "", **values: Any) -> Run:
    """A run of the shipped GAN that starts from an address."""
    shipped = params.load(ROOT / "params.yaml").runs["gan"].model_dump()
    return Run(**{**shipped, "weights": {"address": address, "sha256": sha256 or "0" * 64}, **values})


@pytest.fixture
def sha256(workdir: Path) -> str:
    """The hash of the weights of an untrained GAN of points, elsewhere; and the same weights as a file of one's own."""
    save("gan", workdir / ELSEWHERE / "model", **SIZES)
    about = {"name": "gan", "tags": {"mlflow.source.git.commit": "c0ffee"}, "config": {}}
    artifacts.write_json(workdir / ELSEWHERE / "record" / "run.json", about)
    (workdir / "own.safetensors").write_bytes((ELSEWHERE / "model" / WEIGHTS).read_bytes())
    return artifacts.digest(ELSEWHERE / "model" / WEIGHTS)


def make(run: Run) -> Any:
    """The new model of a run of points, as the stage makes it."""
    settings = params.load(ROOT / "params.yaml").models["gan"]
    config = settings.model_validate(settings.model_dump() | SIZES | {"conditional": True} | run.changes)
    starts.bring("tuned", run)
    return train.make_model(run, config, Learnt(make_fields(2, 3)))


@pytest.mark.parametrize("address", [str(ELSEWHERE), f"{ELSEWHERE}/model", "own.safetensors", "models:/gan@best"])
def test_the_weights_at_an_address_are_those_that_the_training_begins_with(
    address: str, sha256: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(_: str, names: Any, folder: Path, more: Any = ()) -> dict[str, Any]:
        del more
        for name in names:
            (folder / name).write_bytes((ELSEWHERE / "model" / name).read_bytes())
        return {"origin": {"run": "gan", "commit": "c0ffee"}}

    monkeypatch.setattr(mlflow_files, "fetch_model", fetch)
    run = make_run(address, sha256)
    model = make(run)
    expected = load_file("own.safetensors")
    found = model.trained.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert starts.list_hashes(run)[0] == sha256
    known = {"start.address": address, "start.sha256": sha256}
    more = {} if address == "own.safetensors" else {"start.run": "gan", "start.commit": "c0ffee"}
    assert starts.name_lineage(run) == known | more


def test_skip_and_freeze_are_those_of_any_start(sha256: str) -> None:
    run = make_run("own.safetensors", sha256, skip=["layers.0.*"], freeze=["layers.2.*"])
    model, expected = make(run), load_file("own.safetensors")
    name = "layers.0.weight"
    assert not torch.equal(model.trained.state_dict()[name], expected[name])
    trains = {name: parameter.requires_grad for name, parameter in model.trained.named_parameters()}
    assert {name for name, does in trains.items() if not does} == {
        name for name in trains if name.startswith("layers.2.")
    }
    with pytest.raises(ArtifactError, match=r"skip: nothing\.\* matches no weight; the model has embedding\.weight"):
        make(run.model_copy(update={"skip": ["nothing.*"]}))


def test_weights_that_do_not_fit_are_listed_with_both_shapes(sha256: str) -> None:
    tensors = load_file("own.safetensors")
    tensors["layers.0.bias"] = torch.zeros(7)
    tensors["more"] = torch.zeros(2, 3)
    save_file(tensors, "own.safetensors")
    assert artifacts.digest(Path("own.safetensors")) != sha256
    with pytest.raises(ArtifactError) as caught:
        make(make_run("own.safetensors", artifacts.digest(Path("own.safetensors"))))
    first, *lines = str(caught.value).splitlines()
    assert "2 weights do not fit; name them in `skip`" in first
    assert re.fullmatch(r"  layers\.0\.bias: the start has \(7,\), the model has \(\d+,\)", lines[0])
    assert lines[1] == "  more: the start has (2, 3), the model has nothing"


def test_what_was_brought_needs_its_address_no_more_and_is_verified(sha256: str) -> None:
    run = make_run("own.safetensors", sha256)
    starts.bring("tuned", run)
    own = Path("own.safetensors")
    own.rename("moved")
    starts.bring("tuned", run)
    folder = starts.find(run)
    assert folder is not None
    (folder / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(ArtifactError, match=r"^runs\.tuned\.weights\.address: own\.safetensors: no such file$"):
        starts.bring("tuned", run)
    Path("moved").rename(own)
    starts.bring("tuned", run)
    assert artifacts.digest(folder / WEIGHTS) == sha256
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def break_seal() -> None:
    (ELSEWHERE / "model" / CONFIG).write_text("{}")


def spoil() -> None:
    save_file({"x": torch.tensor([float("nan")])}, "own.safetensors")


def pickle() -> None:
    torch.save({"x": torch.zeros(1)}, "own.safetensors")


@pytest.mark.parametrize(
    ("address", "harm", "message"),
    [
        ("own.safetensors", None, r"sha256: expected 0{64}, the weights at own\.safetensors have {sha256}$"),
        ("gone.safetensors", None, r"address: gone\.safetensors: no such file$"),
        ("gone", None, r"address: gone: no model is there; expected a run in data/runs, a folder with config\.json"),
        (str(ELSEWHERE), break_seal, r"address: .*config\.json: expected SHA-256"),
        ("own.safetensors", spoil, r"address: own\.safetensors: weights are not finite: x$"),
        ("own.safetensors", pickle, r"address: own\.safetensors: no weights that can be read: SafetensorError"),
        ("models:/gan@best", None, r"address: models:/gan@best: no such model in "),
        ("runs:/0123", None, r"address: runs:/0123: no such model in "),
    ],
)
def test_weights_that_cannot_be_had_are_one_line_with_the_key(
    address: str, harm: Any, message: str, sha256: str
) -> None:
    if harm:
        harm()
    with pytest.raises(ArtifactError, match=r"^runs\.tuned\.weights\." + message.replace("{sha256}", sha256)) as caught:
        starts.bring("tuned", make_run(address))
    assert "\n" not in str(caught.value)
    assert not list((artifacts.STATE / "starts").iterdir())


@pytest.mark.usefixtures("workdir")
def test_a_text_keeps_the_tokenizer_of_weights_from_outside() -> None:
    save("transformer", Path("other"), layers=1, width=16, heads=2, context=8)
    run = make_run("other", artifacts.digest(Path("other") / WEIGHTS))
    starts.bring("tuned", run)
    prepared = artifacts.PREPARED / "text"
    kept = artifacts.read_json(Path("other") / CONFIG)["tokenizer"]
    fields = {"tokens": {"kind": "text", "vocabulary": 2}}
    artifacts.write_json(prepared / "manifest.json", dict.fromkeys(artifacts.MANIFEST) | {"fields": fields})
    artifacts.write_json(prepared / "tokenizer.json", {**kept, **{key: "zb" for key in kept if kept[key] == "\nab"}})
    learnt = read_learnt("text", starts.find(run))
    assert learnt.fields["tokens"].vocabulary == len(learnt.tokens) == 4  # \n, a, b and z
    assert sorted(learnt.tokens) == [-1, 0, 1, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": "vae"}, "runs.tuned.weights: a run starts from one model, expected start none, got vae"),
        ({"address": "vae"}, "runs.tuned.weights.address: vae is a run of this project, which the key start names"),
        ({"sha256": "12"}, "runs.tuned.weights.sha256: string should match pattern '^[0-9a-f]{64}$', got '12'"),
        ({"sha256": None}, "runs.tuned.weights.sha256: missing key"),
        ({"resume": True}, "runs.tuned.resume: there is no training to go on with: start is none"),
    ],
)
def test_keys_that_do_not_go_together_are_named(values: dict[str, Any], message: str, workdir: Path) -> None:
    add_run(workdir, values)
    with pytest.raises(params.ParamsError, match=re.escape(message)):
        params.load()


def add_run(workdir: Path, values: dict[str, Any]) -> None:
    """Add the run `tuned` of a VAE to params.yaml."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(workdir / "params.yaml")
    weights = {"address": "own.safetensors", "sha256": "0" * 64}
    weights |= {key: values.pop(key) for key in ("address", "sha256") if key in values}
    weights = {key: value for key, value in weights.items() if value}
    content["runs"]["tuned"] = {**content["runs"]["vae"], "weights": weights, **values}
    yaml.dump(content, workdir / "params.yaml")


def test_other_weights_are_another_training_and_no_weights_change_nothing(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(code, "list_instances", lambda _: [("train", "vae"), ("train", "tuned")])
    for sha256 in ("0" * 64, "1" * 64):
        add_run(workdir, {"sha256": sha256, "freeze": ["decoder.*"], "changes": {"steps": 0}})
        settings = params.load()
        code.write_all(settings)
        seen.append(artifacts.read_json(code.FOLDER / "train" / "tuned.json"))
        assert settings.runs["tuned"].weights == Weights(address="own.safetensors", sha256=sha256)
    assert seen[0]["weights"] == ["own.safetensors", "0" * 64]
    assert seen[0] != seen[1]
    assert "weights" not in artifacts.read_json(code.FOLDER / "train" / "vae.json")
    assert "weights" not in settings.runs["vae"].model_dump()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny", "prepared")
def test_the_stage_begins_with_the_weights_and_its_record_names_them(workdir: Path) -> None:
    train.main("vae")
    (artifacts.RUNS / "vae").rename("other")
    sha256 = artifacts.digest(Path("other/model") / WEIGHTS)
    add_run(workdir, {"address": "other", "sha256": sha256, "changes": {"steps": 0}})
    train.main("tuned")
    assert artifacts.digest(artifacts.RUNS / "tuned" / "model" / WEIGHTS) == sha256  # no step was trained
    about = Record(artifacts.RUNS / "tuned" / "record").about
    assert {"start.address": "other", "start.sha256": sha256, "start.run": "vae"}.items() <= about["tags"].items()
    assert about["config"]["run"]["weights"] == {"address": "other", "sha256": sha256}
    assert {"weights.address": "other", "weights.sha256": sha256}.items() <= name_parameters(about).items()
    assert f"from the weights `{sha256[:12]}` of `other`" in describe_run(about, None)
    json.dumps(about)


@pytest.mark.usefixtures("sha256")
def test_a_file_of_weights_is_refused_where_its_tokens_are_not_known(sha256: str) -> None:
    for tokenizer in ("byte", "bpe"):
        artifacts.write_json(artifacts.PREPARED / "images" / "tokenizer.json", {"tokenizer": tokenizer})
        run = make_run("own.safetensors", sha256)
        if tokenizer == "byte":
            starts.bring("tuned", run)
            continue
        with pytest.raises(ArtifactError, match=r"runs\.tuned\.weights\.address: own.* which token a row is of"):
            starts.bring("tuned", run)
