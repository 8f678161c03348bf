"""Square roots, and reciprocals of numbers of either sign: of z in [1/2, 1] by a quartic, times that of the octave (octaves.py)."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log2

from secure_eval.functions.approximation import Array
from secure_eval.functions.octaves import DEGREE, Octaves, normalised, quartic
from secure_eval.protocols.base import MUL, Protocol, Secret

SQRT_RANGE = Octaves(2.0**-16, 2.0**16)
SIGNED_RANGE = Octaves(2.0**-6, 2.0**14, signed=True)
_Z_BITS = 14
_QUARTIC_BITS = 56
_KEPT = 20
_MOST_BITS = 44
_MOST_OCTAVES = 26
"""From the smallest result to the largest: 16 significant bits of the one, times the other at _KEPT, have to fit the ring."""


def allowed(r: Octaves, exponent: float) -> Octaves:
    """ValueError where results over the range do not fit one ring element."""
    octaves = log2(r.high / r.low) * abs(exponent)
    if octaves > _MOST_OCTAVES:
        raise ValueError(
            f"range {r.low} to {r.high}: results span {octaves:.3g} octaves, allowed are {_MOST_OCTAVES}"
        )
    return r


@lru_cache
def _coefficients(exponent: float) -> tuple[float, ...]:
    def power(z: Array) -> Array:
        result: Array = z**exponent
        return result

    return quartic(power, True, _Z_BITS, _QUARTIC_BITS)


async def _power(p: Protocol, x: Secret, r: Octaves, exponent: float) -> Secret:
    """x^exponent, for negative x -abs(x)^exponent. As many fraction bits as keep 16 significant ones of the smallest result."""
    value = await normalised(p, x, allowed(r, exponent))
    opened = await p.open_masked(value.z, shift=value.z.fraction_bits - _Z_BITS, degree=DEGREE)
    of_octave = [2.0 ** (k * exponent) for k in r.exponents]
    bits = min(_MOST_BITS, 16 + ceil(-log2(min(of_octave))))
    undo = value.weighted(p, r.each(of_octave, [-v for v in of_octave]), bits)
    power = await p.rescale(await opened.polynomial(_coefficients(exponent), _QUARTIC_BITS), _KEPT)
    return await p.rescale(await p.bilinear(MUL, power, undo), bits)


async def sqrt(p: Protocol, x: Secret, r: Octaves = SQRT_RANGE) -> Secret:
    """sqrt(x) for low <= x <= high, any shape. Relative error below 2^-11; for 0 <= x < low an absolute one below sqrt(low) / 2.

    Eight rounds; with two parties and a dealer 32 bytes an element and 4.4 for each octave after the first: 168 for the default range.
    """
    return await _power(p, x, r, 0.5)


async def signed_reciprocal(p: Protocol, x: Secret, r: Octaves = SIGNED_RANGE) -> Secret:
    """1/x for low <= abs(x) <= high, any shape. Relative error below 2^-10 of the value that the ring holds for x.

    Eight rounds; with two parties and a dealer 32 bytes an element and 8.8 an octave: 203 for the default range.
    """
    if not r.signed:
        raise ValueError(f"{r} is for positive x: allowed are signed ranges")
    return await _power(p, x, r, -1.0)
