"""softmax "power2" … "power16": (1 + s/c)^p / Σ (1 + s/c)^p with one calibrated c a head.

The family runs from MPCFormer's 2Quad (p = 2, c = 5) to the exponential of CrypTen (p = c = 256): a larger p
is closer to softmax and costs log2(p) squarings. c is chosen per head, on the teacher's own scores, to
minimise the mean KL divergence from softmax among those that fixed point can hold.

A factor a a head, (a + s·a/c)^p, changes no probability. It is chosen so that the row sums, by which is divided, lie in
the middle of what the engine divides by: with a = 1 the powers of MiniLM's first layer reach 2^39 at p = 8.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from distill.errors import OutOfRange
from distill.fixed_point import ENGINE, Limits
from distill.variants.registry import register
from distill.variants.softmax_weights import NormalisedWeights


def fit_power(
    statistics: Mapping[str, Tensor], arguments: Mapping[str, int | float], limits: Limits = ENGINE
) -> dict[str, Tensor]:
    """Choose c per head by a grid search (log-spaced, refined twice) on KL(softmax ‖ power form), and the factor a.

    A c is allowed if a factor exists with which every weight and every row sum keeps `limits.margin_bits` from the
    engine's limits, on the sampled rows and on the extreme ones.

    Args:
        statistics: "scores" [rows, heads, keys] and "keep" [rows, keys] (0/1) sampled from the teacher;
            "extreme_scores" and "extreme_keep" [extremes, heads, keys], padding's rows among them.
        arguments: "power", the exponent p.

    Returns:
        {"slope": a/c, "offset": a}, each [heads, 1, 1].

    Raises:
        OutOfRange: a head has no c that fixed point can hold.
    """
    power = int(arguments["power"])
    scores = statistics["scores"].float()
    keep = statistics["keep"].to(torch.bool)[:, None, :]
    target = torch.softmax(scores.masked_fill(~keep, float("-inf")), dim=-1)
    kept = keep.float()
    extremes, extreme_keep = statistics["extreme_scores"].float(), statistics["extreme_keep"].float()

    # A row of which nothing is kept is divided by no sum of its own.
    some = torch.cat([kept.expand_as(scores).any(-1), extreme_keep.any(-1)])

    def divergence(c: Tensor) -> Tensor:
        """Mean cross-entropy [heads] of the power form with candidates c [heads] against softmax: the KL up
        to a constant."""
        # The floor keeps a zero of the polynomial from being infinitely bad where softmax gives next to
        # nothing as well.
        base = (1.0 + scores / c[:, None]).abs().clamp_min(1e-6)
        log_sum = torch.log((base**power * kept).sum(-1))
        return (log_sum - power * (target * torch.log(base)).sum(-1)).mean(0)

    def sums(c: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest row sum [heads] with a = 1, over sampled and extreme rows."""
        found = torch.cat(
            [
                ((1.0 + scores / c[:, None]).double() ** power * kept).sum(-1),
                ((1.0 + extremes / c[:, None]).double() ** power * extreme_keep).sum(-1),
            ]
        )
        return torch.where(some, found, math.inf).amin(0), torch.where(some, found, 0.0).amax(0)

    low, high = limits.divisor
    # A weight is at most its row's sum, so a sum within the divisors' range keeps every product in its own.
    high = min(high, limits.product)
    room = high / low / 4.0**limits.margin_bits
    heads = scores.shape[1]
    start = torch.full((heads,), 0.5).log()
    stop = torch.full((heads,), 256.0).log()
    best = torch.full((heads,), float(power)).log()
    least = torch.full((heads,), math.inf)
    for points in (19, 7, 7):
        step = (stop - start) / (points - 1)
        for index in range(points):
            c = start + step * index
            smallest, largest = sums(c.exp())
            allowed = largest <= room * smallest
            value = torch.where(allowed, divergence(c.exp()), math.inf)
            best, least = torch.where(value < least, c, best), torch.minimum(value, least)
        start, stop = best - step, best + step
    if bool(torch.isinf(least).any()):
        wanting = [index for index in range(heads) if math.isinf(float(least[index]))]
        raise OutOfRange(
            f"power{power}: no constant keeps the row sums of head {', '.join(map(str, wanting))} within a factor of "
            f"2^{math.log2(room):g}, which is what fixed point can divide by with {limits.margin_bits:g} bits of margin"
        )
    smallest, largest = sums(best.exp())
    # As far from the one limit as from the other.
    factor = (math.sqrt(low * high) / torch.sqrt(smallest * largest)) ** (1.0 / power)
    return {
        "slope": (factor / best.exp()).float()[:, None, None],
        "offset": factor.float()[:, None, None],
    }


@register("softmax", "power2", size_argument="heads", fit=fit_power, power=2)
@register("softmax", "power4", size_argument="heads", fit=fit_power, power=4)
@register("softmax", "power8", size_argument="heads", fit=fit_power, power=8)
@register("softmax", "power16", size_argument="heads", fit=fit_power, power=16)
class PowerSoftmax(NormalisedWeights):
    """Probabilities proportional to (1 + score/c)^power, with c per head a public constant.

    `offset` is the factor a that keeps the powers in range, `slope` a/c.
    """

    public_buffers: tuple[str, ...] = ("slope", "offset")
    slope: Tensor
    offset: Tensor

    def __init__(self, heads: int, power: int) -> None:
        """power: 2, 4, 8 or 16 (a power of two, formed by repeated squaring)."""
        super().__init__()
        self.squarings = int(power).bit_length() - 1
        self.register_buffer("slope", torch.full((heads, 1, 1), 1.0 / (2.5 * power)))
        self.register_buffer("offset", torch.ones(heads, 1, 1))

    def weights(self, scores: Tensor) -> Tensor:
        """log2(power) squares an element."""
        weights = self.offset + scores * self.slope
        for _ in range(self.squarings):
            weights = weights * weights
        return weights
