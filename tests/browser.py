"""A headless Chromium, driven by chromedriver's plain HTTP protocol: pages, their text, pictures of them, requests."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import requests

from tests.ports import find_free_port

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--ignore-certificate-errors",
    "--window-size=1400,1000",
]


@dataclass(frozen=True)
class Answer:
    """One request of a page and the status of its answer; 0 when there was none."""

    method: str
    url: str
    status: int


@dataclass
class Browser:
    """A session of chromedriver."""

    address: str

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a command of the protocol and return its value."""
        method = "GET" if body is None else "POST"
        answer = requests.request(method, f"{self.address}/{path}", json=body, timeout=120)
        value = answer.json()["value"]
        assert answer.ok, value
        return value

    def command(self, name: str, **values: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self.call("goog/cdp/execute", {"cmd": name, "params": values})

    def press(self, selector: str, *keys: str) -> None:
        """Give an element the focus, and press keys such as ArrowLeft."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "Enter": 13}
        for key in keys:
            for kind in ("rawKeyDown", "keyUp"):
                self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def resize(self, width: int, scheme: str) -> None:
        """Show the page in a window of a width, in a light or dark scheme."""
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def list_errors(self) -> list[str]:
        """Return what the console says since the last call."""
        return [entry["message"] for entry in self.call("se/log", {"type": "browser"})]

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("url", {"url": url})

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript function's body."""
        return self.call("execute/sync", {"script": script, "args": []})

    def read(self) -> str:
        """Return the text that the page shows."""
        text: str = self.run("return document.body.innerText")
        return text

    def wait_for(self, *words: str, seconds: float = 60) -> str:
        """Return the page's text as soon as it shows every word."""
        end = time.monotonic() + seconds
        while not all(word in (text := self.read()) for word in words):
            assert time.monotonic() < end, f"expected {words}, the page shows:\n{text}"
            time.sleep(0.2)
        return text

    def wait_until(self, condition: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"expected {condition}, the page shows:\n{self.read()}"
            time.sleep(0.2)

    def settle(self, seconds: float = 1.5) -> None:
        """Wait until no request was sent for some time."""
        count = -1
        while count != (count := self.run("return performance.getEntriesByType('resource').length")):
            time.sleep(seconds)

    def save_picture(self, path: Path) -> None:
        """Write a picture of the page."""
        path.write_bytes(base64.b64decode(self.call("screenshot")))

    def list_answers(self) -> list[Answer]:
        """Return the requests since the last call, in order, without those of Chromium's own first page."""
        sent: dict[str, dict[str, Any]] = {}
        statuses: dict[str, int] = {}
        for entry in self.call("se/log", {"type": "performance"}):
            message = json.loads(entry["message"])["message"]
            values = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                if not values["documentURL"].startswith(("chrome://", "chrome-untrusted://")):
                    sent[values["requestId"]] = values["request"]
            elif message["method"] == "Network.responseReceived":
                statuses[values["requestId"]] = values["response"]["status"]
        return [Answer(value["method"], value["url"], statuses.get(key, 0)) for key, value in sent.items()]


@contextmanager
def start_browser(login: tuple[str, str] | None = None) -> Iterator[Browser]:
    """Start Chromium with an empty profile; every request carries the login. Without Chromium the test is skipped."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and chromium):
        pytest.skip("chromium is not installed (Debian: apt-get install chromium chromium-driver)")
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    with ExitStack() as started:
        # Chromium ends where the path of its socket has more than 107 characters, as in the folder of a test.
        folder = started.enter_context(TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True))
        environment = {"HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen([driver, f"--port={port}"], env=environment, stdout=subprocess.DEVNULL)
        started.callback(process.wait, timeout=60)
        started.callback(process.terminate)
        wait_for_port(address)
        options = {"args": [*ARGUMENTS, f"--user-data-dir={folder}/profile"], "binary": chromium}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
        created = requests.post(f"{address}/session", json={"capabilities": {"alwaysMatch": capabilities}}, timeout=120)
        assert created.ok, created.text
        browser = Browser(f"{address}/session/{created.json()['value']['sessionId']}")
        started.callback(requests.delete, browser.address, timeout=60)  # ends Chromium, which outlives its driver
        browser.command("Network.enable")
        if login:
            word = base64.b64encode(":".join(login).encode()).decode()
            browser.command("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {word}"})
        yield browser


def wait_for_port(address: str) -> None:
    """Wait until chromedriver answers."""
    for _ in range(100):
        try:
            if requests.get(f"{address}/status", timeout=5).json()["value"]["ready"]:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    msg = f"chromedriver does not answer at {address}"
    raise AssertionError(msg)
