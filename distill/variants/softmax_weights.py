"""Base of the softmax variants that normalise non-negative weights: one masking and one division for all of
them."""

from torch import Tensor, nn


class NormalisedWeights(nn.Module):
    """Probabilities proportional to `weights(scores)`.

    The mask multiplies after the weights are formed: an additive mask of -10000 would put the mass of an even
    polynomial on the padding. The mask is public, so the product is local under MPC; the division is one
    reciprocal a row.
    """

    def weights(self, scores: Tensor) -> Tensor:
        """Non-negative weights of the same shape as `scores`."""
        raise NotImplementedError

    def forward(self, scores: Tensor, keep: Tensor | None) -> Tensor:
        """scores [batch, heads, query, key], already scaled; keep bool, broadcastable, True where a key
        counts."""
        weights = self.weights(scores)
        if keep is not None:
            weights = weights * keep.to(weights.dtype)
        return weights / weights.sum(dim=-1, keepdim=True)
