"""Divisions, roots, powers, exponentials and logarithms, over the range that the argument is known to have."""

from __future__ import annotations

from math import ceil, e, floor, inf, log, log2
from typing import Any

from secure_eval.functions.normalised import MOST_OCTAVES, ROOT_OCTAVES
from secure_eval.lowering.activations import given, number
from secure_eval.lowering.arithmetic import reduced_dims
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import shaped
from secure_eval.lowering.intervals import interval
from secure_eval.lowering.masks import for_exponential
from secure_eval.lowering.normalisation import over_root_mean_square
from secure_eval.lowering.registry import RULES, rule
from secure_eval.program import Ref

_RECIPROCAL = (2.0**-6, 2.0**14)
_RSQRT = (2.0**-8, 2.0**14)
_SQRT = (2.0**-16, 2.0**16)
_LOG = (2.0**-16, 2.0**30)
_EXP = (-12.0, 20.0)


def _known(b: Builder, x: Any, default: tuple[float, float], octaves: float = inf) -> list[float]:
    """The default range, cut to what is known of x; down to a positive bound where one is known (an eps), over `octaves` at most."""
    low, high = interval(b, x)
    most = min(default[1], high)
    least = max(low, most * 2.0**-octaves) if low > 0 else default[0]
    return [least, most] if least < most else list(default)


# -- divisions and roots ---------------------------------------------------------------------------------------


