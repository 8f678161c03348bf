"""Reciprocal and inverse square root: scale into [0.81, 1) by secret powers, then one quadratic.

x is compared with public thresholds, four an octave, all from one opening. The resulting bits choose a scale s, so that z = s x lies
in [0.81, 1), and the factor f = s^-e that undoes it: x^e = f z^e with e = -1 or -1/2. The quadratic of z times f comes from the
opening of z where the ring has room for both; over a wide range of factors the quadratic is truncated first. No iteration, no first
guess that fails outside a range: six rounds, or eight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
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

MOST_OCTAVES = 26
"""From the smallest result to the largest: both have 14 significant bits in one ring element, and room for a factor of 2^_KEPT."""
ROOT_OCTAVES = 40
"""Of the argument of an inverse root: so many fraction bits bring all of them into [_LOWEST, 1) with 14 significant bits."""
_Z_ROOM_BITS = 60
_MOST_FACTOR_BITS = 44
_THRESHOLD_BITS = 8


@dataclass(frozen=True)
class Range:
    """x^exponent for low <= x <= high. exponent is -1 (relative error below 6e-4) or -1/2 (below 3e-4).

    Errors are against the value that the ring holds. Outside the range the result is wrong.
    """

    exponent: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.exponent not in (-1.0, -0.5):
            raise ValueError(f"exponent is {self.exponent}; allowed: -1.0, -0.5")
        if not 0 < self.low < self.high:
            raise ValueError(f"range {self.low} to {self.high}: allowed are 0 < low < high")
        octaves = MOST_OCTAVES if self.exponent == -1.0 else ROOT_OCTAVES
        if log2(self.high / self.low) > octaves:
            raise ValueError(f"range {self.low} to {self.high}: allowed are {octaves} octaves")


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


@dataclass(frozen=True)
class Table:
    """What x is compared with and scaled by, in public integers: scales[i] / 2^scale_bits brings piece i to z, and weights[i] /
    2^factor_bits undoes it. x keeps `bits` fraction bits."""

    thresholds: tuple[float, ...]
    bits: int
    scale_bits: int
    scales: tuple[int, ...]
    factor_bits: int
    weights: tuple[int, ...]

    def scaled(self, p: Protocol, y: Secret, chosen: Secret) -> Secret:
        """z, from y and what it is where it is above each threshold."""
        start = p.scale(y, self.scales[0], self.scale_bits)
        return (
            p.add(start, weighted_sum(chosen, _steps(self.scales), self.scale_bits))
            if chosen.shape[0]
            else start
        )

    def undoing(self, p: Protocol, ones: Secret) -> Secret:
        """The factor that undoes the scale, from the bits [x >= threshold] as ring elements."""
        return p.add_public(weighted_sum(ones, _steps(self.weights), self.factor_bits), self.weights[0])


def tabulated(r: Range, factor: float, x_bits: int, factor_bits: int | None = None) -> Table:
    """The table of factor * x^exponent for an x with x_bits fraction bits.

    Unless `factor_bits` are given, as many as keep 14 significant ones at the range's far end.
    """
    found = pieces(r)
    scale_bits = max(0, ceil(-log2(min(found.scales)))) + 4
    factors = [f * factor for f in found.factors]
    kept = factor_bits_of(min(factors)) if factor_bits is None else factor_bits
    x_bits = max(
        x_bits, _THRESHOLD_BITS - floor(log2(r.low))
    )  # else thresholds near the least x are rounded onto it
    return Table(
        found.thresholds,
        max(_Z_BITS + 3, min(x_bits, max(_MAX_PRODUCT_BITS - scale_bits, _needed_bits(r.low, scale_bits)))),
        scale_bits,
        tuple(round(s * 2.0**scale_bits) for s in found.scales),
        kept,
        tuple(round(f * 2.0**kept) for f in factors),
    )


def factor_bits_of(smallest: float) -> int:
    """Fraction bits that keep 14 significant ones of the smallest factor."""
    return min(_MOST_FACTOR_BITS, _SIGNIFICANT_BITS - floor(log2(smallest)))


def _needed_bits(low: float, scale_bits: int) -> int:
    """Fraction bits that keep 14 significant ones of the smallest argument, as far as z then has room."""
    return min(_SIGNIFICANT_BITS - floor(log2(low)), _Z_ROOM_BITS - scale_bits)


async def normalised_power(p: Protocol, x: Secret, r: Range, factor: float = 1.0) -> Secret:
    """factor * x^exponent, elementwise, with as many fraction bits as keep 14 significant ones at the range's far end."""
    table = tabulated(r, factor, x.fraction_bits)
    x = p.lift(x, max(x.fraction_bits, table.bits))
    shift = x.fraction_bits - table.bits
    opened = await p.open_masked(x, shift=shift, compare=bool(table.thresholds))
    y = await opened.truncated()
    if not table.thresholds:
        z = p.scale(y, table.scales[0], table.scale_bits)
        value = await p.rescale(await _quadratic(p, z, r.exponent), _KEPT)
        return p.scale(value, table.weights[0], table.factor_bits)
    above = p.invert(await opened.less_than(table.thresholds))
    chosen, ones = await p.select_with_bits(above, y)
    return await undone(p, r.exponent, table, table.scaled(p, y, chosen), table.undoing(p, ones))


async def undone(p: Protocol, exponent: float, table: Table, z: Secret, undo: Secret) -> Secret:
    """z^exponent times `undo`, with the table's factor_bits. Exactly zero where `undo` is, whatever z is there."""
    # The ring holds the quadratic at full width times the factor; z has as many bits as that leaves it.
    largest = max(table.weights).bit_length()
    z_bits = min(_Z_BITS, (_ROOM_BITS - largest - _COEFFICIENT_BITS) // 2)
    if z_bits >= _LEAST_Z_BITS:
        shift, coefficients = z.fraction_bits - z_bits, quadratic(exponent, z_bits)
        result = await p.polynomial_product(z, shift, coefficients, _result_bits(z_bits), undo)
    else:
        result = await p.bilinear(MUL, await p.rescale(await _quadratic(p, z, exponent), _KEPT), undo)
    return await p.rescale(result, table.factor_bits)


async def _quadratic(p: Protocol, z: Secret, exponent: float) -> Secret:
    opened = await p.open_masked(z, shift=z.fraction_bits - _Z_BITS, degree=2)
    return await opened.polynomial(quadratic(exponent, _Z_BITS), _result_bits(_Z_BITS))


def _steps(values: Sequence[int]) -> list[int]:
    return [b - a for a, b in pairwise(values)]


async def reciprocal(p: Protocol, x: Secret, low: float = 2.0**-6, high: float = 2.0**14) -> Secret:
    """1/x for low <= x <= high, relative error below 2^-10 of the value that the ring holds for x."""
    return await normalised_power(p, x, Range(-1.0, low, high))


async def rsqrt(p: Protocol, x: Secret, low: float = 2.0**-8, high: float = 2.0**14) -> Secret:
    """1/sqrt(x) for low <= x <= high, relative error below 2^-10 of the value that the ring holds for x."""
    return await normalised_power(p, x, Range(-0.5, low, high))
