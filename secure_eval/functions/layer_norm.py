"""Layer normalisation without a division by n.

n (x - mean) is an integer combination of the inputs, exact in the ring: k (x - mean) with k = n / 2^floor(log2 n) between 1 and 2, and
floor(log2 n) more fraction bits. It is divided by its root mean square a row, and k cancels (root_mean_square.py).
"""

from __future__ import annotations

from math import prod

from secure_eval.functions.root_mean_square import over_root_mean_square, widest
from secure_eval.protocols.base import Protocol, Secret


def deviation_scale(n: int) -> float:
    """k."""
    return n / 2.0 ** (n.bit_length() - 1)


async def layer_norm(
    p: Protocol,
    x: Secret,
    dims: int,
    weight: Secret | None,
    bias: Secret | None,
    eps: float,
    variances: tuple[float, float] | None = None,
) -> Secret:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last `dims` dimensions.

    Relative error below 2^-10 of the row's largest value for variances (eps included) in the range: None is the widest, from eps to what
    fits. Needs n * abs(x - mean) < 2^(62 - fraction bits of x), and of the weight what root_mean_square says.
    """
    n = prod(x.shape[-dims:])
    k = deviation_scale(n)
    axes = tuple(range(-dims, 0))
    low, high = variances or widest(n, k, eps)
    x = await p.rescale(x, min(max(x.fraction_bits, p.fraction_bits), 2 * p.fraction_bits))
    centred = x.map(lambda s: s * n - s.sum(axes, keepdim=True))
    scaled = Secret(centred.shares, x.fraction_bits + n.bit_length() - 1)
    return await over_root_mean_square(p, scaled, k, dims, weight, bias, eps, low, high)
