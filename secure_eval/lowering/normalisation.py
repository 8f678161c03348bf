"""Normalisations: by the mean and variance of a row, by its root mean square, by the model owner's running statistics."""

from __future__ import annotations

from math import prod
from typing import Any

from secure_eval.functions.layer_norm import deviation_scale
from secure_eval.functions.root_mean_square import LOWEST, widest
from secure_eval.lowering.activations import given
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import clear, reshape, shaped
from secure_eval.lowering.registry import rule
from secure_eval.program import Node, Ref

_FLOAT32_EPS = 2.0**-23


@rule("layer_norm.default")
def _layer_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    weight, bias = given(args, kwargs, 2, "weight", None), given(args, kwargs, 3, "bias", None)
    eps = float(given(args, kwargs, 4, "eps", 1e-5))
    return layer_norm(b, b.secret(args[0]), len(args[1]), weight, bias, eps, value)


def layer_norm(b: Builder, x: Ref, dims: int, weight: Any, bias: Any, eps: float, value: Any) -> Ref:
    """Right for every variance that fits; calibration narrows or widens that."""
    n = prod(b.shape(x)[-dims:])
    return b.op("layer_norm", [x, dims, weight, bias, eps, *widest(n, deviation_scale(n), eps)], value)


def rms_norm(b: Builder, x: Ref, dims: int, weight: Any, eps: float, value: Any) -> Ref:
    return b.op("rms_norm", [x, dims, weight, eps, *widest(prod(b.shape(x)[-dims:]), 1.0, eps)], value)


# -- by the root mean square -------------------------------------------------------------------------------------


@rule("rms_norm.default")
def _rms_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """Without an eps torch takes the smallest of x's type."""
    weight, eps = given(args, kwargs, 2, "weight", None), given(args, kwargs, 3, "eps", None)
    eps = _FLOAT32_EPS if eps is None else float(eps)
    return rms_norm(b, b.secret(args[0]), len(args[1]), weight, eps, value)


def over_root_mean_square(b: Builder, x: Any, y: Any, value: Any) -> Ref | None:
    """The product x y as one rms_norm where y is rsqrt(mean(x^2) + eps) over x's last dimensions, or rsqrt(sum(x^2) + eps), by which rows
    get the length 1; None where it is not.

    So a normalisation that a model writes out has the range of one, and not that of an inverse square root.
    """
    for whole, factor in ((x, y), (y, x)):
        root = _node(b, factor, "rsqrt")
        if root is None or not b.is_secret(whole):
            continue
        mean, eps = _mean_and_eps(b, root.args[0])
        scaled = _node(b, mean, "mul")
        total = _node(b, mean if scaled is None else scaled.args[0], "view")
        if total is None or total.args[0] != "aten.sum.dim_IntList":
            continue
        dims = _last_dims(b, total)
        square = b.by_name[total.args[1].name]
        of_whole = square.args[0] == whole and (square.op == "square" or square.args[1:] == (2,))
        if not dims or not of_whole:
            continue
        n = prod(b.shape(whole)[-dims:])
        if scaled is None:
            # A row of zeros, by which torch cannot divide, stays one; LOWEST is nothing beside all other rows that the ring holds.
            normed = rms_norm(b, whole, dims, None, max(eps / n, LOWEST), value)
            return b.op("mul", [normed, n**-0.5], value)
        if isinstance(scaled.args[1], float) and abs(scaled.args[1] * n - 1) < 1e-6:
            return rms_norm(b, whole, dims, None, eps, value)
    return None


def _node(b: Builder, value: Any, op: str) -> Node | None:
    node = b.by_name[value.name] if isinstance(value, Ref) else None
    return node if node is not None and node.op == op else None


def _mean_and_eps(b: Builder, x: Any) -> tuple[Any, float]:
    node = _node(b, x, "add")
    for mean, eps in (node.args, node.args[::-1]) if node is not None else ():
        if isinstance(eps, (int, float)):
            return mean, float(eps)
    return x, 0.0


def _last_dims(b: Builder, total: Node) -> int:
    """How many of the last dimensions a sum with keepdim is over; 0 where it is over others, or drops them."""
    rank = len(b.shape(total.args[1]))
    dims = sorted(d % rank for d in total.args[2])
    keepdim = len(total.args) > 3 and bool(total.args[3])
    return len(dims) if keepdim and dims == list(range(rank - len(dims), rank)) else 0


def weighted_norm(b: Builder, x: Any, y: Any, value: Any) -> Ref | None:
    """The product of an rms_norm without a weight and a weight of the model owner's as one operation; None where it is not that."""
    for normed, weight in ((x, y), (y, x)):
        node = _node(b, normed, "rms_norm")
        if node is None or node.args[2] is not None or not isinstance(weight, Ref):
            continue
        if b.level(weight) in ("owner", "constant") and b.shape(weight) == node.shape[-node.args[1] :]:
            source, dims, _, *rest = node.args
            return b.op("rms_norm", [source, dims, weight, *rest], value)
    return None


