"""Where an exported operation goes: to whoever can compute it in the clear, to a view, or to its rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval.clear_operations import is_clear
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.clear_operands import demand
from secure_eval.lowering.decompositions import decomposes, lower_decomposed, operation
from secure_eval.lowering.picking import Picked, picked
from secure_eval.lowering.registry import RULES
from secure_eval.lowering.rotations import ALLOWED
from secure_eval.program import Node, Ref

IGNORED = {
    "aten._assert_tensor_metadata.default",
    "aten._assert_async.msg",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range_for_size.default",
}


_SAME = {
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

_ALIASES = {
    "aten.detach.default",
    "aten.detach_.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
}
"""Of these the ones that keep type and layout: a clear value stands for its own alias."""

_COPIES = {"aten.clone.default", "aten.contiguous.default"}
"""Copies, which change the layout at most: that of one element, nothing."""

_COUNTED = {"aten.unique_consecutive.default"}
"""Operations whose results models only count, to say that all rows have as many: no assertion of a model's is run."""

_READS = {"aten.item.default", "aten._local_scalar_dense.default"}

_DROPOUTS = {"aten.dropout.default", "aten.feature_dropout.default", "aten.native_dropout.default"}

_VIEWS = {
    "aten.reshape.default",
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
    "aten.tril.default",
    "aten.triu.default",
    "aten.diagonal.default",
    "aten.unfold.default",
    "aten.pixel_shuffle.default",
    "aten.pixel_unshuffle.default",
    "aten.sum.default",
    "aten.sum.dim_IntList",
    "aten.cumsum.default",
}

_WHOLE = {
    f"aten.{name}.{kind}"
    for name in ("add", "sub", "rsub", "mul", "maximum", "minimum", "where", "masked_fill", "neg")
    for kind in ("default", "self", "Tensor", "Scalar", "ScalarSelf", "ScalarOther")
}
"""Operations that make whole numbers of whole numbers."""

_LARGEST_WHOLE = 2.0**20

_RESHAPES = {"aten.view.default", "aten._unsafe_view.default"}
"""Reshapes that need the strides of the value that was traced; those of a share may differ."""

_FILLS = {
    "aten.zeros_like.default": 0,
    "aten.ones_like.default": 1,
    "aten.empty_like.default": 0,
    "aten.new_zeros.default": 0,
    "aten.new_ones.default": 1,
    "aten.new_empty.default": 0,
    "aten.zero.default": 0,
    "aten.full_like.default": None,
    "aten.new_full.default": None,
    "aten.fill.Scalar": None,
}
"""Operations that take nothing but the shape of a value, and the number that they fill it with: None, their last argument."""


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
    if isinstance(value, Tensor) and _is_static(value):
        return builder.add("unsupported", (), "secret", value)
    return _MISSING


