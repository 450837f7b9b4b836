"""Settings from the environment: typed, and refused with one line that names the variable."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.runtime import environment
from pipeline.runtime.environment import HardwareError
from tests.conftest import ROOT

DEVICES = "auto, a number above 0 or a list such as 0,2"
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
]


@pytest.mark.fault(50)
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
    with pytest.raises(HardwareError, match=f"^{name}: expected {expected}, got {value!r}$"):
        read()


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


def test_no_other_file_reads_a_setting_of_the_machine() -> None:
    internal = ("PIPELINE_SUPERVISOR", "PIPELINE_REPORTS")  # which the supervisor sets for its own processes
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "pipeline").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if path.name != "environment.py" and "environ" in line and "PIPELINE_" in line
        if not any(name in line for name in internal)
    ]
    assert found == []


def test_reading_the_settings_imports_no_library() -> None:
    """The supervisor and the first moments of a stage need them."""
    code = "import sys, pipeline.runtime.environment; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
