"""Reciprocal and inverse square root: scale into [0.81, 1) by secret powers, then one quadratic.

x is compared with public thresholds, four an octave, all from one opening. The resulting bits choose a scale s, so that z = s x lies
in [0.81, 1), and the factor f = s^-e that undoes it: x^e = f z^e with e = -1 or -1/2. The quadratic of z times f comes from the
opening of z where the ring has room for both; over a wide range of factors the quadratic is truncated first. No iteration, no first
guess that fails outside a range: six rounds, or eight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, log2

from secure_eval.functions.approximation import fit
from secure_eval.functions.piecewise import weighted_sum
from secure_eval.protocols.base import MUL, Protocol, Secret

_Z_BITS = 14
_LEAST_Z_BITS = 11
_COEFFICIENT_BITS = 4
_KEPT = 20
_MAX_PRODUCT_BITS = 48
_ROOM_BITS = 61
_SIGNIFICANT_BITS = 14
_PIECES = ((1.0, 28 / 32), (1.14, 23 / 32), (1.385, 19 / 32), (1.66, 16 / 32))
"""Where the pieces of an octave begin, and the five-bit factors that scale each into [_LOWEST, 1)."""

_LOWEST = 0.819


@dataclass(frozen=True)
class Range:
    """x^exponent for low <= x <= high. exponent is -1 (relative error below 6e-4) or -1/2 (below 3e-4).

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
    """thresholds[i] is where piece i + 1 begins; scales[i] maps piece i into [0.81, 1]; factors[i] = scales[i]^-exponent."""

    thresholds: tuple[float, ...]
    scales: tuple[float, ...]
    factors: tuple[float, ...]


@lru_cache
def pieces(r: Range) -> Pieces:
    starts: list[float] = []
    scales: list[float] = []
    for octave in range(floor(log2(r.low)), ceil(log2(r.high)) + 1):
        for start, scale in _PIECES:
            starts.append(start * 2.0**octave)
            scales.append(scale * 2.0**-octave)
    first = max(i for i, s in enumerate(starts) if s <= r.low)
    last = max(i for i, s in enumerate(starts) if s <= r.high)
    scales = scales[first : last + 1]
    return Pieces(tuple(starts[first + 1 : last + 1]), tuple(scales), tuple(s**-r.exponent for s in scales))


@lru_cache
def quadratic(exponent: float, z_bits: int) -> tuple[float, ...]:
    """z^exponent on [_LOWEST, 1], for z with z_bits fraction bits and a result with _result_bits(z_bits)."""
    return fit(lambda z: z**exponent, _LOWEST, 1.0, 2, z_bits, _result_bits(z_bits), relative=True)


def _result_bits(z_bits: int) -> int:
    return 2 * z_bits + _COEFFICIENT_BITS


async def normalised_power(p: Protocol, x: Secret, r: Range, factor: float = 1.0) -> Secret:
    """factor * x^exponent, elementwise, with at most 30 fraction bits: as many as keep 14 significant ones at the range's far end."""
    table = pieces(r)
    scale_bits = max(0, ceil(-log2(min(table.scales)))) + 4
    bits = max(_Z_BITS + 3, min(x.fraction_bits, _MAX_PRODUCT_BITS - scale_bits))
    x = p.lift(x, max(x.fraction_bits, bits))
    opened = await p.open_masked(x, shift=x.fraction_bits - bits, compare=bool(table.thresholds))
    y = await opened.truncated()
    scales = [round(s * 2.0**scale_bits) for s in table.scales]
    factors = [f * factor for f in table.factors]
    factor_bits = min(30, _SIGNIFICANT_BITS - floor(log2(min(factors))))
    weights = [round(f * 2.0**factor_bits) for f in factors]
    if not table.thresholds:
        z = p.scale(y, scales[0], scale_bits)
        return p.scale(await p.rescale(await _quadratic(p, z, r.exponent), _KEPT), weights[0], factor_bits)
    above = p.invert(await opened.less_than(table.thresholds))
    chosen, ones = await p.select_with_bits(above, y)
    z = p.add(p.scale(y, scales[0], scale_bits), weighted_sum(chosen, _steps(scales), scale_bits))
    undo = p.add_public(weighted_sum(ones, _steps(weights), factor_bits), weights[0])
    # The ring holds the quadratic at full width times the factor; z has as many bits as that leaves it.
    z_bits = min(_Z_BITS, (_ROOM_BITS - max(weights).bit_length() - _COEFFICIENT_BITS) // 2)
    if z_bits >= _LEAST_Z_BITS:
        shift, coefficients = z.fraction_bits - z_bits, quadratic(r.exponent, z_bits)
        result = await p.polynomial_product(z, shift, coefficients, _result_bits(z_bits), undo)
    else:
        result = await p.bilinear(MUL, await p.rescale(await _quadratic(p, z, r.exponent), _KEPT), undo)
    return await p.rescale(result, factor_bits)


async def _quadratic(p: Protocol, z: Secret, exponent: float) -> Secret:
    opened = await p.open_masked(z, shift=z.fraction_bits - _Z_BITS, degree=2)
    return await opened.polynomial(quadratic(exponent, _Z_BITS), _result_bits(_Z_BITS))


def _steps(values: list[int]) -> list[int]:
    return [b - a for a, b in zip(values, values[1:], strict=False)]


async def reciprocal(p: Protocol, x: Secret, low: float = 2.0**-6, high: float = 2.0**14) -> Secret:
    """1/x for low <= x <= high, relative error below 2^-10 (where x has 12 significant bits)."""
    return await normalised_power(p, x, Range(-1.0, low, high))


async def rsqrt(p: Protocol, x: Secret, low: float = 2.0**-8, high: float = 2.0**14) -> Secret:
    """1/sqrt(x) for low <= x <= high, relative error below 2^-10 (where x has 12 significant bits)."""
    return await normalised_power(p, x, Range(-0.5, low, high))
