"""Sums, products and means."""

from __future__ import annotations

from math import prod
from typing import Any

from secure_eval.lowering.activations import gated_by_itself
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.decompositions import lower_decomposed
from secure_eval.lowering.normalisation import over_root_mean_square, weighted_norm
from secure_eval.lowering.registry import rule
from secure_eval.lowering.rotations import is_complex, turned
from secure_eval.program import Ref


@rule("add.Tensor", "add.Scalar", "add_.Tensor")
def _add(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _summed(b, "add", args[0], args[1], kwargs, value)


@rule("sub.Tensor", "sub.Scalar")
def _sub(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _summed(b, "sub", args[0], args[1], kwargs, value)


@rule("rsub.Tensor", "rsub.Scalar")
def _rsub(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _summed(b, "sub", args[1], args[0], kwargs, value)


def _summed(b: Builder, op: str, x: Any, y: Any, kwargs: dict[str, Any], value: Any) -> Any:
    if kwargs.get("alpha", 1) != 1:
        b.fail(f"aten.{op}", "alpha other than 1")
        return None
    return b.op(op, [x, y], value)


@rule("neg.default")
def _neg(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("neg", args, value)


@rule("mul.Tensor", "mul.Scalar", "mul_.Tensor")
def _mul(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if isinstance(args[1], Ref) and args[0] == args[1] and not is_complex(b, args[0]):
        return b.op("square", args[:1], value)
    x, y = args[:2]
    return (
        turned(b, x, y)
        or gated_by_itself(b, x, y, value)
        or over_root_mean_square(b, x, y, value)
        or weighted_norm(b, x, y, value)
        or b.op("mul", [x, y], value)
    )


@rule("square.default")
def _square(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("square", args[:1], value)


@rule("matmul.default", "bmm.default", "mm.default")
def _matmul(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("matmul", args[:2], value)


@rule("linear.default")
def _linear(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("linear", [b.secret(args[0]), args[1], args[2] if len(args) > 2 else None], value)


@rule("addmm.default")
def _addmm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
        return lower_decomposed(b, "aten.addmm.default", args, kwargs)
    return b.op("add", [b.op("matmul", args[1:3], value), args[0]], value)


def reduced_dims(args: list[Any], kwargs: dict[str, Any], rank: int) -> tuple[list[int], bool]:
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    dims = list(range(rank)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    return dims, bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))


@rule("mean.dim", "mean.default")
def _mean(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x = b.secret(args[0])
    dims, keepdim = reduced_dims(args, kwargs, len(b.shape(x)))
    count = prod(b.shape(x)[d] for d in dims)
    return b.op("mul", [b.op("view", ["aten.sum.dim_IntList", x, dims, keepdim], value), 1.0 / count], value)
