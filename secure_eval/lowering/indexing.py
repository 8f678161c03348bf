"""Reading at indices: public ones select, private ones multiply with one-hot rows.

An index that all parties know moves elements, for nothing. One that the client knows (a position in its tokens) is made one-hot by the
client, which shares it: what is indexed is then a matrix product. One that nobody knows (an argmax) becomes one-hot by comparisons:
n - 1 of them an index for n rows, from one opening of the index, then the same product.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.registry import rule
from secure_eval.program import Ref

_CLEAR = ("public", "constant")


def shaped(shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that only says a shape and a type."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def reshape(b: Builder, x: Ref, shape: Any) -> Ref:
    """x in another shape, one size of which may be -1: by whoever knows it, or a view of a secret."""
    value = shaped(b.shape(x), b.by_name[x.name].dtype).reshape(tuple(shape))
    return moved(b, "aten.reshape.default", x, value, list(shape))


def moved(b: Builder, target: str, x: Ref, value: Tensor, *rest: Any) -> Ref:
    """A rearrangement of x: by whoever knows it, or a view of a secret."""
    node = b.by_name[x.name]
    if node.level == "secret":
        return b.op("view", [target, x, *rest], value)
    return b.add(f"aten::{target}", (x, *rest), node.level, value, integral=node.integral)


def clear(b: Builder, target: str, level: str, value: Tensor, *args: Any) -> Ref:
    """An operation in the clear on values that `level` knows."""
    return b.add(f"aten::{target}", args, level, value, integral=not value.is_floating_point())


def one_hot(b: Builder, index: Ref, rows: int) -> Ref:
    """[..., rows] for an index [...] that the client or nobody knows, as a clear value of the client's or a secret."""
    if (index.name, rows) not in b.hot:
        b.hot[index.name, rows] = _one_hot(b, index, rows)
    return b.hot[index.name, rows]


def _one_hot(b: Builder, index: Ref, rows: int) -> Ref:
    node = b.by_name[index.name]
    value = shaped((*node.shape, rows), torch.int64)
    if node.level != "secret":
        return b.add("aten::aten.one_hot.default", (index, rows), node.level, value, integral=True)
    if (
        node.op == "view" and node.args[0] in _REARRANGED
    ):  # of an index whose rows are there: the same rows, rearranged
        before = b.by_name[node.args[1].name]
        known = b.hot.get((before.name, rows))
        target, (*rest,) = node.args[0], node.args[2:]
        if known is not None and target == "aten.reshape.default":
            return reshape(b, known, [*node.shape, rows])
        if known is not None:
            rank = len(before.shape)
            order = list(rest[0]) if target == "aten.permute.default" else _swapped(rank, *rest)
            return moved(b, "aten.permute.default", known, value, [*(d % rank for d in order), rank])
    return b.op("one_hot", [index, rows], value)


_REARRANGED = ("aten.reshape.default", "aten.permute.default", "aten.transpose.int")


def _swapped(rank: int, i: int, j: int) -> list[int]:
    order = list(range(rank))
    order[i], order[j] = order[j], order[i]
    return order


