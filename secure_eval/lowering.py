"""The rules that turn one exported ATen operation on secrets into secure operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isinf, prod, sqrt
from typing import Any

import torch
from torch import Tensor

from secure_eval.program import Node, Ref, substitute

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
_FAR_NEGATIVE = -5e3
"""A public summand below this, or a fill value below it, is a mask and not a number: it selects."""


@dataclass(frozen=True)
class Unsupported:
    """An operation without a rule, and the module that it comes from."""

    operation: str
    site: str
    reason: str = ""


class Builder:
    """Collects nodes; `unsupported` collects what could not be lowered, so that all of it is reported at once."""

    def __init__(self, embedding: str):
        self.embedding = embedding
        self.nodes: list[Node] = []
        self.by_name: dict[str, Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        self.unsupported: list[Unsupported] = []
        self._shared: dict[str, Ref] = {}
        self.site = ""

    def add(
        self,
        op: str,
        args: tuple[Any, ...],
        level: str,
        value: Any,
        *,
        name: str | None = None,
        kwargs: dict[str, Any] | None = None,
        integral: bool = False,
    ) -> Ref:
        """Appends a node whose value has the shape and dtype of `value` (a tensor or a shape)."""
        shape, dtype = (
            (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else (tuple(value), torch.float32)
        )
        name = name or f"{op.rsplit('::', 1)[-1].split('.')[-2 if '.' in op else -1]}_{len(self.nodes)}"
        node = Node(name, op, args, level, shape, dtype, self.site, integral, tuple((kwargs or {}).items()))
        self.nodes.append(node)
        self.by_name[name] = node
        return Ref(name)

    def parameter(self, name: str, tensor: Tensor) -> Ref:
        self.parameters[name] = tensor
        return self.add("parameter", (), "owner", tensor, name=name)

    def constant(self, name: str, tensor: Tensor) -> Ref:
        self.constants[name] = tensor
        return self.add(
            "constant", (), "constant", tensor, name=name, integral=not tensor.is_floating_point()
        )

    def level(self, ref: Ref) -> str:
        return self.by_name[ref.name].level

    def shape(self, ref: Ref) -> tuple[int, ...]:
        return self.by_name[ref.name].shape

    def is_secret(self, value: Any) -> bool:
        return isinstance(value, Ref) and self.level(value) == "secret"

    def secret(self, ref: Ref) -> Ref:
        """The value as a secret: shared by its owner, once."""
        if self.level(ref) not in ("client", "owner"):
            return ref
        if ref.name not in self._shared:
            op = "share_input" if self.level(ref) == "client" else "share_weight"
            node = self.by_name[ref.name]
            value = torch.empty(node.shape, dtype=node.dtype, device="meta")
            self._shared[ref.name] = self.add(op, (ref,), "secret", value, integral=node.integral)
        return self._shared[ref.name]

    def shared_if_real(self, ref: Ref) -> Ref:
        """A client's real number is shared at once: clients work on indices and look up tables, they do not run the model."""
        node = self.by_name[ref.name]
        return self.secret(ref) if node.level == "client" and node.dtype.is_floating_point else ref

    def operand(self, value: Any) -> Any:
        """An operand of a secret operation: clear to all parties, or secret."""
        return substitute(value, self.secret) if not isinstance(value, Ref) else self.secret(value)

    def op(self, name: str, args: Sequence[Any], value: Any) -> Ref:
        """A secret operation; operands that only their owners know are shared first."""
        return self.add(
            name,
            tuple(self.operand(a) if isinstance(a, (Ref, list, tuple)) else a for a in args),
            "secret",
            value,
        )

    def fail(self, operation: str, reason: str = "") -> None:
        self.unsupported.append(Unsupported(operation.removesuffix(".default"), self.site, reason))


def _levels(builder: Builder, values: Any) -> set[str]:
    return {builder.level(Ref(name)) for name in Node("", "", (values,), "", ()).references()}


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


# -- rules -----------------------------------------------------------------------------------------------------------------------

