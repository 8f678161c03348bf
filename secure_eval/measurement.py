"""What a secure computation cost: bytes, rounds and seconds of its three phases, by role, by site and by operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from time import perf_counter
from typing import Any

PHASES = ("setup", "offline", "online")


@dataclass
class Counts:
    """Additive counts of one role in one phase, or of one site or operation in it.

    `bytes` are payload bytes sent; `rounds` message exchanges that this role waited for; `macs` ring multiply-accumulates;
    `traffic_bytes` memory read and written by local operations; `random_bytes` expanded from seeds; `kernels` tensor operations.
    """

    bytes: float = 0
    rounds: float = 0
    messages: float = 0
    macs: float = 0
    traffic_bytes: float = 0
    random_bytes: float = 0
    kernels: float = 0
    seconds: float | None = None

    def _combine(self, other: Counts, sign: int) -> Counts:
        both = self.seconds is not None and other.seconds is not None
        values = {
            f.name: getattr(self, f.name) + sign * getattr(other, f.name)
            for f in fields(self)
            if f.name != "seconds"
        }
        return Counts(**values, seconds=self.seconds + sign * other.seconds if both else None)  # type: ignore[operator]

    def __add__(self, other: Counts) -> Counts:
        return self._combine(other, 1)

    def __sub__(self, other: Counts) -> Counts:
        return self._combine(other, -1)

    def __mul__(self, factor: float) -> Counts:
        values = {f.name: getattr(self, f.name) * factor for f in fields(self) if f.name != "seconds"}
        return Counts(**values, seconds=None if self.seconds is None else self.seconds * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Counts:
        return self * (1 / divisor)

    def to_dict(self) -> dict[str, float]:
        return {k: v for k, v in asdict(self).items() if v is not None}


def phase_of_roles(by_role: Mapping[str, Counts]) -> Counts:
    """One phase as users read it: for each count the largest over the roles (`bytes`: most sent by one of them)."""
    roles = list(by_role.values())
    if not roles:
        return Counts()
    values = {f.name: max(getattr(c, f.name) for c in roles) for f in fields(Counts) if f.name != "seconds"}
    timed = [c.seconds for c in roles if c.seconds is not None]
    return Counts(**values, seconds=max(timed) if timed else None)


@dataclass
class Measurement:
    """Counts of a run, phase by phase.

    `setup` happens once a model, `offline` once a query and independent of its data, `online` once a query.
    `roles[phase][role]` holds each role's own counts; `sites` and `operations` split the online bytes and rounds of one party
    (a round that several sites share counts once in each of them).
    """

    roles: dict[str, dict[str, Counts]] = field(default_factory=lambda: {phase: {} for phase in PHASES})
    sites: dict[str, Counts] = field(default_factory=dict)
    operations: dict[str, Counts] = field(default_factory=dict)

    @property
    def setup(self) -> Counts:
        return phase_of_roles(self.roles["setup"])

    @property
    def offline(self) -> Counts:
        return phase_of_roles(self.roles["offline"])

    @property
    def online(self) -> Counts:
        return phase_of_roles(self.roles["online"])

    def communication(self) -> dict[str, dict[str, dict[str, int]]]:
        """What a prediction must equal exactly: bytes, rounds and messages of every role in every phase."""
        return {
            phase: {
                role: {"bytes": int(c.bytes), "rounds": int(c.rounds), "messages": int(c.messages)}
                for role, c in sorted(by_role.items())
            }
            for phase, by_role in self.roles.items()
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            **{phase: getattr(self, phase).to_dict() for phase in PHASES},
            "by_role": {
                phase: {r: c.to_dict() for r, c in sorted(by_role.items())}
                for phase, by_role in self.roles.items()
            },
        }


class Ledger:
    """Where a role's transport counts: one set of counts a phase, and inside it one a tag (the program node that asked)."""

    def __init__(self) -> None:
        self.phases: dict[str, Counts] = {phase: Counts(seconds=0.0) for phase in PHASES}
        self.tags: dict[str, dict[str, Counts]] = {phase: {} for phase in PHASES}
        self.current = "setup"

    @contextmanager
    def phase(self, name: str) -> Iterator[Counts]:
        """Counts and times everything inside as one run of phase `name`, from zero."""
        self.phases[name] = Counts(seconds=0.0)
        self.tags[name] = {}
        self.current = name
        started = perf_counter()
        try:
            yield self.phases[name]
        finally:
            self.phases[name].seconds = perf_counter() - started

    @property
    def counts(self) -> Counts:
        return self.phases[self.current]

    def tag(self, name: str) -> Counts:
        return self.tags[self.current].setdefault(name, Counts())
