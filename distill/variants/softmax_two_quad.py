"""softmax "2quad": (s + 5)² / Σ (s + 5)², from MPCFormer (ICLR 2023, section 3.2)."""

from torch import Tensor

from distill.variants.registry import register
from distill.variants.softmax_weights import NormalisedWeights


@register("softmax", "2quad")
class TwoQuadSoftmax(NormalisedWeights):
    """Probabilities proportional to (score + 5)²."""

    def weights(self, scores: Tensor) -> Tensor:
        """One square an element."""
        shifted = scores + 5.0
        return shifted * shifted
