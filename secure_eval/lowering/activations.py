"""Activations: those with a secure operation of their own, and those made of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import reshape
from secure_eval.lowering.intervals import interval
from secure_eval.lowering.registry import RULES, Rule, rule
from secure_eval.operations import curves
from secure_eval.program import Ref

UNREACHED = 2.0**20
"""Bounds of this magnitude and above cut nothing off: no value of a program gets there (types' largest numbers are such bounds)."""

_TYPES_LIMIT = 2.0**100
"""Numbers beyond this are limits of a type, or infinite: nothing is computed with them."""

_NEGLIGIBLE = 2.0**-20
"""A bound that a value may miss by no more than this is not enforced: the eps of a norm, for one."""

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _one_operation(name: str) -> Rule:
    def lower(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
        return b.op(name, args[:1], value)

    return lower


_WITH_PARAMETERS = {"softplus"}
"""Functions of one number whose operations in torch take more."""

for _name, _operation in curves.OPERATIONS.items():
    if len(_operation.arguments) == 1 and _name not in _WITH_PARAMETERS:
        RULES[f"aten.{_name}.default"] = RULES[f"aten.{_name}_.default"] = _one_operation(_name)


def given(args: list[Any], kwargs: dict[str, Any], position: int, name: str, default: Any) -> Any:
    """An argument by position or name."""
    return kwargs.get(name, args[position] if len(args) > position else default)


def number(b: Builder, bound: Any) -> Any:
    """A constant that is one number all over as a Python number, where it is known; anything else as it is."""
    if not isinstance(bound, Ref):
        return bound
    node, stored = b.by_name[bound.name], b.constants.get(bound.name)
    if node.op == "aten::aten.scalar_tensor.default":
        return float(node.args[0])
    if node.op == "aten::aten.full.default":
        return float(node.args[1])
    return bound if stored is None or stored.numel() != 1 or stored.is_meta else float(stored)


def held(fill: Any) -> Any:
    """A number that is filled in where nobody, or the client, says: of a type's smallest and largest the ring holds none, so it is one
    that no value reaches. It masks as well, and is not what torch returns where it is returned itself."""
    if not isinstance(fill, (int, float)) or abs(fill) < _TYPES_LIMIT:
        return fill
    return UNREACHED if fill > 0 else -UNREACHED


# -- cutting off -----------------------------------------------------------------------------------------------


@rule(
    *(
        f"{name}.{kind}"
        for name in ("clamp", "clamp_", "clamp_min", "clamp_min_")
        for kind in ("default", "Tensor")
    )
)
def _clamp(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return bounded(
        b, args[0], given(args, kwargs, 1, "min", None), given(args, kwargs, 2, "max", None), value
    )


@rule(*(f"{name}.{kind}" for name in ("clamp_max", "clamp_max_") for kind in ("default", "Tensor")))
def _clamp_max(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return bounded(b, args[0], None, args[1], value)


@rule("hardtanh.default", "hardtanh_.default")
def _hardtanh(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return bounded(
        b, args[0], given(args, kwargs, 1, "min_val", -1), given(args, kwargs, 2, "max_val", 1), value
    )


@rule("relu6.default", "relu6_.default")
def _relu6(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return bounded(b, args[0], 0, 6, value)


def bounded(b: Builder, x: Any, low: Any, high: Any, value: Any) -> Any:
    """min(max(x, low), high): one operation for two numbers, otherwise low + relu(x - low), and the same from above."""
    low, high = number(b, low), number(b, high)
    if isinstance(low, (int, float)) and low <= -UNREACHED:
        low = None
    if isinstance(high, (int, float)) and high >= UNREACHED:
        high = None
    known = interval(b, x)
    if isinstance(low, (int, float)) and low - _NEGLIGIBLE <= known[0]:
        low = None
    if isinstance(high, (int, float)) and known[1] <= high + _NEGLIGIBLE:
        high = None
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high:
        return b.op("clamp", [x, float(low), float(high)], value)
    if low is not None:
        x = b.op("relu", [x if low == 0 else b.op("sub", [x, low], value)], value)
        x = x if low == 0 else b.op("add", [x, low], value)
    if high is not None:
        x = b.op("sub", [high, b.op("relu", [b.op("sub", [high, x], value)], value)], value)
    return x


@rule("hardsigmoid.default", "hardsigmoid_.default")
def _hardsigmoid(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """clamp(x/6 + 1/2, 0, 1)."""
    return bounded(b, b.op("add", [b.op("mul", [args[0], 1 / 6], value), 0.5], value), 0, 1, value)


@rule("hardswish.default", "hardswish_.default")
def _hardswish(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("mul", [args[0], _hardsigmoid(b, args, kwargs, value)], value)


@rule("softshrink.default")
def _softshrink(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """x - clamp(x, -l, l)."""
    width = given(args, kwargs, 1, "lambd", 0.5)
    return b.op("sub", [args[0], bounded(b, args[0], -width, width, value)], value)


@rule("leaky_relu.default", "leaky_relu_.default")
def _leaky_relu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """slope x + (1 - slope) relu(x): one comparison."""
    slope = given(args, kwargs, 1, "negative_slope", 0.01)
    positive = b.op("mul", [b.op("relu", args[:1], value), 1.0 - slope], value)
    return b.op("add", [b.op("mul", [args[0], slope], value), positive], value)


@rule("prelu.default", "_prelu_kernel.default")
def _prelu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """relu(x) - w relu(-x), where relu(-x) = relu(x) - x; w a number or one a channel."""
    x, weight = args
    if len(b.shape(weight)) == 1 and b.shape(weight) != (1,):
        weight = reshape(b, weight, [-1, *[1] * (len(value.shape) - 2)])
    positive = b.op("relu", [x], value)
    negative = b.op("mul", [b.op("sub", [positive, x], value), weight], value)
    return b.op("sub", [positive, negative], value)


@rule("threshold.default", "threshold_.default")
def _threshold(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, bound, fill = args
    return b.op("where", [b.op("less", [float(bound), x], value), x, float(fill)], value)


# -- smooth ones -----------------------------------------------------------------------------------------------


@rule("gelu.default", "gelu_.default")
def _gelu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("gelu", [args[0], given(args, kwargs, 1, "approximate", "none")], value)


@rule("erfc.default")
def _erfc(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("sub", [1.0, b.op("erf", args[:1], value)], value)


def _scaled(
    b: Builder, x: Any, factor: float, value: Any, function: Callable[[Any], Any], outer: float | None = None
) -> Any:
    """outer * function(factor * x), outer 1 / factor unless given."""
    outer = 1.0 / factor if outer is None else outer
    result = function(x if factor == 1 else b.op("mul", [x, float(factor)], value))
    return result if outer == 1 else b.op("mul", [result, outer], value)


@rule("softplus.default")
def _softplus(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """Its threshold, above which torch takes x itself, lies where the two are equal in fixed point."""
    beta = given(args, kwargs, 1, "beta", 1.0)
    return _scaled(b, args[0], beta, value, lambda x: b.op("softplus", [x], value))


@rule("log_sigmoid.default")
def _log_sigmoid(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("neg", [b.op("softplus", [b.op("neg", args[:1], value)], value)], value)


@rule("elu.default", "elu_.default")
def _elu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """scale (x where positive, alpha (exp(input_scale x) - 1) elsewhere)."""
    alpha, scale, inner = (
        float(given(args, kwargs, i, name, 1.0))
        for i, name in ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    )
    return _scaled(
        b, args[0], inner, value, lambda x: b.op("elu", [x, alpha * inner], value), outer=scale / inner
    )


@rule("selu.default", "selu_.default")
def _selu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _elu(b, [args[0], _SELU_ALPHA, _SELU_SCALE], {}, value)


@rule("celu.default", "celu_.default")
def _celu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    alpha = float(given(args, kwargs, 1, "alpha", 1.0))
    return _elu(b, [args[0], alpha, 1.0, 1.0 / alpha], {}, value)


@rule("glu.default")
def _glu(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """The first half times the sigmoid of the second."""
    x, dim = b.secret(args[0]), given(args, kwargs, 1, "dim", -1)
    half = b.shape(x)[dim] // 2
    a, gate = (b.op("view", ["aten.slice.Tensor", x, dim, start, start + half], value) for start in (0, half))
    return b.op("mul", [a, b.op("sigmoid", [gate], value)], value)


def gated_by_itself(b: Builder, x: Any, y: Any, value: Any) -> Ref | None:
    """x sigmoid(c x) as silu(c x) / c, for a product of which either operand is the gate; None where it is no such product.

    c = 1 is SiLU, c = 1.702 the quick GELU. Errors are multiplied by 1 / c, so that smaller c are left alone.
    """
    for value_of, gate in ((x, y), (y, x)):
        node = b.by_name[gate.name] if isinstance(gate, Ref) else None
        if node is None or node.op != "sigmoid":
            continue
        inner: Ref = node.args[0]
        if inner == value_of:
            return b.op("silu", [inner], value)
        scaled = b.by_name[inner.name]
        if scaled.op != "mul" or value_of not in scaled.args:
            continue
        factor = scaled.args[1] if scaled.args[0] == value_of else scaled.args[0]
        if isinstance(factor, (int, float)) and abs(factor) >= 0.5:
            return b.op("mul", [b.op("silu", [inner], value), 1.0 / factor], value)
    return None
