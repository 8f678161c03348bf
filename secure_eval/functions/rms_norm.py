"""Normalisation by the root mean square: layer_norm's second half, without a mean to subtract."""

from __future__ import annotations

from secure_eval.functions.layer_norm import DEFAULT_RANGE, LayerNormRange, over_root_mean_square
from secure_eval.protocols.base import Protocol, Secret


async def rms_norm(
    p: Protocol,
    x: Secret,
    dims: int,
    weight: Secret | None,
    eps: float,
    squares: LayerNormRange = DEFAULT_RANGE,
) -> Secret:
    """x / sqrt(mean(x^2) + eps) * weight over the last `dims` dimensions.

    Relative error below 2^-10 of the row's largest value for mean squares in the range, to which eps counts; as many rounds as
    layer_norm and no more bytes. Needs abs(x) < 2^(62 - fraction bits of x), and n mean(x^2) < 2^(62 - 2 fraction_bits).
    """
    x = p.lift(x, max(x.fraction_bits, p.fraction_bits))
    return await over_root_mean_square(p, x, 1.0, dims, weight, None, eps, squares)
