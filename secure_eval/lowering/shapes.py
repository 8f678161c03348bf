"""Joining, splitting and padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.dispatch import full
from secure_eval.lowering.indexing import clear, shaped
from secure_eval.lowering.registry import rule


@rule("cat.default")
def _cat(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _joined(b, "aten.cat.default", args, kwargs, value)


@rule("stack.default")
def _stack(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _joined(b, "aten.stack.default", args, kwargs, value)


def _joined(b: Builder, target: str, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    parts = list(args[0])
    if target == "aten.cat.default":  # torch lets an empty vector be joined to anything
        parts = [p for p in parts if b.shape(p) != (0,) or len(value.shape) == 1]
    return b.op("cat", [target, parts, kwargs.get("dim", args[1] if len(args) > 1 else 0)], value)


@rule("split.Tensor", "split_with_sizes.default", "chunk.default")
def _split(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    start, parts = 0, []
    for part in value:
        size = part.shape[dim]
        parts.append(b.op("view", ["aten.slice.Tensor", b.secret(args[0]), dim, start, start + size], part))
        start += size
    return parts


@rule("unbind.int")
def _unbind(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    return [b.op("view", ["aten.select.int", b.secret(args[0]), dim, i], p) for i, p in enumerate(value)]


@rule("constant_pad_nd.default")
def _constant_pad(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """Zeros around; another number is a public constant that is zero where the value is."""
    x, widths = b.secret(args[0]), list(args[1])
    number = kwargs.get("value", args[2] if len(args) > 2 else 0)
    padded = b.op("view", ["aten.constant_pad_nd.default", x, widths], value)
    if not number:
        return padded
    inside = full(b, shaped(b.shape(x)), 0)
    frame = clear(b, "aten.constant_pad_nd.default", "constant", shaped(value.shape), inside, widths, number)
    return b.op("add", [padded, frame], value)


@rule("pad.default")
def _pad(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """Constant padding; reflected and repeated elements are looked up at public positions, a dimension after the other."""
    x, widths = b.secret(args[0]), list(args[1])
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
    number = kwargs.get("value", args[3] if len(args) > 3 else None)
    if mode == "constant":
        return _constant_pad(b, [x, widths, number or 0], {}, value)
    shape = list(b.shape(x))
    for i in range(len(widths) // 2):
        dim, (left, right) = len(shape) - 1 - i, widths[2 * i : 2 * i + 2]
        size = shape[dim]
        shape[dim] += left + right
        index = b.constant(f"padding_{len(b.nodes)}", _sources(size, left, right, mode))
        x = b.op("view", ["aten.index_select.default", x, dim, index], shaped(shape))
    return x


def _sources(size: int, left: int, right: int, mode: str) -> Tensor:
    """Which element of a dimension each element of the padded one is."""
    positions = torch.arange(-left, size + right, device="cpu")
    if mode == "replicate":
        return positions.clamp(0, size - 1)
    if mode == "circular":
        return positions % size
    period = max(1, 2 * (size - 1))
    return (positions % period - (size - 1)).abs().neg() + (size - 1)
