"""What is known of a value without seeing it: bounds that its making proves (a square is not negative, a sigmoid is below one).

One set of rules serves two readers. At capture, divisions and exponentials are cheaper where the sign or the range of their argument is
known (lowering/intervals.py). Of a whole program, magnitudes say how many fraction bits each value has room for (magnitudes.py). What
isn't recognised has no bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import frexp, inf, isnan, prod, sqrt
from typing import Any

import torch
from torch import Tensor

from secure_eval.program import Node, Ref

Interval = tuple[float, float]
ANY: Interval = (-inf, inf)

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

UNCHANGED = {
    f"aten::{name}" for name in (*MOVED, "aten.to.dtype", "aten._to_copy.default", "aten.clone.default")
}
"""Clear operations that leave values as they are: a mask cast to a number is 0 or 1."""

_EXACT = {"view", "cat", "take", "neg", "relu", "amax", "max_with_index", "less", "equal", "one_hot", "where"}
"""Operations that add no error of their own worth an allowance."""

_RELATIVE = ("reciprocal", "rsqrt")
"""Operations whose error is a part of the result: they keep a sign."""

SLACK = 2.0**-6
"""What an operation of the engine may overstep its real result by, in parts of max(1, the result): far more than fixed point from 8
fraction bits on and the errors of functions come to."""


class Intervals:
    """Numbers between which all elements of each value lie, worked out node by node in a program's order.

    Args:
        by_name, constants: of a program, or of one in the making.
        stated: arguments of functions count as being in the ranges that these state (ranges/stated.py): a check sees to it.
        slack: widen what operations with an error of their own make, so that the engine's values are inside as well.
        limit: of a node, a magnitude that its value is known to stay below for another reason; infinite where there is none.
    """

    def __init__(
        self,
        by_name: Mapping[str, Node],
        constants: Mapping[str, Tensor],
        *,
        stated: bool = False,
        slack: float = 0.0,
        limit: Callable[[Node], float] = lambda node: inf,
    ):
        self.by_name, self.constants, self.stated, self.slack, self.limit = (
            by_name,
            constants,
            stated,
            slack,
            limit,
        )
        self.known: dict[str, Interval] = {}

    def extend(self, nodes: Iterable[Node]) -> None:
        """Takes the next nodes in."""
        for node in nodes:
            self.known[node.name] = self._of(node)

    def look(self, value: Any) -> Interval:
        """Of a number, or of a value that is known by now."""
        if isinstance(value, (int, float)):
            return float(value), float(value)
        return self.known.get(value.name, ANY) if isinstance(value, Ref) else ANY

    def shape(self, value: Any) -> tuple[int, ...]:
        return self.by_name[value.name].shape if isinstance(value, Ref) else ()

    def node(self, value: Any) -> Node | None:
        return self.by_name.get(value.name) if isinstance(value, Ref) else None

    def _of(self, node: Node) -> Interval:
        stored = self.constants.get(node.name)
        if stored is not None and stored.numel() == 1 and not stored.is_meta:
            return float(stored), float(stored)
        if node.dtype == torch.bool and (node.level != "secret" or node.op not in _RULES):
            return 0.0, 1.0  # what is made of bits on the way to one, such as 2 a b, may be more
        if node.level != "secret":
            return self.look(node.args[0]) if node.op in UNCHANGED else ANY
        rule = _RULES.get(node.op)
        low, high = ANY if rule is None else rule(self, node)
        if isnan(low) or isnan(high):
            low, high = ANY
        if self.slack and not _exact(node):
            least = 0.0 if node.op in _RELATIVE else 1.0
            low, high = low - self.slack * max(least, abs(low)), high + self.slack * max(least, abs(high))
        most = self.limit(node)
        return max(low, -most), min(high, most)


def _exact(node: Node) -> bool:
    """Whether the engine's result is no further off than its operands are."""
    if node.op == "mul" and isinstance(node.args[1], (int, float)):
        return frexp(abs(node.args[1]))[0] == 0.5  # the binary point moves
    return node.op in _EXACT


def _times(a: float, c: float) -> float:
    return 0.0 if a == 0 or c == 0 else a * c


