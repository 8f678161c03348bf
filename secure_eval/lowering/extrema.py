"""Largest and smallest values over dimensions, and where they are."""

from __future__ import annotations

from typing import Any

import torch

from secure_eval.lowering.activations import given
from secure_eval.lowering.arithmetic import reduced_dims
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import reshape, shaped
from secure_eval.lowering.registry import RULES, Rule, rule
from secure_eval.program import Ref


def _negated(b: Builder, x: Ref) -> Ref:
    return b.op("neg", [x], shaped(b.shape(x)))


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
        return b.op("amax", [x, dims[0], keepdim], value)
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
        x = b.secret(args[0])
        dim, keepdim = given(args, kwargs, 1, "dim", None), bool(given(args, kwargs, 2, "keepdim", False))
        if dim is None:
            x, dim = reshape(b, x, [-1]), 0
            flat = shaped([], torch.int64)
            index = _place(b, _negated(b, x) if negate else x, dim, False, shaped([]), flat)[1]
            return reshape(b, index, list(value.shape)) if keepdim else index
        return _place(b, _negated(b, x) if negate else x, dim, keepdim, shaped(value.shape), value)[1]

    return lower


RULES["aten.argmax.default"], RULES["aten.argmin.default"] = _arg(False), _arg(True)


def _with_place(negate: bool) -> Rule:
    def lower(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        x = b.secret(args[0])
        dim, keepdim = given(args, kwargs, 1, "dim", -1), bool(given(args, kwargs, 2, "keepdim", False))
        found, index = _place(b, _negated(b, x) if negate else x, dim, keepdim, *value)
        return [b.op("neg", [found], value[0]) if negate else found, index]

    return lower


RULES["aten.max.dim"], RULES["aten.min.dim"] = _with_place(False), _with_place(True)


@rule("topk.default")
def _topk(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """The largest, or the smallest, alone."""
    dim, largest = given(args, kwargs, 2, "dim", -1), given(args, kwargs, 3, "largest", True)
    if args[1] != 1:
        b.fail("aten.topk", f"k is {args[1]}; allowed: 1 (more would be a secure sort)")
        return None
    return _with_place(not largest)(b, [args[0], dim, True], {}, value)
