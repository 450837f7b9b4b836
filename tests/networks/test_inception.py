"""The Inception loader, on a weights file of the published structure that the test makes and serves."""

from pathlib import Path

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pipeline.artifacts import ArtifactError
from pipeline.evidence.features import extract
from pipeline.networks import inception
from pipeline.weights import choose_device


def test_fetched_weights_give_the_features_of_torch_fidelity(
    inception_weights: inception.Config, tmp_path: Path
) -> None:
    inception.fetch(inception_weights, tmp_path)
    network = inception.load_features(tmp_path)
    images = torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.to(choose_device())
    found = extract(network, images)
    reference = FeatureExtractorInceptionV3(
        "x", ["2048"], feature_extractor_weights_path=str(tmp_path / inception.FILE)
    ).to(images.device)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        (expected,) = reference(images.repeat(1, 3, 1, 1))
    assert found.features.shape == (2, 2048)
    assert found.logits.shape == (2, 1008)
    torch.testing.assert_close(found.features, expected.cpu())
    (tmp_path / inception.FILE).write_bytes(b"other")
    with pytest.raises(ArtifactError, match="expected SHA-256"):
        inception.load_features(tmp_path)


@pytest.mark.fault(34)
def test_other_weights_than_the_pinned_are_refused(inception_weights: inception.Config, tmp_path: Path) -> None:
    pinned = inception.Config(network="inception", data="images", address=inception_weights.address)
    assert len(pinned.sha256) == 64
    assert pinned.sha256.startswith("6726825d")  # the published file name carries it
    with pytest.raises(ArtifactError, match=r"wrong content: expected SHA-256 6726825d\w+, found"):
        inception.fetch(pinned, tmp_path)
    assert not (tmp_path / inception.FILE).exists()
