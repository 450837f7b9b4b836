"""The commands of the README in a fresh clone, with trainings of a second."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from PIL import Image
from ruamel.yaml import YAML

from tests import forks
from tests.conftest import ROOT, TINY, leave_out_runs, set_value, squeeze

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


def run(folder: Path, *command: str, status: int = 0, cold: bool = False) -> str:
    """Run a command and return its output; with `cold`, Python itself starts, and imports, each stage.

    `python -m pipeline` is a fork, and so are the stages that it starts; those of `sys.executable` would be cold.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_", "GIT_"))}
    environment |= {"PATH": f"{BIN}{os.pathsep}{environment['PATH']}"} if cold else forks.environment()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == status, f"{' '.join(command)}: {done.returncode}\n{output[-4000:]}"
    return output


def set_params(folder: Path, changes: dict[str, object]) -> None:
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    for key, value in changes.items():
        set_value(values, key, value)
    yaml.dump(values, folder / "params.yaml")


def copy_project(folder: Path) -> None:
    """Make a repository of the working tree's files, with trainings of a second and without results."""
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).exists() and not name.startswith("reports/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    (folder / "dvc.lock").unlink(missing_ok=True)
    path = folder / "params.yaml"
    path.write_text(leave_out_runs(path.read_text(encoding="utf-8")), encoding="utf-8")
    set_params(folder, TINY)
    run(folder, "git", "init", "-q")
    run(folder, "git", "config", "user.email", "test@example.invalid")
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-qm", "start")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the working tree, reproduced once."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    copy_project(folder)
    run(folder, "dvc", "repro")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-qm", "reproduced")
    return folder


def list_runs(folder: Path) -> list[Run]:
    """List the MLflow runs of a project."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return list(client.search_runs([found.experiment_id for found in client.search_experiments()]))


def count_runs(folder: Path) -> int:
    return len(list_runs(folder))


def test_a_second_repro_does_nothing(clone: Path) -> None:
    assert "Running stage" not in run(clone, "dvc", "repro")
    assert "Data and pipelines are up to date" in run(clone, "dvc", "status")
    assert run(clone, "git", "status", "--porcelain") == ""  # DVC and git agree on who owns what


def list_stages(output: str) -> list[str]:
    return re.findall(r"Running stage '(.*?)'", output)


def test_a_colleague_gets_every_run_from_a_folder_and_trains_one_of_them_longer(clone: Path, tmp_path: Path) -> None:
    pipeline = ("python", "-m", "pipeline")
    run(clone, "dvc", "remote", "add", "--local", "store", str(tmp_path / "store"))
    run(clone, "dvc", "push", "--remote", "store")
    folder = tmp_path / "project"
    run(tmp_path, "git", "clone", "-q", str(clone), str(folder))
    assert "No remote provided and no default remote set" in run(folder, "dvc", "pull", status=1)
    assert "nothing to send" in run(folder, *pipeline, "sync")
    run(folder, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    run(folder, "dvc", "pull")
    assert "3 of 3 runs are in MLflow now" in run(folder, *pipeline, "sync")
    assert count_runs(folder) == 3
    for name, kind in (("gan", "png"), ("vae", "png"), ("transformer", "txt")):
        assert list((folder / "data" / "runs" / name / "record" / "exhibits").glob(f"*/*.{kind}"))
    assert list((folder / "mlartifacts").rglob("*.png"))
    assert set(list_stages(run(folder, "dvc", "repro"))) <= {"check"}

    yaml = YAML(typ="safe", pure=True)
    runs = yaml.load(folder / "params.yaml")["runs"]
    longer = {**runs["vae"], "start": "vae", "resume": True, "changes": {"steps": 6}}
    set_params(folder, {"runs": {**runs, "longer": longer}})
    output = run(folder, "dvc", "repro", "train@longer")
    assert list_stages(output) == ["check", "train@longer"]
    assert "resuming at step 4 of 6" in output


def test_metrics_plots_and_params_show_without_further_flags(clone: Path, tmp_path: Path) -> None:
    metrics = json.loads(run(clone, "dvc", "metrics", "show", "--json"))
    assert "fid_classifier" in json.dumps(metrics)
    assert "bits_per_character" in json.dumps(metrics)
    run(clone, "dvc", "plots", "show", "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert "discriminator_loss" in page
    for picture in ("gan_samples_samples.png", "vae_samples_samples.png", "vae_samples_reconstructions.png"):
        assert f"reports_runs_{picture}" in page
    assert "generator_width" in run(clone, "dvc", "params", "diff", "--all", "--json", "HEAD~1", "HEAD")


def test_the_notebook_runs_on_the_results_of_its_project(clone: Path) -> None:
    cells = json.loads((clone / "examples" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(codes) > 5
    assert not any(cell.get("outputs") for cell in cells)
    script = "import matplotlib; matplotlib.use('agg')\n" + "\n".join(codes)
    output = run(clone / "examples", sys.executable, "-c", script)
    assert "gan: gan on mnist5k, seed 0" in output
    assert "| fid_classifier |" in squeeze(output)


def test_a_comment_reruns_nothing_and_a_learning_rate_only_its_model(clone: Path) -> None:
    text = (clone / "params.yaml").read_text()
    try:
        (clone / "params.yaml").write_text("# a comment\n" + text)
        assert "up to date" in run(clone, "dvc", "status")
        set_params(clone, {"models.vae.learning_rate": 2e-3})
        status = json.loads(run(clone, "dvc", "status", "--json"))
    finally:
        (clone / "params.yaml").write_text(text)
    stale = {name for name, changes in status.items() if "changed" in str(changes)}
    assert "train@vae" in stale
    assert not {name for name in stale if name.endswith(("@gan", "@transformer", "@images", "@text", "@classifier"))}


def test_a_picture_of_one_s_own_makes_no_text_stale(clone: Path) -> None:
    picture = clone / "data" / "own" / "pictures" / "new.png"
    try:
        Image.new("L", (4, 4)).save(picture)
        status = json.loads(run(clone, "dvc", "status", "--json"))
        assert run(clone, "git", "status", "--porcelain") == ""
    finally:
        picture.unlink()
    assert set(status) == {"fetch@images"}  # what follows is known when its output is


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("loss: relativistic", "los: relativistic"), "models.gan.los: unknown key, did you mean 'loss'?"),
        (("latent: 100", "latent: many"), "models.gan.latent: input should be a valid integer"),
    ],
)
def test_a_wrong_key_stops_the_first_stage_with_its_full_name(
    clone: Path, change: tuple[str, str], message: str
) -> None:
    text = (clone / "params.yaml").read_text()
    assert change[0] in text
    (clone / "params.yaml").write_text(text.replace(*change))
    before = (clone / "dvc.lock").read_bytes()
    output = run(clone, "dvc", "repro", status=255)
    assert message in output
    assert (clone / "dvc.lock").read_bytes() == before
    assert (clone / "data" / "runs" / "gan" / "model" / "model.safetensors").exists()  # DVC removes outputs first
    (clone / "params.yaml").write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("gan: {model: gan", "gan: {modle: gan"), "runs.gan.modle: unknown key, did you mean 'model'?"),
        (("source: mnist5k", "sorce: mnist5k"), "data.images.sorce: unknown key, did you mean 'source'?"),
        (("\nmodels:", "\nmodles:"), "modles: unknown section, did you mean 'models'?"),
        (("  gan: {model", '  "$(touch ran)": {model'), "runs.$(touch ran): expected a name of a lowercase letter"),
        (("  vae: {model", "  ..: {model"), "runs...: expected a name of a lowercase letter"),
    ],
)
def test_make_repro_names_a_wrong_key_that_dvc_itself_needs(clone: Path, change: tuple[str, str], message: str) -> None:
    text = (clone / "params.yaml").read_text()
    environment = clone / ".venv"
    environment.mkdir()
    (environment / "installed").touch()  # this environment stands for the one that make would install
    try:
        (clone / "params.yaml").write_text(text.replace(*change))
        output = run(clone, "make", "repro", status=2)
    finally:
        (clone / "params.yaml").write_text(text)
        shutil.rmtree(environment)
    assert not list(clone.rglob("ran"))
    assert text.replace(*change) != text
    assert message in output
    assert "Error 255" in output  # DVC's own status


def test_an_experiment_varies_one_value_and_tracks_in_the_main_store(clone: Path) -> None:
    before = count_runs(clone)
    run(clone, "dvc", "exp", "run", "--temp", "-S", "models.transformer.steps=5", "train@transformer")
    assert count_runs(clone) == before + 1
    assert run(clone, "git", "status", "--porcelain") == ""


@pytest.mark.skipif("DATA_MIRROR" not in os.environ, reason="MNIST is fetched: set DATA_MIRROR to a folder that has it")
def test_one_change_trains_on_other_data_that_is_fetched_and_evaluates_on_them(clone: Path) -> None:
    run(clone, "dvc", "exp", "run", "--temp", "--name", "fetched", "-S", "data.images.source=mnist", "evaluate@vae")
    revision = run(clone, "git", "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/fetched").strip()
    assert "fetched" in run(clone, "dvc", "exp", "list")

    def read(file: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(run(clone, "git", "show", f"{revision}:reports/runs/vae/{file}.json"))
        return content

    assert read("protocol")["protocol"]["reference"]["source"] == "mnist"
    assert read("metrics")["samples"] == 200
    before = json.loads((clone / "reports" / "runs" / "vae" / "metrics.json").read_text())
    assert read("metrics")["fid_classifier"] != before["fid_classifier"]


def test_forced_training_gives_the_same_lock(clone: Path) -> None:
    def read_model() -> object:
        outs = YAML(typ="safe").load(clone / "dvc.lock")["stages"]["train@transformer"]["outs"]
        return next(out for out in outs if out["path"].endswith("model"))

    before = read_model()
    run(clone, "dvc", "repro", "check")  # earlier tests have checked other commits out
    run(clone, "dvc", "repro", "--force", "--single-item", "train@transformer", cold=True)
    assert read_model() == before


def test_stages_side_by_side_give_the_lock_and_the_bits_of_one_after_another(clone: Path, tmp_path: Path) -> None:
    copy_project(tmp_path)
    output = run(tmp_path, "python", "-m", "pipeline", "repro", "-j", "2", "sample@vae", "sample@transformer")
    assert "9 stages: 9 ran, 0 were up to date\n" in output

    def read(folder: Path) -> dict[str, Any]:
        stages: dict[str, Any] = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
        for entry in stages.values():  # a record has the times at which its training ran
            entry["outs"] = [out for out in entry["outs"] if not out["path"].endswith("/record")]
        return stages

    together, alone = read(tmp_path), read(clone)
    assert together == {name: alone[name] for name in together}


def test_committed_numbers_are_reproduced_bit_for_bit_from_the_raw_data_and_from_the_weights(clone: Path) -> None:
    for options in ([], ["--evaluate"]):
        output = run(clone, "python", "-m", "pipeline", "reproduce", "vae", *options, cold=not options)
        rows = [line for line in squeeze(output).splitlines() if line.startswith("| vae |")]
        assert len(rows) == 10  # seven of images, three of the likelihood
        assert all(row.endswith("| bit for bit |") for row in rows), output


def test_numbers_that_the_code_does_not_give_are_named_with_the_first_stage_that_differs(clone: Path) -> None:
    text = (clone / "params.yaml").read_text()
    set_params(clone, {"models.transformer.learning_rate": 1e-4})
    run(clone, "git", "commit", "-qam", "numbers of another learning rate")
    output = run(clone, "python", "-m", "pipeline", "reproduce", "transformer", status=1)
    (row,) = [line for line in squeeze(output).splitlines() if line.startswith("| transformer | test_nats |")]
    assert row.endswith("| **not**, first different: train@transformer |")
    (clone / "params.yaml").write_text(text)
    run(clone, "git", "commit", "-qam", "back")


def read_codes(folder: Path) -> dict[str, str]:
    top = folder / "data" / "code"
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*.json")}


def test_a_comment_in_the_code_runs_check_and_nothing_else(clone: Path) -> None:
    path = clone / "pipeline" / "layers" / "blocks.py"
    text = path.read_text()
    run(clone, "dvc", "repro")  # the report of a run that an earlier test has trained again, in other seconds
    try:
        path.write_text(text.replace('"""', '"""Other words. ', 1) + "\n# A comment.\n")
        output = run(clone, "dvc", "repro")
        assert re.findall(r"Running stage '(.*?)'", output) == ["check"]
        assert "up to date" in run(clone, "dvc", "status")
    finally:
        path.write_text(text)
        run(clone, "dvc", "repro")


@pytest.mark.parametrize("project", [".", "benchmarks/families"])
def test_an_edit_of_the_flow_concerns_what_the_vae_trains_and_draws_only(clone: Path, project: str) -> None:
    path = clone / "pipeline" / "layers" / "flow.py"
    text = path.read_text()
    folder = clone / project
    vaes = {"vae"} if project == "." else {f"vae_{seed}" for seed in range(3)}
    try:
        run(folder, "dvc", "repro", "check")
        before = read_codes(folder)
        path.write_text(text.replace("super().__init__()", "super().__init__()\n        self.more = 1", 1))
        output = run(folder, "dvc", "repro", "check")
        after = read_codes(folder)
        if project == ".":
            status = json.loads(run(folder, "dvc", "status", "--json"))
            assert set(status) == {"train@vae", "sample@vae", "audit@vae"}
    finally:
        path.write_text(text)
        run(folder, "dvc", "repro", "check")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{stage}/{vae}.json" for stage in ("train", "sample", "audit") for vae in vaes}
    assert set(re.findall(r"code of (\S+):", output)) == {
        f"{stage}@{vae}" for stage in ("train", "sample", "audit") for vae in vaes
    }


def test_a_text_waits_for_no_image_and_no_feature_network(clone: Path) -> None:
    graph = run(clone, "dvc", "dag", "evaluate@transformer", "--dot")
    assert set(re.findall(r'"(\w+(?:@\w+)?)"', graph)) == {
        *("check", "fetch@text", "prepare@text"),
        *(f"{stage}@transformer" for stage in ("train", "sample", "evaluate")),
    }


def test_a_removed_run_leaves_nothing_stale_behind(clone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(clone, folder, symlinks=True)
    values = YAML(typ="safe", pure=True).load(folder / "params.yaml")
    del values["runs"]["vae"]
    set_params(folder, {"runs": values["runs"]})
    output = run(folder, "dvc", "repro")
    assert "params.yaml has no run vae" in output
    assert not (folder / "reports" / "runs" / "vae").exists()
    assert list((folder / ".state" / "removed").glob("vae-data-*/model/model.safetensors"))  # nothing is lost
    assert 'id="vae"' not in (folder / "reports" / "index.html").read_text()
    assert "up to date" in run(folder, "dvc", "status")
