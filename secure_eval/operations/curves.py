"""Functions of one number, element by element.

Those that are smooth and straight far from zero are rows of data for one piecewise cubic (functions/piecewise.py). Their knots are where
the errors of neighbouring cubics are level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secure_eval.functions.approximation import Array
from secure_eval.functions.clamp import clamp
from secure_eval.functions.gelu import gelu
from secure_eval.functions.piecewise import PiecewiseCubic, fitted, piecewise_cubic
from secure_eval.operations.error import Approximate, Steps
from secure_eval.operations.operation import (
    Interval,
    Known,
    Meaning,
    Operation,
    always,
    between,
    without_node,
)
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret

Line = tuple[float, float]
"""A constant and a slope."""

_LARGEST_ALPHA = 2.0**12
"""Magnitude of ELU's alpha up to which every piece's terms fit."""


def _at_least(least: float, above: float = 0.0) -> Callable[[Known, Node], Interval]:
    """Between `least` and the argument, or zero, whichever is more; `above` it at most."""

    def interval(known: Known, node: Node) -> Interval:
        return least, max(0.0, known.look(node.args[0])[1]) + above

    return interval


def _smooth(slope: float, absolute: float) -> Callable[..., Tensor]:
    """Error of a function with this largest slope, which comes out with this absolute error."""
    return lambda steps, value, x, *rest: slope * (x.error + steps.cut) + absolute


def curve(
    says: str,
    meaning: Meaning,
    knots: Sequence[float],
    below: Line,
    above: Line,
    *,
    interval: Callable[[Known, Node], Interval],
    slope: float,
    error: float = 2.0**-10,
) -> Operation:
    """A function fitted by a cubic between neighbouring knots, with straight lines outside: right for all that fit the ring.

    slope: the function's largest; error: absolute, of the secure one.
    """

    def on_arrays(x: Array) -> Array:
        found: Array = meaning(torch.from_numpy(x)).numpy()
        return found

    @lru_cache
    def table() -> PiecewiseCubic:
        return fitted(on_arrays, knots, below, above)

    async def run(p: Protocol, node: Node, x: Secret) -> Secret:
        return await piecewise_cubic(p, x, table())

    return Operation(says, ("s",), meaning, run, _smooth(slope, error), interval)


@lru_cache(maxsize=64)
def _elu_table(alpha: float) -> PiecewiseCubic:
    if not abs(alpha) <= _LARGEST_ALPHA:
        raise ValueError(f"alpha is {alpha}; allowed are magnitudes up to {_LARGEST_ALPHA:g}")
    knots = (-8.38, -4.547, -2.403, -1.014, 0.0)

    def below_zero(x: Array) -> Array:
        found: Array = alpha * torch.expm1(torch.from_numpy(x)).numpy()
        return found

    return fitted(below_zero, knots, (-alpha, 0.0), (0.0, 1.0))


async def _elu(p: Protocol, node: Node, x: Secret, alpha: float) -> Secret:
    return await piecewise_cubic(p, x, _elu_table(alpha))


def _elu_interval(known: Known, node: Node) -> Interval:
    size = abs(node.args[1])
    return -size, max(0.0, known.look(node.args[0])[1], size)


def _elu_error(steps: Steps, value: Tensor, x: Approximate, alpha: float) -> Tensor:
    size = max(1.0, abs(alpha))
    return size * (x.error + steps.cut) + size * 2.0**-10


async def _relu(p: Protocol, node: Node, x: Secret) -> Secret:
    positive = p.invert(await p.less_than(x, [0.0]))[0]
    return await p.select(positive, x)


def _relu_interval(known: Known, node: Node) -> Interval:
    low, high = known.look(node.args[0])
    return max(0.0, low), max(0.0, high)


def cut_off_error(steps: Steps, value: Tensor, x: Approximate, *bounds: float) -> Tensor:
    """Slopes of 1 at most; bounds are encoded."""
    return x.error + (steps.encode if bounds else 0.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), without torch's straight line above 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


OPERATIONS: dict[str, Operation] = {
    "relu": Operation("x", ("s",), torch.relu, _relu, cut_off_error, _relu_interval, exact=always),
    "clamp": Operation(
        "x, low, high",
        ("s", "-", "-"),
        lambda x, low, high: x.clamp(low, high),
        without_node(clamp),
        cut_off_error,
        lambda known, node: (node.args[1], node.args[2]),
    ),
    "gelu": Operation(
        "x, approximate: by the error function (none) or by tanh",
        ("s", "-"),
        lambda x, approximate: F.gelu(x, approximate=approximate),
        without_node(gelu),
        _smooth(1.13, 2.0**-10),
        _at_least(-0.25),
    ),
    "tanh": curve(
        "x",
        torch.tanh,
        (-4.171, -2.085, -0.59, 0.59, 2.085, 4.171),
        (-1.0, 0.0),
        (1.0, 0.0),
        interval=between(-1.0, 1.0),
        slope=1.0,
    ),
    "sigmoid": curve(
        "x",
        torch.sigmoid,
        (-8.21, -4.13, -1.21, 1.21, 4.13, 8.21),
        (0.0, 0.0),
        (1.0, 0.0),
        interval=between(0.0, 1.0),
        slope=0.25,
        error=2.0**-11,
    ),
    "erf": curve(
        "x",
        torch.erf,
        (-2.525, -1.466, -0.565, 0.565, 1.466, 2.525),
        (-1.0, 0.0),
        (1.0, 0.0),
        interval=between(-1.0, 1.0),
        slope=1.13,
    ),
    "silu": curve(
        "x: x sigmoid(x)",
        F.silu,
        (-9.973, -5.045, -2.39, -0.655, 0.655, 2.39, 5.045, 9.973),
        (0.0, 0.0),
        (0.0, 1.0),
        interval=_at_least(-0.35),
        slope=1.1,
    ),
    "softplus": curve(
        "x: log(1 + exp(x))",
        softplus,
        (-8.266, -4.65, -2.3, 0.0, 2.3, 4.65, 8.266),
        (0.0, 0.0),
        (0.0, 1.0),
        interval=_at_least(0.0, 0.75),
        slope=1.0,
    ),
    "mish": curve(
        "x: x tanh(softplus(x))",
        lambda x: x * torch.tanh(softplus(x)),
        (-10.549, -5.906, -2.61, -1.279, -0.036, 1.539, 3.246, 5.269),
        (0.0, 0.0),
        (0.0, 1.0),
        interval=_at_least(-0.35),
        slope=1.09,
    ),
    "elu": Operation(
        "x, alpha: x where it is positive, alpha (exp(x) - 1) elsewhere",
        ("s", "-"),
        lambda x, alpha: F.elu(x, alpha),
        _elu,
        _elu_error,
        _elu_interval,
    ),
}


async def evaluate(p: Protocol, name: str, x: Secret, *parameters: Any) -> Secret:
    """The secure function of that name, any shape: absolute error below 2^-10, for all x that fit the ring."""
    found: Secret = await OPERATIONS[name].run(
        p, Node(name, name, (), "secret", tuple(x.shape)), x, *parameters
    )
    return found
