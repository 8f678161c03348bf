"""Softmax and attention: public masks become selections, the division a reciprocal a row."""

from __future__ import annotations

from math import isinf, sqrt
from typing import Any

import torch

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import clear, reshape, shaped
from secure_eval.lowering.registry import rule
from secure_eval.program import Ref

_FAR_NEGATIVE = -5e3
"""A public summand below this, or a fill value below it, is a mask and not a number: it selects."""


def _masked(b: Builder, x: Any) -> tuple[Any, Any]:
    """Splits scores into the scores before masking and their public additive mask, None where there is none."""
    node = b.by_name[x.name]
    if node.op == "add":
        left, right = node.args
        for scores, mask in ((left, right), (right, left)):
            if b.is_secret(scores) and isinstance(mask, Ref) and b.level(mask) in ("public", "constant"):
                return scores, mask
    if node.op == "where" and isinstance(node.args[0], Ref) and not b.is_secret(node.args[0]):
        condition, kept, fill = node.args
        if isinstance(kept, float):  # the other way round: filled where the condition holds
            shape = shaped(b.shape(condition), torch.bool)
            level = b.level(condition)
            condition = clear(b, "aten.logical_not.default", level, shape, condition)
            kept, fill = fill, kept
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
    names = ("attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args[3:], strict=False)) | kwargs
    mask = given.get("attn_mask")
    if given.get("dropout_p"):
        b.fail("aten.scaled_dot_product_attention", "dropout is switched on though the model is in eval mode")
        return None
    *batch, length, width = b.shape(q)
    keys = b.shape(k)[-2]
    if given.get("enable_gqa"):
        k, v = (_repeated(b, x, batch[-1]) for x in (k, v))
    if given.get("is_causal"):
        mask = _causal(b, length, keys)
    transposed = b.op("view", ["aten.transpose.int", k, -1, -2], [*b.shape(k)[:-2], width, keys])
    scores = torch.empty((*batch, length, keys), device="meta")
    scale = given.get("scale")
    scale = 1 / sqrt(width) if scale is None else scale
    x = b.op("matmul", [q, transposed], scores)
    x = x if scale == 1 else b.op("mul", [x, scale], scores)
    if isinstance(mask, Ref):
        if b.by_name[mask.name].dtype == torch.bool:
            x = b.op("where", [mask, x, float("-inf")], scores)
        else:
            x = b.op("add", [x, mask], scores)
    return b.op("matmul", [_softmax(b, [x, -1], {}, scores), v], value)


def _repeated(b: Builder, x: Ref, heads: int) -> Ref:
    """Keys or values [..., groups, length, width] with each group's as often as it has query heads: [..., heads, length, width]."""
    *batch, groups, length, width = b.shape(x)
    x = b.op("view", ["aten.unsqueeze.default", x, -3], shaped([*batch, groups, 1, length, width]))
    shape = [*batch, groups, heads // groups, length, width]
    x = b.op("view", ["aten.expand.default", x, shape], shaped(shape))
    return reshape(b, x, [*batch, heads, length, width])


def _causal(b: Builder, length: int, keys: int) -> Ref:
    """The constant mask [length, keys] in which query i keeps the keys up to i, as torch defines is_causal."""
    value = shaped([length, keys], torch.bool)
    ones = b.add(
        "aten::aten.full.default",
        ([length, keys], True),
        "constant",
        value,
        kwargs={"dtype": torch.bool},
        integral=True,
    )
    return clear(b, "aten.tril.default", "constant", value, ones)
