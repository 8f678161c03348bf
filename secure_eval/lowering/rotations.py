"""Secrets as complex numbers, which models turn by a clear table: rotary positions as some models write them.

A complex secret is held as the pairs [..., 2] of its real and imaginary parts. It may be multiplied with complex numbers that somebody
knows in the clear, and become pairs again; anything else is refused.
"""

from __future__ import annotations

from typing import Any

import torch

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import clear, shaped
from secure_eval.lowering.registry import rule
from secure_eval.program import Ref

ALLOWED = ("aten.view_as_complex.default", "aten.view_as_real.default", "aten.mul.Tensor")
"""Operations that may take a complex secret, or make one."""


@rule("view_as_complex.default")
def _as_complex(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    pairs = b.op("view", ["aten.alias.default", b.secret(args[0])], shaped(b.shape(args[0])))
    b.pairs.add(pairs.name)
    return pairs


@rule("view_as_real.default")
def _as_real(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("view", ["aten.alias.default", args[0]], value)


def is_complex(b: Builder, value: Any) -> bool:
    """Whether a value is a complex secret."""
    return isinstance(value, Ref) and value.name in b.pairs


def turned(b: Builder, x: Any, y: Any) -> Ref | None:
    """The product of a complex secret and clear complex numbers; None where neither is a complex secret.

    (a + bi)(c + di) of pairs: (a, b) c + (b, a) (-d, d).
    """
    if not is_complex(b, x) and not is_complex(b, y):
        return None
    pairs, table = (x, y) if is_complex(b, x) else (y, x)
    if not isinstance(table, Ref) or b.is_secret(table) or not b.by_name[table.name].dtype.is_complex:
        b.fail(
            "aten.mul.Tensor",
            "a complex secret; allowed is a product with complex numbers known in the clear",
        )
        return pairs
    level, shape = b.level(table), b.shape(table)
    parts = clear(b, "aten.view_as_real.default", level, shaped((*shape, 2)), table)
    real, imaginary = (
        clear(b, "aten.slice.Tensor", level, shaped((*shape, 1)), parts, -1, i, i + 1) for i in (0, 1)
    )
    opposite = clear(b, "aten.neg.default", level, shaped((*shape, 1)), imaginary)
    across = clear(b, "aten.cat.default", level, shaped((*shape, 2)), [opposite, imaginary], -1)
    whole = shaped(torch.broadcast_shapes(b.shape(pairs), (*shape, 2)))
    swapped = b.op("view", ["aten.flip.default", pairs, [-1]], shaped(b.shape(pairs)))
    result = b.op("add", [b.op("mul", [pairs, real], whole), b.op("mul", [swapped, across], whole)], whole)
    b.pairs.add(result.name)
    return result
