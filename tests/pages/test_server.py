"""`pipeline show`: equal questions have equal answers, bad ones a line, and other sites none."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipeline import artifacts, params
from pipeline.__main__ import main
from pipeline.pages.server import create_app

GALLERY = "/runs/gan/gallery?seed=3"


@pytest.fixture(scope="module")
def client(project: Path) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        yield TestClient(create_app(params.load()), base_url="http://127.0.0.1:8000")


def read_pictures(text: str) -> list[np.ndarray]:
    """The pictures of an answer."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("L")) for each in found]


@pytest.mark.usefixtures("here")
def test_a_gallery_is_one_of_its_seed_and_class(client: TestClient) -> None:
    first, again, other = (client.get(f"/runs/gan/gallery?seed={seed}").text for seed in (3, 3, 4))
    assert first == again
    assert len(read_pictures(first)) == 12
    assert not np.array_equal(read_pictures(first)[0], read_pictures(other)[0])
    fixed = [read_pictures(client.get(f"{GALLERY}&labels={label}").text) for label in (1, 2)]
    assert not np.array_equal(fixed[0][0], fixed[1][0])


@pytest.mark.usefixtures("here")
def test_a_walk_ends_at_the_samples_of_its_seeds(client: TestClient) -> None:
    def draw(first: int, last: int, place: float) -> np.ndarray:
        query = f"first={first}&last={last}&place={place}&labels=3"
        [picture] = read_pictures(client.get(f"/runs/gan/walk?{query}").text)
        return picture

    assert np.array_equal(draw(1, 2, 0), draw(1, 9, 0))
    assert np.array_equal(draw(1, 2, 1), draw(2, 5, 0))
    assert not np.array_equal(draw(1, 2, 0.5), draw(1, 2, 0))


@pytest.mark.usefixtures("here")
def test_the_nearest_training_picture_is_one_and_is_the_nearest(client: TestClient) -> None:
    answer = client.get("/runs/gan/nearest?seed=3&index=2")
    [picture] = read_pictures(answer.text)
    train = artifacts.read_split("images", "train")["images"][:, 0].numpy()
    assert (train == picture).all(axis=(1, 2)).any()
    assert 0 < float(re.findall(r"nearness (\d\.\d+)", answer.text)[0]) < 1


@pytest.mark.usefixtures("here")
def test_a_text_begins_with_its_prompt_and_is_one_of_its_seed(client: TestClient) -> None:
    def write(seed: int) -> str:
        query = {"prompt": "The mean", "temperature": 1.0, "top_p": 1.0, "seed": seed}
        return client.get("/runs/transformer/text", params=query).text

    first = write(0)
    assert first.startswith("The mean")
    assert len(first) > 100
    assert first == write(0)
    assert first != write(1)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/runs/nobody", 404, "params.yaml has no run nobody; it has gan, transformer, vae"),
        (f"{GALLERY}&labels=77", 422, "labels: expected one of 0, 1"),
        (f"{GALLERY}&labels=x", 422, "labels: expected a whole number, got x"),
        ("/runs/gan/gallery?seed=-1", 422, "seed: Input should be greater than or equal to 0, got '-1'"),
        ("/runs/gan/text?prompt=a&temperature=1&top_p=1", 404, "gan writes no texts"),
        ("/runs/transformer/walk", 404, "transformer has no way between two samples"),
        ("/runs/transformer/text?prompt=%E4%B8%AD&temperature=1&top_p=1", 422, "U+4E2D"),
        ("/runs/vae", 422, "data/runs/vae/model/manifest.json: not found"),
        ("/docs", 404, "Not Found"),
        ("/openapi.json", 404, "Not Found"),
    ],
)
def test_bad_input_has_one_line(client: TestClient, path: str, status: int, words: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, "\n" in answer.text) == (status, False)
    assert words in answer.text


@pytest.mark.usefixtures("here")
def test_no_other_site_gets_an_answer(client: TestClient) -> None:
    for host, status in (("evil.example", 400), ("127.0.0.1.evil.example:8000", 400), ("localhost:8000", 200)):
        assert client.get(GALLERY, headers={"Host": host}).status_code == status
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}
        assert client.get(GALLERY, headers=headers).status_code == status
    policy = client.get("/runs/gan").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_a_port_that_is_none_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here.exists()
    assert main(["show", "--port", "70000"]) == 1
    assert "error: --port 70000: expected a free port of 127.0.0.1" in capsys.readouterr().err
