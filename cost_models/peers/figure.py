"""A published or measured figure of a system, how far an estimate is from it, and short names for workloads and quantities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cost_models.peers import models
from cost_models.peers.estimate import Estimate, System
from cost_models.workload import Work


@dataclass(frozen=True)
class Figure:
    """A figure of a system.

    Args:
        what: model or operation, and quantity, in words.
        works: makes the workload. value: the figure, in `unit` ("bytes", "rounds").
        of: takes the quantity from an estimate.
        digits: the unit of the last digit given, in the same unit; half of it is how far rounding alone may be off. 0: exact.
        within: the largest deviation that is accepted (1 is 100 %), and that the documentation states.
        why: the deviation explained, where it is more than rounding.
    """

    system: System
    what: str
    works: Callable[[], Sequence[Work]]
    value: float
    of: Callable[[Estimate], float]
    source: str
    digits: float = 0
    within: float = 0
    why: str = ""


@dataclass(frozen=True)
class Deviation:
    """A figure and what the formulas give for it."""

    figure: Figure
    estimated: float

    @property
    def relative(self) -> float:
        """(estimated - published) / published."""
        return self.estimated / self.figure.value - 1

    @property
    def accepted(self) -> bool:
        """Whether it is no more than rounding and what is stated."""
        difference = abs(self.estimated - self.figure.value)
        return difference <= self.figure.digits / 2 + self.figure.within * self.figure.value


def online(e: Estimate) -> float:
    return e.online_bytes


def offline(e: Estimate) -> float:
    return e.offline_bytes


def both_ways(e: Estimate) -> float:
    return 2 * e.online_bytes


def key_bytes(e: Estimate) -> float:
    return e.key_storage_bytes


def rounds_of(e: Estimate) -> float:
    return e.rounds


def part(kind: str) -> Callable[[Estimate], float]:
    return lambda e: 2 * e.by_kind[kind].online


def activation(kind: str, elements: int) -> Callable[[], Sequence[Work]]:
    return lambda: (Work(kind, "", elements),)


def rows(kind: str, rows: int, columns: int, weight: bool = False) -> Callable[[], Sequence[Work]]:
    work = Work(kind, "", rows * columns, rows=rows, columns=columns, kept=rows * columns, weight=weight)
    return lambda: (work,)


def linear(m: int, k: int, n: int) -> Callable[[], Sequence[Work]]:
    return lambda: (Work("linear", "", m * n, m * k, k * n, 1, m, k, n, weight=True),)


def layers(name: str, tokens: int = 128) -> Callable[[], Sequence[Work]]:
    return lambda: models.layers_only(name, tokens)


def layer(name: str) -> Callable[[], Sequence[Work]]:
    return lambda: models.one_layer(name)


def pair(
    system: System, what: str, works: Callable[[], Sequence[Work]], size: float, rounds: float, **rest: Any
) -> list[Figure]:
    """Bytes sent a party, and rounds."""
    return [
        Figure(system, f"{what}: bytes a party", works, size, online, **rest),
        Figure(system, f"{what}: rounds", works, rounds, rounds_of, **rest),
    ]


def _said(d: Deviation) -> str:
    if d.estimated == d.figure.value:
        return "0"
    difference = f"{100 * d.relative:+.2f} %"
    if abs(d.estimated - d.figure.value) <= d.figure.digits / 2:
        return f"{difference}, the figure's rounding"
    return f"{difference}: {d.figure.why}" if d.figure.why else difference


def table(found: Sequence[Deviation]) -> str:
    """As a Markdown table."""
    lines = ["| system | figure | published | estimated | deviation |", "|---|---|---:|---:|---:|"]
    for d in found:
        lines.append(
            f"| {d.figure.system.name} | {d.figure.what} | {d.figure.value:,.0f} | {d.estimated:,.0f} "
            f"| {_said(d)} |"
        )
    return "\n".join(lines)
