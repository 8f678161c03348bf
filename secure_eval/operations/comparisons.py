"""Comparisons, selections and largest values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.functions.maximum import amax, max_with_index
from secure_eval.operations.arithmetic import add, mul, real
from secure_eval.operations.error import Approximate, Steps
from secure_eval.operations.operation import Operation, always, between, of_first, union, without_node
from secure_eval.operations.scaling import fitted, holding, plus_clear, room, sum_operands
from secure_eval.program import Node
from secure_eval.protocols.base import MUL, Protocol, Secret


async def _less(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if isinstance(x, Secret) and not isinstance(y, (Secret, Tensor)):
        x = p.lift(x, max(x.fraction_bits, p.fraction_bits))
        return await p.bits_to_ring((await p.less_than(x, [_near(x, y)]))[0])
    difference = await _difference(p, x, y)
    return await p.bits_to_ring((await p.less_than(difference, [0.0]))[0])


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
    limit = 2.0 ** (ring.VALUE_BITS - x.fraction_bits)
    return min(max(float(y), -limit), limit)


async def _difference(p: Protocol, x: Any, y: Any) -> Secret:
    """x - y, of operands that each fit: it may be twice as large as they are, and is right as long as it is only compared or selected."""
    if isinstance(x, Secret) and isinstance(y, Secret):
        return p.sub(*await sum_operands(p, x, y))
    if isinstance(x, Secret):
        return await plus_clear(p, x, -y)
    return await plus_clear(p, p.scale(y, -1), x)


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


def _amax_error(steps: Steps, value: Tensor, x: Approximate, dim: int, keepdim: bool) -> Tensor:
    return x.error.amax(dim, keepdim=keepdim)


def _max_with_index_error(steps: Steps, value: Tensor, x: Approximate, dim: int, keepdim: bool) -> Tensor:
    """The place is open where another value is nearer than the errors of the two; of equal values without error the first counts."""
    top = x.value.argmax(dim, keepdim=True)
    off = x.error + torch.where(x.error > 0, steps.fine, 0.0)
    apart, both = x.value.gather(dim, top) - x.value, off.gather(dim, top) + off
    place = torch.arange(x.value.shape[dim]).view(-1, *[1] * (x.value.dim() - 1)).movedim(0, dim)
    near = ((apart <= both) & (both > 0) & (place != top)).any(dim, keepdim=True)
    index = near * float(x.value.shape[dim])
    largest = (x.error + steps.fine).amax(dim, keepdim=True)
    return torch.stack([v if keepdim else v.squeeze(dim) for v in (largest, index)])


def _comparison_error(steps: Steps, value: Tensor, x: Any, y: Any) -> Tensor:
    """Open where the values are nearer than their errors. Values without any are whole numbers, and never truncated."""
    a, b = steps.operand(x), steps.operand(y)
    off = a.error + b.error
    return (((a.value - b.value).abs() <= off + 2 * steps.fine) & (off > 0)).to(torch.float64)


def _where_error(steps: Steps, value: Tensor, c: Any, x: Any, y: Any) -> Tensor:
    """y + c (x - y): the chosen one's error and the truncations of both; where the bit is open, the distance to the other as well."""
    a, b = steps.operand(x, 2 * steps.fine), steps.operand(y, 2 * steps.fine)
    # Of two public numbers the difference is a public factor of the bit, and has 16 significant bits.
    apart = (a.value - b.value).abs()
    clear = sum(not isinstance(v, Approximate) for v in (x, y))
    encoded = torch.tensor(2 * steps.encode if clear else 0.0) + (apart * 2.0**-16 if clear == 2 else 0.0)
    if not isinstance(c, Approximate):
        return torch.where(c != 0, a.error, b.error) + encoded + 4 * steps.fine
    chosen = torch.where(c.value != 0, a.error, b.error) + 4 * steps.fine + encoded
    either = apart + torch.maximum(a.error, b.error) + 4 * steps.fine + encoded
    return torch.where(c.error > 0, either, chosen)


OPERATIONS: dict[str, Operation] = {
    "amax": Operation(
        "x, dim, keepdim",
        ("s", "-", "-"),
        lambda x, dim, keepdim: x.amax(dim, keepdim=keepdim),
        without_node(amax),
        _amax_error,
        of_first,
        exact=always,
    ),
    "max_with_index": Operation(
        "x, dim, keepdim: the largest and the index of the first such, stacked in front",
        ("s", "-", "-"),
        lambda x, dim, keepdim: torch.stack([real(v) for v in x.max(dim, keepdim=keepdim)]),
        without_node(max_with_index),
        _max_with_index_error,
        lambda known, node: union(
            [known.look(node.args[0]), (0.0, float(max(known.shape(node.args[0]), default=1)))]
        ),
        exact=always,
    ),
    "less": Operation(
        "x, y: the bit [x < y] as 0 or 1",
        ("v", "v"),
        lambda x, y: real(real(x) < real(y)),
        _less,
        _comparison_error,
        between(0.0, 1.0),
        exact=always,
        whole=True,
    ),
    "equal": Operation(
        "x, y: the bit [x = y] as 0 or 1, of the numbers as the ring holds them",
        ("v", "v"),
        lambda x, y: real(real(x) == real(y)),
        _equal,
        _comparison_error,
        between(0.0, 1.0),
        exact=always,
        whole=True,
    ),
    "where": Operation(
        "c, x, y: c a secret bit (of `less` or `equal`, or made of such), or a public bool",
        ("v", "v", "v"),
        lambda c, x, y: torch.where(c != 0, real(x), real(y)),
        _where,
        _where_error,
        lambda known, node: union([known.look(v) for v in node.args[1:]]),
        exact=always,
    ),
}
