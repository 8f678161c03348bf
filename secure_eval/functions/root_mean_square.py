"""y / sqrt(mean(y^2) + eps) over rows: what layer and RMS normalisations have in common, for every magnitude that y may have.

A sum of squares of values with t fraction bits has 2t of them, so that the ring holds it below a magnitude and is precise above one:
a *window* of some fifteen octaves of the root mean square. Where the range asked for is wider, squares are summed at two precisions,
read from one opening of y. The coarse sum says which of the two holds, by a comparison that it needs anyway; the fine one's bits count
only where the coarse one says so, and what does not hold is multiplied by an exact zero.

The numerator of a window is y truncated, times the weight, times the inverse root: their fraction bits are chosen so that both windows'
results have the same and can be added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, floor, log2, prod, sqrt

import torch

from secure_eval import ring
from secure_eval.functions.normalised import Range, Table, factor_bits_of, tabulated, undone
from secure_eval.protocols.base import MUL, Bits, Protocol, Secret
from secure_eval.scheduler import gather

WINDOWS = 2
"""At most; a third one's gate would need a round of its own."""
LOWEST = 2.0**-40
"""Least mean square where eps is zero."""
ENOUGH = 2.0**20
"""One window that reaches so far is enough where nothing is said."""
_EXPONENT = -0.5
_ROOM_BITS = ring.VALUE_BITS
_SLACK = 1 - 2.0**-8
"""Of what the ring holds: truncated values are up to a unit larger."""
_FINER_BITS = 2
"""More fraction bits in a numerator than in the values that are squared."""


def _precision_bits(n: int) -> float:
    """Bits of the least root mean square that the values squared have to have: rounding errors average out over long rows."""
    return 12.0 if n < 64 else 11.0 if n < 256 else 10.0


@dataclass(frozen=True)
class Window:
    """Squares of values with `bits` fraction bits are summed; their mean (with eps) is right between low and high."""

    bits: int
    low: float
    high: float


@dataclass(frozen=True)
class Plan:
    """Windows, finest first, and of each one the fraction bits of its numerator and of its inverse root: their sum is the result's."""

    windows: tuple[Window, ...]
    numerator_bits: tuple[int, ...]
    inverse_bits: tuple[int, ...]

    def largest_weight(self, n: int, weight_bits: int) -> float:
        """What a weight with so many fraction bits has to stay below: the product with a numerator fits the ring."""
        each = (
            2.0 ** (_ROOM_BITS - t - weight_bits) / sqrt(n * w.high)
            for t, w in zip(self.numerator_bits, self.windows, strict=True)
        )
        return min(each)


def _reach(n: int, bits: int) -> float:
    """The largest mean square whose sum fits the ring."""
    return 2.0 ** (_ROOM_BITS - 2 * bits) / n * _SLACK


def _windows(n: int, low: float, high: float) -> list[Window]:
    """As many as `high` takes, at most WINDOWS, each as far as it reaches."""
    windows: list[Window] = []
    while len(windows) < WINDOWS and (not windows or windows[-1].high < high):
        start = windows[-1].high if windows else low
        bits = max(0, ceil(_precision_bits(n) - log2(start) / 2))
        windows.append(Window(bits, start, _reach(n, bits)))
    return windows


@lru_cache(maxsize=256)
def widest(n: int, k: float, eps: float) -> tuple[float, float]:
    """Mean squares of y (eps included) for which rows of n values are normalised right where nothing is said: from eps to all that fits."""
    low = eps if eps > 0 else LOWEST
    return low, _windows(n, low * k**2, ENOUGH * k**2)[-1].high / k**2


@lru_cache(maxsize=256)
def plan(n: int, low: float, high: float) -> Plan:
    """The fewest windows for rows of n values x = k y with mean squares between low and high.

    Raises ValueError for a range that takes more than WINDOWS.
    """
    if not 0 < low <= high:
        raise ValueError(f"mean squares from {low} to {high}: allowed are 0 < low <= high")
    windows = _windows(n, low, high)
    if windows[-1].high < high * (1 - 1e-9):
        raise ValueError(
            f"mean squares from {low:.6g} to {high:.6g} of {n} values: allowed are, from that low on, up to {windows[-1].high:.6g}"
        )
    windows[-1] = replace(windows[-1], high=high)
    inverse = [max(0, factor_bits_of(w.high**_EXPONENT)) for w in windows]
    total = max(w.bits + _FINER_BITS + b for w, b in zip(windows, inverse, strict=True))
    return Plan(tuple(windows), tuple(total - b for b in inverse), tuple(inverse))


@dataclass(frozen=True)
class _Sum:
    """A window's sum of squares, its binary point moved so that the least one, `start`, is near 1; the table of its inverse root."""

    value: Secret
    table: Table
    start: float


def _readied(p: Protocol, total: Secret, window: Window, n: int, inverse_bits: int) -> _Sum:
    moved = floor(log2(window.low * n) / 2)
    unit = n * 4.0**-moved
    r = Range(-0.5, window.low * unit, max(window.high, window.low * 1.01) * unit)
    bits = total.fraction_bits + 2 * moved
    table = tabulated(r, sqrt(n) * 2.0**-moved, bits, inverse_bits)
    return _Sum(p.lift(Secret(total.shares, bits), max(bits, table.bits)), table, r.low)


