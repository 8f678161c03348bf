"""Convolutions and pooling: what is computed on windows of a tensor.

Windows are a view of the tensor. Where they don't overlap (patch embeddings, 1x1 convolutions), a convolution is a linear layer on that
view. Where they do, an element would be opened once a window: so `conv` takes the tensor itself, and the view belongs to the bilinear map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.decompositions import operation
from secure_eval.lowering.indexing import moved, reshape, shaped
from secure_eval.lowering.registry import RULES, Rule, rule
from secure_eval.program import Ref

Step = tuple[Any, ...]
"""A torch operation that is a view, and its arguments after the tensor."""


def _each(value: Any, n: int) -> list[int]:
    """A size for each of n dimensions, as torch reads one number or a list of one."""
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _window_steps(
    n: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> list[Step]:
    """Views of [B, C, *sizes] that give [B, C, *windows, *kernel]; padding (before, after) of each dimension, negative to cut off."""
    steps: list[Step] = []
    if any(p != (0, 0) for p in padding):
        steps.append(("aten.constant_pad_nd.default", tuple(w for p in reversed(padding) for w in p)))
    for i in range(n):
        reach = (kernel[i] - 1) * dilation[i] + 1
        steps.append(("aten.unfold.default", 2 + i, reach, stride[i]))
        if dilation[i] > 1:
            steps.append(("aten.slice.Tensor", 2 + n + i, 0, reach, dilation[i]))
    return steps


def apply_steps(x: Tensor, steps: Sequence[Step]) -> Tensor:
    """The views one after the other."""
    for target, *rest in steps:
        x = operation(target)(x, *rest)
    return x


def _views(b: Builder, x: Ref, steps: Sequence[Step]) -> Ref:
    """The views as nodes of the program."""
    for step in steps:
        value = apply_steps(shaped(b.shape(x)), [step])
        x = b.op("view", [step[0], x, *(list(v) if isinstance(v, tuple) else v for v in step[1:])], value)
    return x


@rule("conv1d.default", "conv2d.default", "conv3d.default")
def _conv(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    n = len(b.shape(given["weight"])) - 2
    padding = [(p, p) for p in _each(given.get("padding", 0), n)]
    return _convolved(b, given, padding, value)


@rule("conv1d.padding", "conv2d.padding", "conv3d.padding")
def _conv_named(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    kernel = b.shape(given["weight"])[2:]
    dilation = _each(given.get("dilation", 1), len(kernel))
    padding = [(0, 0)] * len(kernel)
    if given.get("padding", "valid") == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = [(t // 2, t - t // 2) for t in totals]
    return _convolved(b, given, padding, value)


@rule("convolution.default")
def _convolution(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, weight, bias, stride, padding, dilation, transposed, extra, groups = args
    given = {
        "input": x,
        "weight": weight,
        "bias": bias,
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
    }
    if transposed:
        return _transposed(b, given | {"padding": padding, "output_padding": extra}, value)
    return _convolved(b, given, [(p, p) for p in _each(padding, len(b.shape(weight)) - 2)], value)


def _convolved(b: Builder, given: dict[str, Any], padding: list[tuple[int, int]], value: Any) -> Any:
    """[B, C, *sizes] -> [B, O, *out]; the weight [O, C/groups, *kernel] is put into the shape of a linear layer's by whoever knows it."""
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    groups = given.get("groups", 1)
    kernel = list(b.shape(weight)[2:])
    n, outputs = len(kernel), b.shape(weight)[0]
    stride, dilation = _each(given.get("stride", 1), n), _each(given.get("dilation", 1), n)
    if len(b.shape(x)) == n + 1:  # no batch
        x = moved(b, "aten.unsqueeze.default", x, shaped([1, *b.shape(x)]), 0)
    x = b.secret(x)
    batch, channels = b.shape(x)[:2]
    steps = _window_steps(n, kernel, stride, dilation, padding)
    out = list(apply_steps(shaped(b.shape(x)), steps).shape[2 : 2 + n])
    within = channels // groups
    last = [2 + n + i for i in range(n)]
    places = list(range(2, 2 + n))
    if groups == 1:
        rows = [batch, *out]
        steps += [("aten.permute.default", (0, *places, 1, *last))]
        matrix = reshape(b, weight, [outputs, within * prod(kernel)])
    else:
        rows = [groups, batch * prod(out)]
        split = [batch, groups, within, *out, *kernel]
        steps += [("aten.reshape.default", tuple(split))]
        steps += [("aten.permute.default", (1, 0, *(d + 1 for d in places), 2, *(d + 1 for d in last)))]
        matrix = reshape(b, weight, [groups, outputs // groups, within * prod(kernel)])
        bias = bias if bias is None else reshape(b, bias, [groups, 1, outputs // groups])
    steps += [("aten.reshape.default", (*rows, within * prod(kernel)))]
    result = shaped([*rows, outputs // groups])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if groups == 1 and b.is_secret(x) and all(r <= s for r, s in zip(reach, stride, strict=True)):
        y = b.op("linear", [_views(b, x, steps), matrix, bias], result)
    else:
        y = b.op("conv", [x, matrix, bias, steps], result)
    if groups > 1:
        y = reshape(b, y, [groups, batch, *out, outputs // groups])
        order = [1, 0, 2 + n, *range(2, 2 + n)]
        y = moved(b, "aten.permute.default", y, shaped([batch, groups, outputs // groups, *out]), order)
        return reshape(b, y, list(value.shape))
    y = moved(b, "aten.permute.default", y, shaped([batch, outputs, *out]), [0, 1 + n, *range(1, 1 + n)])
    return reshape(b, y, list(value.shape)) if b.shape(y) != tuple(value.shape) else y


@rule("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    return _transposed(b, dict(zip(names, args, strict=False)) | kwargs, value)


def _transposed(b: Builder, given: dict[str, Any], value: Any) -> Any:
    """A convolution of stride 1 of the input with zeros between its elements, by the weight mirrored, [C, O/groups, *kernel] before."""
    x, weight, groups = b.secret(given["input"]), given["weight"], given.get("groups", 1)
    inputs, within, *kernel = b.shape(weight)
    n = len(kernel)
    stride, dilation = _each(given.get("stride", 1), n), _each(given.get("dilation", 1), n)
    padding, extra = _each(given.get("padding", 0), n), _each(given.get("output_padding", 0), n)
    if len(b.shape(x)) == n + 1:
        x = moved(b, "aten.unsqueeze.default", x, shaped([1, *b.shape(x)]), 0)
    x = _spread(b, x, stride)
    widths_of = [
        ((k - 1) * d - p, (k - 1) * d - p + e)
        for k, d, p, e in zip(kernel, dilation, padding, extra, strict=True)
    ]
    level = b.level(weight)
    parts = [groups, inputs // groups, within, *kernel]
    w = reshape(b, weight, parts)
    swapped = [groups, within, inputs // groups, *kernel]
    w = moved(b, "aten.transpose.int", w, shaped(swapped), 1, 2)
    w = reshape(b, w, [groups * within, inputs // groups, *kernel])
    w = moved(b, "aten.flip.default", w, shaped(b.shape(w)), [2 + i for i in range(n)])
    assert b.level(w) == level
    inner = {"input": x, "weight": w, "bias": given.get("bias"), "dilation": dilation, "groups": groups}
    return _convolved(b, inner, widths_of, value)


def _avg_pool(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any, dimensions: int) -> Any:
    names = (
        "input",
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    )
    given = dict(zip(names, args, strict=False)) | kwargs
    x, n = b.secret(given["input"]), dimensions
    kernel = _each(given["kernel_size"], n)
    stride = _each(given.get("stride") or kernel, n)
    padding = _each(given.get("padding", 0), n)
    sizes, out = b.shape(x)[-n:], value.shape[-n:]
    # A single window may be far larger than what is there: it is cut to that, and what is beyond it cut off.
    held = [
        min(k - p, size) if o == 1 else k for p, o, k, size in zip(padding, out, kernel, sizes, strict=True)
    ]
    around = [
        (0, k - size) if o == 1 else (p, (o - 1) * s + k - size - p)
        for p, o, s, k, size in zip(padding, out, stride, held, sizes, strict=True)
    ]
    batched = reshape(b, x, [1, *b.shape(x)]) if len(b.shape(x)) == n + 1 else x
    windows = _views(b, batched, _window_steps(n, held, stride, [1] * n, around))
    last = [2 + n + i for i in range(n)]
    total = b.op("view", ["aten.sum.dim_IntList", windows, last], shaped([*b.shape(batched)[:2], *out]))
    total = reshape(b, total, list(value.shape)) if b.shape(total) != tuple(value.shape) else total
    # What torch divides by differs at the border: it says so itself, on ones.
    pool = torch.nn.functional.avg_pool2d if n == 2 else torch.nn.functional.avg_pool3d
    ceil, counted = bool(given.get("ceil_mode", False)), bool(given.get("count_include_pad", True))
    ones = torch.ones(1, 1, *sizes, device="cpu")
    parts = pool(ones, kernel, stride, padding, ceil, counted, given.get("divisor_override"))
    factor = (parts / pool(ones, kernel, stride, padding, ceil, True, 1))[0, 0]
    if bool((factor == factor.flatten()[0]).all()):
        return b.op("mul", [total, float(factor.flatten()[0])], value)
    return b.op("mul", [total, b.constant(f"shares_{len(b.nodes)}", factor)], value)


for _n in (2, 3):
    RULES[f"aten.avg_pool{_n}d.default"] = partial(_avg_pool, dimensions=_n)


def _max_pool(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any, dimensions: int) -> Any:
    """One dimension after the other: k - 1 comparisons a window and dimension. At the border a window takes an element of its own twice,
    which changes no maximum."""
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict(zip(names, args, strict=False)) | kwargs
    x, n = b.secret(given["input"]), dimensions
    kernel = _each(given["kernel_size"], n)
    stride = _each(given.get("stride") or kernel, n)
    padding, dilation = _each(given.get("padding", 0), n), _each(given.get("dilation", 1), n)
    shape = list(b.shape(x))
    for i in reversed(range(n)):
        d = len(shape) - n + i
        out = value.shape[d]
        positions = _window_positions(shape[d], out, kernel[i], stride[i], padding[i], dilation[i])
        index = b.constant(f"windows_{len(b.nodes)}", positions)
        cut = [*shape[:d], out, kernel[i], *shape[d + 1 :]]
        windows = b.op("view", ["aten.index.Tensor", x, [*[None] * d, index]], shaped(cut))
        shape[d] = out
        x = b.op("amax", [windows, d + 1, False], shaped(shape))
    return x


for _n in (1, 2, 3):
    RULES[f"aten.max_pool{_n}d.default"] = partial(_max_pool, dimensions=_n)


def _window_positions(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """[out, kernel]: which elements of a dimension each window holds; for one outside, another of the same window."""
    starts = torch.arange(out, device="cpu").unsqueeze(1) * stride - padding
    positions = starts + torch.arange(kernel, device="cpu") * dilation
    inside = (positions >= 0) & (positions < size)
    first = positions.gather(1, inside.int().argmax(1, keepdim=True))
    return torch.where(inside, positions, first)


def _spread(b: Builder, x: Ref, stride: list[int]) -> Ref:
    """[B, C, *sizes] with stride - 1 zeros between neighbours."""
    for i, step in enumerate(stride):
        if step > 1:
            d, shape = 2 + i, list(b.shape(x))
            apart = [*shape[: d + 1], 1, *shape[d + 1 :]]
            widths = [0, 0] * (len(shape) - d - 1) + [0, step - 1]
            shape[d] *= step
            steps: list[Step] = [
                ("aten.reshape.default", tuple(apart)),
                ("aten.constant_pad_nd.default", tuple(widths)),
                ("aten.reshape.default", tuple(shape)),
                ("aten.slice.Tensor", d, 0, shape[d] - step + 1),
            ]
            x = _views(b, x, steps)
    return x


@rule("col2im.default")
def _col2im(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """The sum of windows [B, C * kernel, places] put where they belong: one sum for each element of the kernel."""
    x, size, kernel, dilation, padding, stride = b.secret(args[0]), *map(list, args[1:6])
    batch = value.shape[0] if len(value.shape) == 4 else 1
    places = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    channels = value.shape[-3]
    x = reshape(b, x, [batch, channels, *kernel, *places])
    result = shaped([batch, channels, *size])
    total: Ref | None = None
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            part = _views(b, x, [("aten.select.int", 2, i), ("aten.select.int", 2, j)])
            part = _spread(b, part, stride)
            widths = []
            for k, d in ((j, 1), (i, 0)):
                before = k * dilation[d] - padding[d]
                widths += [before, size[d] - before - b.shape(part)[2 + d]]
            part = _views(b, part, [("aten.constant_pad_nd.default", tuple(widths))])
            total = part if total is None else b.op("add", [total, part], result)
    assert total is not None
    return reshape(b, total, list(value.shape)) if len(value.shape) == 3 else total


@rule("channel_shuffle.default", "native_channel_shuffle.default")
def _channel_shuffle(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, groups = b.secret(args[0]), args[1]
    batch, channels, *sizes = b.shape(x)
    x = reshape(b, x, [batch, groups, channels // groups, *sizes])
    swapped = shaped([batch, channels // groups, groups, *sizes])
    return reshape(b, moved(b, "aten.transpose.int", x, swapped, 1, 2), list(value.shape))


@rule("_adaptive_avg_pool2d.default")
def _adaptive_avg_pool(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """Means of blocks where the sizes divide; else of windows that differ, by public matrices."""
    x = b.secret(args[0])
    *rest, height, width = b.shape(x)
    down, across = value.shape[-2:]
    if height % down or width % across:
        return _separable(b, x, "aten._adaptive_avg_pool2d.default", [list(args[1])], value)
    blocks = reshape(b, x, [*rest, down, height // down, across, width // across])
    total = b.op("view", ["aten.sum.dim_IntList", blocks, [-3, -1]], value)
    return b.op("mul", [total, down * across / (height * width)], value)


def _upsample(target: str) -> Rule:
    """Interpolation to another size, by public matrices."""

    def upsample(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        names = ("input", "output_size", "align_corners", "scales_h", "scales_w")
        given = dict(zip(names, args, strict=False)) | kwargs
        return _separable(b, b.secret(given["input"]), target, [given.get(n) for n in names[1:]], value)

    return upsample


for _name in (
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
):
    RULES[f"aten.{_name}.default"] = _upsample(f"aten.{_name}.default")


def _separable(b: Builder, x: Ref, target: str, rest: list[Any], value: Any) -> Any:
    """A linear map of the last two dimensions that is one matrix each and keeps constants: each matrix is read off the map itself,
    applied to unit vectors along one dimension."""
    height, width = b.shape(x)[-2:]
    op = operation(target)
    rows = op(torch.eye(height, device="cpu")[:, None, :, None].expand(-1, 1, -1, width), *rest)[:, 0, :, 0]
    columns = op(torch.eye(width, device="cpu")[:, None, None, :].expand(-1, 1, height, -1), *rest)[
        :, 0, 0, :
    ]
    across = b.constant(f"columns_{len(b.nodes)}", columns.contiguous())
    down = b.constant(f"rows_{len(b.nodes)}", rows.T.contiguous())
    x = b.op("matmul", [x, across], shaped([*value.shape[:-2], height, value.shape[-1]]))
    return b.op("matmul", [down, x], value)