def _product(x: Interval, y: Interval) -> Interval:
    ends = [_times(a, c) for a in x for c in y]
    return min(ends), max(ends)


def _power(x: Interval, n: int) -> Interval:
    try:
        ends = [abs(v) ** n if abs(v) < inf else inf for v in x]
    except OverflowError:
        ends = [inf, inf]
    return 0.0 if x[0] <= 0 <= x[1] else min(ends), max(ends)


def _sub(k: Intervals, node: Node) -> Interval:
    x, y = node.args
    (low, high), (low_y, high_y) = k.look(x), k.look(y)
    found = low - high_y, high - low_y
    if _is_absolute(k, x, y):
        return 0.0, max(abs(low_y), abs(high_y))
    subtracted = k.node(y)
    if subtracted is not None and subtracted.op == "amax" and subtracted.args[0] == x:
        return found[0], 0.0
    return found


def _is_absolute(k: Intervals, x: Any, y: Any) -> bool:
    """Whether x - y is 2 relu(y) - y."""
    double = k.node(x)
    if double is None or double.op != "mul" or double.args[1] != 2.0:
        return False
    relu = k.node(double.args[0])
    return relu is not None and relu.op == "relu" and relu.args[0] == y


def _is_share(k: Intervals, x: Any, y: Any) -> bool:
    """Whether x y is x over a sum that x is a part of."""
    inverse = k.node(y)
    if inverse is None or inverse.op != "reciprocal":
        return False
    total = k.by_name[inverse.args[0].name]
    return total.op == "view" and total.args[0].startswith("aten.sum.") and total.args[1] == x


def _mul(k: Intervals, node: Node) -> Interval:
    x, y = node.args
    if _is_share(k, x, y) and k.look(x)[0] >= 0:
        return 0.0, 1.0
    return _power(k.look(x), 2) if x == y else _product(k.look(x), k.look(y))


def _view(k: Intervals, node: Node) -> Interval:
    target, x = node.args[:2]
    low, high = k.look(x)
    if target.startswith("aten.sum."):
        count = prod(k.shape(x)) / max(1, prod(node.shape))
        return _times(count, low), _times(count, high)
    if target == "aten.cumsum.default" and k.stated:
        count = k.shape(x)[node.args[2]] if k.shape(x) else 1
        return min(low, _times(count, low)), max(high, _times(count, high))
    if target == "aten.constant_pad_nd.default":
        fill = float(node.args[3]) if len(node.args) > 3 else 0.0
        return min(low, fill), max(high, fill)
    return (low, high) if target in MOVED else ANY


def _union(parts: list[Interval]) -> Interval:
    return min(low for low, _ in parts), max(high for _, high in parts)


def _sums_of_products(k: Intervals, node: Node) -> Interval:
    """Of a matrix product, of windows as well, in which zeros may be padded; with the bias that a layer has."""
    x, y, bias = (*node.args, None)[:3]
    terms = k.shape(x)[-1] if node.op == "matmul" else k.shape(y)[-1]
    low, high = _product(_union([k.look(x), (0.0, 0.0)]), k.look(y))
    low_b, high_b = (0.0, 0.0) if bias is None else k.look(bias)
    return _times(terms, low) + low_b, _times(terms, high) + high_b


def _reciprocal(k: Intervals, node: Node) -> Interval:
    low, high = k.look(node.args[0])
    if k.stated:
        low, high = max(low, node.args[1]), min(high, node.args[2])
    return (1 / high if high > 0 else 0.0, 1 / low if low > 0 else inf) if low >= 0 else ANY


def _rsqrt(k: Intervals, node: Node) -> Interval:
    low, high = max(0.0, k.look(node.args[0])[0]), k.look(node.args[0])[1]
    if k.stated:
        low, high = max(low, node.args[1]), min(high, node.args[2])
    return 1 / sqrt(high) if 0 < high < inf else 0.0, 1 / sqrt(low) if low > 0 else inf


def _sqrt(k: Intervals, node: Node) -> Interval:
    low, high = k.look(node.args[0])
    if k.stated:
        high = min(high, node.args[2])
    return sqrt(low) if low > 0 else 0.0, sqrt(max(0.0, high)) if high < inf else inf


