"""`pipeline prove`: a change that changes no bit enters the locks, and one that changes a bit does not."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import artifacts, code, params
from pipeline.commands import prove
from pipeline.evidence.protocol import describe_values
from pipeline.evidence.values import load_values
from pipeline.history import dvc_lock
from tests.conftest import ROOT, squeeze
from tests.test_dvc import copy_project, run, set_params


def test_one_run_of_each_kind_is_chosen() -> None:
    settings = params.load(ROOT / "params.yaml")
    gan = settings.runs["gan"]
    runs = settings.runs | {
        "seed1": gan.model_copy(update={"seed": 1}),
        "tuned": gan.model_copy(update={"start": "gan"}),
        "tuned1": gan.model_copy(update={"start": "seed1", "seed": 1}),
        "kept": gan.model_copy(update={"start": "gan"}),
    }
    longer, none = (settings.models["gan"].model_copy(update={"steps": steps}) for steps in (9, 0))
    models = settings.models | {"seed1": longer, "tuned": longer, "tuned1": longer, "kept": none}
    settings = settings.model_copy(update={"runs": runs, "models": models})
    first = [name for name in runs if name not in {"seed1", "tuned", "tuned1", "kept"}]
    assert prove.choose_runs(settings, runs) == [*first, "tuned", "kept"]
    assert prove.choose_runs(settings, ["vae", "tuned1"]) == ["vae", "seed1", "tuned1"]  # in the order of params.yaml
    start = {"deep1": runs["seed1"].model_copy(update={"start": "tuned1"})}  # its start's start is not the first
    deep = {"deep": gan.model_copy(update={"start": "tuned"}), **start, **runs}
    more = settings.model_copy(update={"runs": deep, "models": models | {"deep": longer, "deep1": longer}})
    assert prove.choose_runs(more, ["deep1", "seed1"]) == ["deep1", "seed1", "tuned1"]
    with pytest.raises(prove.ArtifactError, match=r"dvc\.lock: expected a run of params\.yaml, it has none"):
        prove.choose_runs(settings, ["gone"])


@pytest.mark.usefixtures("workdir")
def test_only_what_stands_on_other_code_takes_part() -> None:
    settings = params.load()
    code.write_all(settings)
    names = ["fetch@images", "networks@classifier", "train@gan", "audit@vae"]
    files = {name: code.FOLDER / f"{name.replace('@', '/')}.json" for name in names}
    stages = {
        name: {"cmd": "x", "deps": [{"path": file.as_posix(), "md5": dvc_lock.hash_file(file), "size": 1}]}
        for name, file in files.items()
    }
    artifacts.write_json(Path("dvc.lock"), {"stages": stages})
    assert prove.find_changed(settings) == {}
    for name in ("fetch@images", "audit@vae"):
        stages[name]["deps"][0]["md5"] = "of another code"
    gone = {"cmd": "x", "deps": [{"path": (code.FOLDER / "train/gone.json").as_posix(), "md5": "1", "size": 1}]}
    artifacts.write_json(Path("dvc.lock"), {"stages": stages | {"train@gone": gone}})
    changed = prove.find_changed(settings)
    assert changed == dict.fromkeys(("fetch@images", "audit@vae"), "of another code")
    runs, shared, targets = prove.choose_targets(changed, settings)
    assert (runs, shared, targets) == (["vae"], [("prepare", "images")], ["prepare@images", "audit@vae"])


def test_params_are_shrunk_to_few_steps_and_samples(workdir: Path) -> None:
    text = (workdir / "params.yaml").read_text(encoding="utf-8")
    start = "model: vae, data: images, start: vae, metric: images, network: classifier, seed: 0"
    more = f"  kept: {{{start}, changes: {{steps: 0}}}}\n  longer: {{{start}, resume: true, changes: {{steps: 2000}}}}"
    (workdir / "params.yaml").write_text(text.replace("\n  vae: {model", f"\n{more}\n  vae: {{model"), encoding="utf-8")
    prove.shrink(workdir / "params.yaml", ["kept", "longer", "vae"], [("prepare", "images")], 7)
    values = YAML(typ="safe", pure=True).load(workdir / "params.yaml")
    steps = {name: run["changes"]["steps"] for name, run in values["runs"].items()}
    assert steps == {"kept": 0, "longer": 14, "vae": 7}
    assert values["networks"]["classifier"]["steps"] == 7
    assert values["metrics"]["images"]["sampling"] == {
        "count": 100,
        "sets": 2,
        "importance_samples": 3,
        "labels": "test",
    }
    assert values["metrics"]["text"]["sampling"]["count"] == 4  # less than the limit stays
    params.load(workdir / "params.yaml")
    with pytest.raises(prove.ArtifactError, match=r"no runs\.hinge, data\.gone: expected a revision that has all"):
        prove.shrink(workdir / "params.yaml", ["hinge"], [("prepare", "gone")], 7)


def test_a_result_that_differs_or_is_missing_is_named(tmp_path: Path) -> None:
    for side, content in (("a", b"1"), ("b", b"2")):
        for name, value in (
            ("data/networks/c/model.safetensors", content),
            ("data/runs/x/samples/nats.safetensors", b""),
            (f"reports/runs/of git in {side}/metrics.json", b""),
        ):
            path = tmp_path / side / name
            path.parent.mkdir(parents=True)
            path.write_bytes(value)
    (tmp_path / "b" / "reports" / "runs" / "x").mkdir(parents=True)
    (tmp_path / "b" / "reports" / "runs" / "x" / "sets.json").touch()
    before, after = (prove.hash_results(tmp_path / side, ["x"]) for side in "ab")
    assert prove.compare(before, after) == ["data/networks/c/model.safetensors", "reports/runs/x/sets.json"]
    table = squeeze(prove.format_table(before, after))
    assert table.count("**differs**") == 2
    assert table.count("| equal |") == 1
    assert table.count("| missing |") == 1


def test_the_new_code_is_entered_in_a_protocol_with_the_hashes_of_the_values(tmp_path: Path) -> None:
    values = load_values("points")
    names = ["high_quality", "mode_kl_nats_real", "samples"]
    protocol = {
        "code": {"metric": "old"},
        "counts": {"samples": 100},
        "metric": {"deviations": 3.0, "sampling": {"sets": 1, "labels": "test"}},
        "numbers": "float32",
        "reference": {"sha256": {"test": "1"}},
        "versions": {"torch": "2.14.0"},
    }
    path = tmp_path / "protocol.json"
    prove.enter_protocol(path, "points", {"metric": "new"})
    assert not path.exists()
    artifacts.write_json(path, {"protocol": protocol, "run": {}, "values": describe_values(values, names, protocol)})
    prove.enter_protocol(path, "points", {"metric": "new"})
    protocol["code"] = {"metric": "new"}
    expected = {"protocol": protocol, "run": {}, "values": describe_values(values, names, protocol)}
    assert artifacts.read_json(path) == expected


@pytest.mark.slow
def test_a_change_of_no_bit_is_proved_and_entered_and_another_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    copy_project(folder)
    values = YAML(typ="safe", pure=True).load(folder / "params.yaml")
    few = {"data": "text", "models": "transformer", "metrics": "text", "runs": "transformer"}
    set_params(folder, {section: {key: values[section][key]} for section, key in few.items()} | {"networks": {}})
    run(folder, "dvc", "repro")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-qm", "results")
    path = folder / "pipeline" / "models" / "transformer.py"

    def change(old: str, new: str) -> None:
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        run(folder, "git", "commit", "-qam", "a change")

    change("        x = x + F.dropout(", "        residual = F.dropout(")
    change(
        "self.dropout, self.training)\n        hidden",
        "self.dropout, self.training)\n        x = x + residual\n        hidden",
    )
    status = json.loads(run(folder, "dvc", "status", "--json"))
    assert {"check"} <= set(status)
    output = run(folder, "python", "-m", "pipeline", "prove", "HEAD~2", "--steps", "3")
    assert "results of 1 runs are equal" in output
    assert "reports/runs/transformer/audit/verdicts.json" in output
    run(folder, "dvc", "repro")  # the report, whose protocols have other hashes
    assert "up to date" in run(folder, "dvc", "status")
    content = json.loads((folder / "reports" / "runs" / "transformer" / "protocol.json").read_text())
    assert content["values"] == describe_values(load_values("text"), content["values"], content["protocol"])
    run(folder, "git", "commit", "-qam", "proved")
    assert "nothing to prove" in run(folder, "python", "-m", "pipeline", "prove", "HEAD~1")
    lock = (folder / "dvc.lock").read_bytes()
    change("        x = x + residual", "        x = x + 1.001 * residual")
    assert "**differs**" in run(folder, "python", "-m", "pipeline", "prove", "HEAD~1", "--steps", "3", status=1)
    assert (folder / "dvc.lock").read_bytes() == lock
