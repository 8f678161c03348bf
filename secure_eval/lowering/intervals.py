"""What is known of a value without seeing it: bounds that its making proves (a square is not negative, a sigmoid is below one).

Divisions and exponentials are cheaper where the sign or the range of their argument is known. What isn't recognised has no bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod
from typing import Any

import torch

from secure_eval.lowering.builder import Builder
from secure_eval.program import Node, Ref

Interval = tuple[float, float]
ANY: Interval = (-inf, inf)
Look = Callable[[Any], Interval]

_DEPTH = 24
"""Operations looked back at most: a proof of a sign is short."""

_MOVED = {
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
    )
}
"""Views that only move elements."""

_UNCHANGED = {
    f"aten::{name}" for name in (*_MOVED, "aten.to.dtype", "aten._to_copy.default", "aten.clone.default")
}
"""Clear operations that leave values as they are: a mask cast to a number is 0 or 1."""


def interval(b: Builder, value: Any) -> Interval:
    """Numbers between which every element of `value` (a number or a node's value) is known to lie, infinite where unknown."""
    known: dict[tuple[str, int], Interval] = {}  # else a chain of residual sums is walked once per path

    def look(value: Any, depth: int) -> Interval:
        if isinstance(value, (int, float)):
            return float(value), float(value)
        if not isinstance(value, Ref):
            return ANY
        key = value.name, depth
        if key not in known:
            known[key] = _interval(b, value, depth, lambda v: look(v, depth - 1))
        return known[key]

    return look(value, _DEPTH)


def _interval(b: Builder, value: Ref, depth: int, look: Look) -> Interval:
    stored = b.constants.get(value.name)
    if stored is not None and stored.numel() == 1 and not stored.is_meta:
        return float(stored), float(stored)
    node = b.by_name[value.name]
    if node.dtype == torch.bool:
        return 0.0, 1.0
    found = _clear if node.op in _UNCHANGED else _RULES.get(node.op)
    return ANY if found is None or depth == 0 else found(b, node, look)


def _clear(b: Builder, node: Node, look: Look) -> Interval:
    return look(node.args[0])


def _times(a: float, c: float) -> float:
    return 0.0 if a == 0 or c == 0 else a * c


def _product(x: Interval, y: Interval) -> Interval:
    ends = [_times(a, c) for a in x for c in y]
    return min(ends), max(ends)


def _power(x: Interval, n: int) -> Interval:
    ends = [abs(v) ** n if abs(v) < inf else inf for v in x]
    return 0.0 if x[0] <= 0 <= x[1] else min(ends), max(ends)


def _sub(b: Builder, node: Node, look: Look) -> Interval:
    x, y = node.args
    if _is_absolute(b, x, y):
        return 0.0, inf
    if isinstance(y, Ref) and b.by_name[y.name].op == "amax" and b.by_name[y.name].args[0] == x:
        return -inf, 0.0
    (low, high), (low_y, high_y) = look(x), look(y)
    return low - high_y, high - low_y


def _is_absolute(b: Builder, x: Any, y: Any) -> bool:
    """Whether x - y is 2 relu(y) - y."""
    double = b.by_name[x.name] if isinstance(x, Ref) else None
    if double is None or double.op != "mul" or double.args[1] != 2.0 or not isinstance(double.args[0], Ref):
        return False
    relu = b.by_name[double.args[0].name]
    return relu.op == "relu" and relu.args[0] == y


def _is_share(b: Builder, x: Any, y: Any) -> bool:
    """Whether x y is x over a sum that x is a part of."""
    inverse = b.by_name[y.name] if isinstance(y, Ref) else None
    if inverse is None or inverse.op != "reciprocal":
        return False
    total = b.by_name[inverse.args[0].name]
    return total.op == "view" and total.args[0].startswith("aten.sum.") and total.args[1] == x


def _mul(b: Builder, node: Node, look: Look) -> Interval:
    x, y = node.args
    if _is_share(b, x, y) and look(x)[0] >= 0:
        return 0.0, 1.0
    return _power(look(x), 2) if x == y else _product(look(x), look(y))


def _view(b: Builder, node: Node, look: Look) -> Interval:
    target, x = node.args[:2]
    low, high = look(x)
    if target.startswith("aten.sum."):
        count = prod(b.shape(x)) / max(1, prod(node.shape))
        return _times(count, low), _times(count, high)
    return (low, high) if target in _MOVED else ANY


def _union(parts: list[Interval]) -> Interval:
    return min(low for low, _ in parts), max(high for _, high in parts)


def _reciprocal(b: Builder, node: Node, look: Look) -> Interval:
    low, high = look(node.args[0])
    return (1 / high if high > 0 else 0.0, 1 / low if low > 0 else inf) if low >= 0 else ANY


def _between(low: float, high: float) -> Callable[[Builder, Node, Look], Interval]:
    return lambda b, node, look: (low, high)


_RULES: dict[str, Callable[[Builder, Node, Look], Interval]] = {
    "add": lambda b, node, look: (sum(look(a)[0] for a in node.args), sum(look(a)[1] for a in node.args)),
    "sub": _sub,
    "neg": lambda b, node, look: (-look(node.args[0])[1], -look(node.args[0])[0]),
    "mul": _mul,
    "square": lambda b, node, look: _power(look(node.args[0]), 2),
    "power": lambda b, node, look: _power(look(node.args[0]), node.args[1]),
    "view": _view,
    "cat": lambda b, node, look: _union([look(v) for v in node.args[1]]),
    "where": lambda b, node, look: _union([look(v) for v in node.args[1:]]),
    "amax": lambda b, node, look: look(node.args[0]),
    "relu": lambda b, node, look: (max(0.0, look(node.args[0])[0]), max(0.0, look(node.args[0])[1])),
    "clamp": lambda b, node, look: (node.args[1], node.args[2]),
    "sigmoid": _between(0.0, 1.0),
    "tanh": _between(-1.0, 1.0),
    "erf": _between(-1.0, 1.0),
    "softmax_numerator": _between(0.0, 1.0),
    "less": _between(0.0, 1.0),
    "equal": _between(0.0, 1.0),
    "one_hot": _between(0.0, 1.0),
    "softplus": _between(0.0, inf),
    "exp": _between(0.0, inf),
    "sqrt": _between(0.0, inf),
    "rsqrt": _between(0.0, inf),
    "reciprocal": _reciprocal,
}
"""Approximate functions may overstep their bounds by their error: ranges made of these have to bear that."""
