"""Comparisons and selections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.program import Node
from secure_eval.protocols.base import MUL, Protocol, Secret
from secure_eval.rules.arithmetic import add, mul, sub
from secure_eval.rules.registry import rule
from secure_eval.rules.scaling import sum_operands


@rule
async def _less(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if isinstance(x, Secret) and not isinstance(y, (Secret, Tensor)):
        return await p.bits_to_ring((await p.less_than(x, [float(y)]))[0])
    difference: Secret = await sub(p, node, x, y)
    return await p.bits_to_ring((await p.less_than(difference, [0.0]))[0])


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
            value = value if isinstance(value, Tensor) else torch.full((), float(value), device=mask.device)
            total = p.add_public(total, ring.encode(value, total.fraction_bits) * mask)
    return total
