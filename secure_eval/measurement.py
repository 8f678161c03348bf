"""What a secure computation cost: bytes, rounds and seconds of its three phases, by role, by site and by operation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from time import perf_counter
from typing import Any

PHASES = ("setup", "offline", "online")


PREDICTED = "not checked (a prediction: there are no values)"
"""What a measurement says of values where nothing was computed."""

GENERATOR = "generator"
"""The kind of work that expands seeds into random bytes."""


@dataclass
class Work:
    """Additive work of one kind of local operation: how often, ring multiply-accumulates, and bytes read and written."""

    calls: float = 0
    macs: float = 0
    bytes: float = 0

    def plus(self, other: Work, sign: float = 1) -> Work:
        return Work(
            self.calls + sign * other.calls, self.macs + sign * other.macs, self.bytes + sign * other.bytes
        )


@dataclass
class Counts:
    """Additive counts of one role in one phase, or of one site or operation in it.

    bytes: payload bytes sent.
    rounds: message exchanges that this role waited for.
    messages: messages sent.
    path_bytes: the longest message of each round, added up: what a link has to carry before the last round is done.
    handled_bytes: what the busiest role sends and receives in each round, added up.
    work: local work by kind: a fused step's name, `product <bits>` (matrix products in a ring of that many bits; with `by columns`
        where the second operand lies so in memory), `elementwise` (any other tensor operation), `generator`.
    seconds: of a run; None in a prediction.
    exchange_seconds: those of them in which the role was sending, or waiting for messages, the work of encryption included.
    """

    bytes: float = 0
    rounds: float = 0
    messages: float = 0
    path_bytes: float = 0
    handled_bytes: float = 0
    work: dict[str, Work] = field(default_factory=dict)
    seconds: float | None = None
    exchange_seconds: float | None = None

    @property
    def macs(self) -> float:
        """Ring multiply-accumulates."""
        return sum(w.macs for w in self.work.values())

    @property
    def macs_by_bits(self) -> dict[int, float]:
        """Ring multiply-accumulates by the ring's width in bits."""
        found: dict[int, float] = {}
        for kind, work in self.work.items():
            if work.macs:
                bits = int(kind.split()[1])
                found[bits] = found.get(bits, 0) + work.macs
        return found

    @property
    def traffic_bytes(self) -> float:
        """Memory read and written by local operations, the generator apart."""
        return sum(w.bytes for kind, w in self.work.items() if kind != GENERATOR)

    @property
    def random_bytes(self) -> float:
        """Bytes expanded from seeds."""
        return self.work[GENERATOR].bytes if GENERATOR in self.work else 0

    @property
    def kernels(self) -> float:
        """Tensor operations, the generator's apart."""
        return sum(w.calls for kind, w in self.work.items() if kind != GENERATOR)

    def add_work(self, kind: str, more: Work) -> None:
        """Counts work of a kind."""
        work = self.work.get(kind)
        if work is None:
            work = self.work[kind] = Work()
        work.calls += more.calls
        work.macs += more.macs
        work.bytes += more.bytes

    def _combine(self, other: Counts, sign: int) -> Counts:
        work = dict(self.work)
        for kind, w in other.work.items():
            work[kind] = work.get(kind, Work()).plus(w, sign)
        values = {name: getattr(self, name) + sign * getattr(other, name) for name in _NUMBERS}
        return Counts(
            **values,
            work=work,
            seconds=_plus(self.seconds, sign, other.seconds),
            exchange_seconds=_plus(self.exchange_seconds, sign, other.exchange_seconds),
        )

    def __add__(self, other: Counts) -> Counts:
        return self._combine(other, 1)

    def __sub__(self, other: Counts) -> Counts:
        return self._combine(other, -1)

    def __mul__(self, factor: float) -> Counts:
        values = {name: getattr(self, name) * factor for name in _NUMBERS}
        work = {kind: Work().plus(w, factor) for kind, w in self.work.items()}
        return Counts(
            **values,
            work=work,
            seconds=_times(self.seconds, factor),
            exchange_seconds=_times(self.exchange_seconds, factor),
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Counts:
        # Divided, not multiplied by the inverse: a whole number that the divisor divides stays whole.
        values = {name: getattr(self, name) / divisor for name in _NUMBERS}
        work = {
            kind: Work(w.calls / divisor, w.macs / divisor, w.bytes / divisor)
            for kind, w in self.work.items()
        }
        return Counts(
            **values,
            work=work,
            seconds=_times(self.seconds, 1 / divisor),
            exchange_seconds=_times(self.exchange_seconds, 1 / divisor),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the counts and, where work was counted, its sums and the work by kind as [calls, MACs, bytes]."""
        found: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        if self.work:
            found |= {name: getattr(self, name) for name in _SUMS}
            found["work"] = {kind: [w.calls, w.macs, w.bytes] for kind, w in sorted(self.work.items())}
        return found | {name: getattr(self, name) for name in _SECONDS if getattr(self, name) is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Counts:
        """Inverse of to_dict. Raises ValueError for a key that no count has."""
        known = (*_NUMBERS, *_SUMS, *_SECONDS, "work")
        unknown = set(data) - set(known)
        if unknown:
            raise ValueError(f"unknown counts {sorted(unknown)}; allowed: {', '.join(known)}")
        work = {kind: Work(*numbers) for kind, numbers in data.get("work", {}).items()}
        numbers = {name: data[name] for name in _NUMBERS if name in data}
        return cls(
            **numbers, work=work, seconds=data.get("seconds"), exchange_seconds=data.get("exchange_seconds")
        )


def _plus(a: float | None, sign: int, b: float | None) -> float | None:
    return None if a is None or b is None else a + sign * b


def _times(a: float | None, factor: float) -> float | None:
    return None if a is None else a * factor


_SECONDS = ("seconds", "exchange_seconds")
_NUMBERS = ("bytes", "rounds", "messages", "path_bytes", "handled_bytes")
_SUMS = ("macs", "traffic_bytes", "random_bytes", "kernels")


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors that a role holds: the most at once in each phase, and what it keeps between them.

    `model_bytes` stay from set-up on; `query_bytes` are kept from one query's offline phase until it is answered.
    """

    setup_peak_bytes: int = 0
    offline_peak_bytes: int = 0
    online_peak_bytes: int = 0
    model_bytes: int = 0
    query_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        return max(self.setup_peak_bytes, self.offline_peak_bytes, self.online_peak_bytes)


def phase_of_roles(by_role: Mapping[str, Counts]) -> Counts:
    """One phase as users read it: for each count the largest over the roles (`bytes`: most sent by one of them); seconds of the role that
    takes longest."""
    roles = list(by_role.values())
    if not roles:
        return Counts()
    values = {name: max(getattr(c, name) for c in roles) for name in _NUMBERS}
    kinds = dict.fromkeys(kind for c in roles for kind in c.work)
    none = Work()
    work = {}
    for kind in kinds:
        of_kind = [c.work.get(kind, none) for c in roles]
        work[kind] = Work(
            max(w.calls for w in of_kind), max(w.macs for w in of_kind), max(w.bytes for w in of_kind)
        )
    longest = max(roles, key=lambda c: c.seconds or 0.0)
    return Counts(**values, work=work, seconds=longest.seconds, exchange_seconds=longest.exchange_seconds)


def communication_of(roles: Mapping[str, Mapping[str, Counts]]) -> dict[str, dict[str, dict[str, int]]]:
    """Bytes, rounds and messages of every role in every phase."""
    return {
        phase: {
            role: {"bytes": int(c.bytes), "rounds": int(c.rounds), "messages": int(c.messages)}
            for role, c in sorted(by_role.items())
        }
        for phase, by_role in roles.items()
    }


@dataclass
class Measurement:
    """Counts of a run, phase by phase.

    `setup` happens once a model, `offline` once a query and independent of its data, `online` once a query.

    roles: each role's own counts, by phase and role.
    path: by phase, `path_bytes` and `handled_bytes` over all roles: nobody begins a round before the last one is done everywhere.
    sites, operations: by phase, the counts of each module and of each kind of operation: for each count the largest over the roles
        (a round that several of them share counts once in each).
    memory: of each role; counting runs know it, real ones do not.
    checked: against what values it was checked that the program's fit: those of a calibration, of an example, or none.
    simulation: what makes a run one that protects nothing, in words; None of a prediction.
    """

    roles: dict[str, dict[str, Counts]] = field(default_factory=lambda: {phase: {} for phase in PHASES})
    path: dict[str, tuple[int, int]] = field(default_factory=dict)
    sites_of: dict[str, dict[str, Counts]] = field(default_factory=lambda: {phase: {} for phase in PHASES})
    operations_of: dict[str, dict[str, Counts]] = field(
        default_factory=lambda: {phase: {} for phase in PHASES}
    )
    memory: dict[str, Memory] = field(default_factory=dict)
    checked: str = PREDICTED
    simulation: str | None = None

    def phase(self, name: str) -> Counts:
        """One phase as users read it: for each count the largest over the roles."""
        found = phase_of_roles(self.roles[name])
        found.path_bytes, found.handled_bytes = self.path.get(name, (found.path_bytes, found.handled_bytes))
        return found

    @property
    def setup(self) -> Counts:
        return self.phase("setup")

    @property
    def offline(self) -> Counts:
        return self.phase("offline")

    @property
    def online(self) -> Counts:
        return self.phase("online")

    @property
    def sites(self) -> dict[str, Counts]:
        """Online counts by module."""
        return self.sites_of["online"]

    @property
    def operations(self) -> dict[str, Counts]:
        """Online counts by kind of operation."""
        return self.operations_of["online"]

    def communication(self) -> dict[str, dict[str, dict[str, int]]]:
        """What a prediction must equal exactly: bytes, rounds and messages of every role in every phase."""
        return communication_of(self.roles)

    def to_dict(self) -> dict[str, Any]:
        return {
            **{phase: getattr(self, phase).to_dict() for phase in PHASES},
            "checked": self.checked,
            "by_role": {
                phase: {r: c.to_dict() for r, c in sorted(by_role.items())}
                for phase, by_role in self.roles.items()
            },
            "simulation": self.simulation,
        }


class Ledger:
    """Where a role's transport counts: one set of counts a phase, and inside it one a tag (the program node that asked).

    `tagged` is the tag of what is being done now; `lengths` has, for each round of a phase, its longest message and what is sent and
    received in it altogether.
    """

    def __init__(self) -> None:
        self.phases: dict[str, Counts] = {
            phase: Counts(seconds=0.0, exchange_seconds=0.0) for phase in PHASES
        }
        self.tags: dict[str, dict[str, Counts]] = {phase: {} for phase in PHASES}
        self.lengths: dict[str, list[tuple[int, int]]] = {phase: [] for phase in PHASES}
        self.current, self.tagged = "setup", ""

    @contextmanager
    def phase(self, name: str) -> Iterator[Counts]:
        """Counts and times everything inside as one run of phase `name`, from zero."""
        self.phases[name] = Counts(seconds=0.0, exchange_seconds=0.0)
        self.tags[name], self.lengths[name] = {}, []
        self.current, self.tagged = name, ""
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

    def newest(self) -> dict[str, Any]:
        """The phase that was counted last, JSON-ready."""
        return {
            "phase": self.current,
            "counts": self.counts.to_dict(),
            "tags": {tag: counts.to_dict() for tag, counts in self.tags[self.current].items()},
            "lengths": self.lengths[self.current],
        }

    def take(self, newest: Mapping[str, Any]) -> None:
        """Takes over what another process's ledger counted last."""
        self.current = newest["phase"]
        self.phases[self.current] = Counts.from_dict(newest["counts"])
        self.tags[self.current] = {tag: Counts.from_dict(c) for tag, c in newest["tags"].items()}
        self.lengths[self.current] = [(longest, handled) for longest, handled in newest["lengths"]]

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Times everything inside as exchange of messages."""
        counts, started = self.counts, perf_counter()
        try:
            yield
        finally:
            counts.exchange_seconds = (counts.exchange_seconds or 0.0) + perf_counter() - started

    def exchanged(self, sent: Sequence[int], received: Sequence[int], rounds: int) -> None:
        """Counts the messages of one exchange, given by their lengths."""
        counts, total = self.counts, sum(sent)
        counts.bytes += total
        counts.messages += len(sent)
        counts.rounds += rounds
        longest, handled = max([*sent, *received], default=0), total + sum(received)
        counts.path_bytes += longest
        counts.handled_bytes += handled
        lengths = self.lengths[self.current]
        if not rounds and lengths:  # these follow the round's messages on the same links
            longest, handled = longest + lengths[-1][0], handled + lengths.pop()[1]
        lengths.append((longest, handled))


def path_of(ledgers: Iterable[Ledger], phase: str) -> tuple[int, int]:
    """`path_bytes` and `handled_bytes` over all roles, whose rounds go side by side."""
    path = handled = 0
    for together in zip_longest(*(ledger.lengths[phase] for ledger in ledgers), fillvalue=(0, 0)):
        path += max(longest for longest, _ in together)
        handled += max(both for _, both in together)
    return path, handled
