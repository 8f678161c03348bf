"""Layer normalisation without a division by n.

n (x - mean) is an integer combination of the inputs, exact in the ring. One opening truncates it to k (x - mean), k = n / 2^floor(log2 n)
between 1 and 2, and gives its square; the inverse square root is taken a row, and k cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

from secure_eval.functions.normalised import Range, normalised_power
from secure_eval.protocols.base import MUL, Protocol, Secret
from secure_eval.scheduler import gather


@dataclass(frozen=True)
class LayerNormRange:
    """Variances between which layer_norm is right; eps counts towards the variance."""

    low: float = 2.0**-10
    high: float = 2.0**16


DEFAULT_RANGE = LayerNormRange()


async def layer_norm(
    p: Protocol,
    x: Secret,
    dims: int,
    weight: Secret | None,
    bias: Secret | None,
    eps: float,
    variances: LayerNormRange = DEFAULT_RANGE,
) -> Secret:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last `dims` dimensions.

    Relative error below 2^-10 of the row's largest value for variances in the range. Needs n * abs(x - mean) < 2^(62 - fraction bits of x).
    """
    axes = tuple(range(-dims, 0))
    n = prod(x.shape[-dims:])
    halvings = n.bit_length() - 1
    x = await p.rescale(x, min(max(x.fraction_bits, p.fraction_bits), 2 * p.fraction_bits))
    centred = x.map(lambda s: s * n - s.sum(axes, keepdim=True))
    scaled = Secret(centred.shares, x.fraction_bits + halvings)
    return await over_root_mean_square(p, scaled, n / 2**halvings, dims, weight, bias, eps, variances)


async def over_root_mean_square(
    p: Protocol,
    x: Secret,
    k: float,
    dims: int,
    weight: Secret | None,
    bias: Secret | None,
    eps: float,
    variances: LayerNormRange,
) -> Secret:
    """y / sqrt(mean(y^2) + eps) * weight + bias with y = x / k over the last `dims` dimensions; error and needs as layer_norm's."""
    axes = tuple(range(-dims, 0))
    n = prod(x.shape[-dims:])
    opened = await p.open_masked(x, shift=x.fraction_bits - p.fraction_bits, degree=2)
    deviation = await opened.truncated()
    square = await opened.polynomial([0.0, 0.0, 1.0], 2 * p.fraction_bits)

    async def inverse() -> Secret:
        total = square.map(lambda s: s.sum(axes, keepdim=True))
        total = p.add_real(total, eps * n * k**2)
        bounds = Range(-0.5, variances.low * n * k**2, variances.high * n * k**2)
        return await normalised_power(p, total, bounds, factor=sqrt(n))

    async def weighted() -> Secret:
        return deviation if weight is None else await p.rescale(await p.bilinear(MUL, deviation, weight))

    scale, numerator = await gather(inverse(), weighted())
    result = await p.bilinear(MUL, numerator, scale)
    return result if bias is None else p.add(result, bias)
