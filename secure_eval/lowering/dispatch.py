"""Where an exported operation goes: to whoever can compute it in the clear, to a view, or to its rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.registry import RULES
from secure_eval.program import Node, Ref

IGNORED = {
    "aten._assert_tensor_metadata.default",
    "aten._assert_async.msg",
    "aten.sym_constrain_range_for_size.default",
}


CLEAR_ONLY_KEYWORDS = {"device", "pin_memory", "layout", "memory_format", "non_blocking", "copy"}


_SAME = {
    "aten.dropout.default",
    "aten.contiguous.default",
    "aten.clone.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
    "aten.to.dtype",
    "aten.to.device",
    "aten.to.dtype_layout",
    "aten.to.other",
    "aten._to_copy.default",
}


_VIEWS = {
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.transpose.int",
    "aten.permute.default",
    "aten.t.default",
    "aten.numpy_T.default",
    "aten.mT.default",
    "aten.expand.default",
    "aten.unsqueeze.default",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.select.int",
    "aten.slice.Tensor",
    "aten.movedim.int",
    "aten.repeat.default",
    "aten.flip.default",
    "aten.roll.default",
    "aten.sum.default",
    "aten.sum.dim_IntList",
    "aten.cumsum.default",
}


def lower(
    builder: Builder, target: str, args: list[Any], kwargs: dict[str, Any], value: Any, site: str
) -> Any:
    """Lowers one operation; returns its value, a Ref or a list of them.

    One that was reported as unsupported stands in as a secret of its shape, so that what follows is looked at as well.
    """
    builder.site = site
    found = len(builder.unsupported)
    result = _lowered(builder, target, args, kwargs, value)
    return result if len(builder.unsupported) == found else _stand_in(builder, value)


def _levels(builder: Builder, values: Any) -> set[str]:
    return {builder.level(Ref(name)) for name in Node("", "", (values,), "", ()).references()}


def _stand_in(builder: Builder, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_stand_in(builder, v) for v in value]
    return builder.add("unsupported", (), "secret", value) if isinstance(value, Tensor) else _MISSING


def _lowered(builder: Builder, target: str, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if _is_missing(args) or _is_missing(list(kwargs.values())):
        return _MISSING
    if target == "<built-in function getitem>":
        return args[0][args[1]]
    levels = _levels(builder, [args, list(kwargs.values())])
    if (
        "aten.embedding" in target
        and builder.embedding == "client"
        and "owner" in levels
        and "client" in levels
    ):
        args[0] = _table_for_client(builder, args[0])
        levels = {"client"}
    known = _clear_level(levels)
    if known is not None:
        return _clear(builder, target, args, kwargs, value, known)
    if target in _SAME:
        return _cast(builder, target, builder.secret(args[0]), value)
    if target in _VIEWS:
        rest = [v for k, v in kwargs.items() if k != "dtype"]  # in the ring a sum has no other type
        return builder.op("view", [target, builder.secret(args[0]), *args[1:], *rest], value)
    rule = RULES.get(target)
    if rule is None:
        builder.fail(target)
        return _MISSING
    return rule(builder, args, kwargs, value)


def _cast(b: Builder, target: str, x: Ref, value: Any) -> Any:
    """The value itself: a change between floating-point types means nothing here. Rounding to integers would."""
    node = b.by_name[x.name]
    if not isinstance(value, Tensor) or value.dtype == node.dtype:
        return x
    if not value.is_floating_point() and node.dtype.is_floating_point:
        b.fail(target, f"a secret real number as {str(value.dtype).removeprefix('torch.')}")
        return _MISSING
    return x if node.dtype.is_floating_point else b.op("view", ["aten.alias.default", x], value)


_MISSING = object()


def _is_missing(values: list[Any]) -> bool:
    return any(v is _MISSING or isinstance(v, (list, tuple)) and _is_missing(list(v)) for v in values)


def _clear_level(levels: set[str]) -> str | None:
    """Who can compute with operands of these levels in the clear: None means nobody alone."""
    if "secret" in levels or {"owner", "client"} <= levels or {"owner", "public"} <= levels:
        return None
    for level in ("owner", "client", "public"):
        if level in levels:
            return level
    return "constant"


def _table_for_client(builder: Builder, table: Ref) -> Ref:
    """A table that the model owner gives to the client: an input of the client's from then on."""
    node = builder.by_name[table.name]
    name = f"{table.name}_at_client"
    if name not in builder.by_name:
        builder.add(
            "table",
            (table.name,),
            "client",
            torch.empty(node.shape, dtype=node.dtype, device="meta"),
            name=name,
        )
    return Ref(name)


def _clear(
    builder: Builder, target: str, args: list[Any], kwargs: dict[str, Any], value: Any, level: str
) -> Any:
    if isinstance(value, (list, tuple)):
        whole = builder.add(f"aten::{target}", tuple(args), level, (), kwargs=kwargs)
        return [builder.add("getitem", (whole, i), level, v) for i, v in enumerate(value)]
    if not isinstance(value, Tensor):
        builder.fail(target, "a value read from a tensor decides shapes")
        return _MISSING
    if target == "aten.to.device":  # where a value lives is the engine's choice
        target, args = "aten.to.dtype", [args[0], args[2] if len(args) > 2 else value.dtype]
    integral = not value.is_floating_point()
    if value.is_floating_point() and target in _SAME | _VIEWS:
        source = builder.by_name[args[0].name]
        integral = source.integral
    return builder.shared_if_real(
        builder.add(f"aten::{target}", tuple(args), level, value, kwargs=kwargs, integral=integral)
    )
