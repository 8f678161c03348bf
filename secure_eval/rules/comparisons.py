"""Comparisons and selections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.functions.maximum import amax, max_with_index
from secure_eval.magnitudes import VALUE_BITS
from secure_eval.program import Node
from secure_eval.protocols.base import MUL, Protocol, Secret
from secure_eval.rules.arithmetic import add, mul
from secure_eval.rules.registry import rule
from secure_eval.rules.scaling import fitted, holding, plus_clear, room, sum_operands


@rule
async def _less(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if isinstance(x, Secret) and not isinstance(y, (Secret, Tensor)):
        x = p.lift(x, max(x.fraction_bits, p.fraction_bits))
        return await p.bits_to_ring((await p.less_than(x, [_near(x, y)]))[0])
    difference = await _difference(p, x, y)
    return await p.bits_to_ring((await p.less_than(difference, [0.0]))[0])


@rule
async def _equal(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    """Not below, and not above by the smallest number: two comparisons of one opened difference."""
    if not isinstance(x, Secret):
        x, y = y, x
    if not isinstance(y, (Secret, Tensor)):
        x = p.lift(x, max(x.fraction_bits, p.fraction_bits))
        y = _near(x, y)
    d = await _difference(p, x, y)
    below = await p.less_than(d, [0.0, 2.0**-d.fraction_bits])
    return await p.bits_to_ring(below[0] ^ below[1])


def _near(x: Secret, y: float) -> float:
    """A number, where it is beyond all that x may be one that is just so: differences stay in the ring."""
    limit = 2.0 ** (VALUE_BITS - x.fraction_bits)
    return min(max(float(y), -limit), limit)


async def _difference(p: Protocol, x: Any, y: Any) -> Secret:
    """x - y, of operands that each fit: it may be twice as large as they are, and is right as long as it is only compared or selected."""
    if isinstance(x, Secret) and isinstance(y, Secret):
        return p.sub(*await sum_operands(p, x, y))
    if isinstance(x, Secret):
        return await plus_clear(p, x, -y)
    return await plus_clear(p, p.scale(y, -1), x)


@rule
async def _max_with_index(p: Protocol, node: Node, x: Secret, dim: int, keepdim: bool) -> Secret:
    return await max_with_index(p, x, dim, keepdim)


@rule
async def _amax(p: Protocol, node: Node, x: Secret, dim: int, keepdim: bool) -> Secret:
    return await amax(p, x, dim, keepdim)


@rule
async def _where(p: Protocol, node: Node, c: Any, x: Any, y: Any) -> Secret:
    if isinstance(c, Secret):
        if not isinstance(x, Secret) and not isinstance(y, Secret):
            return await add(p, node, await mul(p, node, c, x - y), y)
        x, y = [
            await fitted(p, v, room(p, node) - c.fraction_bits) if isinstance(v, Secret) else v
            for v in (x, y)
        ]
        return await add(p, node, await p.bilinear(MUL, c, await _difference(p, x, y)), y)
    keep = c.to(ring.DTYPE)
    total: Secret | None = None
    for value, mask in ((x, keep), (y, 1 - keep)):
        if isinstance(value, Secret):
            part = p.scale(value, mask)
            total = part if total is None else p.add(*await sum_operands(p, total, part, node))
    assert total is not None
    for value, mask in ((x, keep), (y, 1 - keep)):
        if not isinstance(value, Secret):
            total = await holding(p, total, value, node)
            value = value if isinstance(value, Tensor) else torch.full((), float(value), device=mask.device)
            total = p.add_public(total, ring.encode(value, total.fraction_bits) * mask)
    return total
