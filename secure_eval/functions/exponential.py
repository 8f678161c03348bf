"""exp over a range of arguments.

exp(y) = c(y)^27 with the cubic c near exp(y/27); each cubing follows from the opening that truncates, so it costs one round. That holds
over a dozen nats: a wider range is cut into pieces, computed side by side from one opening of y and selected by the comparisons that
it serves as well. Where exp is under 2^-17, the result is zero. (CrypTen's (1 + y/256)^256 takes eight squarings and two rounds each.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, log2
from math import exp as real_exp

import numpy as np
import torch

from secure_eval.functions.approximation import fit
from secure_eval.protocols.base import Bits, Protocol, Secret
from secure_eval.scheduler import gather

LOWEST = -12.0
_WIDEST = 12.0
_Y_BITS = 16
_SCALE_BITS = 4
_CUBIC_BITS = 60
_KEPT = 20
_MAGNITUDE_BITS = 61
_ROOTS = (27, 9, 3)


@dataclass(frozen=True)
class ExpRange:
    """exp(y) for low <= y <= high, zero below. Above the result is wrong: it wraps around in the ring."""

    low: float = LOWEST
    high: float = 20.0

    def __post_init__(self) -> None:
        if not -16 <= self.low < self.high <= 24:
            raise ValueError(f"range {self.low} to {self.high}: allowed is -16 <= low < high <= 24")


NONPOSITIVE = ExpRange(LOWEST, 0.0)


@dataclass(frozen=True)
class _Piece:
    """Coefficients of c on low <= y <= high, as polynomial of y/16, and the fraction bits that are kept before each cubing."""

    low: float
    cubic: tuple[float, ...]
    kept: tuple[int, ...]


@lru_cache(maxsize=64)
def pieces(r: ExpRange) -> tuple[_Piece, ...]:
    edges = np.linspace(r.low, r.high, ceil((r.high - r.low) / _WIDEST) + 1).tolist()
    found = []
    for low, high in pairwise(edges):
        cubic = fit(
            lambda u: np.exp(u * 2**_SCALE_BITS / _ROOTS[0]),
            low / 2**_SCALE_BITS,
            high / 2**_SCALE_BITS,
            3,
            _Y_BITS,
            _CUBIC_BITS,
            relative=True,
        )
        # The cube of a value with `kept` fraction bits has thrice as many, and has to fit the ring.
        largest = [max(0.0, 3 * high / root * log2(real_exp(1))) for root in _ROOTS]
        found.append(_Piece(low, cubic, tuple(min(_KEPT, int(_MAGNITUDE_BITS - m) // 3) for m in largest)))
    return tuple(found)


async def exp(p: Protocol, y: Secret, r: ExpRange = ExpRange()) -> Secret:
    """exp(y), any shape, for y in the range and zero for all y < low that fit the ring. Relative error below 2^-10.

    Five rounds for one piece of at most 12 nats, six for more. The result has as many fraction bits as fit, 30 for the default range
    and 60 for y <= 0; truncate it to what is needed. With two parties and a dealer 117 bytes an element, for y <= 0 alone 44.
    """
    y = p.lift(y, max(y.fraction_bits, _Y_BITS - _SCALE_BITS))
    scaled = Secret(y.shares, y.fraction_bits + _SCALE_BITS)
    opened = await p.open_masked(scaled, shift=scaled.fraction_bits - _Y_BITS, degree=3, compare=True)
    parts = pieces(r)
    fraction_bits = 3 * parts[-1].kept[-1]

    async def power(piece: _Piece) -> Secret:
        value = await opened.polynomial(piece.cubic, _CUBIC_BITS)
        for kept in piece.kept:
            step = await p.open_masked(value, shift=value.fraction_bits - kept, degree=3)
            value = await step.polynomial([0.0, 0.0, 0.0, 1.0], 3 * kept)
        return await p.rescale(value, fraction_bits)

    below, *powers = await gather(
        opened.less_than([part.low / 2**_SCALE_BITS for part in parts]), *(power(part) for part in parts)
    )
    inside = p.invert(below)
    ends = Bits([torch.cat([s[1:], torch.zeros_like(s[:1])]) for s in inside.shares])
    stacked = Secret([torch.stack(s) for s in zip(*(v.shares for v in powers), strict=True)], fraction_bits)
    return (await p.select(inside ^ ends, stacked)).map(lambda s: s.sum(0))


async def exp_nonpositive(p: Protocol, y: Secret) -> Secret:
    """exp(y) for y <= 0 (a few units in the last place above are fine), any shape. Relative error below 8e-4 down to -12, then 0.

    The result has 60 fraction bits; truncate it to what is needed. Five rounds.
    """
    return await exp(p, y, NONPOSITIVE)