@rule("one_hot.default")
def _one_hot_rule(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """Of a secret index: its rows."""
    if args[1] < 1:
        b.fail("aten.one_hot", "the number of classes depends on values")
        return None
    return one_hot(b, args[0], args[1])


def _from_the_end(b: Builder, index: Ref, rows: int) -> Ref:
    """A client's index without negative values: they count from the end."""
    node = b.by_name[index.name]
    if node.level == "secret":
        return index
    value = shaped(node.shape, node.dtype)
    below = b.add(
        "aten::aten.lt.Scalar", (index, 0), node.level, shaped(node.shape, torch.bool), integral=True
    )
    wrapped = clear(b, "aten.add.Scalar", node.level, value, index, rows)
    return clear(b, "aten.where.self", node.level, value, below, wrapped, index)


@rule("embedding.default")
def _embedding(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    table, index = args[:2]
    if b.level(index) in _CLEAR:
        return b.op("take", [b.secret(table), index], value)
    return b.op("matmul", [one_hot(b, index, b.shape(table)[0]), table], value)


@rule("index_select.default")
def _index_select(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, dim, index = args
    if b.level(index) in _CLEAR:
        return b.op("view", ["aten.index_select.default", b.secret(x), dim, index], value)
    return _index(b, [x, [None] * (dim % len(b.shape(x))) + [index]], {}, value)


@rule("gather.default")
def _gather(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """out[..., i, ...] = x[..., index[..., i, ...], ...] along one dimension."""
    x, dim, index = args[0], args[1], args[2]
    if b.level(index) in _CLEAR:
        return b.op("view", ["aten.gather.default", b.secret(x), dim, index], value)
    shape, wanted = list(b.shape(x)), list(b.shape(index))
    dim %= len(shape)
    others = [d for d in range(len(shape)) if d != dim]
    x = b.secret(x)
    for d in others:  # a gather may look at the first rows only
        if wanted[d] != shape[d]:
            shape[d] = wanted[d]
            x = b.op("view", ["aten.slice.Tensor", x, d, 0, wanted[d]], shaped(shape))
    rest = [wanted[d] for d in others]
    order = [*others, dim]
    x = b.op("view", ["aten.permute.default", x, order], shaped([*rest, shape[dim]]))
    x = reshape(b, x, [*rest, shape[dim], 1])
    index = _from_the_end(b, index, shape[dim])
    last = moved(b, "aten.permute.default", index, shaped([*rest, wanted[dim]], torch.int64), order)
    rows = b.op("matmul", [one_hot(b, last, shape[dim]), x], shaped([*rest, wanted[dim], 1]))
    rows = reshape(b, rows, [*rest, wanted[dim]])
    return b.op("view", ["aten.permute.default", rows, [order.index(d) for d in range(len(shape))]], value)


@rule("index.Tensor", "_unsafe_index.Tensor")
def _index(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """x[i, :, j, ...]. Indices broadcast against each other; their common shape takes the place of the first dimension that is indexed,
    or the front where a slice lies between them."""
    x, indices = b.secret(args[0]), list(args[1])
    private = [d for d, i in enumerate(indices) if isinstance(i, Ref) and b.level(i) not in _CLEAR]
    if not private:
        if len(indices) == 1:
            return b.op("take", [x, indices[0]], value)
        return b.op("view", ["aten.index.Tensor", x, indices], value)
    shape = b.shape(x)
    indexed = [d for d, i in enumerate(indices) if i is not None]
    common = list(torch.broadcast_shapes(*(b.shape(indices[d]) for d in indexed)))
    public = [d for d in indexed if d not in private]
    slices = [d for d in range(len(shape)) if d not in indexed]
    kept, rows = [shape[d] for d in slices], prod(shape[d] for d in private)
    order = [*public, *private, *slices]
    x = b.op("view", ["aten.permute.default", x, order], shaped(shape[d] for d in order))
    before: list[int] = []
    if public:
        before = list(torch.broadcast_shapes(*(b.shape(indices[d]) for d in public)))
        tables = shaped([*before, *(shape[d] for d in private), *kept])
        x = b.op("view", ["aten.index.Tensor", x, [indices[d] for d in public]], tables)
    x = reshape(b, x, [*before, rows, prod(kept)])
    hot = one_hot(b, _row(b, [indices[d] for d in private], [shape[d] for d in private]), rows)
    if public:  # one row of each public position's own table
        hot_shape = list(b.shape(hot))[:-1]
        hot = moved(b, "aten.unsqueeze.default", hot, shaped([*hot_shape, 1, rows], torch.int64), -2)
        found = b.op("matmul", [hot, x], shaped([*common, 1, prod(kept)]))
    else:
        found = b.op("matmul", [hot, x], shaped([*common, prod(kept)]))
    found = reshape(b, found, [*common, *kept])
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    place = indexed[0] if adjacent else 0
    n = len(common)
    back = [*range(n, n + place), *range(n), *range(n + place, n + len(kept))]
    return b.op("view", ["aten.permute.default", found, back], value)


def _row(b: Builder, indices: list[Ref], sizes: list[int]) -> Ref:
    """The row-major number of an element of a table of these sizes."""
    row, *others = (_from_the_end(b, i, n) for i, n in zip(indices, sizes, strict=True))
    for index, size in zip(others, sizes[1:], strict=True):
        shape = torch.broadcast_shapes(b.shape(row), b.shape(index))
        levels = {b.level(row), b.level(index)}
        value = shaped(shape, torch.int64)
        if "secret" in levels:
            row = b.op(
                "add", [b.op("mul", [row, float(size)], shaped(b.shape(row), torch.int64)), index], value
            )
        else:
            level = levels.pop() if len(levels) == 1 else "client"
            scaled = clear(b, "aten.mul.Scalar", b.level(row), shaped(b.shape(row), torch.int64), row, size)
            row = clear(b, "aten.add.Tensor", level, value, scaled, index)
    return row
