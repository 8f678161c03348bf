"""Cost: what a secure computation takes, predicted or measured, as one type that adds up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from secure_eval.measurement import PHASES, Counts, Measurement

Phase = Counts


@dataclass(frozen=True)
class Cost:
    """Counts of the three phases; each count is the largest over the roles (`bytes`: most sent by one of them).

    Costs add, subtract and scale, so that a table of differences sums to a candidate; `by_site`, `by_operation` and `communication` (each
    role's exact bytes, rounds and messages, as a measurement has them) belong to one program and are dropped by arithmetic.
    """

    setup: Phase = field(default_factory=Phase)
    offline: Phase = field(default_factory=Phase)
    online: Phase = field(default_factory=Phase)
    by_site: Mapping[str, Phase] = field(default_factory=dict)
    by_operation: Mapping[str, Phase] = field(default_factory=dict)
    communication: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, measurement: Measurement) -> Cost:
        """The cost that a measurement, or a counting run, found."""
        return cls(
            measurement.setup,
            measurement.offline,
            measurement.online,
            dict(measurement.sites),
            dict(measurement.operations),
            measurement.communication(),
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.setup + other.setup, self.offline + other.offline, self.online + other.online)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.setup - other.setup, self.offline - other.offline, self.online - other.online)

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.setup * factor, self.offline * factor, self.online * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Cost:
        return self * (1 / divisor)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **{phase: getattr(self, phase).to_dict() for phase in PHASES},
            "by_site": {k: v.to_dict() for k, v in self.by_site.items()},
            "by_operation": {k: v.to_dict() for k, v in self.by_operation.items()},
            "communication": dict(self.communication),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cost:
        """Inverse of to_dict. Raises ValueError for a key that no phase has."""
        return cls(
            setup=_phase(data.get("setup", {})),
            offline=_phase(data.get("offline", {})),
            online=_phase(data.get("online", {})),
            by_site={k: _phase(v) for k, v in data.get("by_site", {}).items()},
            by_operation={k: _phase(v) for k, v in data.get("by_operation", {}).items()},
            communication=data.get("communication", {}),
        )


def _phase(data: Mapping[str, float]) -> Phase:
    known = {f.name for f in fields(Phase)}
    unknown = set(data) - known
    if unknown:
        raise ValueError(f"unknown counts {sorted(unknown)}; allowed: {', '.join(sorted(known))}")
    return Phase(**data)
