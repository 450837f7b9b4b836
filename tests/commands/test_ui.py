"""pipeline ui: the address of the charts, for this machine, a team's server, and a port that is taken."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from pipeline.__main__ import main
from pipeline.commands import ui
from pipeline.history.mlflow_sync import MlflowSync
from pipeline.history.record import Record
from tests.browser import start_browser
from tests.conftest import ROOT
from tests.history.test_mlflow_names import RESULTS, make_about
from tests.ports import find_free_port


def test_the_address_of_a_teams_server_is_printed_and_opened_only_where_there_is_a_display(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(ui, "connect", lambda: (SimpleNamespace(tracking_uri="https://ada:secr/et@team.example/"), "7"))
    monkeypatch.setattr(webbrowser, "open", lambda address: not opened.append(address))
    monkeypatch.setattr(sys, "platform", "linux")
    for display in ("", ":0"):
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        monkeypatch.setenv("DISPLAY", display)
        assert main(["ui"]) == 0
    address = "https://team.example/#/experiments/7/runs?compareRunsMode=CHART"
    out = capsys.readouterr().out
    assert out.count(address) == 2
    assert "ada" not in out + opened[0]  # the browser asks for the login
    assert len(opened) == 1
    assert "workflowType=machine_learning" in opened[0]


@pytest.mark.usefixtures("workdir")
def test_a_port_that_is_taken_is_one_line_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: port {port}: expected a free one")
    assert "`pipeline ui --port 5000`" in error


@pytest.mark.slow
def test_the_printed_page_shows_charts_in_groups_and_no_error_and_ends_with_its_command(workdir: Path) -> None:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium is not installed (Debian: apt-get install chromium chromium-driver)")
    record = Record(workdir / "record", make_about(metric="images"))
    record.log(1, {"loss": 1.0})
    record.finish("FINISHED")
    MlflowSync(record).finish(RESULTS)
    port = find_free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DISPLAY"))}
    command = [sys.executable, "-m", "pipeline", "ui", "--port", str(port)]
    with (workdir / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        [address] = [line.strip() for line in (workdir / "log").read_text().splitlines() if "#/experiments" in line]
        with start_browser(("nobody", "")) as browser:
            browser.open(address)
            browser.wait_for("quality/fid_x", "\ntrain\n", "\ncost\n", "gan fid_x 6.333")
            browser.open(address.replace("compareRunsMode=CHART&", ""))
            page = browser.wait_for("headline", "fid_x 6.333")
            browser.settle()
            assert "This server does not offer that" not in page + browser.read()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/health", timeout=5)


def wait_for(address: str) -> None:
    """Wait until the server answers."""
    for _ in range(400):
        with contextlib.suppress(requests.ConnectionError):
            assert requests.get(address, timeout=5).ok
            return
        time.sleep(0.3)
    msg = f"{address} does not answer"
    raise AssertionError(msg)
