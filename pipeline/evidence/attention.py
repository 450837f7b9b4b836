"""The attention of a network, seen from outside: any that calls torch's scaled_dot_product_attention.

Dimensions: L calls, H heads, T tokens, K head width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Watch(TorchFunctionMode):
    """Notes the weights of every attention, and changes none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch."""
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            queries, keys, values = args[:3]
            # Attention to the identity instead of the values (H, T, K) gives the weights (H, T, T) themselves.
            unit = torch.eye(keys.size(-2), dtype=values.dtype, device=values.device).expand(*keys.shape[:-1], -1)
            self.found.append(func(queries, keys, unit, *args[3:], **given)[0])
        return func(*args, **given)


@torch.inference_mode()
def capture_attention(network: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor | None:
    """Return the weights (L, H, T, T) by which each token looks at each other one; None of a network without attention.

    Args:
        network: maps tokens (1, T) to anything.
        tokens: int64 (T,).
    """
    with _Watch() as watch:
        network(tokens[None])
    return torch.stack(watch.found).float().cpu() if watch.found else None
