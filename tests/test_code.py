"""The digest of the code that a stage instance stands on: which edits change it, and that nothing it runs is missed."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import code, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.code import MACHINERY, describe, find_roots, is_machinery, list_instances, reach, read_module
from pipeline.commands.init import read_template
from pipeline.params import Params
from pipeline.stages.check import require_watched
from tests import forks
from tests.commands.test_check import MODEL, add_model
from tests.conftest import MORE_RUNS, ROOT

SHIPPED = params.load(ROOT / "params.yaml")
SETTINGS = SHIPPED.model_copy(update={"runs": {key: run for key, run in SHIPPED.runs.items() if key not in MORE_RUNS}})
LEFT_OUT = {
    **dict.fromkeys(
        ("Config", "ImageConfig", "PointConfig", "TextConfig", "AudioConfig", "check_rule"),
        "params.load checks them all",
    ),
    "find_alarms": "comments on a training",
    "write_bytes": "the record keeps exhibits by it",
    "hide_login": "words a warning",
    **dict.fromkeys(
        ("load_values", "sort_names", "is_measurement", "check_content", "make_tags"),
        "choose which of the numbers MLflow and headline.json show first",
    ),
    "find_silent_alarms": "comments on a training",
    "Sampling": "its lambda leaves a key out of the record",
    "_check_count": "refuses a value of params.yaml, of which every stage reads the whole",
    "<lambda>": "is a part of the statement that has it",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package whose text code.py reads; what runs is the original."""
    target = tmp_path / "pipeline"
    shutil.copytree(plugins.PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code.plugins, "PACKAGE", target)
    read_module.cache_clear()
    yield target
    read_module.cache_clear()


def digest_all(settings: Params = SETTINGS) -> dict[str, str]:
    """Return every instance's digest, read from the files as they are now."""
    read_module.cache_clear()
    return {f"{stage}@{key}": code.digest(stage, key, settings) for stage, key in list_instances(settings)}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1, (path, old)
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@functools.cache
def digest_unchanged() -> dict[str, str]:
    """Return the digests of the package as it is: each test begins with a copy of it."""
    return digest_all()


def find_changed(change: Callable[[], None]) -> set[str]:
    before = digest_unchanged()
    change()
    after = digest_all()
    return {name for name in before if before[name] != after[name]}


def test_the_digest_of_a_known_text_is_known_on_every_python(package: Path) -> None:
    # Text, not ast.dump: this number must come out on every version of Python and every machine.
    (package / "models" / "fixture.py").write_text(
        '"""A fixture."""\n\nimport math\n\nRATE = 0.5  # a comment\n\n\ndef f(x: int) -> str:\n    """Doc."""\n'
        '    return f"{x!r:>{RATE}} # no comment {math.pi}"\n'
    )
    read_module.cache_clear()
    assert describe({"pipeline.models.fixture": ()})["digest"] == "3a29981dfff5f2eb"


def test_comments_docstrings_and_blank_lines_change_nothing(package: Path) -> None:
    def change() -> None:
        for path in package.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            path.write_text(f"# A comment.\n{text}\n\n# Another one.\n", encoding="utf-8")
        edit(package / "layers" / "flow.py", '"""', '"""Other words: ')
        edit(
            package / "models" / "gan.py",
            "        config = self.config\n",
            "        # why\n\n        config = self.config  # so\n",
        )

    assert find_changed(change) == set()


def test_the_place_of_a_file_changes_nothing(package: Path) -> None:
    def change() -> None:
        (package / "layers" / "flow.py").rename(package / "models" / "coupling.py")
        edit(
            package / "models" / "vae.py",
            "from pipeline.layers.flow import Flow",
            "from pipeline.models.coupling import Flow",
        )

    assert find_changed(change) == set()


