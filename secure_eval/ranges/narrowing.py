"""A pass that fits operations with a range to the arguments that they met: fewer thresholds and fewer bytes where it is narrower, and
right results where the range that they have by default is not enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import log, prod
from typing import Any

from secure_eval.functions.exponential import LOWEST, ExpRange
from secure_eval.functions.layer_norm import deviation_scale
from secure_eval.functions.normalised import Range
from secure_eval.functions.octave_power import allowed
from secure_eval.functions.octaves import Octaves
from secure_eval.functions.root_mean_square import plan
from secure_eval.operations import OPERATIONS
from secure_eval.program import Node, Program
from secure_eval.ranges.calibration import Extent, Ranges
from secure_eval.spec import check

_HIGHEST_EXPONENT = 24.0
_LEAST_WIDTH = 1.01
"""A range is at least so wide, as a factor."""


def narrow_ranges(program: Program, ranges: Ranges, margin: float = 4.0) -> Program:
    """Operations of NARROWED get the range of the calibrated arguments, a factor `margin` wider on either side: narrower than what they
    had, or wider. What was proven at capture stays a bound.

    An operation keeps its range where no other one would be right for what it met: the check says so. Not a rewrite that keeps a
    program's meaning on all inputs: beyond the margin results are wrong. Raises ValueError for a margin below 1.
    """
    if not margin >= 1:
        raise ValueError(f"margin={margin}; allowed: 1 or more")

    def narrowed(node: Node) -> Node:
        if node.op not in NARROWED or node.name not in ranges.nodes:
            return node
        extent = next(iter(ranges.nodes[node.name].quantities.values()))
        found = _fitted(node, extent, margin)
        try:
            NARROWED[node.op](node, *found)
        except ValueError:
            return node
        return replace(node, args=(*node.args[:-2], *found))

    return check(program.with_nodes([narrowed(n) for n in program.nodes]))


def _fitted(node: Node, seen: Extent, margin: float) -> tuple[float, float]:
    """A node's new low and high."""
    if node.op == "exp":
        return _fitted_exponents(node, seen, margin)
    low, high = node.args[-2:]
    needs_low, needs_high = margins(node)
    if node.op in ("layer_norm", "rms_norm"):  # nothing is proven of a row, but that eps is added
        low, high = max(node.args[-3], seen.smallest / margin), seen.largest * margin
        return low, max(high, low * _LEAST_WIDTH)
    if needs_high:
        high = seen.largest * margin
    else:
        high = min(high, seen.largest * margin)
    if seen.smallest > 0:
        low = seen.smallest / margin if needs_low else max(low, seen.smallest / margin)
    return low, max(high, low * _LEAST_WIDTH)


def margins(node: Node) -> tuple[bool, bool]:
    """Whether the low and the high of a node that has them need a margin."""
    valid = OPERATIONS[node.op].valid
    assert valid is not None
    return valid.margins(node, "")


def _fitted_exponents(node: Node, seen: Extent, margin: float) -> tuple[float, float]:
    low, high = node.args[-2:]
    _, needs_high = margins(node)
    most = log(seen.largest) + log(margin) if seen.largest > 0 else LOWEST + 1
    high = min(most, _HIGHEST_EXPONENT if needs_high else high)
    least = log(seen.smallest) - log(margin) if seen.smallest > 0 else LOWEST
    high = max(high, LOWEST + 1)
    return min(max(low, least), high - 1), high


def _norm(node: Node, low: float, high: float) -> object:
    n = prod(node.shape[len(node.shape) - node.args[1] :])
    k = deviation_scale(n) if node.op == "layer_norm" else 1.0
    return plan(n, low * k**2, high * k**2)


NARROWED: Mapping[str, Callable[[Node, float, float], Any]] = {
    "reciprocal": lambda node, low, high: Range(-1.0, low, high),
    "signed_reciprocal": lambda node, low, high: allowed(Octaves(low, high, signed=True), -1.0),
    "rsqrt": lambda node, low, high: Range(-0.5, low, high),
    "sqrt": lambda node, low, high: allowed(Octaves(low, high), 0.5),
    "log": lambda node, low, high: Octaves(low, high),
    "exp": lambda node, low, high: ExpRange(low, high),
    "layer_norm": _norm,
    "rms_norm": _norm,
}
"""Operations whose last two arguments are their range, and what raises ValueError for one that they cannot have."""
