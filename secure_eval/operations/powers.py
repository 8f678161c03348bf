"""Divisions, roots, exponentials and logarithms."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from math import exp as e_to_the
from math import frexp, inf
from math import sqrt as root
from typing import Any

import torch
from torch import Tensor

from secure_eval.functions.exponential import LOWEST, ExpRange, exp
from secure_eval.functions.logarithm import LOG_RANGE, log
from secure_eval.functions.normalised import reciprocal, rsqrt
from secure_eval.functions.octave_power import SIGNED_RANGE, SQRT_RANGE, signed_reciprocal, sqrt
from secure_eval.functions.octaves import Octaves
from secure_eval.operations.error import FINEST, Approximate, Steps
from secure_eval.operations.operation import ANY, Error, Interval, Known, Operation, ValidRange, without_node
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret


async def _signed_reciprocal(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await signed_reciprocal(p, x, Octaves(low, high, signed=True))


async def _sqrt(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await sqrt(p, x, Octaves(low, high))


async def _exp(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    result = await exp(p, x, ExpRange(low, high))
    return await p.rescale(result, min(result.fraction_bits, 2 * p.fraction_bits))  # sums of it have to fit


async def _log(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await log(p, x, Octaves(low, high))


def _reciprocal_interval(known: Known, node: Node) -> Interval:
    low, high = known.look(node.args[0])
    if known.valid:
        low, high = max(low, node.args[1]), min(high, node.args[2])
    return (1 / high if high > 0 else 0.0, 1 / low if low > 0 else inf) if low >= 0 else ANY


def _rsqrt_interval(known: Known, node: Node) -> Interval:
    low, high = max(0.0, known.look(node.args[0])[0]), known.look(node.args[0])[1]
    if known.valid:
        low, high = max(low, node.args[1]), min(high, node.args[2])
    return 1 / root(high) if 0 < high < inf else 0.0, 1 / root(low) if low > 0 else inf


def _sqrt_interval(known: Known, node: Node) -> Interval:
    low, high = known.look(node.args[0])
    if known.valid:
        high = min(high, node.args[2])
    return root(low) if low > 0 else 0.0, root(max(0.0, high)) if high < inf else inf


def _exp_interval(known: Known, node: Node) -> Interval:
    """Powers of two above it, which all machines agree on to the last bit."""
    high = known.look(node.args[0])[1]
    if known.valid:
        high = min(high, node.args[2])
    return 0.0, 2.0 ** -(-high * 1.4426950408889634 // 1) if high < 700 else inf


def _log_interval(known: Known, node: Node) -> Interval:
    """Between three below the logarithm of the least argument, as the function says, and a bit above that of the largest."""
    if not known.valid:
        return ANY
    low, high = (frexp(v)[1] for v in node.args[1:])
    return 0.7 * min(0, low) - 4.0, 0.7 * max(0, high) + 1.0


def _signed_reciprocal_interval(known: Known, node: Node) -> Interval:
    return (-1 / node.args[1], 1 / node.args[1]) if known.valid else ANY


def _relative_error(power: float, stated: float) -> Error:
    """x^power for x > 0: the reference at both ends of what x may be, and the stated relative error of what comes out."""

    def error(steps: Steps, value: Tensor, x: Approximate, low: float, high: float) -> Tensor:
        off = x.error + steps.cut
        worst = (x.value - off).clamp(min=low / 2) ** power
        return (worst - value) + stated * worst + FINEST

    return error


def _signed_error(steps: Steps, value: Tensor, x: Approximate, low: float, high: float) -> Tensor:
    magnitude = Approximate(x.value.abs(), x.error)
    found: Tensor = _relative_error(-1.0, 2.0**-10)(steps, value.abs(), magnitude, low, high)
    return found


def _sqrt_error(steps: Steps, value: Tensor, x: Approximate, low: float, high: float) -> Tensor:
    """The reference at both ends of what x may be; a relative error from low on, an absolute one below."""
    off = x.error + steps.cut
    apart = value - (x.value - off).clamp(min=0.0).sqrt()
    return apart + 2.0**-11 * (value + apart) + torch.where(x.value - off < low, low**0.5 / 2, 0.0)


def _log_error(steps: Steps, value: Tensor, x: Approximate, low: float, high: float) -> Tensor:
    return value - (x.value - x.error - steps.cut).clamp(min=low / 2).log() + 2.0**-10


def _exp_error(steps: Steps, value: Tensor, x: Approximate, low: float, high: float) -> Tensor:
    """A relative error, none of the value below low, and a truncation."""
    off = x.error + steps.cut
    result = value * torch.expm1(off) + 2.0**-10 * value * torch.exp(off) + steps.cut
    return result + torch.where(x.value - off < low, value, 0.0)


def _unless_given(low: float | None, high: float | None) -> Callable[[Node, str], tuple[bool, bool]]:
    """Margins where a node's second and third argument are still those that it has where nothing is known."""
    return lambda node, name: (node.args[1] == low, node.args[2] == high)


