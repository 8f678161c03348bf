"""What is known of a value without seeing it: bounds that its making proves (a square is not negative, a sigmoid is below one).

Each operation says what follows for its result (operations/); here that is worked out node by node, for two readers. At capture, divisions
and exponentials are cheaper where the sign or the range of their argument is known (lowering/intervals.py). Of a whole program, magnitudes
say how many fraction bits each value has room for (magnitudes.py). What isn't recognised has no bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor

from secure_eval.operations import OPERATIONS
from secure_eval.operations.arrangement import MOVED
from secure_eval.operations.operation import ANY, Interval, nothing_known
from secure_eval.program import Node, Ref

UNCHANGED = {
    f"aten::{name}" for name in (*MOVED, "aten.to.dtype", "aten._to_copy.default", "aten.clone.default")
}
"""Clear operations that leave values as they are: a mask cast to a number is 0 or 1."""

SLACK = 2.0**-6
"""What an operation of the engine may overstep its real result by, in parts of max(1, the result): far more than fixed point from 8
fraction bits on and the errors of functions come to."""


class Intervals:
    """Numbers between which all elements of each value lie, worked out node by node in a program's order.

    Args:
        by_name, constants: of a program, or of one in the making.
        valid: arguments count as being in the ranges in which their operations are right: a check sees to it.
        slack: widen what operations with an error of their own make, so that the engine's values are inside as well.
        limit: of a node, a magnitude that its value is known to stay below for another reason; infinite where there is none.
    """

    def __init__(
        self,
        by_name: Mapping[str, Node],
        constants: Mapping[str, Tensor],
        *,
        valid: bool = False,
        slack: float = 0.0,
        limit: Callable[[Node], float] = lambda node: inf,
    ):
        self.by_name, self.constants, self.valid = by_name, constants, valid
        self.slack, self.limit = slack, limit
        self.known: dict[str, Interval] = {}

    def extend(self, nodes: Iterable[Node]) -> None:
        """Takes the next nodes in."""
        for node in nodes:
            self.known[node.name] = self._of(node)

    def look(self, value: Any) -> Interval:
        """Of a number, or of a value that is known by now."""
        if isinstance(value, (int, float)):
            return float(value), float(value)
        return self.known.get(value.name, ANY) if isinstance(value, Ref) else ANY

    def shape(self, value: Any) -> tuple[int, ...]:
        return self.by_name[value.name].shape if isinstance(value, Ref) else ()

    def node(self, value: Any) -> Node | None:
        return self.by_name.get(value.name) if isinstance(value, Ref) else None

    def _of(self, node: Node) -> Interval:
        stored = self.constants.get(node.name)
        if stored is not None and stored.numel() == 1 and not stored.is_meta:
            return float(stored), float(stored)
        operation = OPERATIONS.get(node.op)
        if node.dtype == torch.bool and (
            node.level != "secret" or operation is None or operation.interval is nothing_known
        ):
            return 0.0, 1.0  # what is made of bits on the way to one, such as 2 a b, may be more
        if node.level != "secret":
            return self.look(node.args[0]) if node.op in UNCHANGED else ANY
        low, high = ANY if operation is None else operation.interval(self, node)
        if isnan(low) or isnan(high):
            low, high = ANY
        if self.slack and not (operation and operation.exact(node)):
            least = 0.0 if operation and operation.keeps_sign else 1.0
            low, high = low - self.slack * max(least, abs(low)), high + self.slack * max(least, abs(high))
        most = self.limit(node)
        return max(low, -most), min(high, most)
