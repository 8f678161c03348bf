"""Joining, splitting and indexing."""

from __future__ import annotations

from typing import Any

import torch

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.registry import rule
from secure_eval.program import Ref


@rule("cat.default")
def _cat(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _joined(b, "aten.cat.default", args, value)


@rule("stack.default")
def _stack(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _joined(b, "aten.stack.default", args, value)


def _joined(b: Builder, target: str, args: list[Any], value: Any) -> Any:
    return b.op("cat", [target, list(args[0]), args[1] if len(args) > 1 else 0], value)


@rule("split.Tensor", "split_with_sizes.default", "chunk.default")
def _split(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    start, parts = 0, []
    for part in value:
        size = part.shape[dim]
        parts.append(b.op("view", ["aten.slice.Tensor", b.secret(args[0]), dim, start, start + size], part))
        start += size
    return parts


@rule("embedding.default")
def _embedding(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    table, index = args[:2]
    if b.level(index) in ("public", "constant"):
        return b.op("take", [b.secret(table), index], value)
    if b.level(index) != "client":
        b.fail("aten.embedding", "the indices depend on secret values")
        return None
    rows = b.shape(table)[0]
    one_hot = torch.empty((*b.shape(index), rows), dtype=torch.int64, device="meta")
    hot = b.add("aten::aten.one_hot.default", (index, rows), "client", one_hot, integral=True)
    return b.op("matmul", [hot, table], value)


@rule("index.Tensor")
def _index(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, indices = args
    if any(isinstance(i, Ref) and b.level(i) not in ("public", "constant") for i in indices):
        b.fail("aten.index.Tensor", "an index depends on secret values")
        return None
    if len(indices) == 1:
        return b.op("take", [b.secret(x), indices[0]], value)
    b.fail("aten.index.Tensor", "more than one index tensor")
    return None
