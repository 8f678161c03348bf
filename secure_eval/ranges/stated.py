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
from secure_eval.functions.exponential import LOWEST, ExpRange
from secure_eval.functions.layer_norm import deviation_scale
from secure_eval.functions.logarithm import LOG_RANGE
from secure_eval.functions.normalised import reciprocal, rsqrt
from secure_eval.functions.octave_power import SIGNED_RANGE, SQRT_RANGE
from secure_eval.functions.root_mean_square import plan, widest
from secure_eval.functions.softmax import MOST_BITS
from secure_eval.program import Node
from secure_eval.reference import MEANINGS

VALUE_BITS = ring.BITS - ring.HEADROOM_BITS
"""A ring element has to be below 2^VALUE_BITS in magnitude wherever it is truncated, compared or selected."""

Limits = tuple[float | None, float | None]


@dataclass(frozen=True)
class Stated:
    """`quantities` of the arguments' values (float64, clear ones in their own type) by name, any shapes; `limits` of a node at so many
    fraction bits: for each name the least and the largest value allowed, None for no limit.

    A name that has no limits is a value inside the operation that the ring has to hold. `margins` says of a node and a name whether its
    two limits need a margin: those that were proven at capture need none, and what comes from calibration has one of its own.
    """

    quantities: Callable[..., Mapping[str, Tensor]]
    limits: Callable[[Node, int], Mapping[str, Limits]] = lambda node, fraction_bits: {}
    margins: Callable[[Node, str], tuple[bool, bool]] = lambda node, name: (True, True)


def _unless_given(low: float | None, high: float | None) -> Callable[[Node, str], tuple[bool, bool]]:
    """Margins where a node's second and third argument are still those that it has where nothing is known."""
    return lambda node, name: (node.args[1] == low, node.args[2] == high)


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
            found["row length times deviation"] = None, 2.0 ** (VALUE_BITS - 2 * fraction_bits)
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


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Mapping[str, Tensor]:
    return {"product without the bias": MEANINGS["linear"](x, weight, None).abs()}


def _between(low: float, high: float, least: float | None = None) -> Stated:
    """An argument between the node's own low and high, by default these; `least` in place of low where that is no limit."""
    return Stated(
        lambda x, low, high: {"argument": x},
        lambda node, bits: {"argument": (node.args[1] if least is None else least, node.args[2])},
        _unless_given(low, high),
    )


def _defaults(function: Callable[..., Any]) -> tuple[float, float]:
    """What a function takes for low and high where nothing is said."""
    parameters = signature(function).parameters
    return parameters["low"].default, parameters["high"].default


STATED: dict[str, Stated] = {
    "reciprocal": _between(*_defaults(reciprocal)),
    "rsqrt": _between(*_defaults(rsqrt)),
    "signed_reciprocal": Stated(
        lambda x, low, high: {"magnitude of the argument": x.abs()},
        lambda node, bits: {"magnitude of the argument": (node.args[1], node.args[2])},
        _unless_given(SIGNED_RANGE.low, SIGNED_RANGE.high),
    ),
    "sqrt": _between(SQRT_RANGE.low, SQRT_RANGE.high, least=0.0),
    "log": _between(LOG_RANGE.low, LOG_RANGE.high),
    "exp": Stated(
        lambda x, low, high: {"exponential": torch.exp(x)},
        # Below LOWEST zero is right to 2^-17.
        lambda node, bits: {
            "exponential": (exp(node.args[1]) if node.args[1] > LOWEST else None, exp(node.args[2]))
        },
        _unless_given(None, ExpRange().high),
    ),
    "softmax_numerator": Stated(
        _scores,
        lambda node, fraction_bits: {
            "magnitude of the scores": (None, 2.0 ** (60 - min(2 * fraction_bits, MOST_BITS)))
        },
    ),
    "layer_norm": Stated(_rows, _row_limits("variance"), _row_margins),
    "rms_norm": Stated(_squares, _row_limits("mean square"), _row_margins),
    "linear": Stated(_product),
}
"""Operation -> what it states."""
