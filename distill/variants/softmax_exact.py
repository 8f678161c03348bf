"""softmax "exact": torch's softmax over scores plus an additive mask, as transformers' eager attention
computes it."""

import torch
from torch import Tensor, nn

from distill.variants.registry import register


@register("softmax", "exact")
class ExactSoftmax(nn.Module):
    """Probabilities softmax(scores) over the kept keys."""

    def forward(self, scores: Tensor, keep: Tensor | None) -> Tensor:
        """scores [batch, heads, query, key], already scaled; keep bool, broadcastable, True where a key
        counts."""
        if keep is not None:
            zero = torch.zeros((), dtype=scores.dtype, device=scores.device)
            scores = scores + torch.where(keep.to(torch.bool), zero, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, dim=-1)
