"""Settings from the environment: typed, and refused with one line that names the variable."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime import environment
from pipeline.runtime.environment import HardwareError
from tests.conftest import ROOT

DEVICES = "auto, a number above 0 or a list such as 0,2"
MORE = "a whole number, 0 or more"
ACCELERATORS = "auto, cpu, cuda, gpu, mps or tpu"
BAD: list[tuple[Callable[[], Any], str, str, list[str]]] = [
    (
        environment.read_checkpoint_seconds,
        "PIPELINE_CHECKPOINT_SECONDS",
        "seconds above 0",
        ["abc", "nan", "0", "-1", "", "1m", "-inf"],
    ),
    (
        environment.read_checkpoint_seconds,
        "PIPELINE_CHECKPOINT_SECONDS",
        "at most 1,000,000,000 seconds",
        ["inf", "1e300"],
    ),
    (environment.read_timeout, "PIPELINE_TIMEOUT", "seconds above 0", ["abc", "nan", "0", "-120", "2 min"]),
    (environment.read_timeout, "PIPELINE_TIMEOUT", "at most 1,000,000,000 seconds", ["1e10"]),
    (
        environment.read_devices,
        "PIPELINE_DEVICES",
        DEVICES,
        ["0", "-2", "two", "", "1.5", "0,x", "0,0", ",", "0,,1", "²", "1" * 10],
    ),
    (lambda: environment.read_nodes(1), "PIPELINE_NODES", "a whole number, 1 or more", ["0", "-1", "two", "", "1.0"]),
    (
        environment.read_relaunches,
        "PIPELINE_RELAUNCHES",
        "a whole number, 0 or more",
        ["-1", "many", "", "٣", "1" * 99],
    ),
    (environment.read_accelerator, "PIPELINE_ACCELERATOR", ACCELERATORS, ["", "CPU", "gpus", "npu"]),
    (environment.read_determinism, "PIPELINE_DETERMINISTIC", "true or warn", ["no", "false", "True", ""]),
    (environment.read_precision, "PIPELINE_PRECISION", "32-true, 64-true, .* or bf16", ["8", "", "fp16", "32-mixed"]),
    (environment.read_strategy, "PIPELINE_STRATEGY", "auto, ddp, .*", ["", " "]),
    (environment.read_port, "MASTER_PORT", "a whole number, 0 to 65535", ["65536", "-1", "http", ""]),
    (environment.read_threads, "OMP_NUM_THREADS", "a whole number, 1 or more", ["0", "all", "-1", "1.5"]),
    (environment.read_reports, "PIPELINE_REPORTS", "the numbers of two pipes, .*", ["folder", "", "3"]),
    (environment.read_root, "DVC_ROOT", "an existing folder", ["/no/such/folder"]),
    (
        environment.read_tracking_uri,
        "MLFLOW_TRACKING_URI",
        "an address such as .*",
        ["localhost:5000", "htp://host", "http", "a b"],
    ),
    (environment.read_experiment_name, "MLFLOW_EXPERIMENT_NAME", "the name of an experiment", ["", " "]),
    (environment.read_mirror, "DATA_MIRROR", "a folder or an address such as .*", ["ftp://host/x", "https://"]),
]


@pytest.mark.fault(50, 57)
@pytest.mark.parametrize(
    ("read", "name", "expected", "value"),
    [
        pytest.param(read, name, expected, value, id=f"{name}={value[:20]}")
        for read, name, expected, values in BAD
        for value in values
    ],
)
def test_a_bad_value_is_refused_with_its_variable_what_is_expected_and_what_came(
    read: Callable[[], Any], name: str, expected: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    for refuse in (read, environment.require_valid):  # each is read before a stage touches anything
        with pytest.raises(HardwareError, match=f"^{name}: expected {expected}, got {value!r}$"):
            refuse()


@pytest.mark.parametrize(
    ("read", "name", "value", "expected"),
    [
        (environment.read_checkpoint_seconds, "PIPELINE_CHECKPOINT_SECONDS", None, 60.0),
        (environment.read_checkpoint_seconds, "PIPELINE_CHECKPOINT_SECONDS", "0.5", 0.5),
        (environment.read_timeout, "PIPELINE_TIMEOUT", None, 120.0),
        (environment.read_devices, "PIPELINE_DEVICES", None, None),
        (environment.read_devices, "PIPELINE_DEVICES", "-1", None),
        (environment.read_devices, "PIPELINE_DEVICES", "4", 4),
        (environment.read_devices, "PIPELINE_DEVICES", "0, 2", [0, 2]),
        (environment.read_devices, "PIPELINE_DEVICES", "3,", [3]),  # Lightning's way to write one index
        (lambda: environment.read_nodes(2), "PIPELINE_NODES", None, 2),
        (environment.read_relaunches, "PIPELINE_RELAUNCHES", None, 0),
        (environment.read_accelerator, "PIPELINE_ACCELERATOR", None, "auto"),
        (environment.read_determinism, "PIPELINE_DETERMINISTIC", None, True),
        (environment.read_determinism, "PIPELINE_DETERMINISTIC", "warn", "warn"),
        (environment.read_precision, "PIPELINE_PRECISION", None, "32-true"),
        (environment.read_strategy, "PIPELINE_STRATEGY", None, "auto"),
    ],
)
def test_a_setting_has_its_type_and_its_default(
    read: Callable[[], Any], name: str, value: str | None, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv(name, value)
    assert read() == expected
    assert type(read()) is type(expected)


@pytest.mark.fault(57)
@pytest.mark.parametrize("name", [*environment.RANKS, *environment.SLURM, "MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
def test_a_number_of_another_program_is_read_before_a_stage_begins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "two")
    with pytest.raises(HardwareError, match=f"^{name}: expected {MORE}, got 'two'$"):
        environment.require_valid()


def test_addresses_of_every_store_are_taken_and_no_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "http://h:1", "sqlite:////a/b.db", "postgresql+psycopg2://u:p@h/db", "databricks", "file:./m"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert environment.read_tracking_uri() == address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://user:secret@host")
    with pytest.raises(HardwareError, match=r"got 'htp://\*\*\*@host'"):
        environment.read_tracking_uri()


@pytest.mark.fault(57)
def test_a_misspelt_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PIPELINE_CHECKPOINT_SECOND", "5")
    monkeypatch.setenv("PIPELINE_TIMEOUT", "5")
    environment.warn_of_unknown()
    said = "warning: PIPELINE_CHECKPOINT_SECOND is no setting of this project and changes nothing"
    assert capsys.readouterr().err == f"{said}; PIPELINE_CHECKPOINT_SECONDS is meant?\n"


def test_every_setting_that_is_read_is_known_by_name() -> None:
    source = Path(environment.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'"PIPELINE_(\w+)"', source)) == set(environment.OURS)


# What reads a variable before the package's modules can be imported, or one of another program.
ELSEWHERE = {"__init__.py": "DVC_ROOT", "formats/download.py": "DATA_MIRROR", "models/transformer.py": "CXX"}
ELSEWHERE |= {"server/app.py": "_MLFLOW_SGI_NAME"}


@pytest.mark.fault(57)
def test_no_other_file_reads_a_variable() -> None:
    reads = re.compile(r"environ\.get\(|environ\[[^]]+\](?! =)|in os\.environ\b(?!\.items)|getenv")
    found = [
        f"{name}: {line.strip()}"
        for path in sorted((ROOT / "pipeline").rglob("*.py"))
        for name in [path.relative_to(ROOT / "pipeline").as_posix()]
        for line in path.read_text(encoding="utf-8").splitlines()
        if name != "runtime/environment.py" and reads.search(line)
        if name not in ELSEWHERE or ELSEWHERE[name] not in line
    ]
    assert found == []


def test_reading_the_settings_imports_no_library() -> None:
    """The supervisor and the first moments of a stage need them."""
    code = "import sys, pipeline.runtime.environment; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
