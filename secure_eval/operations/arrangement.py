"""Sharing, rearranging, joining and looking up."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.clear_operations import VIEWS, operation
from secure_eval.operations.arithmetic import real
from secure_eval.operations.error import Approximate, Steps
from secure_eval.operations.operation import (
    ANY,
    Interval,
    Known,
    Operation,
    always,
    between,
    of_first,
    times,
    union,
)
from secure_eval.operations.scaling import fitted, room
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.scheduler import gather

MOVED = {
    f"aten.{name}"
    for name in (
        "reshape.default",
        "flatten.using_ints",
        "unflatten.int",
        "transpose.int",
        "permute.default",
        "t.default",
        "mT.default",
        "expand.default",
        "unsqueeze.default",
        "squeeze.default",
        "squeeze.dim",
        "squeeze.dims",
        "select.int",
        "slice.Tensor",
        "movedim.int",
        "repeat.default",
        "flip.default",
        "roll.default",
        "alias.default",
        "unfold.default",
        "index.Tensor",
        "index_select.default",
        "gather.default",
    )
}
"""Views that only move elements."""


def _viewed(target: str, x: Tensor, *rest: Any) -> Tensor:
    found: Tensor = operation(target)(x, *rest)
    return found


def _joined_values(target: str, parts: list[Any], dim: int) -> Tensor:
    found: Tensor = operation(target)([real(v) for v in parts], dim)
    return found


async def _given(p: Protocol, node: Node, *args: Any) -> Secret:
    raise AssertionError(f"{node!r} is shared before a program runs")


async def _view(p: Protocol, node: Node, target: str, x: Secret, *rest: Any) -> Secret:
    function = operation(target, VIEWS)
    name = target.split(".")[1]
    if name in ("sum", "cumsum"):
        x = await fitted(p, x, room(p, node))
    return x.map(lambda s: function(s, *rest))


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


async def _take(p: Protocol, node: Node, table: Secret, index: Tensor) -> Secret:
    return table.map(lambda s: s[index])


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


def _view_interval(known: Known, node: Node) -> Interval:
    target, x = node.args[:2]
    low, high = known.look(x)
    if target.startswith("aten.sum."):
        count = prod(known.shape(x)) / max(1, prod(node.shape))
        return times(count, low), times(count, high)
    if target == "aten.cumsum.default" and known.valid:
        count = known.shape(x)[node.args[2]] if known.shape(x) else 1
        return min(low, times(count, low)), max(high, times(count, high))
    if target == "aten.constant_pad_nd.default":
        fill = float(node.args[3]) if len(node.args) > 3 else 0.0
        return min(low, fill), max(high, fill)
    return (low, high) if target in MOVED else ANY


def _encoded(steps: Steps, value: Tensor, x: Any) -> Tensor:
    return steps.operand(x).error


def _view_error(steps: Steps, value: Tensor, target: str, x: Approximate, *rest: Any) -> Tensor:
    """Errors are rearranged, and added where values are. What is added up is truncated before where the sum has less room."""
    if target.split(".")[1] in ("sum", "cumsum"):
        return _viewed(target, torch.where(x.error > 0, x.error + steps.cut, 0.0), *rest)
    return _viewed(target, x.error, *rest)


def _cat_error(steps: Steps, value: Tensor, target: str, parts: list[Any], dim: int) -> Tensor:
    """Parts with different fraction bits are truncated to f."""
    return _joined_values(target, [steps.operand(v, steps.cut).error for v in parts], dim)


def _take_error(steps: Steps, value: Tensor, table: Approximate, index: Tensor) -> Tensor:
    return table.error[index]


def _one_hot_error(steps: Steps, value: Tensor, x: Approximate, n: int) -> Tensor:
    """Exact for a whole number that is less than a half off."""
    return (x.error + steps.cut >= 0.5).to(torch.float64).unsqueeze(-1)


OPERATIONS: dict[str, Operation] = {
    "share_input": Operation("x: shares a client value", ("-",), lambda x: x, _given, _encoded),
    "share_weight": Operation("x: shares a model owner's value", ("-",), lambda x: x, _given, _encoded),
    "view": Operation(
        "target, x, ...: a rearrangement of elements or a sum over dimensions, by the torch operation named; indices are public",
        ("-", "s"),
        _viewed,
        _view,
        _view_error,
        _view_interval,
        exact=always,
    ),
    "cat": Operation(
        "target, [x...], dim: aten.cat or aten.stack",
        ("-", "v", "-"),
        _joined_values,
        _cat,
        _cat_error,
        lambda known, node: union([known.look(v) for v in node.args[1]]),
        exact=always,
    ),
    "take": Operation(
        "table, index: rows of a secret table at public indices",
        ("s", "c"),
        lambda table, index: table[index],
        _take,
        _take_error,
        of_first,
        exact=always,
    ),
    "one_hot": Operation(
        "x, n: the n bits [x = j] of a secret integer 0 <= x < n",
        ("s", "-"),
        lambda x, n: x.unsqueeze(-1) == torch.arange(n),
        _one_hot,
        _one_hot_error,
        between(0.0, 1.0),
        exact=always,
        whole=True,
    ),
}
