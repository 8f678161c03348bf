"""Softmax and norms: functions of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secure_eval import ring
from secure_eval.functions.layer_norm import deviation_scale, layer_norm
from secure_eval.functions.rms_norm import rms_norm
from secure_eval.functions.root_mean_square import plan, widest
from secure_eval.functions.softmax import MOST_BITS, softmax_numerator
from secure_eval.operations.error import Approximate, Steps, product_error
from secure_eval.operations.operation import (
    Interval,
    Known,
    Limits,
    Operation,
    ValidRange,
    between,
    products,
    without_node,
)
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret

_NORMALISED_BITS = 14
_SCALE_BITS = 30


def normalised(fraction_bits: int) -> int:
    """Results of layer_norm and rms_norm have to be below 2^this: they are products by a factor with up to 30 fraction bits."""
    return min(_NORMALISED_BITS, ring.VALUE_BITS - fraction_bits - _SCALE_BITS)


def exponentials(x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """exp(y - max(y)), y = x + mask, 0 where the mask is -inf; all ones in a row of which nothing is kept. A bool mask keeps where it is
    true."""
    if mask is None:
        return torch.exp(x - x.amax(dim, keepdim=True))
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
    mask = torch.broadcast_to(mask, x.shape)
    some = (mask != -torch.inf).any(dim, keepdim=True)
    x = torch.where(some, x + mask, 0.0)
    return torch.exp(x - x.amax(dim, keepdim=True))


def _layer_norm_meaning(
    x: Tensor, dims: int, weight: Tensor | None, bias: Tensor | None, eps: float, low: float, high: float
) -> Tensor:
    result = F.layer_norm(x, x.shape[-dims:], eps=eps)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def _rms_norm_meaning(
    x: Tensor, dims: int, weight: Tensor | None, eps: float, low: float, high: float
) -> Tensor:
    result = F.rms_norm(x, x.shape[-dims:], eps=eps)
    return result if weight is None else result * weight


async def _layer_norm(
    p: Protocol, node: Node, x: Secret, dims: int, weight: Any, bias: Any, eps: float, low: float, high: float
) -> Secret:
    return await layer_norm(p, x, dims, _shared(p, weight), _shared(p, bias), eps, (low, high))


async def _rms_norm(
    p: Protocol, node: Node, x: Secret, dims: int, weight: Any, eps: float, low: float, high: float
) -> Secret:
    return await rms_norm(p, x, dims, _shared(p, weight), eps, (low, high))


def _shared(p: Protocol, value: Any) -> Secret | None:
    """An affine parameter, public or secret or none, as a secret."""
    if value is None or isinstance(value, Secret):
        return value
    return p.public(ring.encode(value, p.fraction_bits), p.fraction_bits)


def _normalised_interval(known: Known, node: Node) -> Interval:
    """n values of mean square 1 are below sqrt(n)."""
    n = prod(node.shape[len(node.shape) - node.args[1] :])
    weight, bias = node.args[2], node.args[3] if node.op == "layer_norm" else None
    low, high = products((-sqrt(n), sqrt(n)), (1.0, 1.0) if weight is None else known.look(weight))
    low_b, high_b = (0.0, 0.0) if bias is None else known.look(bias)
    return low + low_b, high + high_b


def _numerator_error(steps: Steps, value: Tensor, x: Approximate, mask: Tensor | None, dim: int) -> Tensor:
    """exp(x - max): both are off, then a relative 8e-4, zero below -12 (under 2^-17), and a truncation. Masked entries are zero exactly."""
    off = x.error + steps.fine + steps.encode
    off = off + off.amax(dim, keepdim=True)
    result = value * torch.expm1(off) + 8e-4 * value * torch.exp(off) + 2.0**-17 + steps.cut
    if mask is None:
        return result
    keep = torch.broadcast_to(mask if mask.dtype == torch.bool else mask != -torch.inf, value.shape)
    return torch.where(keep | ~keep.any(dim, keepdim=True), result, 0.0)


def _layer_norm_error(
    steps: Steps,
    value: Tensor,
    x: Approximate,
    dims: int,
    weight: Any,
    bias: Any,
    eps: float,
    *between: float,
) -> Tensor:
    """Deviations from the mean are off by d; so is, at most, their root mean square. What comes out has a relative error below 2^-10."""
    axes = tuple(range(-dims, 0))
    d = (2 * (x.error + steps.fine) + steps.cut).amax(axes, keepdim=True)
    deviation = x.value - x.value.mean(axes, keepdim=True)
    sigma = ((deviation**2).mean(axes, keepdim=True) + eps).sqrt()
    z = deviation / sigma
    smaller = torch.maximum(sigma - d, sigma / 2)
    off = (1 + z.abs()) * d / smaller + 2.0**-10 * z.abs().amax(axes, keepdim=True)
    if weight is not None:
        w = steps.operand(weight, steps.cut)
        off = product_error(torch.mul, Approximate(z, off), w) + steps.cut / smaller
    return off if bias is None else off + steps.operand(bias, steps.fine).error


def _rms_norm_error(
    steps: Steps, value: Tensor, x: Approximate, dims: int, weight: Any, eps: float, *between: float
) -> Tensor:
    """As layer_norm, without the mean."""
    axes = tuple(range(-dims, 0))
    d = (x.error + steps.fine + steps.cut).amax(axes, keepdim=True)
    sigma = ((x.value**2).mean(axes, keepdim=True) + eps).sqrt()
    z = x.value / sigma
    smaller = torch.maximum(sigma - d, sigma / 2)
    off = (1 + z.abs()) * d / smaller + 2.0**-10 * z.abs().amax(axes, keepdim=True)
    if weight is None:
        return off
    return (
        product_error(torch.mul, Approximate(z, off), steps.operand(weight, steps.cut)) + steps.cut / smaller
    )


def _scores(x: Tensor, mask: Tensor | None, dim: int) -> Mapping[str, Tensor]:
    if mask is None:
        return {"magnitude of the scores": x.abs()}
    keep = torch.broadcast_to(mask if mask.dtype == torch.bool else mask != -torch.inf, x.shape)
    kept = torch.where(keep, x if mask.dtype == torch.bool else x + mask, 0.0)
    return {"magnitude of the scores": torch.maximum(x.abs(), kept.abs())}


def _rows(
    x: Tensor, dims: int, weight: Any, bias: Any, eps: float, low: float, high: float
) -> Mapping[str, Tensor]:
    axes = tuple(range(-dims, 0))
    deviation = x - x.mean(axes, keepdim=True)
    return {
        "variance": (deviation**2).mean(axes) + eps,
        "row length times deviation": prod(x.shape[-dims:]) * deviation.abs(),
        **_weight(weight),
    }


def _squares(x: Tensor, dims: int, weight: Any, eps: float, low: float, high: float) -> Mapping[str, Tensor]:
    return {"mean square": (x**2).mean(tuple(range(-dims, 0))) + eps, **_weight(weight)}


def _weight(weight: Any) -> Mapping[str, Tensor]:
    return {} if weight is None else {"weight": weight.abs()}


def _row_limits(quantity: str) -> Callable[[Node, int], Mapping[str, Limits]]:
    """Of a norm: its own low (none where eps alone is as much) and high, and a weight whose product with a numerator fits."""

    def limits(node: Node, fraction_bits: int) -> Mapping[str, Limits]:
        eps, low, high = node.args[-3:]
        n, k = _row(node)
        found: dict[str, Limits] = {quantity: (low if low > eps else None, high)}
        if quantity == "variance":
            found["row length times deviation"] = None, 2.0 ** (ring.VALUE_BITS - 2 * fraction_bits)
        if node.args[2] is not None:
            found["weight"] = None, plan(n, low * k**2, high * k**2).largest_weight(n, fraction_bits)
        return found

    return limits


def _row(node: Node) -> tuple[int, float]:
    """A norm's row length, and the factor of the values that it sums squares of."""
    n = prod(node.shape[len(node.shape) - node.args[1] :])
    return n, deviation_scale(n) if node.op == "layer_norm" else 1.0


