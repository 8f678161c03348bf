"""Rearranging, joining and looking up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.clear_operations import VIEWS, operation
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.rules.registry import rule
from secure_eval.rules.scaling import fitted, room
from secure_eval.scheduler import gather


@rule
async def _view(p: Protocol, node: Node, target: str, x: Secret, *rest: Any) -> Secret:
    function = operation(target, VIEWS)
    name = target.split(".")[1]
    if name in ("sum", "cumsum"):
        x = await fitted(p, x, room(p, node))
    return x.map(lambda s: function(s, *rest))


@rule
async def _cat(p: Protocol, node: Node, target: str, parts: list[Any], dim: int) -> Secret:
    secrets = [
        v if isinstance(v, Secret) else p.public(ring.encode(v, p.fraction_bits), p.fraction_bits)
        for v in parts
    ]
    bits = max(s.fraction_bits for s in secrets)
    if any(s.fraction_bits != bits for s in secrets):
        secrets = await gather(*(p.rescale(s) for s in secrets))
        bits = p.fraction_bits
    join = torch.cat if target == "aten.cat.default" else torch.stack
    return Secret(
        [join(list(shares), dim) for shares in zip(*(s.shares for s in secrets), strict=True)], bits
    )


@rule
async def _take(p: Protocol, node: Node, table: Secret, index: Tensor) -> Secret:
    return table.map(lambda s: s[index])


@rule
async def _one_hot(p: Protocol, node: Node, x: Secret, n: int) -> Secret:
    """[x = j] = [x < j + 1/2] - [x < j - 1/2]: n - 1 comparisons of x, all read from one opening of it."""
    ones = p.public(torch.ones((1, *x.shape), dtype=ring.DTYPE, device=x.shares[0].device), 0)
    if n == 1:
        return ones.map(lambda s: s.movedim(0, -1))
    x = await p.rescale(x)
    below = await p.bits_to_ring(await p.less_than(x, [j + 0.5 for j in range(n - 1)]))
    upper = _joined([below, ones])
    lower = below.map(lambda s: torch.cat([torch.zeros_like(s[:1]), s]))
    return p.sub(upper, lower).map(lambda s: s.movedim(0, -1))


def _joined(parts: list[Secret]) -> Secret:
    return Secret([torch.cat(list(s)) for s in zip(*(x.shares for x in parts), strict=True)], 0)
