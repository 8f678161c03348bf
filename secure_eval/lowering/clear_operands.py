"""Operands that an operation on secrets needs in the clear: indices, conditions, arithmetic of indices."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secure_eval.lowering.builder import Builder
from secure_eval.program import Ref

_INDICES = {
    "index.Tensor": 1,
    "_unsafe_index.Tensor": 1,
    "embedding.default": 1,
    "index_select.default": 2,
    "gather.default": 2,
    "scatter.src": 2,
    "scatter.value": 2,
    "scatter_add.default": 2,
    "scatter_reduce.two": 2,
    "index_add.default": 2,
    "index_fill.int_Scalar": 2,
    "index_fill.int_Tensor": 2,
    "index_copy.default": 2,
    "index_put.default": 1,
    "index_put_.default": 1,
}
"""Where an operation takes indices."""


def demand(b: Builder, target: str, args: list[Any], kwargs: dict[str, Any], value: Any) -> None:
    """Notes which of the owner's values this operation, which somebody else's value takes part in, needs in the clear."""
    name = target.removeprefix("aten.")
    position = _INDICES.get(name)
    for at, argument in [*enumerate(args), *kwargs.items()]:
        for ref in _owned(b, argument):
            dtype = b.by_name[ref.name].dtype
            whole = not dtype.is_floating_point and not dtype.is_complex
            if at == position and whole:
                b.need(ref, f"an index of {name.split('.')[0]}")
            elif str(dtype) == "torch.bool":
                b.need(ref, f"a condition of {name.split('.')[0]}")
            elif whole and isinstance(value, Tensor) and not value.is_floating_point():
                b.need(ref, f"whole numbers in {name.split('.')[0]}, as indices and masks are computed")


def _owned(b: Builder, value: Any) -> list[Ref]:
    if isinstance(value, Ref):
        return [value] if b.level(value) == "owner" else []
    if isinstance(value, (list, tuple)):
        return [ref for v in value for ref in _owned(b, v)]
    return []
