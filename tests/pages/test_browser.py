"""Report and pages in Chromium: no error, no request to another place, pictures decode, sliders and keys work."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from pipeline import params
from pipeline.pages.server import create_app
from tests.browser import Browser, start_browser
from tests.ports import find_free_port

pytestmark = pytest.mark.slow
DECODE = """
return Promise.all([...document.images].map((image) => image.decode().then(() => image.naturalWidth > 0)))
    .then((found) => found.filter(Boolean).length)
"""
WIDER = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as started:
        yield started


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    port = find_free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        server = uvicorn.Server(uvicorn.Config(create_app(params.load()), port=port, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def check_quiet(browser: Browser, allowed: str) -> None:
    """No message in the console, and every request goes to the page's own place."""
    assert browser.list_errors() == []
    answers = [answer for answer in browser.list_answers() if not answer.url.startswith("data:")]
    assert answers
    assert [answer for answer in answers if not answer.url.startswith(allowed)] == []


def test_the_report_is_read_in_a_browser_offline(browser: Browser, project: Path) -> None:
    browser.open((project / "reports" / "index.html").as_uri())
    assert browser.run(DECODE) == browser.run("return document.images.length") == 6
    for width, scheme in ((1400, "light"), (390, "dark")):
        browser.resize(width, scheme)
        assert not browser.run(f"return {WIDER}"), width
    colours = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.run(colours)
    browser.resize(1400, "light")
    assert browser.run(colours) != dark

    frames = "return [...document.querySelectorAll('#gan .frame')].map((frame) => frame.hidden)"
    assert browser.run(frames) == [True, True, False]
    browser.press("#gan .stepper input", "ArrowLeft")
    assert browser.run(frames) == [True, False, True]
    assert "after 8 steps" in browser.run("return document.querySelector('#gan output').textContent")

    browser.press(".chart svg", "ArrowRight", "ArrowRight")
    readout = "return document.querySelector('.chart .readout').textContent"
    assert browser.run(readout) == "step 20: gan 2.5, vae 2.5"
    browser.run("document.querySelector('.legend input[value=vae]').click()")
    assert browser.run(readout) == "step 20: gan 2.5"

    said = "return document.querySelector('#transformer [data-attention] [aria-live]').textContent"
    before = browser.run(said)
    browser.press("#transformer [data-attention] input", "Home")
    assert browser.run(said) != before
    assert browser.run(said).startswith('layer 1, head 1: token 1 ("R") looks most at token 1 ("R"), with 100 %')
    browser.press("#transformer .heads button:last-child", "Enter")
    browser.run("document.querySelector('#transformer .heads button:last-child').click()")
    assert browser.run(said).startswith("layer 2, head 4")
    check_quiet(browser, "file://")


def test_the_pages_play_with_a_model(browser: Browser, address: str) -> None:
    browser.open(f"{address}/")
    browser.wait_for("Training curves")
    browser.run("document.querySelector('nav a').click()")
    browser.wait_until("document.querySelectorAll('#gallery img').length === 12")
    first = "return document.querySelector('#gallery img').src"
    before = browser.run(first)
    browser.press("[data-play=gallery] [name=seed]", "ArrowRight")
    browser.run(
        "const seed = document.querySelector('[data-play=gallery] [name=seed]'); seed.stepUp(); "
        "seed.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    browser.wait_until(f"(() => {{ {first} }})() !== {before!r}")
    picture = "return document.querySelector('#walk img')?.src"
    browser.wait_until(f"(() => {{ {picture} }})()")
    before = browser.run(picture)
    browser.press("[data-play=walk] [name=place]", "ArrowRight", "ArrowRight")
    browser.wait_until(f"(() => {{ {picture} }})() !== {before!r}")
    browser.run("document.querySelector('[data-index=\"3\"]').click()")
    browser.wait_for("nearness")
    assert browser.run(DECODE) == browser.run("return document.images.length")
    browser.resize(390, "dark")
    assert not browser.run(f"return {WIDER}")

    browser.open(f"{address}/runs/transformer")
    browser.run(
        "document.querySelector('[name=prompt]').value = 'The mean'; "
        "document.querySelector('[data-play=text]').requestSubmit()"
    )
    browser.wait_until("document.querySelector('#text').textContent.length > 100")
    assert browser.run("return document.querySelector('#text mark').textContent") == "The mean"
    check_quiet(browser, address)
