"""softmax "2relu": (relu(s) + ε/n) / Σ (relu(s) + ε/n), from MPCFormer (ICLR 2023, section 3.2)."""

import torch
from torch import Tensor

from distill.variants.registry import register
from distill.variants.softmax_weights import NormalisedWeights


@register("softmax", "2relu")
class TwoReluSoftmax(NormalisedWeights):
    """Probabilities proportional to relu(score) + ε/n over n keys.

    ε = 2^-6 keeps the row sum away from zero in fixed point when no score is positive; the row is then
    uniform.
    """

    def weights(self, scores: Tensor) -> Tensor:
        """One comparison an element."""
        return torch.relu(scores) + 2.0**-6 / scores.shape[-1]
