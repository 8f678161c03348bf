"""Normalisation by the root mean square: layer_norm's second half, without a mean to subtract."""

from __future__ import annotations

from math import prod

from secure_eval.functions.root_mean_square import over_root_mean_square, widest
from secure_eval.protocols.base import Protocol, Secret


async def rms_norm(
    p: Protocol,
    x: Secret,
    dims: int,
    weight: Secret | None,
    eps: float,
    squares: tuple[float, float] | None = None,
) -> Secret:
    """x / sqrt(mean(x^2) + eps) * weight over the last `dims` dimensions.

    Relative error below 2^-10 of the row's largest value for mean squares (eps included) in the range: None is the widest, from eps to
    what fits. As many rounds as layer_norm and no more bytes. Needs abs(x) < 2^(62 - fraction bits of x), and of the weight what
    root_mean_square says.
    """
    x = p.lift(x, max(x.fraction_bits, p.fraction_bits))
    low, high = squares or widest(prod(x.shape[-dims:]), 1.0, eps)
    return await over_root_mean_square(p, x, 1.0, dims, weight, None, eps, low, high)
