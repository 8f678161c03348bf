"""Fraction bits: what has to be truncated before a product, a sum or a public factor fits the ring."""

from __future__ import annotations

from math import frexp, log2
from typing import Any

from torch import Tensor

from secure_eval import ring
from secure_eval.protocols.base import Protocol, Secret

MAX_PRODUCT_BITS = 48
"""Products are truncated first where their fraction bits would exceed this: 14 integer bits stay."""


def _constant_bits(p: Protocol, x: Secret, magnitude: float) -> int:
    """Fraction bits for a public factor: 16 significant ones, fewer where the product would exceed MAX_PRODUCT_BITS."""
    wanted = 16 - (int(log2(magnitude)) if magnitude > 0 else 0)
    return max(0, min(wanted, MAX_PRODUCT_BITS - x.fraction_bits))


async def times_clear(p: Protocol, x: Secret, factor: Any, integral: bool) -> Secret:
    if isinstance(factor, Tensor):
        if integral:
            return p.scale(x, factor.to(ring.DTYPE))
        bits = max(MAX_PRODUCT_BITS - 2 * p.fraction_bits, p.fraction_bits)
        x = await p.rescale(x, min(x.fraction_bits, MAX_PRODUCT_BITS - bits))
        return p.scale(x, ring.encode(factor, bits), bits)
    mantissa, exponent = frexp(abs(factor))
    if mantissa == 0.5:
        moved = Secret(x.shares, x.fraction_bits - (exponent - 1))
        return moved if factor > 0 else p.scale(moved, -1)
    if factor == int(factor) and abs(factor) < 2**10:
        return p.scale(x, int(factor))
    bits = _constant_bits(p, x, abs(factor))
    if abs(factor) * 2**bits < 2**9:
        x = await p.rescale(x)
        bits = _constant_bits(p, x, abs(factor))
    return p.scale(x, round(factor * 2**bits), bits)


async def holding(p: Protocol, x: Secret, value: Any) -> Secret:
    """x truncated where a public summand would not fit its fraction bits, and lifted where they would cut it off."""
    tensor = isinstance(value, Tensor)
    if x.fraction_bits > MAX_PRODUCT_BITS if tensor else abs(value) * 2.0**x.fraction_bits >= 2.0**61:
        x = await p.rescale(x, min(x.fraction_bits, 2 * p.fraction_bits))
    whole = not value.is_floating_point() if tensor else float(value).is_integer()
    return p.lift(x, max(x.fraction_bits, 0 if whole else p.fraction_bits))


async def plus_clear(p: Protocol, x: Secret, value: Any) -> Secret:
    """x + value."""
    x = await holding(p, x, value)
    if isinstance(value, Tensor):
        return p.add_public(x, ring.encode(value, x.fraction_bits))
    return p.add_real(x, float(value))


async def fit(p: Protocol, x: Secret, y: Secret) -> tuple[Secret, Secret]:
    """Operands of a product, truncated where their fraction bits add up to more than MAX_PRODUCT_BITS."""
    while x.fraction_bits + y.fraction_bits > MAX_PRODUCT_BITS:
        if x.fraction_bits >= y.fraction_bits:
            x = await p.rescale(x)
        else:
            y = await p.rescale(y)
    return x, y


async def sum_operands(p: Protocol, x: Secret, y: Secret) -> tuple[Secret, Secret]:
    """Operands of a sum: no more fraction bits than a product of two values has, unless both have as many."""
    if x.fraction_bits == y.fraction_bits:
        return x, y
    limit = 2 * p.fraction_bits
    return (await p.rescale(x, min(limit, x.fraction_bits)), await p.rescale(y, min(limit, y.fraction_bits)))
