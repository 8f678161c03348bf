"""Cost: what a secure computation takes, predicted or measured, as one type that adds up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from secure_eval.measurement import PHASES, Counts, Measurement, Memory, communication_of

Phase = Counts
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Cost:
    """Counts of the three phases; each count is the largest over the roles (`bytes`: most sent by one of them).

    Costs add, subtract and scale, so that a table of differences sums to a candidate.

    roles: each role's own counts, by phase and role.

    What belongs to one program is dropped by arithmetic:

    by_site, by_operation: online counts of each module of the model, and of each kind of operation.
    sites_of, operations_of: the same of every phase, by its name.
    memory: bytes that each role holds, by role.
    """

    setup: Phase = field(default_factory=Phase)
    offline: Phase = field(default_factory=Phase)
    online: Phase = field(default_factory=Phase)
    sites_of: Mapping[str, Mapping[str, Phase]] = field(default_factory=dict)
    operations_of: Mapping[str, Mapping[str, Phase]] = field(default_factory=dict)
    roles: Mapping[str, Mapping[str, Phase]] = field(default_factory=dict)
    memory: Mapping[str, Memory] = field(default_factory=dict)

    @classmethod
    def of(cls, measurement: Measurement) -> Cost:
        """The cost that a measurement, or a counting run, found."""
        return cls(
            measurement.setup,
            measurement.offline,
            measurement.online,
            dict(measurement.sites_of),
            dict(measurement.operations_of),
            {phase: dict(by_role) for phase, by_role in measurement.roles.items()},
            dict(measurement.memory),
        )

    @property
    def by_site(self) -> Mapping[str, Phase]:
        return self.sites_of.get("online", {})

    @property
    def by_operation(self) -> Mapping[str, Phase]:
        return self.operations_of.get("online", {})

    @property
    def peak_memory_bytes(self) -> int:
        """The most that one computing party holds at once, in any phase."""
        return max((m.peak_bytes for role, m in self.memory.items() if role.startswith("party")), default=0)

    @property
    def stored_bytes(self) -> int:
        """Correlated randomness that one computing party keeps for a query that is yet to come."""
        return max((m.query_bytes for role, m in self.memory.items() if role.startswith("party")), default=0)

    @property
    def communication(self) -> dict[str, dict[str, dict[str, int]]]:
        """Each role's exact bytes, rounds and messages, as a measurement has them."""
        return communication_of(self.roles)

    def _combined(self, other: Cost, combine: Callable[[Phase, Phase], Phase]) -> Cost:
        none: Mapping[str, Phase] = {}
        roles = {}
        for phase in dict.fromkeys([*self.roles, *other.roles]):
            mine, theirs = self.roles.get(phase, none), other.roles.get(phase, none)
            roles[phase] = {
                role: combine(mine.get(role, Phase()), theirs.get(role, Phase()))
                for role in dict.fromkeys([*mine, *theirs])
            }
        setup, offline, online = (combine(getattr(self, phase), getattr(other, phase)) for phase in PHASES)
        return Cost(setup, offline, online, roles=roles)

    def __add__(self, other: Cost) -> Cost:
        return self._combined(other, lambda a, b: a + b)

    def __sub__(self, other: Cost) -> Cost:
        return self._combined(other, lambda a, b: a - b)

    def __mul__(self, factor: float) -> Cost:
        return self._combined(self, lambda a, _: a * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Cost:
        return self._combined(self, lambda a, _: a / divisor)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **{phase: getattr(self, phase).to_dict() for phase in PHASES},
            "sites_of": _tables(self.sites_of, lambda counts: counts.to_dict()),
            "operations_of": _tables(self.operations_of, lambda counts: counts.to_dict()),
            "roles": _tables(self.roles, lambda counts: counts.to_dict()),
            "memory": {role: asdict(memory) for role, memory in self.memory.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cost:
        """Inverse of to_dict. Raises ValueError for a key that no phase has."""
        return cls(
            **{phase: Phase.from_dict(data.get(phase, {})) for phase in PHASES},
            sites_of=_tables(data.get("sites_of", {}), Phase.from_dict),
            operations_of=_tables(data.get("operations_of", {}), Phase.from_dict),
            roles=_tables(data.get("roles", {}), Phase.from_dict),
            memory={role: Memory(**found) for role, found in data.get("memory", {}).items()},
        )


def _tables(tables: Mapping[str, Mapping[str, A]], convert: Callable[[A], B]) -> dict[str, dict[str, B]]:
    return {phase: {key: convert(value) for key, value in table.items()} for phase, table in tables.items()}
