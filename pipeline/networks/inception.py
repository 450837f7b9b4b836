"""The standard FID Inception-v3 (Szegedy et al. 2016; Heusel et al. 2017), as torch-fidelity implements it.

Features: the 2048-d pool, after TensorFlow 1's bilinear resize to 299x299; logits without bias for the Inception Score.
The weights are fetched by the stage `networks` when params.yaml has a section with `network: inception`; its numbers
are comparable with papers. Put the file at <folder>/inception/<file> and set DATA_MIRROR=<folder> without a network.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pipeline.artifacts import ArtifactError, digest, read_json, write_json
from pipeline.formats.download import Source, fetch_all
from pipeline.kinds import Fields, find_field
from pipeline.params import Network

LEARNS = ("images",)
PREPROCESSING = "grey to RGB, TensorFlow 1 bilinear resize to 299x299"
CLASSES = 1008
FILE = "weights-inception-2015-12-05-6726825d.pth"


class Config(Network):
    """Where the weights come from."""

    network: Literal["inception"]
    data: str = Field(description="section of data that is evaluated with it; nothing is learnt")
    address: str = Field(
        default="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/", description="folder of the file"
    )
    sha256: str = Field(
        default="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the file",
    )


def require(config: Config, fields: Fields) -> None:
    """Refuse images of other channels than grey, or red, green and blue.

    Raises:
        ArtifactError: with the channels.
    """
    del config
    channels = fields[find_field(fields, LEARNS)].shape[0]
    if channels not in {1, 3}:
        msg = f"expected images of 1 or 3 channels, got {channels}"
        raise ArtifactError(msg)


def fetch(config: Config, folder: Path) -> None:
    """Download the weights, check their hash, and keep both."""
    fetch_all("inception", [Source(FILE, config.sha256, (config.address,))], folder)
    write_json(folder / "config.json", {"network": "inception", "sha256": config.sha256})


class Inception(nn.Module):
    """Maps uint8 images (B, 1 or 3, H, W) to features (B, 2048) and logits (B, 1008)."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.extractor = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits; one channel is repeated to three."""
        features, logits = self.extractor(images.expand(-1, 3, -1, -1))
        return features, logits


def load_features(folder: Path) -> nn.Module:
    """Return the frozen network.

    Raises:
        ArtifactError: if the file is not the one that was fetched: it is read by pickle, so its hash is checked first.
    """
    path = folder / FILE
    expected = read_json(folder / "config.json")["sha256"]
    if (found := digest(path)) != expected:
        msg = f"{path}: expected SHA-256 {expected}, found {found}"
        raise ArtifactError(msg)
    torch.load(path, weights_only=True)  # refuses a pickle that runs code; torch-fidelity's own loading would not
    return Inception(path).eval().to("cuda" if torch.cuda.is_available() else "cpu")
