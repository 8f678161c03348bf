"""activation "quad": 0.125x² + 0.25x + 0.5, from MPCFormer (ICLR 2023, section 3.2)."""

from torch import Tensor, nn

from distill.variants.registry import register


@register("activation", "quad")
class QuadActivation(nn.Module):
    """0.125x² + 0.25x + 0.5, written as 0.125(x + 1)² + 0.375: one square an element and a power-of-two
    factor."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Any shape in, the same shape out."""
        shifted = inputs + 1.0
        return 0.125 * (shifted * shifted) + 0.375
