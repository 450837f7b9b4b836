"""The Inception loader, on a weights file of the published structure that the test makes and serves."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pipeline.artifacts import ArtifactError
from pipeline.models import inception


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[inception.Config]:
    """A server of random weights with the published names and shapes (91 MB)."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        # The class loads weights as it is built: give it none, to learn the names and shapes.
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("x", ["2048"])
    torch.manual_seed(0)
    state = {
        name: torch.rand(value.shape) * 0.1 if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    path = folder / inception.FILE
    torch.save(state, path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield inception.Config(
        network="inception",
        data="images",
        address=f"http://127.0.0.1:{server.server_port}/",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    server.shutdown()


def test_fetched_weights_give_the_features_of_torch_fidelity(served: inception.Config, tmp_path: Path) -> None:
    inception.fetch(served, tmp_path)
    network = inception.load_features(tmp_path)
    images = torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features, logits = network(images)
        reference = FeatureExtractorInceptionV3(
            "x", ["2048"], feature_extractor_weights_path=str(tmp_path / inception.FILE)
        )
        (expected,) = reference(images.repeat(1, 3, 1, 1))
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    torch.testing.assert_close(features, expected)
    (tmp_path / inception.FILE).write_bytes(b"other")
    with pytest.raises(ArtifactError, match="expected SHA-256"):
        inception.load_features(tmp_path)


@pytest.mark.fault(34)
def test_other_weights_than_the_pinned_are_refused(served: inception.Config, tmp_path: Path) -> None:
    pinned = inception.Config(network="inception", data="images", address=served.address)
    assert len(pinned.sha256) == 64
    assert pinned.sha256.startswith("6726825d")  # the published file name carries it
    with pytest.raises(ArtifactError, match=r"wrong content: expected SHA-256 6726825d\w+, found"):
        inception.fetch(pinned, tmp_path)
    assert not (tmp_path / inception.FILE).exists()
