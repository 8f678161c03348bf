"""activation "relu": max(x, 0)."""

import torch
from torch import Tensor, nn

from distill.variants.registry import register


@register("activation", "relu")
class ReluActivation(nn.Module):
    """max(x, 0), one comparison an element."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Any shape in, the same shape out."""
        return torch.relu(inputs)
