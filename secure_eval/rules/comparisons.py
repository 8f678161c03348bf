"""Comparisons and selections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.functions.maximum import amax, max_with_index
from secure_eval.program import Node
from secure_eval.protocols.base import MUL, Protocol, Secret
from secure_eval.rules.arithmetic import add, mul, sub
from secure_eval.rules.registry import rule
from secure_eval.rules.scaling import holding, sum_operands


@rule
async def _less(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if isinstance(x, Secret) and not isinstance(y, (Secret, Tensor)):
        x = p.lift(x, max(x.fraction_bits, p.fraction_bits))
        limit = 2.0 ** (ring.BITS - ring.HEADROOM_BITS - 1 - x.fraction_bits)  # beyond what x may be
        return await p.bits_to_ring((await p.less_than(x, [min(max(float(y), -limit), limit)]))[0])
    difference: Secret = await sub(p, node, x, y)
    return await p.bits_to_ring((await p.less_than(difference, [0.0]))[0])


@rule
async def _equal(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    """Not below, and not above by the smallest number: two comparisons of one opened difference."""
    d: Secret = await sub(p, node, x, y)
    below = await p.less_than(d, [0.0, 2.0**-d.fraction_bits])
    return await p.bits_to_ring(below[0] ^ below[1])


@rule
async def _max_with_index(p: Protocol, node: Node, x: Secret, dim: int, keepdim: bool) -> Secret:
    return await max_with_index(p, x, dim, keepdim)


@rule
async def _amax(p: Protocol, node: Node, x: Secret, dim: int, keepdim: bool) -> Secret:
    return await amax(p, x, dim, keepdim)


@rule
async def _where(p: Protocol, node: Node, c: Any, x: Any, y: Any) -> Secret:
    if isinstance(c, Secret):
        d = await sub(p, node, x, y) if isinstance(x, Secret) or isinstance(y, Secret) else None
        if d is None:
            return await add(p, node, await mul(p, node, c, x - y), y)
        return await add(p, node, await p.bilinear(MUL, c, d), y)
    keep = c.to(ring.DTYPE)
    total: Secret | None = None
    for value, mask in ((x, keep), (y, 1 - keep)):
        if isinstance(value, Secret):
            part = p.scale(value, mask)
            total = part if total is None else p.add(*await sum_operands(p, total, part))
    assert total is not None
    for value, mask in ((x, keep), (y, 1 - keep)):
        if not isinstance(value, Secret):
            total = await holding(p, total, value)
            value = value if isinstance(value, Tensor) else torch.full((), float(value), device=mask.device)
            total = p.add_public(total, ring.encode(value, total.fraction_bits) * mask)
    return total
