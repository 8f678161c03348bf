"""Summands of scores that are known in the clear, and the mask in a table of the model owner's.

A model may add its own mask to a table before any scores are there: biases of relative positions that hide what follows. The table is the
owner's secret, the mask is architecture. `owner_parts` walks back through what the owner computes and takes the mask out, so that the table
alone is shared: the smallest number of a type is no ring element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from secure_eval.intervals import UNCHANGED
from secure_eval.lowering.activations import number
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import clear, shaped
from secure_eval.program import Node, Ref

Parts = tuple[Ref | None, Ref | None]
"""A value of the owner's as the sum of what the owner alone knows and of what all know, None for none."""


def filled(b: Builder, value: float) -> Ref:
    return b.add(
        "aten::aten.full.default", ([], float(value)), "constant", (), kwargs={"dtype": torch.float32}
    )


def real(b: Builder, value: Ref) -> Ref:
    node = b.by_name[value.name]
    if node.dtype.is_floating_point:
        return value
    return b.add("aten::aten.to.dtype", (value, torch.float32), node.level, node.shape)


def combined(b: Builder, target: str, x: Ref | None, y: Ref | None) -> Ref | None:
    """Two summands that the same people know, by an operation of torch's."""
    if x is None or y is None:
        return x if y is None else y if target == "aten.add.Tensor" else negated(b, y)
    level = joint(b, x, y)
    return clear(b, target, level, shaped(torch.broadcast_shapes(b.shape(x), b.shape(y))), x, y)


def joint(b: Builder, *values: Ref) -> str:
    levels = {b.level(v) for v in values}
    return "client" if "client" in levels else "public" if "public" in levels else "constant"


def negated(b: Builder, x: Ref) -> Ref:
    return clear(b, "aten.neg.default", b.level(x), shaped(b.shape(x)), x)


def owner_parts(b: Builder, value: Ref) -> Parts | None:
    """The parts of a value of the owner's; None where nothing in it is known to all."""
    node = b.by_name[value.name]
    target = node.op.removeprefix("aten::")
    rule = _kept if node.op in UNCHANGED else _OWNER_RULES.get(target.rpartition(".")[0])
    found = rule(b, node) if rule is not None and node.level == "owner" else None
    return None if found is None or found[1] is None else found


def _operand(b: Builder, value: Any) -> Parts:
    if not isinstance(value, Ref):
        return None, filled(b, value) if value else None
    if b.level(value) != "owner":
        return None, real(b, value)
    return owner_parts(b, value) or (value, None)


def _owner_sum(b: Builder, node: Node) -> Parts | None:
    if node.kwargs or len(node.args) != 2:
        return None
    target = node.op.removeprefix("aten::").replace(".Scalar", ".Tensor")
    x, y = (_operand(b, a) for a in node.args)
    own = y[0] if x[0] is None else x[0] if y[0] is None else None
    if x[0] is None and own is not None and target == "aten.sub.Tensor":
        own = negated(b, own)
    if own is None and x[0] is not None and y[0] is not None:
        own = clear(
            b, target, "owner", shaped(torch.broadcast_shapes(b.shape(x[0]), b.shape(y[0]))), x[0], y[0]
        )
    return own, combined(b, target, x[1], y[1])


def _owner_scaled(b: Builder, node: Node) -> Parts | None:
    """c (x + m) = c x + c m, for a positive number c."""
    value, c = node.args if isinstance(node.args[0], Ref) else node.args[::-1]
    factor = number(b, c)
    if not isinstance(value, Ref) or not isinstance(factor, (int, float)) or factor <= 0:
        return None
    target = node.op.removeprefix("aten::").replace(".Tensor", ".Scalar")
    parts = _operand(b, value)
    own, known = (p and clear(b, target, b.level(p), shaped(b.shape(p)), p, float(factor)) for p in parts)
    return own, known


def _owner_selected(b: Builder, node: Node) -> Parts | None:
    """One of two by a condition that all know: `where`, and `masked_fill` the other way round."""
    fills = node.op.startswith("aten::aten.masked_fill.")
    condition, *branches = (node.args[1], node.args[2], node.args[0]) if fills else node.args
    if not isinstance(condition, Ref) or b.level(condition) != "constant" or len(branches) != 2:
        return None
    zero = filled(b, 0.0)

    def chosen(level: str, parts: list[Ref | None]) -> Ref | None:
        if not any(parts):
            return None
        whole = [zero if p is None else p for p in parts]
        return b.add("aten::aten.where.self", (condition, *whole), level, node.shape)

    own, known = zip(*(_operand(b, branch) for branch in branches), strict=True)
    return chosen("owner", list(own)), chosen("constant", list(known))


def _kept(b: Builder, node: Node) -> Parts | None:
    """An operation that moves or copies elements and leaves them as they are."""
    if not node.dtype.is_floating_point or not isinstance(node.args[0], Ref):
        return None
    shape = b.shape(node.args[0])

    def same(part: Ref | None) -> Ref | None:
        if part is None:
            return None
        if b.shape(part) != shape:
            part = clear(b, "aten.expand.default", b.level(part), shaped(shape), part, list(shape))
        level, arguments = b.level(part), (part, *node.args[1:])
        return b.add(node.op, arguments, level, shaped(node.shape), kwargs=dict(node.kwargs))

    own, known = _operand(b, node.args[0])
    return same(own), same(known)


_OWNER_RULES: dict[str, Callable[[Builder, Node], Parts | None]] = {
    "aten.add": _owner_sum,
    "aten.sub": _owner_sum,
    "aten.mul": _owner_scaled,
    "aten.div": _owner_scaled,
    "aten.where": _owner_selected,
    "aten.masked_fill": _owner_selected,
}