def _from(start: float, table: Table) -> Table:
    """With another threshold in front, below which the inverse root is exactly zero."""
    return replace(
        table,
        thresholds=(start, *table.thresholds),
        scales=(table.scales[0], *table.scales),
        weights=(0, *table.weights),
    )


async def _compared(p: Protocol, s: _Sum) -> tuple[Bits | None, Secret]:
    """The bits [sum >= threshold], None without thresholds, and the sum truncated."""
    shift = s.value.fraction_bits - s.table.bits
    opened = await p.open_masked(s.value, shift=shift, compare=bool(s.table.thresholds))
    y = await opened.truncated()
    return (p.invert(await opened.less_than(s.table.thresholds)) if s.table.thresholds else None), y


def _none(y: Secret, fraction_bits: int | None = None) -> Secret:
    """What no threshold gives, stacked in front."""
    return y.map(lambda v: v.new_empty((0, *v.shape)), fraction_bits)


async def _inverse_root(p: Protocol, s: _Sum, above: Bits | None, y: Secret) -> Secret:
    chosen, ones = (_none(y), _none(y, 0)) if above is None else await p.select_with_bits(above, y)
    return await undone(p, _EXPONENT, s.table, s.table.scaled(p, y, chosen), s.table.undoing(p, ones))


async def _gated_inverse_root(p: Protocol, s: _Sum, above: Bits | None, y: Secret, gate: Bits) -> Secret:
    """Exactly zero where the gate is: there the sum may have left the ring, and its bits are of anything."""
    always = p.invert(gate.map(lambda v: torch.zeros_like(v)[None]))
    table = _from(s.start, s.table)  # the gate itself takes the place of that threshold's bit
    if above is None:
        chosen, gated = _none(y), await p.both(always, gate)
    else:
        bits = Bits([torch.cat(parts) for parts in zip(always.shares, above.shares, strict=True)])
        chosen, gated = await gather(p.select(above, y), p.both(bits, gate))
    return await undone(p, _EXPONENT, table, s.table.scaled(p, y, chosen), table.undoing(p, gated))


async def _inverse_roots(p: Protocol, sums: list[_Sum]) -> list[Secret]:
    """sqrt(n) over the root of each sum where its window holds, exact zeros elsewhere."""
    if len(sums) == 1:
        return [await _inverse_root(p, sums[0], *await _compared(p, sums[0]))]
    fine, coarse = sums[0], replace(sums[1], table=_from(sums[1].start, sums[1].table))
    (fine_above, fine_y), (above, y) = await gather(_compared(p, fine), _compared(p, coarse))
    gate = p.invert(above[0])
    return await gather(
        _gated_inverse_root(p, fine, fine_above, fine_y, gate), _inverse_root(p, coarse, above, y)
    )


async def over_root_mean_square(
    p: Protocol,
    x: Secret,
    k: float,
    dims: int,
    weight: Secret | None,
    bias: Secret | None,
    eps: float,
    low: float,
    high: float,
) -> Secret:
    """y / sqrt(mean(y^2) + eps) * weight + bias with y = x / k over the last `dims` dimensions, for mean squares of y (eps included) from
    low to high.

    Relative error below 2^-10 of the row's largest value. Needs abs(x) < 2^(62 - fraction bits of x), and of the weight what
    Plan.largest_weight says. One round for the sums, five or six for their inverse roots (few rows are compared in one fewer), one for
    the product; the opening of x and one of a numerator for each window, 8 bytes an element each with two parties and a dealer.
    """
    n = prod(x.shape[-dims:])
    chosen = plan(n, low * k**2, high * k**2)
    axes = tuple(range(-dims, 0))

    async def total(window: Window) -> Secret:
        bits = min(x.fraction_bits, window.bits)
        opened = await p.open_masked(x, shift=x.fraction_bits - bits, degree=2)
        square = await opened.polynomial([0.0, 0.0, 1.0], 2 * window.bits)
        return p.add_real(square.map(lambda s: s.sum(axes, keepdim=True)), eps * n * k**2)

    async def numerator(bits: int) -> Secret:
        kept = min(x.fraction_bits, bits)
        shift = x.fraction_bits - kept
        if weight is None:
            return p.lift(await (await p.open_masked(x, shift=shift)).truncated(), bits)
        return await p.rescale(await p.polynomial_product(x, shift, [0.0, 1.0], kept, weight), bits)

    async def inverse() -> list[Secret]:
        totals = await gather(*(total(w) for w in chosen.windows))
        sums = [
            _readied(p, t, w, n, b)
            for t, w, b in zip(totals, chosen.windows, chosen.inverse_bits, strict=True)
        ]
        return await _inverse_roots(p, sums)

    scales, numerators = await gather(inverse(), gather(*(numerator(b) for b in chosen.numerator_bits)))
    parts = await gather(
        *(p.bilinear(MUL, part, scale) for part, scale in zip(numerators, scales, strict=True))
    )
    result = parts[0]
    for part in parts[1:]:
        result = p.add(result, part)
    return result if bias is None else p.add(result, bias)
