"""What one operation costs in another system: bytes and rounds, which add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cost_models.workload import Work


@dataclass(frozen=True)
class Tally:
    """Bytes that the party that sends most sends, and rounds; fractions where only a mean is known.

    Args:
        online: bytes in the query.
        rounds: of the query, one after the other. Each system's file says what it counts as one.
        offline: bytes before a query, for that query alone.
        setup: bytes once a model.
        keys: bytes of correlated randomness that a party stores for one query.
    """

    online: float = 0
    rounds: float = 0
    offline: float = 0
    setup: float = 0
    keys: float = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.online + other.online,
            self.rounds + other.rounds,
            self.offline + other.offline,
            self.setup + other.setup,
            self.keys + other.keys,
        )

    def __mul__(self, times: int) -> Tally:
        return Tally(
            self.online * times,
            self.rounds * times,
            self.offline * times,
            self.setup * times,
            self.keys * times,
        )

    __rmul__ = __mul__


def total(tallies: Iterable[Tally]) -> Tally:
    """Their sum."""
    return sum(tallies, Tally())


Formula = Callable[[Work], Tally]
Formulas = Mapping[str, Formula]
"""Kind of work -> what it costs. A kind that is not there is not priced."""


def free(_: Work) -> Tally:
    """Of what needs no message."""
    return Tally()