Rule = Callable[[Builder, list[Any], dict[str, Any], Any], Any]
RULES: dict[str, Rule] = {}


def rule(*targets: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[f"aten.{target}"] = function
        return function

    return register


@rule("add.Tensor", "add.Scalar", "add_.Tensor")
def _add(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _summed(b, "add", args[0], args[1], kwargs, value)


@rule("sub.Tensor", "sub.Scalar")
def _sub(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _summed(b, "sub", args[0], args[1], kwargs, value)


@rule("rsub.Tensor", "rsub.Scalar")
def _rsub(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _summed(b, "sub", args[1], args[0], kwargs, value)


def _summed(b: Builder, op: str, x: Any, y: Any, kwargs: dict[str, Any], value: Any) -> Any:
    if kwargs.get("alpha", 1) != 1:
        b.fail(f"aten.{op}", "alpha other than 1")
        return None
    return b.op(op, [x, y], value)


@rule("neg.default")
def _neg(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("neg", args, value)


@rule("mul.Tensor", "mul.Scalar", "mul_.Tensor")
def _mul(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if isinstance(args[1], Ref) and args[0] == args[1]:
        return b.op("square", args[:1], value)
    return b.op("mul", args[:2], value)


@rule("square.default")
def _square(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("square", args[:1], value)


@rule("pow.Tensor_Scalar")
def _pow(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, n = args
    if n == 1:
        return x
    if n == -1 or n == -0.5:
        return (_reciprocal if n == -1 else _rsqrt)(b, [x], {}, value)
    if n == 0.5:
        return _sqrt(b, [x], {}, value)
    if n == int(n) and n > 1 and (int(n) & (int(n) - 1)) == 0:
        return b.op("power", [x, int(n)], value)
    if n == 3:
        return b.op("mul", [b.op("square", [x], value), x], value)
    b.fail("aten.pow", f"exponent {n}; allowed: -1, -0.5, 0.5, 1, 3 and powers of two")
    return None


@rule("matmul.default", "bmm.default", "mm.default")
def _matmul(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("matmul", args[:2], value)


@rule("linear.default")
def _linear(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("linear", [b.secret(args[0]), args[1], args[2] if len(args) > 2 else None], value)


@rule("addmm.default")
def _addmm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
        b.fail("aten.addmm", "alpha and beta other than 1")
        return None
    return b.op("add", [b.op("matmul", args[1:3], value), args[0]], value)


def _mean_dims(args: list[Any], kwargs: dict[str, Any], rank: int) -> tuple[list[int], bool]:
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    dims = list(range(rank)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    return dims, bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))


@rule("mean.dim", "mean.default")
def _mean(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x = b.secret(args[0])
    dims, keepdim = _mean_dims(args, kwargs, len(b.shape(x)))
    count = prod(b.shape(x)[d] for d in dims)
    return b.op("mul", [b.op("view", ["aten.sum.dim_IntList", x, dims, keepdim], value), 1.0 / count], value)


@rule("div.Tensor", "div.Scalar", "true_divide.Tensor")
def _div(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, y = args[:2]
    if isinstance(y, (int, float)):
        return b.op("mul", [x, 1.0 / y], value)
    if b.level(y) in ("constant", "owner", "public", "client"):
        node = b.by_name[y.name]
        inverse = b.add(
            "aten::aten.reciprocal.default",
            (y,),
            node.level,
            torch.empty(node.shape, dtype=torch.float32, device="meta"),
        )
        return b.op("mul", [x, inverse], value)
    inverse = _reciprocal(b, [y], {}, torch.empty(b.shape(y), device="meta"))
    return inverse if x == 1 else b.op("mul", [x, inverse], value)


@rule("reciprocal.default")
def _reciprocal(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("reciprocal", [args[0], 2.0**-6, 2.0**14], value)


@rule("rsqrt.default")
def _rsqrt(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("rsqrt", [args[0], 2.0**-8, 2.0**14], value)


@rule("sqrt.default")
def _sqrt(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("mul", [args[0], _rsqrt(b, args, kwargs, value)], value)


@rule("relu.default", "relu_.default")
def _relu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("relu", args[:1], value)


@rule("clamp.default", "clamp_min.default", "clamp_max.default")
def _clamp(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    high = kwargs.get("max", args[2] if len(args) > 2 else None)
    return _bounded(b, args[0], low, high, value)


RULES["aten.clamp_max.default"] = lambda b, a, k, v: _bounded(b, a[0], None, a[1], v)


def _bounded(b: Builder, x: Any, low: Any, high: Any, value: Any) -> Any:
    """min(max(x, low), high): low + relu(x - low), and the same from above."""
    if low is not None:
        x = b.op("relu", [x if low == 0 else b.op("sub", [x, low], value)], value)
        x = x if low == 0 else b.op("add", [x, low], value)
    if high is not None:
        x = b.op("sub", [high, b.op("relu", [b.op("sub", [high, x], value)], value)], value)
    return x


@rule("gelu.default")
def _gelu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("gelu", [args[0], kwargs.get("approximate", args[1] if len(args) > 1 else "none")], value)


@rule("tanh.default")
def _tanh(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("tanh", args[:1], value)


@rule("layer_norm.default")
def _layer_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, shape, weight, bias, eps = (*args, None, None, 1e-5)[:5] if len(args) < 5 else args[:5]
    return b.op("layer_norm", [b.secret(x), len(shape), weight, bias, float(eps)], value)


@rule("amax.default")
def _amax(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    dims, keepdim = _mean_dims(args, kwargs, len(b.shape(args[0])))
    if len(dims) != 1:
        b.fail("aten.amax", "more than one dimension")
        return None
    return b.op("amax", [args[0], dims[0], keepdim], value)


@rule("cat.default", "stack.default")
def _cat(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("cat", ["aten.cat.default", list(args[0]), args[1] if len(args) > 1 else 0], value)


RULES["aten.stack.default"] = lambda b, a, k, v: b.op(
    "cat", ["aten.stack.default", list(a[0]), a[1] if len(a) > 1 else 0], v
)


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


def _masked(b: Builder, x: Any) -> tuple[Any, Any]:
    """Splits scores into the scores before masking and their public additive mask, None where there is none."""
    node = b.by_name[x.name]
    if node.op == "add":
        left, right = node.args
        for secret, clear in ((left, right), (right, left)):
            if b.is_secret(secret) and isinstance(clear, Ref) and b.level(clear) in ("public", "constant"):
                return secret, clear
    if node.op == "where" and isinstance(node.args[0], Ref) and not b.is_secret(node.args[0]):
        condition, kept, fill = node.args
        if isinstance(fill, float) and (fill < _FAR_NEGATIVE or isinf(fill)) and b.is_secret(kept):
            level = b.level(condition)
            shape = torch.empty(b.shape(condition), device="meta")
            zeros = b.add(
                "aten::aten.zeros_like.default", (condition,), level, shape, kwargs={"dtype": torch.float32}
            )
            return kept, b.add("aten::aten.where.ScalarOther", (condition, zeros, fill), level, shape)
    return x, None


@rule("softmax.int", "_softmax.default")
def _softmax(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """softmax = e / sum(e), e = exp(x - max): the division is a reciprocal a row, and passes may move it behind a matmul."""
    dim = args[1]
    x, mask = _masked(b, b.secret(args[0]))
    numerator = b.op("softmax_numerator", [x, mask, dim], value)
    shape = list(value.shape)
    length = shape[dim]
    shape[dim] = 1
    total = b.op("view", ["aten.sum.dim_IntList", numerator, [dim], True], shape)
    inverse = b.op("reciprocal", [total, 1.0, float(max(2, length))], shape)
    return b.op("mul", [numerator, inverse], value)


@rule("scaled_dot_product_attention.default")
def _attention(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    q, k, v = (b.secret(a) for a in args[:3])
    mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
    if kwargs.get("is_causal") or kwargs.get("enable_gqa") or len(args) > 5 and args[5]:
        b.fail(
            "aten.scaled_dot_product_attention",
            "is_causal and enable_gqa; load the model with attn_implementation='eager'",
        )
        return None
    *batch, length, width = b.shape(q)
    keys = b.shape(k)[-2]
    transposed = b.op("view", ["aten.transpose.int", k, -1, -2], [*b.shape(k)[:-2], width, keys])
    scores = torch.empty((*batch, length, keys), device="meta")
    x = b.op("mul", [b.op("matmul", [q, transposed], scores), kwargs.get("scale") or 1 / sqrt(width)], scores)
    if isinstance(mask, Ref):
        if b.by_name[mask.name].dtype == torch.bool:
            x = b.op("where", [mask, x, float("-inf")], scores)
        else:
            x = b.op("add", [x, mask], scores)
    return b.op("matmul", [_softmax(b, [x, -1], {}, scores), v], value)


@rule("where.self", "where.ScalarOther", "where.ScalarSelf")
def _where(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    condition = b.by_name[args[0].name]
    if condition.level == "secret" and (inverse := _inverted(b, condition)) is not None:
        args, condition = [inverse, args[2], args[1]], b.by_name[inverse.name]
    if condition.level == "secret" and condition.op != "less":
        b.fail("aten.where", "the condition is a combination of secret comparisons")
    constants = {a.name: b.constants.get(a.name) for a in args[1:] if isinstance(a, Ref)}
    args = [args[0], *(_scalar(constants.get(a.name), a) if isinstance(a, Ref) else a for a in args[1:])]
    return b.op("where", args, value)


def _inverted(b: Builder, node: Node) -> Ref | None:
    """The comparison of which `node` is the negation 1 - bit."""
    if (
        node.op == "sub"
        and node.args[0] == 1.0
        and b.is_secret(node.args[1])
        and b.by_name[node.args[1].name].op == "less"
    ):
        inverse: Ref = node.args[1]
        return inverse
    return None


def _scalar(constant: Tensor | None, ref: Ref) -> Any:
    """A stored one-element constant as a Python number (masks are filled with them)."""
    if constant is not None and constant.numel() == 1 and constant.device.type != "meta":
        return float(constant)
    return ref


@rule("masked_fill.Scalar", "masked_fill_.Scalar")
def _masked_fill(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, mask, fill = args
    node = b.by_name[mask.name]
    inverted = b.add(
        "aten::aten.logical_not.default",
        (mask,),
        node.level,
        torch.empty(node.shape, dtype=torch.bool, device="meta"),
        integral=True,
    )
    return b.op("where", [inverted, x, float(fill)], value)


def _compare(swap: bool, invert: bool) -> Rule:
    def compare(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        x, y = args[:2]
        bit = b.op("less", [y, x] if swap else [x, y], value)
        return b.op("sub", [1.0, bit], value) if invert else bit

    return compare


for _name, _swap, _invert in (
    ("lt", False, False),
    ("gt", True, False),
    ("ge", False, True),
    ("le", True, True),
):
    RULES[f"aten.{_name}.Scalar"] = RULES[f"aten.{_name}.Tensor"] = _compare(_swap, _invert)


@rule("logical_not.default", "bitwise_not.default")
def _not(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    node = b.by_name[args[0].name]
    inverse = _inverted(b, node)
    if inverse is None and node.op != "less":
        b.fail("aten.logical_not", "of what is not a comparison")
        return None
    return inverse or b.op("sub", [1.0, args[0]], value)


@rule("maximum.default")
def _maximum(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """max(x, y) = y + relu(x - y)."""
    x, y = args
    return b.op("add", [b.op("relu", [b.op("sub", [x, y], value)], value), y], value)


@rule("minimum.default")
def _minimum(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """min(x, y) = x - relu(x - y)."""
    x, y = args
    return b.op("sub", [x, b.op("relu", [b.op("sub", [x, y], value)], value)], value)


@rule("abs.default")
def _abs(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """abs(x) = 2 relu(x) - x."""
    return b.op("sub", [b.op("mul", [b.op("relu", args[:1], value), 2.0], value), args[0]], value)
