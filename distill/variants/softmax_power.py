"""softmax "power2" … "power16": (1 + s/c)^p / Σ (1 + s/c)^p with one calibrated c a head.

The family runs from MPCFormer's 2Quad (p = 2, c = 5) to the exponential of CrypTen (p = c = 256): a larger p
is closer to softmax and costs log2(p) squarings. c is chosen per head, on the teacher's own scores, to
minimise the mean KL divergence from softmax.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from distill.variants.registry import register
from distill.variants.softmax_weights import NormalisedWeights


def fit_power(statistics: Mapping[str, Tensor], arguments: Mapping[str, int | float]) -> dict[str, Tensor]:
    """Choose c per head by a grid search (log-spaced, refined twice) on KL(softmax ‖ power form).

    Args:
        statistics: "scores" [rows, heads, keys] and "keep" [rows, keys] (0/1) sampled from the teacher.
        arguments: "power", the exponent p.

    Returns:
        {"inverse_c": [heads, 1, 1]}.
    """
    power = int(arguments["power"])
    scores = statistics["scores"].float()
    keep = statistics["keep"].to(torch.bool)[:, None, :]
    target = torch.softmax(scores.masked_fill(~keep, float("-inf")), dim=-1)
    kept = keep.float()

    def divergence(c: Tensor) -> Tensor:
        """Mean cross-entropy [heads] of the power form with candidates c [heads] against softmax: the KL up
        to a constant."""
        # The floor keeps a zero of the polynomial from being infinitely bad where softmax gives next to
        # nothing as well.
        base = (1.0 + scores / c[:, None]).abs().clamp_min(1e-6)
        log_sum = torch.log((base**power * kept).sum(-1))
        return (log_sum - power * (target * torch.log(base)).sum(-1)).mean(0)

    heads = scores.shape[1]
    low = torch.full((heads,), 0.5).log()
    high = torch.full((heads,), 256.0).log()
    best = torch.full((heads,), float(power)).log()
    for points in (19, 7, 7):
        step = (high - low) / (points - 1)
        candidates = low + step * torch.arange(points)[:, None]  # [points, heads]
        values = torch.stack([divergence(candidate.exp()) for candidate in candidates])
        best = candidates.gather(0, values.argmin(0, keepdim=True))[0]
        low, high = best - step, best + step
    return {"inverse_c": (1.0 / best.exp())[:, None, None]}


@register("softmax", "power2", size_argument="heads", fit=fit_power, power=2)
@register("softmax", "power4", size_argument="heads", fit=fit_power, power=4)
@register("softmax", "power8", size_argument="heads", fit=fit_power, power=8)
@register("softmax", "power16", size_argument="heads", fit=fit_power, power=16)
class PowerSoftmax(NormalisedWeights):
    """Probabilities proportional to (1 + score/c)^power, with c per head a public constant."""

    public_buffers: tuple[str, ...] = ("inverse_c",)
    inverse_c: Tensor

    def __init__(self, heads: int, power: int) -> None:
        """power: 2, 4, 8 or 16 (a power of two, formed by repeated squaring)."""
        super().__init__()
        self.squarings = int(power).bit_length() - 1
        self.register_buffer("inverse_c", torch.full((heads, 1, 1), 1.0 / (2.5 * power)))

    def weights(self, scores: Tensor) -> Tensor:
        """log2(power) squares an element."""
        weights = 1.0 + scores * self.inverse_c
        for _ in range(self.squarings):
            weights = weights * weights
        return weights