# -- over groups of channels -------------------------------------------------------------------------------------


@rule("group_norm.default")
def _group_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    weight, bias = given(args, kwargs, 2, "weight", None), given(args, kwargs, 3, "bias", None)
    eps = float(given(args, kwargs, 4, "eps", 1e-5))
    return _grouped(b, b.secret(args[0]), args[1], weight, bias, eps, value)


@rule("native_group_norm.default")
def _native_group_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, weight, bias, _, _, _, groups, eps = args
    return [_grouped(b, b.secret(x), groups, weight, bias, float(eps), value[0])]


@rule("instance_norm.default")
def _instance_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, weight, bias, mean, variance, of_the_input, _, eps = args[:8]
    if not of_the_input:
        return _batch_norm(b, [x, weight, bias, mean, variance, False, 0.0, eps], {}, value)
    return _grouped(b, b.secret(x), b.shape(x)[1], weight, bias, float(eps), value)


def _grouped(b: Builder, x: Ref, groups: int, weight: Any, bias: Any, eps: float, value: Any) -> Ref:
    """layer_norm of each group of channels [batch, groups, rest], then each channel's scale and shift."""
    shape = b.shape(x)
    rows = [shape[0], groups, prod(shape[1:]) // groups]
    normed = layer_norm(b, reshape(b, x, rows), 1, None, None, eps, shaped(rows))
    return _channel_affine(b, reshape(b, normed, shape), weight, bias, value)


def _channel_affine(b: Builder, x: Ref, scale: Ref | None, shift: Ref | None, value: Any) -> Ref:
    """x * scale + shift for vectors over dimension 1."""
    column = [-1, *[1] * (len(b.shape(x)) - 2)]
    if scale is not None:
        x = b.op("mul", [x, reshape(b, scale, column)], value)
    return x if shift is None else b.op("add", [x, reshape(b, shift, column)], value)


# -- by running statistics -----------------------------------------------------------------------------------------


@rule("batch_norm.default")
def _batch_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    """x * scale + shift: the model owner computes both, once, from its running statistics."""
    x, weight, bias, mean, variance, training, _, eps = args[:8]
    if training or mean is None or variance is None:
        b.fail("aten.batch_norm", "statistics of the batch itself; allowed: running statistics, in eval mode")
        return None
    return _with_statistics(b, b.secret(x), weight, bias, mean, variance, float(eps), value)


@rule("_native_batch_norm_legit_no_training.default")
def _native_batch_norm(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    x, weight, bias, mean, variance, _, eps = args
    return [_with_statistics(b, b.secret(x), weight, bias, mean, variance, float(eps), value[0])]


def _with_statistics(
    b: Builder, x: Ref, weight: Any, bias: Any, mean: Ref, variance: Ref, eps: float, value: Any
) -> Ref:
    operands = [v for v in (weight, bias, mean, variance) if v is not None]
    level = "owner" if any(b.level(v) == "owner" for v in operands) else "constant"
    vector = shaped(b.shape(mean))

    def known(target: str, *arguments: Any) -> Ref:
        return clear(b, target, level, vector, *arguments)

    scale = known("aten.rsqrt.default", known("aten.add.Scalar", variance, eps))
    if weight is not None:
        scale = known("aten.mul.Tensor", scale, weight)
    shift = known("aten.neg.default", known("aten.mul.Tensor", mean, scale))
    if bias is not None:
        shift = known("aten.add.Tensor", shift, bias)
    return _channel_affine(b, x, scale, shift, value)


# -- variances -----------------------------------------------------------------------------------------------------


def _moments(b: Builder, args: list[Any], kwargs: dict[str, Any], rows: Any) -> tuple[Ref, Ref]:
    """Variance and mean over `dim`, with shape and type of `rows`."""
    x = b.secret(args[0])
    shape = b.shape(x)
    dims = given(args, kwargs, 1, "dim", None)
    dims = list(range(len(shape))) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    keepdim, correction = bool(kwargs.get("keepdim", False)), kwargs.get("correction")
    count = prod(shape[d] for d in dims)
    kept = shaped([1 if d in {i % len(shape) for i in dims} else size for d, size in enumerate(shape)])

    def average(of: Ref, divisor: float, keep: bool, like: Any) -> Ref:
        return b.op(
            "mul", [b.op("view", ["aten.sum.dim_IntList", of, dims, keep], like), 1.0 / divisor], like
        )

    mean = average(x, count, True, kept)
    square = b.op("square", [b.op("sub", [x, mean], shaped(shape))], shaped(shape))
    variance = average(square, count - (1 if correction is None else correction), keepdim, rows)
    return variance, mean if keepdim else reshape(b, mean, rows.shape)


@rule("var.correction")
def _variance(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return _moments(b, args, kwargs, value)[0]


@rule("var_mean.correction")
def _variance_and_mean(b: Builder, args: list[Any], kwargs: dict[str, Any], value: Any) -> Any:
    return list(_moments(b, args, kwargs, value[0]))