def _row_margins(node: Node, name: str) -> tuple[bool, bool]:
    """A weight is known, not an example; a range other than the widest was fitted, with a margin."""
    if name == "row length times deviation":
        return False, True
    low, high = widest(*_row(node), node.args[-3])
    return name != "weight" and node.args[-2] == low, name != "weight" and node.args[-1] == high


OPERATIONS: dict[str, Operation] = {
    "softmax_numerator": Operation(
        "x, mask or None, dim: exp(y - max(y)), y = x + mask, zero where the mask is -inf, or false",
        ("s", "c?", "-"),
        exponentials,
        without_node(softmax_numerator),
        _numerator_error,
        between(0.0, 1.0),
        ValidRange(
            _scores,
            lambda node, fraction_bits: {
                "magnitude of the scores": (None, 2.0 ** (60 - min(2 * fraction_bits, MOST_BITS)))
            },
        ),
    ),
    "layer_norm": Operation(
        "x, dims, weight or None, bias or None, eps, low, high: for variances (eps included) from low to high",
        ("s", "-", "v?", "v?", "-", "-", "-"),
        _layer_norm_meaning,
        _layer_norm,
        _layer_norm_error,
        _normalised_interval,
        ValidRange(_rows, _row_limits("variance"), _row_margins),
        multiplied=(2,),
        limit=normalised,
    ),
    "rms_norm": Operation(
        "x, dims, weight or None, eps, low, high: x / sqrt(mean(x^2) + eps) over the last dims dimensions, times weight",
        ("s", "-", "v?", "-", "-", "-"),
        _rms_norm_meaning,
        _rms_norm,
        _rms_norm_error,
        _normalised_interval,
        ValidRange(_squares, _row_limits("mean square"), _row_margins),
        multiplied=(2,),
        limit=normalised,
    ),
}
