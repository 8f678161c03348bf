"""Comparisons, selections, and what is made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval.lowering.arithmetic import reduced_dims
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.registry import RULES, Rule, rule
from secure_eval.program import Node, Ref


@rule("where.self", "where.ScalarOther", "where.ScalarSelf")
def _where(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    condition = b.by_name[args[0].name]
    if condition.level == "secret" and (inverse := _inverted(b, condition)) is not None:
        args, condition = [inverse, args[2], args[1]], b.by_name[inverse.name]
    if condition.level == "secret" and condition.op != "less":
        b.fail("aten.where", "the condition is a combination of secret comparisons")
    constants = {a.name: b.constants.get(a.name) for a in args[1:] if isinstance(a, Ref)}
    args = [args[0], *(_scalar(constants.get(a.name), a) if isinstance(a, Ref) else a for a in args[1:])]
    return b.op("where", args, value)


def _inverted(b: Builder, node: Node) -> Ref | None:
    """The comparison of which `node` is the negation 1 - bit."""
    if (
        node.op == "sub"
        and node.args[0] == 1.0
        and b.is_secret(node.args[1])
        and b.by_name[node.args[1].name].op == "less"
    ):
        inverse: Ref = node.args[1]
        return inverse
    return None


def _scalar(constant: Tensor | None, ref: Ref) -> Any:
    """A stored one-element constant as a Python number (masks are filled with them)."""
    if constant is not None and constant.numel() == 1 and constant.device.type != "meta":
        return float(constant)
    return ref


@rule("masked_fill.Scalar", "masked_fill_.Scalar")
def _masked_fill(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, mask, fill = args
    node = b.by_name[mask.name]
    inverted = b.add(
        "aten::aten.logical_not.default",
        (mask,),
        node.level,
        torch.empty(node.shape, dtype=torch.bool, device="meta"),
        integral=True,
    )
    return b.op("where", [inverted, x, float(fill)], value)


def _compare(swap: bool, invert: bool) -> Rule:
    def compare(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        x, y = args[:2]
        bit = b.op("less", [y, x] if swap else [x, y], value)
        return b.op("sub", [1.0, bit], value) if invert else bit

    return compare


for _name, _swap, _invert in (
    ("lt", False, False),
    ("gt", True, False),
    ("ge", False, True),
    ("le", True, True),
):
    RULES[f"aten.{_name}.Scalar"] = RULES[f"aten.{_name}.Tensor"] = _compare(_swap, _invert)


@rule("logical_not.default", "bitwise_not.default")
def _not(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    node = b.by_name[args[0].name]
    inverse = _inverted(b, node)
    if inverse is None and node.op != "less":
        b.fail("aten.logical_not", "of what is not a comparison")
        return None
    return inverse or b.op("sub", [1.0, args[0]], value)


@rule("maximum.default")
def _maximum(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """max(x, y) = y + relu(x - y)."""
    x, y = args
    return b.op("add", [b.op("relu", [b.op("sub", [x, y], value)], value), y], value)


@rule("minimum.default")
def _minimum(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """min(x, y) = x - relu(x - y)."""
    x, y = args
    return b.op("sub", [x, b.op("relu", [b.op("sub", [x, y], value)], value)], value)


@rule("abs.default")
def _abs(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """abs(x) = 2 relu(x) - x."""
    return b.op("sub", [b.op("mul", [b.op("relu", args[:1], value), 2.0], value), args[0]], value)


@rule("amax.default")
def _amax(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    dims, keepdim = reduced_dims(args, kwargs, len(b.shape(args[0])))
    if len(dims) != 1:
        b.fail("aten.amax", "more than one dimension")
        return None
    return b.op("amax", [args[0], dims[0], keepdim], value)
