"""Softmax and attention: public masks become selections, the division a reciprocal a row."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch

from secure_eval.lowering.activations import UNREACHED
from secure_eval.lowering.arithmetic import reduced_dims
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import clear, reshape, shaped
from secure_eval.lowering.masks import floored, masked
from secure_eval.lowering.powers import exponential
from secure_eval.lowering.registry import rule
from secure_eval.program import Ref


@rule("softmax.int", "_softmax.default")
def _softmax(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """softmax = e / sum(e), e = exp(x - max): the division is a reciprocal a row, and passes may move it behind a matmul."""
    dim = args[1]
    x, mask = masked(b, b.secret(args[0]), dim)
    numerator = b.op("softmax_numerator", [x, mask, dim], value)
    shape = list(value.shape)
    length = shape[dim]
    shape[dim] = 1
    total = b.op("view", ["aten.sum.dim_IntList", numerator, [dim], True], shape)
    inverse = b.op("reciprocal", [total, 1.0, float(max(2, length))], shape)
    return b.op("mul", [numerator, inverse], value)


@rule("log_softmax.int", "_log_softmax.default")
def _log_softmax(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """y - log(sum(exp(y))), y = x - max(x). A masked entry is about masks.FLOOR, where torch has less, or -inf."""
    y, _, log_sum = _below_maximum(b, floored(b, b.secret(args[0]), args[1])[0], args[1], value)
    return b.op("sub", [y, log_sum], value)


def _below_maximum(b: Builder, x: Ref, dim: int, value: Any) -> tuple[Ref, Ref, Ref]:
    """y = x - m, the row's maximum m, and log(sum(exp(y))), the last two with dimension `dim` kept."""
    shape = list(b.shape(x))
    length, shape[dim] = shape[dim], 1
    row = shaped(shape)
    largest = b.op("amax", [x, dim, True], row)
    y = b.op("sub", [x, largest], shaped(b.shape(x)))
    total = b.op("view", ["aten.sum.dim_IntList", exponential(b, y, shaped(b.shape(x))), [dim], True], row)
    return y, largest, b.op("log", [total, 1.0, float(max(2, length))], row)


@rule("logsumexp.default")
def _logsumexp(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """max(x) + log(sum(exp(x - max(x)))). A row of nothing but masks is about what they are, masks.FLOOR at least."""
    x = b.secret(args[0])
    dims, keepdim = reduced_dims(args, kwargs, len(b.shape(x)))
    if len(dims) != 1:
        b.fail("aten.logsumexp", "more than one dimension")
        return None
    x, dropped = floored(b, x, dims[0])
    _, largest, log_sum = _below_maximum(b, x, dims[0], value)
    row = shaped(b.shape(largest))
    total = b.op("add", [largest, log_sum], row)
    total = total if dropped is None else b.op("add", [total, dropped], row)
    return total if keepdim else b.op("view", ["aten.squeeze.dim", total, dims[0]], value)


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
            known = b.level(mask) in ("constant", "public")
            x = b.op("where", [mask, x, float("-inf") if known else -UNREACHED], scores)
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
