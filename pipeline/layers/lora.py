"""Low-rank adapters of matrices (Hu et al. 2021, "LoRA"): W + s B A with B (M, R) and A (R, N) trained, W (M, N) fixed.

The sum is formed once per step, not applied to each token: at a width of 128 it costs less than two small products per
layer, and the layer stays an nn.Linear. The peft library applies it to each token, and its import takes seconds.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SCALE = 2.0  # s = alpha / R of the usual choice, alpha = 2 R


class LowRank(nn.Module):
    """Adds s B A to a matrix; starts at zero, since B does."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)  # A
        self.up = nn.Parameter(torch.zeros(rows, rank))  # B

    def forward(self, weight: Tensor) -> Tensor:
        """Return W + s B A, (M, N)."""
        return torch.addmm(weight, self.up, self.down, alpha=SCALE)


def list_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the dense layers of a network, by name."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            yield name, layer


def adapt(network: nn.Module, blocks: nn.Module, rank: int) -> None:
    """Freeze a network, and give each dense layer of its blocks an adapter of rank R that is trained."""
    network.requires_grad_(False)
    for _, layer in list(list_layers(blocks)):
        adapter = LowRank(layer.out_features, layer.in_features, rank).to(layer.weight)
        parametrize.register_parametrization(layer, "weight", adapter)


def collect(network: nn.Module) -> dict[str, Tensor]:
    """Return the factors of each adapted layer, `<layer>.up` (M, R) and `<layer>.down` (R, N), by name."""
    factors: dict[str, Tensor] = {}
    for name, layer in list_layers(network):
        if parametrize.is_parametrized(layer, "weight"):
            adapter = cast("Any", layer).parametrizations.weight[0]
            factors |= {f"{name}.up": adapter.up.detach(), f"{name}.down": adapter.down.detach()}
    return factors


def merge(network: nn.Module) -> None:
    """Put the adapters into the matrices: the network has the layers, and the names, that it had before."""
    for _, layer in list(list_layers(network)):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def add(network: nn.Module, factors: dict[str, Tensor]) -> None:
    """Add stored factors to the matrices of a network that was not adapted.

    Raises:
        KeyError: if the network lacks a layer that the factors name.
        RuntimeError: if a shape does not fit.
    """
    layers = dict(list_layers(network))
    for name in sorted({name.rpartition(".")[0] for name in factors}):
        with torch.no_grad():
            layers[name].weight.addmm_(factors[f"{name}.up"], factors[f"{name}.down"], alpha=SCALE)