def _from_low_to_high(low: float, high: float, least: float | None = None) -> ValidRange:
    """An argument between the node's own low and high, by default these; `least` in place of low where that is no limit."""
    return ValidRange(
        lambda x, low, high: {"argument": x},
        lambda node, bits: {"argument": (node.args[1] if least is None else least, node.args[2])},
        _unless_given(low, high),
    )


def _defaults(function: Callable[..., Any]) -> tuple[float, float]:
    """What a function takes for low and high where nothing is said."""
    parameters = signature(function).parameters
    return parameters["low"].default, parameters["high"].default


OPERATIONS: dict[str, Operation] = {
    "reciprocal": Operation(
        "x, low, high: for low <= x <= high",
        ("s", "-", "-"),
        lambda x, low, high: 1 / x,
        without_node(reciprocal),
        _relative_error(-1.0, 2.0**-10),
        _reciprocal_interval,
        _from_low_to_high(*_defaults(reciprocal)),
        keeps_sign=True,
    ),
    "signed_reciprocal": Operation(
        "x, low, high: for low <= abs(x) <= high",
        ("s", "-", "-"),
        lambda x, low, high: 1 / x,
        _signed_reciprocal,
        _signed_error,
        _signed_reciprocal_interval,
        ValidRange(
            lambda x, low, high: {"magnitude of the argument": x.abs()},
            lambda node, bits: {"magnitude of the argument": (node.args[1], node.args[2])},
            _unless_given(SIGNED_RANGE.low, SIGNED_RANGE.high),
        ),
    ),
    "rsqrt": Operation(
        "x, low, high: for low <= x <= high",
        ("s", "-", "-"),
        lambda x, low, high: torch.rsqrt(x),
        without_node(rsqrt),
        _relative_error(-0.5, 2.0**-10),
        _rsqrt_interval,
        _from_low_to_high(*_defaults(rsqrt)),
        keeps_sign=True,
    ),
    "sqrt": Operation(
        "x, low, high: 0 <= x <= high, relatively exact from low on",
        ("s", "-", "-"),
        lambda x, low, high: torch.sqrt(x),
        _sqrt,
        _sqrt_error,
        _sqrt_interval,
        _from_low_to_high(SQRT_RANGE.low, SQRT_RANGE.high, least=0.0),
    ),
    "exp": Operation(
        "x, low, high: zero for x < low",
        ("s", "-", "-"),
        lambda x, low, high: torch.exp(x),
        _exp,
        _exp_error,
        _exp_interval,
        ValidRange(
            lambda x, low, high: {"exponential": torch.exp(x)},
            # Below LOWEST zero is right to 2^-17.
            lambda node, bits: {
                "exponential": (
                    e_to_the(node.args[1]) if node.args[1] > LOWEST else None,
                    e_to_the(node.args[2]),
                )
            },
            _unless_given(None, ExpRange().high),
        ),
    ),
    "log": Operation(
        "x, low, high: for low <= x <= high",
        ("s", "-", "-"),
        lambda x, low, high: torch.log(x),
        _log,
        _log_error,
        _log_interval,
        _from_low_to_high(LOG_RANGE.low, LOG_RANGE.high),
    ),
}
