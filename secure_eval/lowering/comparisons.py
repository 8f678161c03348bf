"""Comparisons, what is made of their bits, and selections by them."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from secure_eval.lowering.activations import UNREACHED, bounded, held, number
from secure_eval.lowering.arithmetic import reduced_dims
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.dispatch import full
from secure_eval.lowering.indexing import clear, shaped
from secure_eval.lowering.registry import RULES, Rule, rule
from secure_eval.operations.arrangement import MOVED
from secure_eval.program import Ref

# -- selections --------------------------------------------------------------------------------------------------


@rule("where.self", "where.Scalar", "where.ScalarOther", "where.ScalarSelf")
def _where(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    condition = args[0]
    if b.is_secret(condition) and (inverse := _inverted(b, condition)) is not None:
        args = [inverse, args[2], args[1]]
    branches = _numbers(b, args, tuple(value.shape))
    if b.level(args[0]) not in ("public", "constant"):
        branches = [held(v) for v in branches]
    return b.op("where", [args[0], *branches], value)


def _numbers(b: Builder, args: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The two branches, a constant that is one number all over as a number where the other operands have the whole shape."""
    branches = list(args[1:])
    for i, branch in enumerate(branches):
        others = [b.shape(v) for v in (args[0], branches[1 - i]) if isinstance(v, Ref)]
        if isinstance(branch, Ref) and torch.broadcast_shapes(*others) == torch.Size(shape):
            branches[i] = number(b, branch)
    return branches


def _inverted(b: Builder, bit: Ref) -> Ref | None:
    """The bit of which `bit` is the negation 1 - bit."""
    node = b.by_name[bit.name]
    if node.op == "sub" and node.args[0] == 1.0 and b.is_secret(node.args[1]) and _is_bit(b, node.args[1]):
        inverse: Ref = node.args[1]
        return inverse
    return None


def _is_bit(b: Builder, value: Any) -> bool:
    return isinstance(value, Ref) and b.by_name[value.name].dtype == torch.bool


