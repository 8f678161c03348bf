"""Writing at public positions: elements of the old and of the new are joined, and then read in the new order.

Assignments in a model (x[:, 0] = y, x.masked_fill_(m, c)) come here from torch.export as operations without side effects. Where an element
of the result comes from is public, so all of it is a rearrangement, for nothing.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from secure_eval.lowering.activations import held, number
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.dispatch import lower, view
from secure_eval.lowering.indexing import clear, moved, one_hot, reshape, shaped
from secure_eval.lowering.registry import rule
from secure_eval.program import Ref

_CLEAR = ("public", "constant")


@rule("copy.default", "fill.Tensor")
def _copy(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """What is written over everything."""
    return _broadcast(b, args[1], list(value.shape))


def _broadcast(b: Builder, x: Ref, shape: list[int]) -> Ref:
    if b.shape(x) == tuple(shape):
        return x
    return moved(b, "aten.expand.default", x, shaped(shape, b.by_name[x.name].dtype), shape)


@rule("slice_scatter.default")
def _slice_scatter(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    names = ("dim", "start", "end", "step")
    given = dict(zip(names, args[2:], strict=False)) | kwargs
    dim = given.get("dim", 0)
    size = value.shape[dim]
    positions = range(size)[slice(given.get("start"), given.get("end"), given.get("step", 1))]
    return _replaced(b, args[0], args[1], dim, list(positions), value)


@rule("select_scatter.default")
def _select_scatter(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, source, dim, position = args
    shape = list(value.shape)
    shape[dim] = 1
    row = reshape(b, source, shape)
    return _replaced(b, x, row, dim, [position % value.shape[dim]], value)


def _replaced(b: Builder, x: Ref, source: Ref, dim: int, positions: list[int], value: Any) -> Any:
    """x with `source` at these positions of a dimension, which ascend."""
    size = value.shape[dim]
    if not positions:
        return x
    if positions == list(range(size)):
        return b.secret(source)
    if positions[-1] - positions[0] + 1 == len(positions):  # next to each other: cut and join
        parts, shape = [], list(value.shape)
        for part, start, end in ((x, 0, positions[0]), (source, -1, -1), (x, positions[-1] + 1, size)):
            if start == end and start >= 0:
                continue
            shape[dim] = end - start
            parts.append(source if part is source else _slice(b, x, dim, start, end, shape))
        return b.op("cat", ["aten.cat.default", parts, dim], value)
    joined = list(value.shape)
    joined[dim] = size + len(positions)
    both = b.op("cat", ["aten.cat.default", [x, source], dim], shaped(joined))
    order = torch.arange(size, device="cpu")
    order[positions] = torch.arange(size, size + len(positions), device="cpu")
    index = b.constant(f"order_{len(b.nodes)}", order)
    return b.op("view", ["aten.index_select.default", both, dim, index], value)


def _slice(b: Builder, x: Ref, dim: int, start: int, end: int, shape: list[int]) -> Ref:
    return moved(b, "aten.slice.Tensor", x, shaped(shape, b.by_name[x.name].dtype), dim, start, end)


@rule("index_put.default", "_unsafe_index_put.default")
def _index_put(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, indices, source = args[:3]
    if kwargs.get("accumulate", args[3] if len(args) > 3 else False):
        b.fail("aten.index_put", "that accumulates")
        return None
    masks = [i for i in indices if isinstance(i, Ref) and b.by_name[i.name].dtype == torch.bool]
    if masks:
        return _where_mask(b, x, indices, source, value)
    if any(isinstance(i, Ref) and b.level(i) not in _CLEAR for i in indices):
        b.fail("aten.index_put", "an index depends on private values")
        return None
    return _written(b, x, source, value, "aten.index.Tensor", indices)


def _where_mask(b: Builder, x: Ref, indices: list[Any], source: Ref, value: Any) -> Any:
    """x[mask] = one value, or the same values for every element that the mask holds: a selection."""
    mask = indices[0]
    rank = len(value.shape) - len(b.shape(mask))
    if len(indices) != 1 or len(b.shape(source)) > rank and prod(b.shape(source)) != 1:
        b.fail("aten.index_put", "by a mask, of values that differ from element to element")
        return None
    if rank:
        shape = [*b.shape(mask), *[1] * rank]
        mask = lower(b, "aten.reshape.default", [mask, shape], {}, shaped(shape, torch.bool), b.site)
    if prod(b.shape(source)) == 1 and b.shape(source):
        source = reshape(b, source, [])
    return lower(b, "aten.where.self", [mask, source, x], {}, value, b.site)


@rule("scatter.src")
def _scatter(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, dim, index, source = args
    if b.level(index) not in _CLEAR:
        return _scatter_privately(b, x, dim, index, source, value)
    for d, size in enumerate(b.shape(index)):  # only as much of the source is written as there are indices
        if size != b.shape(source)[d]:
            shape = [*b.shape(source)[:d], size, *b.shape(source)[d + 1 :]]
            source = _slice(b, source, d, 0, size, shape)
    return _written(b, x, source, value, "aten.gather.default", dim, index)


def _scatter_privately(b: Builder, x: Ref, dim: int, index: Ref, source: Ref | float, value: Any) -> Any:
    """x with `source` (of the index's shape, or one number) written where nobody may know: x plus, for each index, its one-hot row times
    what is to be added there. Indices of a row must differ, as those of a top-k do: where they do not, torch's own result is not
    defined either."""
    shape, places = list(value.shape), list(b.shape(index))
    dim %= len(shape)
    others = [d for d in range(len(shape)) if d != dim]
    if any(places[d] != shape[d] for d in others):
        b.fail("aten.scatter", "a private index for a part of the rows")
        return None
    hot = one_hot(b, index, shape[dim])  # [..., k, ..., n]
    kept = shaped(shape)

    def spread(rows: Ref) -> Ref:
        """The sum over indices of [..., k, ..., n], n in the place of k."""
        total = list(places)
        total[dim] = 1
        summed = b.op("view", ["aten.sum.dim_IntList", rows, [dim], True], shaped([*total, shape[dim]]))
        summed = b.op("view", ["aten.transpose.int", summed, dim, -1], shaped([*shape, 1]))
        return b.op("view", ["aten.squeeze.dim", summed, -1], kept)

    if isinstance(source, Ref):
        column = moved(b, "aten.unsqueeze.default", b.operand(source), shaped([*places, 1]), -1)
        written = spread(b.op("mul", [hot, column], shaped([*places, shape[dim]])))
    else:
        written = b.op("mul", [spread(b.secret(hot)), float(source)], kept)
    filled = held(number(b, x))
    if filled == 0:
        return written
    free = b.op("sub", [1.0, spread(b.secret(hot))], kept)
    return b.op("add", [b.op("mul", [free, filled], kept), written], value)


@rule("scatter.value")
def _scatter_value(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, dim, index, fill = args
    if b.level(index) not in _CLEAR:
        return _scatter_privately(b, x, dim, index, float(held(fill)), value)
    source = b.add(
        "aten::aten.full.default", (list(b.shape(index)), float(fill)), "constant", shaped(b.shape(index))
    )
    return _scatter(b, [x, dim, index, source], kwargs, value)


def _written(b: Builder, x: Ref, source: Ref, value: Any, read: str, *where: Any) -> Any:
    """x with `source` written to the places that the operation `read` would read with arguments `where`."""
    count = prod(value.shape)
    level = "public" if any(b.level(r) == "public" for r in _references(where)) else "constant"
    numbers = clear(b, "aten.arange.default", "constant", shaped([count], torch.int64), count)
    grid = clear(
        b, "aten.reshape.default", "constant", shaped(value.shape, torch.int64), numbers, list(value.shape)
    )
    places_shape = _shape_of(b, read, value.shape, where)
    places = clear(b, read, level, shaped(places_shape, torch.int64), grid, *where)
    size = prod(places_shape)
    places = clear(b, "aten.reshape.default", level, shaped([size], torch.int64), places, [size])
    new = clear(b, "aten.arange.start", "constant", shaped([size], torch.int64), count, count + size)
    order = clear(b, "aten.scatter.src", level, shaped([count], torch.int64), numbers, 0, places, new)
    source = _broadcast(b, source, places_shape)
    both = b.op(
        "cat",
        ["aten.cat.default", [reshape(b, x, [count]), reshape(b, source, [size])], 0],
        shaped([count + size]),
    )
    found = view(b, "aten.index_select.default", [both, 0, order], {}, shaped([count]))
    return reshape(b, found, list(value.shape))


def _references(values: Any) -> list[Ref]:
    if isinstance(values, Ref):
        return [values]
    return [r for v in values for r in _references(v)] if isinstance(values, (list, tuple)) else []


def _shape_of(b: Builder, read: str, shape: Any, where: Any) -> list[int]:
    """The shape of what `read` reads from a tensor of this shape."""

    def example(value: Any) -> Any:
        if isinstance(value, Ref):
            return shaped(b.shape(value), b.by_name[value.name].dtype)
        return [example(v) for v in value] if isinstance(value, (list, tuple)) else value

    function = torch.ops.aten.index.Tensor if read == "aten.index.Tensor" else torch.ops.aten.gather.default
    return list(function(shaped(shape), *example(list(where))).shape)
