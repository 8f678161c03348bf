"""A pass that fits reciprocals, roots and logarithms to the arguments that they met: fewer thresholds, fewer bytes."""

from __future__ import annotations

from dataclasses import replace

from secure_eval.program import Node, Program
from secure_eval.ranges.calibration import Ranges
from secure_eval.spec import check

NARROWED = ("reciprocal", "signed_reciprocal", "rsqrt", "sqrt", "log")
"""Operations that cost less over a narrower range."""


def narrow_ranges(program: Program, ranges: Ranges, margin: float = 4.0) -> Program:
    """Operations of NARROWED for low <= x <= high become those for the calibrated arguments, a factor `margin` wider on either side.

    Not a rewrite that keeps a program's meaning on all inputs: beyond the margin results are wrong. Raises ValueError for a margin below 1.
    """
    if not margin >= 1:
        raise ValueError(f"margin={margin}; allowed: 1 or more")

    def narrowed(node: Node) -> Node:
        if node.op not in NARROWED:
            return node
        x, low, high = node.args
        (seen,) = ranges.nodes[node.name].quantities.values()
        if not 0 < seen.smallest:
            return node  # no range is right for it; the check says so
        low, high = max(low, seen.smallest / margin), min(high, seen.largest * margin)
        return replace(node, args=(x, low, high)) if low < high else node

    return check(program.with_nodes([narrowed(n) for n in program.nodes]))