@rule("masked_fill.Scalar", "masked_fill_.Scalar", "masked_fill.Tensor", "masked_fill_.Tensor")
def _masked_fill(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, mask, fill = args[0], args[1], number(b, args[2])
    fill = fill if isinstance(fill, Ref) else float(fill)
    if b.is_secret(mask):
        return _where(b, [mask, fill, x], {}, value)
    level = b.level(mask)
    if level not in ("public", "constant") and not isinstance(fill, Ref):
        fill = float(held(fill))
    kept = clear(b, "aten.logical_not.default", level, shaped(b.shape(mask), torch.bool), mask)
    return b.op("where", [kept, x, fill], value)


# -- bits ----------------------------------------------------------------------------------------------------------


def _not(b: Builder, bit: Ref, value: Any) -> Ref:
    return _inverted(b, bit) or b.op("sub", [1.0, bit], value)


def _compare(swap: bool, invert: bool) -> Rule:
    def compare(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        x, y = args[0], number(b, args[1])
        bit = b.op("less", [y, x] if swap else [x, y], value)
        return _not(b, bit, value) if invert else bit

    return compare


def _equal(invert: bool) -> Rule:
    def equal(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        bit = b.op("equal", args[:2], value)
        return _not(b, bit, value) if invert else bit

    return equal


for _name, _rule in (
    ("lt", _compare(False, False)),
    ("gt", _compare(True, False)),
    ("ge", _compare(False, True)),
    ("le", _compare(True, True)),
    ("eq", _equal(False)),
    ("ne", _equal(True)),
):
    RULES[f"aten.{_name}.Scalar"] = RULES[f"aten.{_name}.Tensor"] = _rule


@rule("logical_not.default", "bitwise_not.default")
def _logical_not(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if not _is_bit(b, args[0]):
        b.fail("aten.logical_not", "of what is not a comparison")
        return None
    return _not(b, args[0], value)


def _and(b: Builder, x: Ref, y: Ref, value: Any) -> Ref:
    return b.op("mul", [x, y], value)


def _or(b: Builder, x: Ref, y: Ref, value: Any) -> Ref:
    """x + y - x y."""
    return b.op("sub", [b.op("add", [x, y], value), _and(b, x, y, value)], value)


def _xor(b: Builder, x: Ref, y: Ref, value: Any) -> Ref:
    """x + y - 2 x y."""
    both = b.op("mul", [_and(b, x, y, value), 2.0], value)
    return b.op("sub", [b.op("add", [x, y], value), both], value)


def _of_bits(name: str, combine: Any) -> Rule:
    def lower(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        if not all(_is_bit(b, v) for v in args[:2]):
            b.fail(f"aten.{name}", "of what are not comparisons")
            return None
        return combine(b, *args[:2], value)

    return lower


for _name, _combine in (("and", _and), ("or", _or), ("xor", _xor)):
    for _target in (f"__{_name}__.Tensor", f"logical_{_name}.default", f"bitwise_{_name}.Tensor"):
        RULES[f"aten.{_target}"] = RULES[f"aten.{_target.replace('.', '_.')}"] = _of_bits(
            _target.partition(".")[0], _combine
        )


def _counted(
    b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any, name: str
) -> tuple[Ref, int] | None:
    """How many bits of a row are set, and how many there are."""
    x = args[0]
    if not _is_bit(b, x):
        b.fail(f"aten.{name}", "of what are not comparisons")
        return None
    dims, keepdim = reduced_dims(args, kwargs, len(b.shape(x)))
    count = b.op("view", ["aten.sum.dim_IntList", x, dims, keepdim], shaped(value.shape, torch.int64))
    return count, prod(b.shape(x)[d] for d in dims)


@rule("all.default", "all.dim", "all.dims")
def _all(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    counted = _counted(b, args, kwargs, value, "all")
    return None if counted is None else _not(b, b.op("less", [counted[0], float(counted[1])], value), value)


@rule("any.default", "any.dim", "any.dims")
def _any(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    counted = _counted(b, args, kwargs, value, "any")
    return None if counted is None else _not(b, b.op("less", [counted[0], 1.0], value), value)


@rule("isnan.default", "isinf.default")
def _never(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """No ring element stands for an infinity, or for no number."""
    return full(b, value, False)


@rule("nan_to_num.default")
def _nan_to_num(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return args[0]


@rule("sign.default", "sgn.default")
def _sign(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """1 - 2 [x < 0] - [x = 0]: both bits from one opening."""
    negative = b.op("mul", [b.op("less", [args[0], 0.0], value), 2.0], value)
    return b.op("sub", [b.op("sub", [1.0, negative], value), b.op("equal", [args[0], 0.0], value)], value)


# -- the larger and the largest --------------------------------------------------------------------------------------


@rule("maximum.default", "max.other", "fmax.default")
def _maximum(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """max(x, y) = y + relu(x - y)."""
    x, y = args
    if (public := _public_operand(b, x, y)) is not None:
        return _bounded_by(b, *public, value, below=True)
    return b.op("add", [b.op("relu", [b.op("sub", [x, y], value)], value), y], value)


@rule("minimum.default", "min.other", "fmin.default")
def _minimum(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """min(x, y) = x - relu(x - y)."""
    x, y = args
    if (public := _public_operand(b, x, y)) is not None:
        return _bounded_by(b, *public, value, below=False)
    return b.op("sub", [x, b.op("relu", [b.op("sub", [x, y], value)], value)], value)


def _public_operand(b: Builder, x: Ref, y: Ref) -> tuple[Ref, Ref] | None:
    """(secret, public) of two operands of which one is known to all."""
    for secret, other in ((x, y), (y, x)):
        if b.level(other) in ("public", "constant"):
            return secret, other
    return None


def _bounded_by(b: Builder, x: Ref, bound: Ref, value: Any, below: bool) -> Any:
    """max(x, bound), or min, for public bounds. One that no value reaches (a type's largest or smallest number) bounds nothing, or is the
    result itself: so masks are chosen by a minimum."""
    same = number(b, bound)
    if isinstance(same, (int, float)) and abs(same) < UNREACHED:
        return bounded(b, x, same if below else None, None if below else same, value)
    shape, level = b.shape(bound), b.level(bound)

    def test(target: str, limit: float) -> Ref:
        return clear(b, target, level, shaped(shape, torch.bool), bound, limit)

    low, high = test("aten.lt.Scalar", -UNREACHED), test("aten.gt.Scalar", UNREACHED)
    free, decided = (low, high) if below else (high, low)
    result = x
    if not _only_far(b, bound):
        either = clear(b, "aten.logical_or.default", level, shaped(shape, torch.bool), low, high)
        near = clear(b, "aten.masked_fill.Scalar", level, shaped(shape), bound, either, 0.0)
        if below:
            result = b.op("add", [b.op("relu", [b.op("sub", [x, near], value)], value), near], value)
        else:
            result = b.op("sub", [x, b.op("relu", [b.op("sub", [x, near], value)], value)], value)
        result = b.op("where", [free, x, result], value)
    if isinstance(same, (int, float)):
        return result if (same < 0) == below else b.op("where", [decided, bound, result], value)
    return b.op("where", [decided, bound, result], value)


def _only_far(b: Builder, bound: Ref) -> bool:
    """Whether every bound is one that no value reaches, as far as that is known: a constant, or one of two numbers."""
    node, stored = b.by_name[bound.name], b.constants.get(bound.name)
    if stored is not None and not stored.is_meta:
        return bool((stored.abs() >= UNREACHED).all())
    if node.op.startswith(("aten::aten.where.", "aten::aten.masked_fill.")):
        values = node.args[1:] if ".where." in node.op else (node.args[0], node.args[2])
        return all(
            isinstance(v, (int, float)) and abs(v) >= UNREACHED or isinstance(v, Ref) and _only_far(b, v)
            for v in values
        )
    same = number(b, bound)
    return (
        isinstance(same, (int, float))
        and abs(same) >= UNREACHED
        or node.op in _MOVES
        and _only_far(b, node.args[0])
    )


_MOVES = {f"aten::{name}" for name in (*MOVED, "aten.to.dtype", "aten.clone.default")}


@rule("abs.default")
def _abs(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """abs(x) = 2 relu(x) - x."""
    return b.op("sub", [b.op("mul", [b.op("relu", args[:1], value), 2.0], value), args[0]], value)
