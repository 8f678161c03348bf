"""From counts and seconds to money and energy: what 1,000 queries cost the owner of the machines.

Three things are paid for: machines by the hour, accelerators by the hour, bytes that leave a machine. The client's machine and traffic are
the data owner's own, so they are left out; parties, dealer and model owner are billed. Two conventions bound what machines cost:

    occupied   a machine is rented from a phase's beginning to its end, waiting for the network included: one query at a time
    working    only its computing is paid for: enough queries run side by side that somebody's work fills every wait

A real service lies between them. Set-up happens once a model and is spread over a stated number of queries; the offline phase is paid
for with every query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from cost_models.cost import Cost
from cost_models.machine import device as load_device
from cost_models.profile_files import AUTO, Device, Network, Prices
from cost_models.profile_files import network as load_network
from cost_models.profile_files import prices as load_prices
from cost_models.seconds import seconds
from secure_eval.measurement import PHASES

QUERIES = 1000
"""Money is told for this many queries."""
QUERIES_PER_SETUP = 100_000
DATA_OWNER = "client"


class Estimated(Protocol):
    """The part of a comparison system's estimate (`cost_models.peers.Estimate`) that is paid for; bytes are those of the party that sends
    most."""

    @property
    def parties(self) -> int: ...
    @property
    def servers(self) -> int: ...
    @property
    def setup_bytes(self) -> float: ...
    @property
    def offline_bytes(self) -> float: ...
    @property
    def online_bytes(self) -> float: ...
    @property
    def rounds(self) -> float: ...
    @property
    def compute_s(self) -> float | None: ...
    @property
    def machine(self) -> str: ...


@dataclass(frozen=True)
class Charge:
    """What 1,000 queries cost in one phase, or in all. None where an estimate says nothing of the work.

    `occupied_hours`: of all billed machines together, waiting included; `working_hours`: of them, computing; `egress_bytes`: sent by all
    billed machines; `*_cents`: US cents; `watt_hours`: drawn while computing, and `occupied_watt_hours` if waiting draws as much.
    """

    occupied_hours: float | None
    working_hours: float | None
    egress_bytes: float
    occupied_cents: float | None
    working_cents: float | None
    egress_cents: float
    watt_hours: float | None
    occupied_watt_hours: float | None

    @property
    def total_cents(self) -> float | None:
        """Machines from beginning to end, and egress: what a service that answers one query at a time pays."""
        return _sum(self.occupied_cents, self.egress_cents)

    @property
    def least_cents(self) -> float | None:
        """Only the computing, and egress: what a perfectly filled service pays."""
        return _sum(self.working_cents, self.egress_cents)

    def __add__(self, other: Charge) -> Charge:
        return Charge(
            occupied_hours=_sum(self.occupied_hours, other.occupied_hours),
            working_hours=_sum(self.working_hours, other.working_hours),
            egress_bytes=self.egress_bytes + other.egress_bytes,
            occupied_cents=_sum(self.occupied_cents, other.occupied_cents),
            working_cents=_sum(self.working_cents, other.working_cents),
            egress_cents=self.egress_cents + other.egress_cents,
            watt_hours=_sum(self.watt_hours, other.watt_hours),
            occupied_watt_hours=_sum(self.occupied_watt_hours, other.occupied_watt_hours),
        )

    def to_dict(self) -> dict[str, float | None]:
        return {**asdict(self), "total_cents": self.total_cents, "least_cents": self.least_cents}


@dataclass(frozen=True)
class Money:
    """Cents and watt-hours for 1,000 queries, phase by phase.

    `billed`: the roles that are paid for in each phase; `queries_per_setup`: queries among which the set-up is shared out;
    `accelerated`: whether an accelerator is paid for in every machine.
    """

    prices: Prices
    queries_per_setup: int
    accelerated: bool
    billed: Mapping[str, Sequence[str]]
    setup: Charge
    offline: Charge
    online: Charge

    @property
    def total(self) -> Charge:
        return self.setup + self.offline + self.online

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "prices": asdict(self.prices),
            "queries": QUERIES,
            "queries_per_setup": self.queries_per_setup,
            "accelerated": self.accelerated,
            "billed": {phase: list(roles) for phase, roles in self.billed.items()},
            **{phase: getattr(self, phase).to_dict() for phase in PHASES},
            "total": self.total.to_dict(),
        }


def money(
    cost: Cost | Estimated,
    network: str | Path | Network = "wan",
    device: str | Path | Device = AUTO,
    prices: str | Path | Prices = "cloud",
    *,
    queries_per_setup: int = QUERIES_PER_SETUP,
    billed: Sequence[str] | None = None,
) -> Money:
    """What 1,000 queries cost, set-up and offline phase included and shown apart.

    Args:
        cost: a prediction, or a measurement made into a Cost, of one query; or a comparison system's estimate, whose own machine is
            priced in place of `device`. All of its `servers` are taken to send as much as the one
            that sends most, and its offline phase to last as long as those bytes travel (its work there is unknown).
        queries_per_setup: queries that one set-up serves.
        billed: roles whose machines and egress are paid for; by default all but the client. Parties are there in every phase, another
            role in those in which it sends or receives. A machine is occupied until its phase is over, and works for as long
            as its own role's counts say.

    Raises:
        ProfileError for an unknown profile; ValueError for `queries_per_setup` below 1, a role that does not exist, and a cost without
        `roles`.
    """
    tariff, link = load_prices(prices), load_network(network)
    if queries_per_setup < 1:
        raise ValueError(f"queries_per_setup={queries_per_setup!r}; allowed: 1 or more")
    if isinstance(cost, Cost):
        machine = load_device(device)
        accelerated = machine.machine == "gpu"
        roles = _billed(cost, billed)
        times = {phase: seconds(cost, link, machine, phase) for phase in PHASES}
        phases: dict[str, tuple[float | None, float | None, float]] = {
            phase: (
                len(roles[phase]) * times[phase].total,
                sum(machine.seconds(cost.roles[phase][role].work) for role in roles[phase]),
                float(sum(cost.roles[phase][role].bytes for role in roles[phase])),
            )
            for phase in PHASES
        }
    else:
        if billed is not None:
            raise ValueError(f"billed={billed!r}: an estimate of another system knows no roles; leave it out")
        accelerated = cost.machine == "gpu"
        roles = dict.fromkeys(PHASES, tuple(f"party{i}" for i in range(_servers(cost))))
        phases = {phase: _estimated(cost, link, phase) for phase in PHASES}
    hour = tariff.machine_hour_usd + accelerated * tariff.accelerator_hour_usd
    watts = tariff.machine_watts + accelerated * tariff.accelerator_watts
    charges = {
        phase: _charge(figures, QUERIES / (queries_per_setup if phase == "setup" else 1), hour, watts, tariff)
        for phase, figures in phases.items()
    }
    return Money(tariff, queries_per_setup, accelerated, roles, **charges)


def estimated_seconds(estimate: Estimated, network: str | Path | Network = "wan") -> dict[str, float | None]:
    """Seconds of a comparison system's online query: its own compute (None where nothing is known of it), the same network formula as for
    our own protocols, and both."""
    link = load_network(network)
    waiting = _waiting(estimate.online_bytes, estimate.rounds, link)
    return {
        "compute": estimate.compute_s,
        "network": waiting,
        "total": _sum(estimate.compute_s, waiting),
    }


def _estimated(estimate: Estimated, link: Network, phase: str) -> tuple[float | None, float | None, float]:
    """Occupied and working seconds of all machines, and bytes that all of them send, in one phase."""
    sent = getattr(estimate, f"{phase}_bytes")
    rounds = estimate.rounds if phase == "online" else 0
    work = estimate.compute_s if phase == "online" else 0.0
    n = _servers(estimate)
    occupied = _sum(work, _waiting(sent, rounds, link))
    return (
        None if occupied is None else n * occupied,
        None if work is None else n * work,
        float(n * sent),
    )


def _servers(estimate: Estimated) -> int:
    """Machines that the owner pays for: without the data owner's own, where it is one of the parties (a client that encrypts for one
    server)."""
    return estimate.servers


def _waiting(sent: float, rounds: float, link: Network) -> float:
    return rounds * link.round_s + sent / link.bandwidth_bytes_per_s


def _billed(cost: Cost, billed: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """The roles to pay for, phase by phase."""
    if not all(phase in cost.roles for phase in PHASES):
        raise ValueError("the cost has no `roles`: price a prediction")
    known = sorted({role for roles in cost.roles.values() for role in roles})
    wanted = [role for role in known if role != DATA_OWNER] if billed is None else list(billed)
    for role in wanted:
        if role not in known:
            raise ValueError(f"billed: no role {role!r}; allowed: {', '.join(known)}")

    def there(role: str, phase: str) -> bool:
        counts = cost.roles[phase].get(role)
        return counts is not None and (role.startswith("party") or bool(counts.messages or counts.rounds))

    return {phase: tuple(role for role in wanted if there(role, phase)) for phase in PHASES}


def _charge(
    figures: tuple[float | None, float | None, float], times: float, hour: float, watts: float, tariff: Prices
) -> Charge:
    occupied, working = (None if s is None else s * times / 3600 for s in figures[:2])
    sent = figures[2] * times
    return Charge(
        occupied_hours=occupied,
        working_hours=working,
        egress_bytes=sent,
        occupied_cents=_times(occupied, hour * 100),
        working_cents=_times(working, hour * 100),
        egress_cents=sent / 1e9 * tariff.egress_gb_usd * 100,
        watt_hours=_times(working, watts),
        occupied_watt_hours=_times(occupied, watts),
    )


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _times(a: float | None, factor: float) -> float | None:
    return None if a is None else a * factor