def _exp(k: Intervals, node: Node) -> Interval:
    """Powers of two above it, which all machines agree on to the last bit."""
    high = k.look(node.args[0])[1]
    if k.stated:
        high = min(high, node.args[2])
    return 0.0, 2.0 ** -(-high * 1.4426950408889634 // 1) if high < 700 else inf


def _log(k: Intervals, node: Node) -> Interval:
    """Between three below the logarithm of the least argument, as the function says, and a bit above that of the largest."""
    if not k.stated:
        return ANY
    low, high = (frexp(v)[1] for v in node.args[1:])
    return 0.7 * min(0, low) - 4.0, 0.7 * max(0, high) + 1.0


def _signed_reciprocal(k: Intervals, node: Node) -> Interval:
    return (-1 / node.args[1], 1 / node.args[1]) if k.stated else ANY


def _between(low: float, high: float) -> Callable[[Intervals, Node], Interval]:
    return lambda k, node: (low, high)


def _gated(least: float, above: float = 0.0) -> Callable[[Intervals, Node], Interval]:
    """Between `least` and the argument, or zero, whichever is more; `above` it at most."""

    def rule(k: Intervals, node: Node) -> Interval:
        return least, max(0.0, k.look(node.args[0])[1]) + above

    return rule


def _elu(k: Intervals, node: Node) -> Interval:
    low, high = _gated(-abs(node.args[1]))(k, node)
    return low, max(high, abs(node.args[1]))


def _normalised(k: Intervals, node: Node) -> Interval:
    """n values of mean square 1 are below sqrt(n)."""
    n = prod(node.shape[len(node.shape) - node.args[1] :])
    weight, bias = node.args[2], node.args[3] if node.op == "layer_norm" else None
    low, high = _product((-sqrt(n), sqrt(n)), (1.0, 1.0) if weight is None else k.look(weight))
    low_b, high_b = (0.0, 0.0) if bias is None else k.look(bias)
    return low + low_b, high + high_b


_RULES: dict[str, Callable[[Intervals, Node], Interval]] = {
    "add": lambda k, node: (sum(k.look(a)[0] for a in node.args), sum(k.look(a)[1] for a in node.args)),
    "sub": _sub,
    "neg": lambda k, node: (-k.look(node.args[0])[1], -k.look(node.args[0])[0]),
    "mul": _mul,
    "square": lambda k, node: _power(k.look(node.args[0]), 2),
    "power": lambda k, node: _power(k.look(node.args[0]), node.args[1]),
    **dict.fromkeys(("matmul", "linear", "conv"), _sums_of_products),
    "view": _view,
    "cat": lambda k, node: _union([k.look(v) for v in node.args[1]]),
    "take": lambda k, node: k.look(node.args[0]),
    "where": lambda k, node: _union([k.look(v) for v in node.args[1:]]),
    "amax": lambda k, node: k.look(node.args[0]),
    "max_with_index": lambda k, node: _union(
        [k.look(node.args[0]), (0.0, float(max(k.shape(node.args[0]), default=1)))]
    ),
    "relu": lambda k, node: (max(0.0, k.look(node.args[0])[0]), max(0.0, k.look(node.args[0])[1])),
    "clamp": lambda k, node: (node.args[1], node.args[2]),
    "sigmoid": _between(0.0, 1.0),
    "tanh": _between(-1.0, 1.0),
    "erf": _between(-1.0, 1.0),
    "softmax_numerator": _between(0.0, 1.0),
    "less": _between(0.0, 1.0),
    "equal": _between(0.0, 1.0),
    "one_hot": _between(0.0, 1.0),
    "gelu": _gated(-0.25),
    "silu": _gated(-0.35),
    "mish": _gated(-0.35),
    "softplus": _gated(0.0, 0.75),
    "elu": _elu,
    "exp": _exp,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "log": _log,
    "reciprocal": _reciprocal,
    "signed_reciprocal": _signed_reciprocal,
    "layer_norm": _normalised,
    "rms_norm": _normalised,
}
"""Approximate functions may overstep their bounds by their error: ranges made of these have to bear that, or widen by a slack."""
