"""Softmax and attention: public masks become selections, the division a reciprocal a row."""

from __future__ import annotations

from math import isinf, sqrt
from typing import Any

import torch

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.registry import rule
from secure_eval.program import Ref

_FAR_NEGATIVE = -5e3
"""A public summand below this, or a fill value below it, is a mask and not a number: it selects."""


def _masked(b: Builder, x: Any) -> tuple[Any, Any]:
    """Splits scores into the scores before masking and their public additive mask, None where there is none."""
    node = b.by_name[x.name]
    if node.op == "add":
        left, right = node.args
        for secret, clear in ((left, right), (right, left)):
            if b.is_secret(secret) and isinstance(clear, Ref) and b.level(clear) in ("public", "constant"):
                return secret, clear
    if node.op == "where" and isinstance(node.args[0], Ref) and not b.is_secret(node.args[0]):
        condition, kept, fill = node.args
        if isinstance(fill, float) and (fill < _FAR_NEGATIVE or isinf(fill)) and b.is_secret(kept):
            level = b.level(condition)
            shape = torch.empty(b.shape(condition), device="meta")
            zeros = b.add(
                "aten::aten.zeros_like.default", (condition,), level, shape, kwargs={"dtype": torch.float32}
            )
            return kept, b.add("aten::aten.where.ScalarOther", (condition, zeros, fill), level, shape)
    return x, None


@rule("softmax.int", "_softmax.default")
def _softmax(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """softmax = e / sum(e), e = exp(x - max): the division is a reciprocal a row, and passes may move it behind a matmul."""
    dim = args[1]
    x, mask = _masked(b, b.secret(args[0]))
    numerator = b.op("softmax_numerator", [x, mask, dim], value)
    shape = list(value.shape)
    length = shape[dim]
    shape[dim] = 1
    total = b.op("view", ["aten.sum.dim_IntList", numerator, [dim], True], shape)
    inverse = b.op("reciprocal", [total, 1.0, float(max(2, length))], shape)
    return b.op("mul", [numerator, inverse], value)


@rule("scaled_dot_product_attention.default")
def _attention(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    q, k, v = (b.secret(a) for a in args[:3])
    mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
    if kwargs.get("is_causal") or kwargs.get("enable_gqa") or len(args) > 5 and args[5]:
        b.fail(
            "aten.scaled_dot_product_attention",
            "is_causal and enable_gqa; load the model with attn_implementation='eager'",
        )
        return None
    *batch, length, width = b.shape(q)
    keys = b.shape(k)[-2]
    transposed = b.op("view", ["aten.transpose.int", k, -1, -2], [*b.shape(k)[:-2], width, keys])
    scores = torch.empty((*batch, length, keys), device="meta")
    x = b.op("mul", [b.op("matmul", [q, transposed], scores), kwargs.get("scale") or 1 / sqrt(width)], scores)
    if isinstance(mask, Ref):
        if b.by_name[mask.name].dtype == torch.bool:
            x = b.op("where", [mask, x, float("-inf")], scores)
        else:
            x = b.op("add", [x, mask], scores)
    return b.op("matmul", [_softmax(b, [x, -1], {}, scores), v], value)
