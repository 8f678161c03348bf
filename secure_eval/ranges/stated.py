"""The ranges that operations state: what they look at, and between what it has to lie. One entry an operation.

The limits are those of the docstrings of secure_eval/functions. An operation without an entry is right for all values that fit the ring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from math import exp, prod
from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.functions.exponential import ExpRange
from secure_eval.functions.layer_norm import DEFAULT_RANGE
from secure_eval.functions.logarithm import LOG_RANGE
from secure_eval.functions.normalised import reciprocal, rsqrt
from secure_eval.functions.octave_power import SIGNED_RANGE, SQRT_RANGE
from secure_eval.program import Node
from secure_eval.reference import MEANINGS
from secure_eval.rules.nonlinear import MASK_BELOW

VALUE_BITS = ring.BITS - ring.HEADROOM_BITS
"""A ring element has to be below 2^VALUE_BITS in magnitude wherever it is truncated, compared or selected."""

Limits = tuple[float | None, float | None]


@dataclass(frozen=True)
class Stated:
    """`quantities` of the arguments' values (float64, clear ones in their own type) by name, any shapes; `limits` of a node at so many
    fraction bits: for each name the least and the largest value allowed, None for no limit.

    A name that has no limits is a value inside the operation that the ring has to hold. `defaults`: of an operation whose limits are
    arguments of the node, those that it has where nothing is known. Other ones were proven at capture, or come from calibration with
    a margin of their own.
    """

    quantities: Callable[..., Mapping[str, Tensor]]
    limits: Callable[[Node, int], Mapping[str, Limits]] = lambda node, fraction_bits: {}
    defaults: Limits | None = None


def _function(magnitude: float) -> Stated:
    return Stated(
        lambda x, *rest: {"magnitude of the argument": x.abs()},
        lambda node, fraction_bits: {"magnitude of the argument": (None, magnitude)},
    )


def _scores(x: Tensor, mask: Tensor | None, dim: int) -> Mapping[str, Tensor]:
    if mask is not None:
        keep = mask if mask.dtype == torch.bool else mask > MASK_BELOW
        x = x if mask.dtype == torch.bool else x + torch.where(keep, mask, 0.0)
        x = torch.where(torch.broadcast_to(keep, x.shape), x, 0.0)
    return {"magnitude of the scores": x.abs()}


def _rows(x: Tensor, dims: int, weight: Any, bias: Any, eps: float) -> Mapping[str, Tensor]:
    axes = tuple(range(-dims, 0))
    n = prod(x.shape[-dims:])
    deviation = x - x.mean(axes, keepdim=True)
    squares = (deviation**2).sum(axes)
    k = n / 2 ** (n.bit_length() - 1)
    return {
        "variance": squares / n + eps,
        "row length times deviation": n * deviation.abs(),
        "sum of squares": k**2 * squares,
    }


def _row_limits(node: Node, fraction_bits: int) -> Mapping[str, Limits]:
    held = 2.0 ** (VALUE_BITS - 2 * fraction_bits)
    return {
        "variance": (DEFAULT_RANGE.low, DEFAULT_RANGE.high),
        "row length times deviation": (None, held),
        "sum of squares": (None, held),
    }


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Mapping[str, Tensor]:
    return {"product without the bias": MEANINGS["linear"](x, weight, None).abs()}


def _between(defaults: Limits, least: float | None = None) -> Stated:
    """An argument between the node's own low and high; `least` in place of low where that is no limit."""
    return Stated(
        lambda x, low, high: {"argument": x},
        lambda node, bits: {"argument": (node.args[1] if least is None else least, node.args[2])},
        defaults,
    )


def _defaults(function: Callable[..., Any]) -> Limits:
    """What a function takes for low and high where nothing is said."""
    parameters = signature(function).parameters
    return parameters["low"].default, parameters["high"].default


def _squares(x: Tensor, dims: int, weight: Any, eps: float) -> Mapping[str, Tensor]:
    total = (x**2).sum(tuple(range(-dims, 0)))
    n = prod(x.shape[-dims:])
    return {"mean square": total / n + eps, "sum of squares": total}


def _square_limits(node: Node, fraction_bits: int) -> Mapping[str, Limits]:
    held = 2.0 ** (VALUE_BITS - 2 * fraction_bits)
    return {"mean square": (DEFAULT_RANGE.low, DEFAULT_RANGE.high), "sum of squares": (None, held)}


STATED: dict[str, Stated] = {
    **dict.fromkeys(
        ("gelu", "tanh", "sigmoid", "silu", "erf", "softplus", "elu", "mish"), _function(2.0**14)
    ),
    "reciprocal": _between(_defaults(reciprocal)),
    "rsqrt": _between(_defaults(rsqrt)),
    "signed_reciprocal": Stated(
        lambda x, low, high: {"magnitude of the argument": x.abs()},
        lambda node, bits: {"magnitude of the argument": (node.args[1], node.args[2])},
        (SIGNED_RANGE.low, SIGNED_RANGE.high),
    ),
    "sqrt": _between((0.0, SQRT_RANGE.high), least=0.0),
    "log": _between((LOG_RANGE.low, LOG_RANGE.high)),
    "exp": Stated(
        lambda x, low, high: {"exponential": torch.exp(x)},
        lambda node, bits: {"exponential": (None, exp(node.args[2]))},
        (None, exp(ExpRange().high)),
    ),
    "softmax_numerator": Stated(
        _scores, lambda node, fraction_bits: {"magnitude of the scores": (None, 2.0**12)}
    ),
    "layer_norm": Stated(_rows, _row_limits),
    "rms_norm": Stated(_squares, _square_limits),
    "linear": Stated(_product),
}
"""Operation -> what it states."""
