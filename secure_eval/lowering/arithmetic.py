"""Sums, products, powers, divisions and means."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.registry import rule
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
    if isinstance(args[1], Ref) and args[0] == args[1]:
        return b.op("square", args[:1], value)
    return b.op("mul", args[:2], value)


@rule("square.default")
def _square(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("square", args[:1], value)


@rule("pow.Tensor_Scalar")
def _pow(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, n = args
    if n == 1:
        return x
    if n == -1 or n == -0.5:
        return (lower_reciprocal if n == -1 else _rsqrt)(b, [x], {}, value)
    if n == 0.5:
        return _sqrt(b, [x], {}, value)
    if n == int(n) and n > 1 and (int(n) & (int(n) - 1)) == 0:
        return b.op("power", [x, int(n)], value)
    if n == 3:
        return b.op("mul", [b.op("square", [x], value), x], value)
    b.fail("aten.pow", f"exponent {n}; allowed: -1, -0.5, 0.5, 1, 3 and powers of two")
    return None


@rule("matmul.default", "bmm.default", "mm.default")
def _matmul(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("matmul", args[:2], value)


@rule("linear.default")
def _linear(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("linear", [b.secret(args[0]), args[1], args[2] if len(args) > 2 else None], value)


@rule("addmm.default")
def _addmm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
        b.fail("aten.addmm", "alpha and beta other than 1")
        return None
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


@rule("div.Tensor", "div.Scalar", "true_divide.Tensor")
def _div(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, y = args[:2]
    if isinstance(y, (int, float)):
        return b.op("mul", [x, 1.0 / y], value)
    if b.level(y) in ("constant", "owner", "public", "client"):
        node = b.by_name[y.name]
        inverse = b.add(
            "aten::aten.reciprocal.default",
            (y,),
            node.level,
            torch.empty(node.shape, dtype=torch.float32, device="meta"),
        )
        return b.op("mul", [x, inverse], value)
    inverse = lower_reciprocal(b, [y], {}, torch.empty(b.shape(y), device="meta"))
    return inverse if x == 1 else b.op("mul", [x, inverse], value)


@rule("reciprocal.default")
def lower_reciprocal(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("reciprocal", [args[0], 2.0**-6, 2.0**14], value)


@rule("rsqrt.default")
def _rsqrt(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("rsqrt", [args[0], 2.0**-8, 2.0**14], value)


@rule("sqrt.default")
def _sqrt(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("mul", [args[0], _rsqrt(b, args, kwargs, value)], value)
