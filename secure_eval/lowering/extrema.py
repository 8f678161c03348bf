"""Largest and smallest values over dimensions, and where they are."""

from __future__ import annotations

from typing import Any

import torch

from secure_eval.lowering.activations import UNREACHED, given, held
from secure_eval.lowering.arithmetic import reduced_dims
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import moved, one_hot, reshape, shaped
from secure_eval.lowering.masks import cut_below, floored
from secure_eval.lowering.registry import RULES, Rule, rule
from secure_eval.program import Ref


def _negated(b: Builder, x: Ref) -> Ref:
    return b.op("neg", [x], shaped(b.shape(x)))


def _compared(b: Builder, x: Ref, negate: bool = False) -> Ref:
    """x, or -x, as places are looked for in it: with a number that no value reaches where a type's smallest, or -inf, was added or filled
    in."""
    node = b.by_name[x.name]
    if node.op == "where" and (branches := [held(v) for v in node.args[1:]]) != list(node.args[1:]):
        x = b.op("where", [node.args[0], *branches], shaped(node.shape))
    elif not negate:
        x = cut_below(b, x, -UNREACHED)
    return _negated(b, x) if negate else x


def _joined(b: Builder, x: Ref, dims: list[int]) -> Ref:
    """x with these dimensions as one, the last: of [..., n] the elements of a row are those that are compared."""
    shape, rank = b.shape(x), len(b.shape(x))
    dims = [d % rank for d in dims]
    kept = [d for d in range(rank) if d not in dims]
    if kept + dims != list(range(rank)):
        order = kept + dims
        x = b.op("view", ["aten.permute.default", x, order], shaped([shape[d] for d in order]))
    return reshape(b, x, [*(shape[d] for d in kept), -1 if 0 not in shape else 0])


def _largest(b: Builder, x: Ref, dims: list[int], keepdim: bool, value: Any) -> Ref:
    if len(dims) == 1:
        x, dropped = floored(b, x, dims[0])  # a masked entry is no largest value
        if dropped is None:
            return b.op("amax", [x, dims[0], keepdim], value)
        row = shaped([1 if d == dims[0] % len(b.shape(x)) else n for d, n in enumerate(b.shape(x))])
        found = b.op("add", [b.op("amax", [x, dims[0], True], row), dropped], row)
        return found if keepdim else b.op("view", ["aten.squeeze.dim", found, dims[0]], value)
    result = b.op(
        "amax", [_joined(b, x, dims), -1, False], shaped([s for s in value.shape if s != 1 or not keepdim])
    )
    return reshape(b, result, list(value.shape))


def _extreme(negate: bool) -> Rule:
    def lower(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        x = b.secret(args[0])
        dims, keepdim = reduced_dims(args, kwargs, len(b.shape(x)))
        dims = dims or list(range(len(b.shape(x))))
        if not dims:
            return x
        found = _largest(b, _negated(b, x) if negate else x, dims, keepdim, value)
        return b.op("neg", [found], value) if negate else found

    return lower


RULES["aten.amax.default"] = RULES["aten.max.default"] = _extreme(False)
RULES["aten.amin.default"] = RULES["aten.min.default"] = _extreme(True)


def _place(b: Builder, x: Ref, dim: int, keepdim: bool, values: Any, indices: Any) -> tuple[Ref, Ref]:
    """The largest value along `dim` and its index, of the shapes and types given."""
    both = b.op("max_with_index", [x, dim, keepdim], shaped([2, *indices.shape]))
    found = b.op("view", ["aten.select.int", both, 0, 0], values)
    return found, b.op("view", ["aten.select.int", both, 0, 1], indices)


def _arg(negate: bool) -> Rule:
    def lower(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        x = _compared(b, b.secret(args[0]), negate)
        dim, keepdim = given(args, kwargs, 1, "dim", None), bool(given(args, kwargs, 2, "keepdim", False))
        if dim is None:
            x, dim = reshape(b, x, [-1]), 0
            flat = shaped([], torch.int64)
            index = _place(b, x, dim, False, shaped([]), flat)[1]
            return reshape(b, index, list(value.shape)) if keepdim else index
        return _place(b, x, dim, keepdim, shaped(value.shape), value)[1]

    return lower


RULES["aten.argmax.default"], RULES["aten.argmin.default"] = _arg(False), _arg(True)


def _with_place(negate: bool) -> Rule:
    def lower(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        x = _compared(b, b.secret(args[0]), negate)
        dim, keepdim = given(args, kwargs, 1, "dim", -1), bool(given(args, kwargs, 2, "keepdim", False))
        found, index = _place(b, x, dim, keepdim, *value)
        return [b.op("neg", [found], value[0]) if negate else found, index]

    return lower


RULES["aten.max.dim"], RULES["aten.min.dim"] = _with_place(False), _with_place(True)


@rule("topk.default")
def _topk(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """The k largest one after the other: each is taken out for the next by its one-hot row, down to what is below all of the row."""
    k, dim, largest = args[1], given(args, kwargs, 2, "dim", -1), given(args, kwargs, 3, "largest", True)
    if k == 1:
        return _with_place(not largest)(b, [args[0], dim, True], {}, value)
    x = _compared(b, b.secret(args[0]), not largest)
    shape = list(b.shape(x))
    dim %= len(shape)
    whole, length = shaped(shape), shape[dim]
    shape[dim] = 1
    row, places = shaped(shape), shaped(shape, torch.int64)
    lowest = b.op("neg", [b.op("amax", [_negated(b, x), dim, True], row)], row)
    bottom = b.op("sub", [lowest, 1.0], row)
    found, indices, hots = [], [], []
    for i in range(k):
        top, place = _place(b, x, dim, True, row, places)
        hot = one_hot(b, place, length)  # [..., 1, ..., length]
        found.append(top)
        indices.append(place)
        hots.append(hot)
        if i < k - 1:
            along = moved(b, "aten.transpose.int", hot, shaped(whole.shape + (1,), torch.int64), dim, -1)
            along = moved(b, "aten.squeeze.dim", along, shaped(whole.shape, torch.int64), -1)
            x = b.op("sub", [x, b.op("mul", [along, b.op("sub", [top, bottom], row)], whole)], whole)
    values = b.op("cat", ["aten.cat.default", found, dim], value[0])
    index = b.op("cat", ["aten.cat.default", indices, dim], value[1])
    shape[dim] = k
    b.hot[index.name, length] = b.op(
        "cat", ["aten.cat.default", hots, dim], shaped([*shape, length], torch.int64)
    )
    return [values if largest else b.op("neg", [values], value[0]), index]
