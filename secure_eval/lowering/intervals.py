"""What capture knows of a value of the program in the making; the rules are those of secure_eval/intervals.py."""

from __future__ import annotations

from typing import Any

from secure_eval.intervals import Intervals
from secure_eval.lowering.builder import Builder
from secure_eval.operations.operation import ANY, Interval

__all__ = ["ANY", "Interval", "interval"]


def interval(b: Builder, value: Any) -> Interval:
    """Numbers between which every element of `value` (a number or a node's value) is known to lie, infinite where unknown."""
    known: Intervals = b.intervals
    known.extend(b.nodes[len(known.known) :])
    return known.look(value)
