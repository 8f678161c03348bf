"""MPCFormer's replacements as plain modules: what calibration runs and what published costs are of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Quad(nn.Module):
    """MPCFormer's activation (Li et al., ICLR 2023, section 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.125 * torch.square(x) + 0.25 * x + 0.5


class TwoQuad(nn.Module):
    """MPCFormer's softmax (Li et al., ICLR 2023, section 3)."""

    def forward(self, scores: Tensor) -> Tensor:
        squares = torch.square(scores + 5.0)
        return squares / squares.sum(-1, keepdim=True)
