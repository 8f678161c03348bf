"""Elements picked by a mask, where the model then takes the first or the last of each row.

x[mask] has as many elements as the mask holds, which a program may not depend on. But where the same number of every row is picked (models
say so themselves: they reshape what comes out to rows), and one of each row is read, that one is a product with a one-hot row: whoever
knows the mask makes it. A row of which nothing is picked gives zeros; torch would refuse the reshape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import clear, moved, shaped
from secure_eval.program import Ref


@dataclass(frozen=True)
class Picked:
    """x[mask] for x of shape [rows, length, ...] and a clear mask [rows, length]; `rows` once it was reshaped to [rows, as many, ...]."""

    x: Ref
    mask: Ref
    rows: bool = False


def picked(b: Builder, target: str, args: list[Any]) -> Picked | Ref | None:
    """What an operation makes of elements that are picked, None where it cannot be told."""
    first = args[0]
    if target == "aten.index.Tensor" and isinstance(first, Ref):
        indices = [i for i in args[1] if i is not None]
        mask = indices[0] if len(indices) == 1 and args[1][0] is indices[0] else None
        if isinstance(mask, Ref) and b.by_name[mask.name].dtype == torch.bool and b.level(mask) != "secret":
            whole = len(b.shape(mask)) == 2 == len(b.shape(first)) - 1 and b.shape(first)[:2] == b.shape(mask)
            return Picked(first, mask) if whole else None
    if not isinstance(first, Picked):
        return None
    count, width = b.shape(first.mask)[0], b.shape(first.x)[2]
    if target in ("aten.view.default", "aten.reshape.default"):
        shape = args[1]
        same = len(shape) == 3 and (shape[0], shape[2]) == (count, width)
        return Picked(first.x, first.mask, True) if same and not first.rows else None
    if target == "aten.select.int" and first.rows and args[1] == 1 and args[2] in (0, -1):
        return _one_of_each(b, first, last=args[2] == -1)
    return None


def _one_of_each(b: Builder, found: Picked, last: bool) -> Ref:
    level, shape = b.level(found.mask), list(b.shape(found.mask))
    numbers, bits = shaped(shape, torch.int64), shaped(shape, torch.bool)
    number = clear(b, "aten.cumsum.default", level, numbers, found.mask, 1)
    if last:
        whole = clear(b, "aten.slice.Tensor", level, shaped([shape[0], 1], torch.int64), number, 1, -1)
        there = clear(b, "aten.eq.Tensor", level, bits, number, whole)
    else:
        there = clear(b, "aten.eq.Scalar", level, bits, number, 1)
    hot = clear(b, "aten.logical_and.default", level, bits, there, found.mask)
    hot = clear(b, "aten.to.dtype", level, numbers, hot, torch.int64)
    hot = moved(b, "aten.unsqueeze.default", hot, shaped([shape[0], 1, shape[1]], torch.int64), 1)
    x, width = b.secret(found.x), b.shape(found.x)[2]
    row = b.op("matmul", [hot, x], shaped([shape[0], 1, width]))
    return moved(b, "aten.squeeze.dim", row, shaped([shape[0], width]), 1)