def test_a_constant_of_the_flow_changes_what_the_vae_trains_and_draws_only(package: Path) -> None:
    assert (
        find_changed(lambda: edit(package / "layers" / "flow.py", "class Flow", "LIMIT = 1\n\n\nclass Flow")) == set()
    )  # nobody reads it
    found = find_changed(
        lambda: edit(
            package / "layers" / "flow.py",
            "        super().__init__()",
            "        super().__init__()\n        self.x = 1",
        ),
    )
    assert found == {"train@vae", "sample@vae", "audit@vae"}


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (
            "weights.py",
            "tensor.detach().cpu()",
            "tensor.detach().cpu().clone()",
            {"networks@classifier", "networks@listener", "train@gan", "train@vae", "train@transformer"},
        ),
        (
            "layers/decoding.py",
            "def choose(",
            "def choose(*, x: int,",
            {f"{stage}@transformer" for stage in ("train", "sample", "audit")},
        ),
        ("kinds/text.py", "return int(np.count_nonzero", "return 1 + int(np.count_nonzero", {"prepare@text"}),
        ("data/mnist5k.py", "TEST_SHARE = 0.2", "TEST_SHARE = 0.3", {"prepare@images"}),
        ("formats/docstrings.py", "value = vars(module)[name]", "value = getattr(module, name)", {"fetch@text"}),
        (
            "evidence/features.py",
            "images.split(250)",
            "images.split(251)",
            {"evaluate@gan", "evaluate@vae", "audit@gan", "audit@vae", "audit@transformer", "report@"},
        ),
        (
            "models/vae.py",
            '"binarised images"',
            '"black and white"',
            {"train@vae", "sample@vae", "evaluate@vae", "audit@vae"},
        ),
        ("models/vae.py", "draw_latents(latents", "draw_latents(-latents", {"audit@vae"}),
        ("pages/components.css", "--paper:", "--page:", {"report@"}),
        ("stages/report.md", "# Results", "# Numbers", {"report@"}),
        ("runtime/saver.py", "REPEATS = 5.0", "REPEATS = 6.0", set()),
        ("params.py", "NONE = ", "UNUSED = 1\nNONE = ", set()),
    ],
)
def test_an_edit_changes_what_runs_it_and_nothing_else(
    package: Path, file: str, old: str, new: str, expected: set[str]
) -> None:
    assert find_changed(lambda: edit(package / file, old, new)) == expected


def test_the_code_of_a_feature_network_is_apart_from_that_of_the_metric(package: Path) -> None:
    # A bound, which looks through no network, is comparable after an edit of the network.
    before = code.digest_parts("vae", SETTINGS)
    assert before == code.digest_parts("gan", SETTINGS)
    assert code.digest_parts("transformer", SETTINGS).keys() == {"metric"}
    edit(package / "layers" / "features.py", "F.dropout(features, 0.3", "F.dropout(features, 0.4")
    read_module.cache_clear()
    after = code.digest_parts("vae", SETTINGS)
    assert after["metric"] == before["metric"]
    assert after["network"] != before["network"]
    edit(package / "metrics" / "images.py", "PARTS = (2, 4)", "PARTS = (2, 5)")
    read_module.cache_clear()
    assert code.digest_parts("vae", SETTINGS)["network"] == after["network"]
    assert code.digest_parts("vae", SETTINGS)["metric"] != after["metric"]


def test_another_library_under_the_same_name_changes_the_digest(package: Path) -> None:
    found = find_changed(
        lambda: edit(
            package / "layers" / "flow.py",
            "from torch import Tensor, nn",
            "from torch import Tensor\nfrom elsewhere import nn",
        ),
    )
    assert found == {"train@vae", "sample@vae", "audit@vae"}


def test_two_definitions_that_swap_their_names_change_the_digest(package: Path) -> None:
    # The same texts in the same files: only which one a caller means has changed.
    def change() -> None:
        edit(
            package / "models" / "vae.py",
            "gaussian_kl, log_bernoulli, log_discretized_logistic, log_normal",
            "gaussian_kl, log_bernoulli, log_discretized_logistic\n"
            "from pipeline.layers.likelihoods import log_discretized_logistic as log_normal",
        )

    assert find_changed(change) == {"train@vae", "sample@vae", "audit@vae"}