def _is_static(value: Any) -> bool:
    """Whether the shapes of one or several values are numbers."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_static, value))
    return not isinstance(value, Tensor) or all(isinstance(size, int) for size in value.shape)


def _lowered(builder: Builder, target: str, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if _is_missing(args) or _is_missing(list(kwargs.values())):
        return _MISSING
    if target == "<built-in function getitem>" and _reads(args[0]):
        return args[0][args[1]]
    if any(isinstance(a, Picked) for a in args) or target == "aten.index.Tensor" and not _is_static(value):
        if not isinstance(value, Tensor):
            return _READ
        found = picked(builder, target, args)
        if found is None:
            builder.fail(target, "how many elements come out depends on values")
        return _MISSING if found is None else found
    if target in _COUNTED and not _is_static(value):
        return [_READ] * len(value)
    if target in _READS or _reads([args, list(kwargs.values())]):
        if not isinstance(value, (Tensor, list, tuple)):
            return _READ
        builder.fail(target, "a value read from a tensor decides shapes")
        return _MISSING
    if not _is_static(value):
        builder.fail(target, "how many elements come out depends on values")
        return _MISSING
    if target == "<built-in function getitem>":
        return args[0][args[1]]
    target = "aten.reshape.default" if target in _RESHAPES else target
    levels = _levels(builder, [args, list(kwargs.values())])
    if target in _FILLS and isinstance(value, Tensor):
        number = _FILLS[target]
        return full(builder, value, kwargs.get("fill_value", args[-1]) if number is None else number)
    if target in _DROPOUTS:
        return _dropped(builder, target, args, value)
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
    demand(builder, target, args, kwargs, value)
    if target not in ALLOWED and builder.pairs & set(Node("", "", (args,), "", ()).references()):
        builder.fail(target, "a complex secret; allowed is a product with complex numbers known in the clear")
        return _MISSING
    if target in _SAME:
        return _cast(builder, target, builder.secret(args[0]), value)
    if target in _VIEWS:
        return view(builder, target, args, kwargs, value)
    rule = RULES.get(target)
    if rule is not None:
        return rule(builder, args, kwargs, value)
    if decomposes(target):
        return lower_decomposed(builder, target, args, kwargs)
    builder.fail(target)
    return _MISSING


def view(b: Builder, target: str, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """A view by the torch operation named. Arguments are put in the order of its schema; those that are keyword-only, as the type of a
    sum, say nothing in the ring."""
    schema = [a for a in operation(target)._schema.arguments if not a.kwarg_only]
    given = dict(zip((a.name for a in schema), args, strict=False)) | kwargs
    last = max(i for i, a in enumerate(schema) if a.name in given)
    x, *rest = (given.get(a.name, a.default_value) for a in schema[: last + 1])
    return b.op("view", [target, b.secret(x), *rest], value)


def full(b: Builder, value: Tensor, number: Any) -> Ref:
    """A constant of the shape and type of `value`, all of it one number. One element is stored: rules read numbers from it."""
    shape = list(value.shape)
    if value.numel() == 1:
        return b.constant(f"full_{len(b.nodes)}", torch.full(shape, number, dtype=value.dtype, device="cpu"))
    whole = not value.is_floating_point() or float(number).is_integer()
    return b.add(
        "aten::aten.full.default",
        (shape, number),
        "constant",
        value,
        kwargs={"dtype": value.dtype},
        integral=whole,
    )


def _dropped(b: Builder, target: str, args: list[Any], value: Any) -> Any:
    """Dropout, which does nothing in a model that is not trained: one that is switched on all the same is refused."""
    probability = args[1] if len(args) > 1 else 0.5
    if len(args) > 2 and args[2] and probability:
        b.fail(target, "is switched on though the model is in eval mode")
        return _MISSING
    kept = b.secret(args[0]) if b.level(args[0]) == "secret" else args[0]
    return [kept, full(b, value[1], 1)] if target == "aten.native_dropout.default" else kept


def _cast(b: Builder, target: str, x: Ref, value: Any) -> Any:
    """The value itself: a change between floating-point types means nothing here. Rounding to integers would."""
    node = b.by_name[x.name]
    if not isinstance(value, Tensor) or value.dtype == node.dtype:
        return x
    if value.dtype == torch.bool:  # what is not zero
        return lower(b, "aten.ne.Scalar", [x, 0], {}, value, b.site)
    if not value.is_floating_point() and node.dtype.is_floating_point:
        b.fail(target, f"a secret real number as {str(value.dtype).removeprefix('torch.')}")
        return _MISSING
    return x if node.dtype.is_floating_point else b.op("view", ["aten.alias.default", x], value)


_MISSING = object()
_READ = object()
"""A number that was read from a tensor. Asserting something of it is one thing; nothing else can be made of it."""


def _reads(values: Any) -> bool:
    return values is _READ or isinstance(values, (list, tuple)) and any(map(_reads, values))


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


def _whole(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether all operands are whole numbers, small enough to be computed with: 1 - mask is as whole as the mask."""
    return all(
        b.by_name[v.name].integral
        if isinstance(v, Ref)
        else not isinstance(v, float) or v.is_integer() and abs(v) < _LARGEST_WHOLE
        for v in [*args, *kwargs.values()]
    )


def _clear(
    builder: Builder, target: str, args: list[Any], kwargs: dict[str, Any], value: Any, level: str
) -> Any:
    if target in _ALIASES or target in _COPIES and isinstance(value, Tensor) and value.numel() == 1:
        return args[0]
    if isinstance(value, (list, tuple)):
        if not is_clear(target):
            builder.fail(target, "is not among the operations that a program may name")
            return _MISSING
        whole = builder.add(f"aten::{target}", tuple(args), level, (), kwargs=kwargs)
        return [builder.add("getitem", (whole, i), level, v) for i, v in enumerate(value)]
    if not isinstance(value, Tensor):
        builder.fail(target, "a value read from a tensor decides shapes")
        return _MISSING
    if target == "aten.to.device":  # where a value lives is the engine's choice
        target, args = "aten.to.dtype", [args[0], args[2] if len(args) > 2 else value.dtype]
    if target == "aten.batch_norm.default":  # it may change its statistics; these two never do
        x, weight, bias, mean, variance, training, momentum, eps = args[:8]
        if mean is None and variance is None:
            target, args = "aten._native_batch_norm_legit.no_stats", [x, weight, bias, True, momentum, eps]
        elif not training:
            target = "aten._native_batch_norm_legit_no_training.default"
            args = [x, weight, bias, mean, variance, momentum, eps]
        if target != "aten.batch_norm.default":
            whole = builder.add(f"aten::{target}", tuple(args), level, ())
            return builder.shared_if_real(builder.add("getitem", (whole, 0), level, value))
    if not is_clear(target):
        builder.fail(target, "is not among the operations that a program may name")
        return _MISSING
    integral = (
        not value.is_floating_point() or target in _SAME | _VIEWS | _WHOLE and _whole(builder, args, kwargs)
    )
    return builder.shared_if_real(
        builder.add(f"aten::{target}", tuple(args), level, value, kwargs=kwargs, integral=integral)
    )