@rule("div.Tensor_mode", "div.Scalar_mode")
def _rounded_div(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if kwargs.get("rounding_mode") is None:
        return _div(b, args, {}, value)
    b.fail("aten.div", f"rounding_mode {kwargs['rounding_mode']!r}")
    return None


@rule("div.Tensor", "div.Scalar", "div_.Tensor", "true_divide.Tensor")
def _div(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, y = args[0], number(b, args[1])
    if isinstance(y, (int, float)):
        return b.op("mul", [x, 1.0 / y], value)
    if b.level(y) in ("constant", "owner", "public", "client"):
        inverse = b.add("aten::aten.reciprocal.default", (y,), b.level(y), shaped(b.shape(y)))
        return b.op("mul", [x, inverse], value)
    y = _unexpanded(b, x, y)
    inverse = reciprocal(b, y, shaped(b.shape(y)))
    return (
        inverse if x == 1 else over_root_mean_square(b, x, inverse, value) or b.op("mul", [x, inverse], value)
    )


def _unexpanded(b: Builder, x: Any, y: Ref) -> Ref:
    """A divisor before it was expanded to the shape of what it divides: the quotient is the same, with fewer reciprocals."""
    node = b.by_name[y.name]
    if not isinstance(x, Ref) or b.shape(x) != node.shape or node.args[:1] != ("aten.expand.default",):
        return y
    inner: Ref = node.args[1]
    return inner if len(b.shape(inner)) == len(node.shape) else y


@rule("reciprocal.default")
def _reciprocal(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return reciprocal(b, args[0], value)


def reciprocal(b: Builder, x: Ref, value: Any) -> Ref:
    """1/x: one operation for x that is known to be positive, another that holds for either sign; of a root, the inverse root."""
    if (root := b.by_name[x.name]).op == "sqrt":
        return rsqrt(b, root.args[0], value)
    low, high = interval(b, x)
    if low >= 0:
        return b.op("reciprocal", [x, *_known(b, x, _RECIPROCAL, MOST_OCTAVES)], value)
    if high <= 0:
        return b.op("neg", [reciprocal(b, b.op("neg", [x], value), value)], value)
    return b.op("signed_reciprocal", [x, *_RECIPROCAL], value)


@rule("rsqrt.default")
def _rsqrt(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return rsqrt(b, args[0], value)


def rsqrt(b: Builder, x: Ref, value: Any) -> Ref:
    return b.op("rsqrt", [x, *_known(b, x, _RSQRT, ROOT_OCTAVES)], value)


@rule("sqrt.default", "sqrt_.default")
def _sqrt(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("sqrt", [args[0], *_known(b, args[0], _SQRT, ROOT_OCTAVES)], value)


@rule("std.correction")
def _standard_deviation(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _sqrt(b, [RULES["aten.var.correction"](b, args, kwargs, value)], {}, value)


@rule("pow.Tensor_Scalar")
def _pow(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, n = args
    if n == 1:
        return x
    if n == -1 or n == -0.5:
        return (_reciprocal if n == -1 else _rsqrt)(b, [x], {}, value)
    if n == 0.5:
        return _sqrt(b, [x], {}, value)
    if n == 2:
        return b.op("square", [x], value)
    if n == int(n) and n > 1:
        return _whole_power(b, x, int(n), value)
    if n == int(n) and n < 0:
        return _whole_power(b, reciprocal(b, x, value), -int(n), value)
    b.fail("aten.pow", f"exponent {n}; allowed: whole numbers, 0.5 and -0.5")
    return None


def _whole_power(b: Builder, x: Ref, n: int, value: Any) -> Ref:
    """x^n as the product of those x^(2^k) whose bits n has."""
    result: Ref | None = None
    power = x
    for k in range(n.bit_length()):
        if k:
            power = b.op("power", [x, 2**k], value) if n == 2**k else b.op("square", [power], value)
        if n >> k & 1:
            result = power if result is None else b.op("mul", [power, result], value)
    assert result is not None
    return result


@rule("linalg_vector_norm.default")
def _vector_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    order = given(args, kwargs, 1, "ord", 2)
    x = b.secret(args[0])
    dims, keepdim = reduced_dims([x, *args[2:]], kwargs, len(b.shape(x)))
    if order not in (1, 2):
        b.fail("aten.linalg_vector_norm", f"order {order}; allowed: 1, 2")
        return None
    whole = shaped(b.shape(x))
    if order == 2:
        part = b.op("square", [x], whole)
    else:
        part = b.op("sub", [b.op("mul", [b.op("relu", [x], whole), 2.0], whole), x], whole)
    total = b.op("view", ["aten.sum.dim_IntList", part, dims, keepdim], value)
    return _sqrt(b, [total], {}, value) if order == 2 else total


# -- exponentials and logarithms ---------------------------------------------------------------------------------


def exponential(b: Builder, x: Ref, value: Any) -> Ref:
    """exp(x), over what is known of x; a nat of room below for what approximate functions overstep by."""
    low, high = interval(b, x)
    return b.op(
        "exp",
        [x, max(_EXP[0], floor(low) - 1.0 if low > _EXP[0] else _EXP[0]), min(_EXP[1], _up(high))],
        value,
    )


def _up(high: float) -> float:
    return _EXP[1] if high >= _EXP[1] else max(_EXP[0] + 1, float(ceil(high)))


@rule("exp.default", "exp_.default")
def _exp(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return exponential(b, for_exponential(b, b.secret(args[0])), value)


@rule("exp2.default")
def _exp2(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return exponential(b, b.op("mul", [args[0], log(2)], value), value)


@rule("expm1.default")
def _expm1(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("sub", [exponential(b, args[0], value), 1.0], value)


@rule("pow.Scalar")
def _power_of_number(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    if args[0] <= 0:
        b.fail("aten.pow", f"a secret power of {args[0]}, which is not positive")
        return None
    return exponential(b, b.op("mul", [args[1], log(args[0])], value), value)


def logarithm(b: Builder, x: Ref, value: Any) -> Ref:
    return b.op("log", [x, *_known(b, x, _LOG, ROOT_OCTAVES)], value)


@rule("log.default", "log_.default")
def _log(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return logarithm(b, args[0], value)


@rule("log2.default")
def _log2(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("mul", [logarithm(b, args[0], value), log2(e)], value)


@rule("log10.default")
def _log10(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return b.op("mul", [logarithm(b, args[0], value), 1 / log(10)], value)


@rule("log1p.default")
def _log1p(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return logarithm(b, b.op("add", [args[0], 1.0], value), value)


@rule("logaddexp.default")
def _logaddexp(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """y + softplus(x - y)."""
    x, y = args
    return b.op("add", [y, b.op("softplus", [b.op("sub", [x, y], value)], value)], value)
