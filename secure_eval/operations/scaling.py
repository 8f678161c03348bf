"""Fraction bits: what has to be truncated before a product, a sum or a public factor fits the ring.

A node's bound says how many fraction bits its value has room for (magnitudes.py). Values come with no more than they have room for
themselves; the rules here see to it that a result has no more either, before it is computed: what has once wrapped around is lost.
"""

from __future__ import annotations

from math import frexp, log2
from typing import Any

from torch import Tensor

from secure_eval import ring
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.scheduler import gather

_SIGNIFICANT_BITS = 16
"""Of a public factor, where the ring has room for them; nine always."""

_MOST_BITS = 30
"""Fraction bits of a factor that may have more than the protocol's: a reciprocal, an inverse root."""


def room(p: Protocol, node: Node | None) -> int:
    """Most fraction bits of a node's value. Where no bound is known, what the promise leaves: those of a product of two values."""
    return 2 * p.fraction_bits if node is None or node.bound is None else ring.VALUE_BITS - node.bound


async def fitted(p: Protocol, x: Secret, most: int) -> Secret:
    """x, truncated to the protocol's fraction bits where it has more than `most`."""
    return await p.rescale(x) if x.fraction_bits > most else x


async def times_clear(
    p: Protocol, x: Secret, factor: Any, integral: bool, node: Node | None = None
) -> Secret:
    """x * factor, a public tensor or number."""
    most, f = room(p, node), p.fraction_bits
    if isinstance(factor, Tensor):
        if integral:
            return p.scale(await fitted(p, x, most), factor.to(ring.DTYPE))
        x = await fitted(p, x, most - f)
        bits = min(max(f, _SIGNIFICANT_BITS), most - x.fraction_bits)
        return p.scale(x, ring.encode(factor, bits), bits)
    mantissa, exponent = frexp(abs(factor))
    if mantissa == 0.5:
        if x.fraction_bits > most + exponent - 1:
            x = await p.rescale(x, max(p.fraction_bits, most + exponent - 1))
        moved = Secret(x.shares, x.fraction_bits - (exponent - 1))
        return moved if factor > 0 else p.scale(moved, -1)
    if factor == int(factor) and abs(factor) < 2**10:
        x = x if x.fraction_bits <= most else await p.rescale(x, most)
        return p.scale(x, int(factor))
    wanted = _SIGNIFICANT_BITS - int(
        log2(abs(factor))
    )  # fraction bits of the factor; for a large one fewer than none
    bits = min(wanted, most - x.fraction_bits)
    if abs(factor) * 2.0**bits < 2**9:
        x = await p.rescale(x, min(x.fraction_bits, max(p.fraction_bits, most - wanted)))
        bits = min(wanted, most - x.fraction_bits)
    return p.scale(x, round(factor * 2.0**bits), bits)


async def holding(p: Protocol, x: Secret, value: Any, node: Node | None = None) -> Secret:
    """x truncated where the sum with a public value has no room for its fraction bits, and lifted where they would cut that off."""
    if x.fraction_bits > room(p, node):
        x = await p.rescale(x, min(x.fraction_bits, 2 * p.fraction_bits))
    whole = not value.is_floating_point() if isinstance(value, Tensor) else float(value).is_integer()
    return p.lift(x, max(x.fraction_bits, 0 if whole else p.fraction_bits))


async def plus_clear(p: Protocol, x: Secret, value: Any, node: Node | None = None) -> Secret:
    """x + value."""
    x = await holding(p, x, value, node)
    if isinstance(value, Tensor):
        return p.add_public(x, ring.encode(value, x.fraction_bits))
    return p.add_real(x, float(value))


def least_bits(p: Protocol, node: Node | None, position: int) -> int:
    """What a factor of a product is truncated to where the other one has more than the protocol's fraction bits, and both cannot stay."""
    spread = 0 if node is None else node.spread if position == 0 else -node.spread
    return (
        p.fraction_bits - max(0, spread) if room(p, node) < p.fraction_bits + _MOST_BITS else p.fraction_bits
    )


async def fit(p: Protocol, x: Secret, y: Secret, node: Node | None = None) -> tuple[Secret, Secret]:
    """Factors, truncated where the product has no room for the fraction bits of both: one of them if that is enough."""
    most, f = room(p, node), p.fraction_bits
    if x.fraction_bits + y.fraction_bits <= most:
        return x, y
    least = least_bits(p, node, 0), least_bits(p, node, 1)
    alone = [
        i
        for i, (one, other) in enumerate(((x, y), (y, x)))
        if one.fraction_bits > f and f + other.fraction_bits <= most and least[1 - i] == f
    ]
    if alone:
        larger = max(alone, key=lambda i: (x, y)[i].fraction_bits)
        return (await p.rescale(x), y) if larger == 0 else (x, await p.rescale(y))
    bits = [min(v.fraction_bits, b) for v, b in zip((x, y), least, strict=True)]
    if least != (f, f):  # what the coarser factor gives up, the finer one keeps
        fine = int(least[0] < f)
        bits[fine] = min((x, y)[fine].fraction_bits, most - bits[1 - fine])
        bits[1 - fine] = min((x, y)[1 - fine].fraction_bits, most - bits[fine])
    a, b = await gather(p.rescale(x, bits[0]), p.rescale(y, bits[1]))
    return a, b


async def sum_operands(p: Protocol, x: Secret, y: Secret, node: Node | None = None) -> tuple[Secret, Secret]:
    """Operands of a sum: where their fraction bits differ or are too many, no more than a product of two values has."""
    if x.fraction_bits == y.fraction_bits and (node is None or x.fraction_bits <= room(p, node)):
        return x, y
    limit = 2 * p.fraction_bits
    a, b = await gather(p.rescale(x, min(limit, x.fraction_bits)), p.rescale(y, min(limit, y.fraction_bits)))
    return a, b