def test_every_instance_of_dvc_yaml_has_a_digest_and_depends_on_it() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {name if "@" in name else f"{name}@" for name in listed} - {"check@"} == set(digest_all(SHIPPED))
    lines = (ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 140
    assert not [line for line in lines if line.strip().startswith("- pipeline/")]
    assert sum("data/code/" in line for line in lines if line.strip().startswith("- ")) == 8


def test_machinery_is_reached_by_nothing() -> None:
    for stage, key in list_instances(SETTINGS):
        modules = {statement.module for statement in reach(find_roots(stage, key, SETTINGS))}
        assert not {module for module in modules if is_machinery(module)}
    for name in MACHINERY:
        assert (plugins.PACKAGE / name).is_dir() or (plugins.PACKAGE / f"{name}.py").exists()


def test_check_writes_each_instance_once_and_says_what_changed(workdir: Path, package: Path) -> None:
    assert code.write_all(SETTINGS) == []
    path = workdir / code.FOLDER / "train" / "vae.json"
    first = path.stat().st_mtime_ns
    assert json.loads(path.read_text())["digest"] == code.digest("train", "vae", SETTINGS)
    assert code.write_all(SETTINGS) == []
    assert path.stat().st_mtime_ns == first
    edit(package / "layers" / "flow.py", "        super().__init__()", "        super().__init__()\n        self.x = 1")
    read_module.cache_clear()
    assert code.write_all(SETTINGS) == [f"{stage}@vae: Coupling" for stage in ("train", "sample", "audit")]
    (path.with_name("gone.json")).write_text("{}")
    code.write_all(SETTINGS)
    assert not path.with_name("gone.json").exists()


@pytest.mark.usefixtures("workdir")
def test_what_reads_exhibits_stands_on_the_code_that_draws_them() -> None:
    kept = SETTINGS.runs["transformer"]
    runs = {"plain": kept, "verse": kept.model_copy(update={"metric": "verse"})}
    models = dict.fromkeys(runs, SETTINGS.models["transformer"])
    settings = SETTINGS.model_copy(update={"runs": runs, "models": models})
    code.write_all(settings)
    plain, verse = (json.loads((code.FOLDER / "evaluate" / f"{name}.json").read_text()) for name in settings.runs)
    sample = json.loads((code.FOLDER / "sample" / "verse.json").read_text())
    assert (verse["exhibits"], "exhibits" in plain) == ([sample["digest"]], False)


def test_freeze_and_resume_are_in_the_file_that_the_training_depends_on(workdir: Path) -> None:
    run = SETTINGS.runs["gan"].model_copy(update={"start": "vae", "freeze": ["layers.*"], "resume": True})
    settings = SETTINGS.model_copy(
        update={"runs": {**SETTINGS.runs, "tuned": run}, "models": {**SETTINGS.models, "tuned": SETTINGS.models["gan"]}}
    )
    code.write_all(settings)
    folder = workdir / code.FOLDER / "train"
    tuned, gan = (json.loads((folder / f"{name}.json").read_text()) for name in ("tuned", "gan"))
    assert (tuned["freeze"], tuned["resume"]) == (["layers.*"], ["vae"])
    assert not gan.keys() & {"freeze", "resume"}


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_every_definition_that_a_stage_runs_is_in_its_digest(workdir: Path) -> None:
    """Real processes, traced: each function of the package that runs is reached, or is machinery."""
    settings = params.load()
    for stage, key in list_instances(settings):
        command = ["python", "-m", "tests.traced", stage, *([key] if key else [])]
        # Without MLflow, which shows numbers by functions that metrics have too.
        absent = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        environment = os.environ | forks.environment() | absent
        done = subprocess.run(command, cwd=workdir, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        ran: dict[str, list[str]] = json.loads((workdir / "traced.json").read_text())
        known = code.list_modules(find_roots(stage, key, settings))
        missed = {
            f"{module}.{name}"
            for module, names in ran.items()
            if not is_machinery(module)
            for name in set(names) - {*known.get(module, ()), *LEFT_OUT}
        }
        assert missed == set(), (stage, key)
        assert ran


def load_with_model(folder: Path) -> Params:
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    add_model(folder / "params.yaml")
    return params.load(folder / "params.yaml")


def test_a_model_of_another_package_counts_with_its_package_and_what_it_uses_here(
    brought: Callable[[str], Path], package: Path, tmp_path: Path
) -> None:
    file = brought(MODEL)
    settings = load_with_model(tmp_path)

    def digest_runs(stage: str) -> dict[str, str]:
        read_module.cache_clear()
        return {key: code.digest(stage, key, settings) for key in ("tiny", "vae")}

    first = digest_runs("train")
    file.with_name("blocks.py").write_text("WIDTH = 3\n")  # however the model uses it
    second = digest_runs("train")
    edit(package / "models" / "__init__.py", "self.seed = seed", "self.seed = seed + 1")
    third = digest_runs("train")
    assert len({each["tiny"] for each in (first, second, third)}) == 3
    assert first["vae"] == second["vae"] == third["vae"]
    file.write_text("import pipeline.layers.blocks\n" + MODEL)
    with pytest.raises(ArtifactError, match="expected `from pipeline"):
        digest_runs("train")


def test_check_refuses_a_package_that_dvc_does_not_watch(
    brought: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought(MODEL)
    settings = load_with_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(ArtifactError, match=r"`always_changed: true` .* the package of brought_package\.flow"):
        require_watched(settings)
    require_watched(SETTINGS)
    (tmp_path / "dvc.yaml").write_text(read_template("dvc.yaml"))
    require_watched(settings)
