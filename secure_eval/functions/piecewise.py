"""Functions of one number made of cubics between public knots and of straight lines outside, in the rounds of a ReLU.

One opening of x serves all comparisons with the knots and gives x^2 and x^3, which are opened when the comparison bits select all three
powers. Pieces differ only in the public integers by which the selected powers are added up, so a knot costs its comparison and no
product of its own: with two parties and a dealer 24 bytes an element for x and its powers, and 4.5 a knot. Far outside the knots the
powers wrap around in the ring; that does no harm, because what a straight line takes of x^2 and x^3 is exactly nothing, and a line is
made of x alone, at its own fraction bits: so functions are right for all values that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.functions.approximation import Array, fit
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.scheduler import gather

OUT_BITS = 48
"""Fraction bits of what cubics make: values up to 2^14 fit the ring."""
LINE_BITS = 16
"""Fraction bits, at least, of the results of functions that grow with x."""
POWER_BITS = 12
"""Fraction bits of the x of x^2 and x^3."""
_DEGREE = 3
_FIT_POINTS = 257
_SLOPE_BITS = 16
"""Fraction bits that the coefficient of x keeps at least."""

Coefficients = tuple[float, ...]


@dataclass(frozen=True)
class PiecewiseCubic:
    """pieces[k] holds where knots[k - 1] <= x < knots[k]: four coefficients each, constant first.

    The first and the last piece are straight lines with whole slopes. Coefficients of x^2 and x^3 are multiples of what POWER_BITS leave
    of OUT_BITS.
    """

    knots: tuple[float, ...]
    pieces: tuple[Coefficients, ...]

    def __post_init__(self) -> None:
        if list(self.knots) != sorted(set(self.knots)) or len(self.pieces) != len(self.knots) + 1:
            raise ValueError(
                f"{len(self.pieces)} pieces at knots {self.knots}: allowed are rising knots, one fewer than pieces"
            )
        if any(len(c) != _DEGREE + 1 for c in self.pieces) or any(
            c[2:] != (0.0, 0.0) for c in (self.pieces[0], self.pieces[-1])
        ):
            raise ValueError("pieces have four coefficients, and the outer two none of x^2 and x^3")
        if any(not float(c[1]).is_integer() for c in (self.pieces[0], self.pieces[-1])):
            raise ValueError(
                "the outer two pieces have whole slopes: a line is never truncated before it is added"
            )

    @property
    def turn(self) -> int:
        """The knot nearest to zero: there the first piece's line gives way to the last one's."""
        return min(range(len(self.knots)), key=lambda k: abs(self.knots[k]))

    @property
    def line_slopes(self) -> tuple[int, ...]:
        """Of each piece, the slope of the line that is taken of x itself."""
        first, last = int(self.pieces[0][1]), int(self.pieces[-1][1])
        return tuple(first if k <= self.turn else last for k in range(len(self.pieces)))


def fitted(
    function: Callable[[Array], Array],
    knots: Sequence[float],
    below: tuple[float, float],
    above: tuple[float, float],
) -> PiecewiseCubic:
    """Cubics near `function` between neighbouring knots; `below` and `above` are (constant, slope) outside."""
    inner = [
        fit(function, low, high, _DEGREE, POWER_BITS, OUT_BITS, points=_FIT_POINTS)
        for low, high in pairwise(knots)
    ]
    pieces = ((*below, 0.0, 0.0), *inner, (*above, 0.0, 0.0))
    return PiecewiseCubic(tuple(knots), pieces)


@lru_cache(maxsize=256)
def _steps(table: PiecewiseCubic, power: int, power_bits: int) -> tuple[int, tuple[int, ...]]:
    """Integer coefficients of x^power besides the straight line: that of the last piece, and each piece's minus the next one's."""
    scale = 2.0 ** (OUT_BITS - power_bits)
    lines = table.line_slopes if power == 1 else (0,) * len(table.pieces)
    values = [round((c[power] - line) * scale) for c, line in zip(table.pieces, lines, strict=True)]
    return values[-1], tuple(a - b for a, b in pairwise(values))


def weighted_sum(x: Secret, weights: Sequence[int], fraction_bits: int = 0) -> Secret:
    """sum_k weights[k] / 2^fraction_bits x[k] over the first dimension, for public integers; exact, the binary point moves."""

    def total(s: Tensor) -> Tensor:
        w = torch.tensor([ring.wrap(v) for v in weights], dtype=ring.DTYPE, device=s.device)
        return (s * w.view(-1, *[1] * (s.dim() - 1))).sum(0)

    return x.map(total, x.fraction_bits + fraction_bits)


async def piecewise_cubic(p: Protocol, x: Secret, table: PiecewiseCubic) -> Secret:
    """The table's function of x, any shape, for all x that fit the ring. Two rounds besides those of a comparison, and one to truncate
    where the function has a line: its result has then max(fraction bits of the protocol, LINE_BITS) of them, and OUT_BITS otherwise.

    Besides the error of the cubics there is that of the x of x^2 and x^3, one unit in the last of its POWER_BITS.
    """
    x = p.lift(x, max(x.fraction_bits, POWER_BITS))
    opened = await p.open_masked(x, shift=x.fraction_bits - POWER_BITS, degree=_DEGREE, compare=True)
    square = await opened.polynomial([0.0, 0.0, 1.0], 2 * POWER_BITS)
    cube = await opened.polynomial([0.0, 0.0, 0.0, 1.0], 3 * POWER_BITS)
    if x.fraction_bits > OUT_BITS - _SLOPE_BITS:
        x = await opened.truncated()
    below = await opened.less_than(table.knots)
    powers = Secret([torch.stack(s)[:, None] for s in zip(square.shares, cube.shares, strict=True)], 0)
    (of_x, bits), of_powers = await gather(
        p.select_with_bits(below, x), p.select(below.map(lambda s: s[None]), powers)
    )
    # Above the last knot the last piece holds; below knot k the difference of the pieces beside it comes in.
    _, slopes = _steps(table, 1, x.fraction_bits)
    constant, constants = _steps(table, 0, 0)
    terms = (
        (of_x, slopes),
        (bits, constants),
        (of_powers.map(lambda s: s[0]), _steps(table, 2, 2 * POWER_BITS)[1]),
        (of_powers.map(lambda s: s[1]), _steps(table, 3, 3 * POWER_BITS)[1]),
    )
    parts = [weighted_sum(part, weights) for part, weights in terms]
    total = Secret(
        [sum(shares[1:], shares[0]) for shares in zip(*(t.shares for t in parts), strict=True)], OUT_BITS
    )
    bounded = p.add_public(total, ring.wrap(constant))
    first, last = table.line_slopes[0], table.line_slopes[-1]
    if not (first or last):
        return bounded
    # The line is as large as x: it stays at x's fraction bits, where it fits if x does, and what is left is small.
    at = table.turn
    line = p.add(p.scale(x, last), p.scale(of_x.map(lambda s: s[at]), first - last))
    out_bits = max(p.fraction_bits, LINE_BITS)
    return p.add(*await gather(p.rescale(bounded, out_bits), p.rescale(line, out_bits)))
