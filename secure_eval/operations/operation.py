"""What is to be known of a secure operation, in one row: whoever runs, checks, bounds or explains it reads it here."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from torch import Tensor

from secure_eval.program import Node

Interval = tuple[float, float]
ANY: Interval = (-inf, inf)

Meaning = Callable[..., Tensor]
Run = Callable[..., Coroutine[Any, Any, Any]]
Error = Callable[..., Tensor]
Limits = tuple[float | None, float | None]


class Known(Protocol):
    """What is known of a program's values while their intervals are worked out (intervals.py)."""

    @property
    def by_name(self) -> Mapping[str, Node]:
        """The nodes."""

    @property
    def valid(self) -> bool:
        """Whether arguments count as being in the ranges in which their functions are right: a check sees to it."""

    def look(self, value: Any) -> Interval:
        """Between what all elements of a value lie."""

    def shape(self, value: Any) -> tuple[int, ...]:
        """Of a value; () for a number."""

    def node(self, value: Any) -> Node | None:
        """Where a value comes from."""


@dataclass(frozen=True)
class ValidRange:
    """The values for which an operation is right.

    quantities: what the operation looks at, by name, any shapes, from the arguments' values (float64, clear ones in their own type).
    limits: of a node at so many fraction bits, for each name the least and the largest value allowed, None for no limit. A name without
        limits is a value inside the operation that the ring has to hold.
    margins: of a node and a name, whether its two limits need a margin: those proven at capture need none, and what comes from
        calibration has one of its own.
    """

    quantities: Callable[..., Mapping[str, Tensor]]
    limits: Callable[[Node, int], Mapping[str, Limits]] = lambda node, fraction_bits: {}
    margins: Callable[[Node, str], tuple[bool, bool]] = lambda node, name: (True, True)


def nothing_known(known: Known, node: Node) -> Interval:
    """Of an operation that says nothing of its results."""
    return ANY


@dataclass(frozen=True)
class Operation:
    """One secure operation.

    says: its arguments, and what it computes where its name does not say that.
    arguments: the kind of each: s secret, c clear and known to all parties, v either of the two, - not a value; a trailing ? allows
        None. Arguments after those listed (sizes and public indices of a view) are clear.
    meaning: the result in float64, from the arguments' values: secret ones in float64, clear ones in their own type.
    run: what parties do, from (protocol, node, *arguments): secrets as `Secret`, clear values as tensors or numbers.
    error: a bound of how far a run's result may be from the meaning, elementwise; from (steps, result, *arguments), see error.py.
    interval: between what the results lie, from the intervals of the arguments.
    valid: the values for which it is right; None: all that fit the ring.
    multiplied: positions of the arguments that secrets are multiplied by: weights there get a fixed mask when the model is set up.
    exact: of a node, whether the result is no further off than the operands are.
    keeps_sign: whether the error is a part of the result, so that it keeps its sign.
    whole: whether results are whole numbers, without fraction bits.
    limit: at so many fraction bits, the exponent that the result has to stay below for a reason of the operation's own.
    """

    says: str
    arguments: tuple[str, ...]
    meaning: Meaning
    run: Run
    error: Error
    interval: Callable[[Known, Node], Interval] = nothing_known
    valid: ValidRange | None = None
    multiplied: tuple[int, ...] = ()
    exact: Callable[[Node], bool] = lambda node: False
    keeps_sign: bool = False
    whole: bool = False
    limit: Callable[[int], int] | None = None


def always(node: Node) -> bool:
    return True


def without_node(function: Run) -> Run:
    """For `run`: a secure function of its arguments alone, which needs nothing of the node."""

    async def run(p: Any, node: Node, *args: Any) -> Any:
        return await function(p, *args)

    return run


def between(low: float, high: float) -> Callable[[Known, Node], Interval]:
    """For `interval`: the same for all arguments."""
    return lambda known, node: (low, high)


def of_first(known: Known, node: Node) -> Interval:
    """For `interval`: that of the first argument."""
    return known.look(node.args[0])


def union(parts: list[Interval]) -> Interval:
    """The smallest interval that has all of them in it."""
    return min(low for low, _ in parts), max(high for _, high in parts)


def times(a: float, b: float) -> float:
    """A product of ends, where zero times infinity is zero."""
    return 0.0 if a == 0 or b == 0 else a * b


def products(x: Interval, y: Interval) -> Interval:
    """Of one value of each."""
    ends = [times(a, b) for a in x for b in y]
    return min(ends), max(ends)
