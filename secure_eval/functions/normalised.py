"""Reciprocal and inverse square root: scale into [2/3, 1) by secret powers, then one cubic.

x is compared with public thresholds, two an octave, all from one opening. The resulting bits choose a scale s, so that z = s x lies
in [2/3, 1), and the factor s^e that undoes it: x^e = s^-e ... with e = -1 or -1/2, x^e = s^(-e) z^e. A cubic in z follows from the
opening that truncates z. No iteration, no first guess that fails outside a range: seven rounds and the final product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, log2

import torch

from secure_eval import ring
from secure_eval.functions.approximation import fit
from secure_eval.protocols.base import MUL, Protocol, Secret

_Z_BITS = 16
_CUBIC_BITS = 60
_CUBIC_KEPT = 20
_MAX_PRODUCT_BITS = 48


@dataclass(frozen=True)
class Range:
    """x^exponent for low <= x <= high. exponent is -1 (relative error below 2.5e-4) or -1/2 (below 1e-4).

    Those errors hold where the argument itself has enough fraction bits to be that precise. Outside the range the result is wrong.
    """

    exponent: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.exponent not in (-1.0, -0.5):
            raise ValueError(f"exponent is {self.exponent}; allowed: -1.0, -0.5")
        if not 0 < self.low < self.high:
            raise ValueError(f"range {self.low} to {self.high}: allowed are 0 < low < high")


@dataclass(frozen=True)
class Pieces:
    """thresholds[i] is where piece i + 1 begins; scales[i] maps piece i into [2/3, 1]; factors[i] = scales[i]^-exponent."""

    thresholds: tuple[float, ...]
    scales: tuple[float, ...]
    factors: tuple[float, ...]


@lru_cache
def pieces(r: Range) -> Pieces:
    starts: list[float] = []
    scales: list[float] = []
    for octave in range(floor(log2(r.low)), ceil(log2(r.high)) + 1):
        for start, scale in ((2.0**octave, 0.75 * 2.0**-octave), (2.0**octave * 4 / 3, 0.5 * 2.0**-octave)):
            starts.append(start)
            scales.append(scale)
    first = max(i for i, s in enumerate(starts) if s <= r.low)
    last = max(i for i, s in enumerate(starts) if s <= r.high)
    scales = scales[first : last + 1]
    return Pieces(tuple(starts[first + 1 : last + 1]), tuple(scales), tuple(s**-r.exponent for s in scales))


@lru_cache
def cubic(exponent: float) -> tuple[float, ...]:
    return fit(lambda z: z**exponent, 2 / 3, 1.0, 3, _Z_BITS, _CUBIC_BITS, relative=True)


async def normalised_power(p: Protocol, x: Secret, r: Range, factor: float = 1.0) -> Secret:
    """factor * x^exponent, elementwise; as many fraction bits as keep 16 significant ones at the range's far end, 30 at most."""
    table = pieces(r)
    scale_bits = max(0, ceil(-log2(min(table.scales)))) + 2
    x = await p.rescale(x, max(_Z_BITS, min(x.fraction_bits, _MAX_PRODUCT_BITS - scale_bits)))
    scales = [round(s * 2.0**scale_bits) for s in table.scales]
    factors = [f * factor for f in table.factors]
    factor_bits = min(30, 16 - floor(log2(min(factors))))
    weights = [round(f * 2.0**factor_bits) for f in factors]
    if table.thresholds:
        above = p.invert(await p.less_than(x, table.thresholds))
        chosen, bits = await p.select_with_bits(above, x)
        z = p.add(p.scale(x, scales[0], scale_bits), _weighted(chosen, _steps(scales), scale_bits))
        undo = _weighted(bits, _steps(weights), factor_bits)
        undo = p.add_public(undo, weights[0])
    else:
        z = p.scale(x, scales[0], scale_bits)
        undo = None
    opened = await p.open_masked(z, shift=z.fraction_bits - _Z_BITS, degree=3)
    power = await p.rescale(await opened.polynomial(cubic(r.exponent), _CUBIC_BITS), _CUBIC_KEPT)
    if undo is None:
        return await p.rescale(p.scale(power, weights[0], factor_bits), factor_bits)
    return await p.rescale(await p.bilinear(MUL, power, undo), factor_bits)


def _steps(values: list[int]) -> list[int]:
    return [b - a for a, b in zip(values, values[1:], strict=False)]


def _weighted(x: Secret, weights: list[int], fraction_bits: int) -> Secret:
    """sum_k weights[k] x[k] over the first dimension."""

    def total(s: torch.Tensor) -> torch.Tensor:
        w = torch.tensor([ring.wrap(v) for v in weights], dtype=ring.DTYPE, device=s.device)
        return (s * w.view(-1, *[1] * (s.dim() - 1))).sum(0)

    return x.map(total, x.fraction_bits + fraction_bits)


async def reciprocal(p: Protocol, x: Secret, low: float = 2.0**-6, high: float = 2.0**14) -> Secret:
    """1/x for low <= x <= high, relative error below 2^-10 (where x has 12 significant bits)."""
    return await normalised_power(p, x, Range(-1.0, low, high))


async def rsqrt(p: Protocol, x: Secret, low: float = 2.0**-8, high: float = 2.0**14) -> Secret:
    """1/sqrt(x) for low <= x <= high, relative error below 2^-10 (where x has 12 significant bits)."""
    return await normalised_power(p, x, Range(-0.5, low, high))
