"""Samples the load of the machine (processors, memory, disk, network, GPUs) into a run's record, as MLflow takes it."""

import contextlib
import threading
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

from pipeline.history.record import Record

SECONDS_BETWEEN_SAMPLES = 10


def sample_until(stop: threading.Event, record: Record) -> None:
    """Record the load every few seconds, and once more when the event is set."""
    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for kind in (GPUMonitor, ROCMMonitor):
        with contextlib.suppress(ImportError, RuntimeError):  # no such GPU
            monitors.append(kind())
    while not stop.wait(SECONDS_BETWEEN_SAMPLES):
        _sample(monitors, record)
    _sample(monitors, record)


def _sample(monitors: list[Any], record: Record) -> None:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    with contextlib.suppress(OSError):  # a full disk
        record.log_load(values)
