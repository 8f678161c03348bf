"""Estimates of what a workload would cost on another system, and what such a system is to this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cost_models.peers.tally import Formulas, Tally, total
from cost_models.workload import Work

NOTICE = "An estimate of another system by the formulas of its paper or source, unlike Sordino's own counts, which are exact."

Priced = tuple[list[tuple[Work, Tally]], list[Work]]
"""Works with their costs, and works without a formula."""


@dataclass(frozen=True)
class NotPriced:
    """Works of one kind that a system's formulas don't cover: `count` of them, `elements` in all, the first at `site`."""

    kind: str
    count: int
    elements: int
    site: str

    def __str__(self) -> str:
        return f"{self.count} x {self.kind} ({self.elements} elements; the first at {self.site or 'the model itself'})"


@dataclass(frozen=True)
class Estimate:
    """What a query would cost. Bytes are those sent by the party that sends most, 10^6 of them a MB.

    Args:
        system, variant: a name of `peers.names()`, and what was chosen where the system leaves a choice.
        parties: how many compute; a dealer is not one of them. servers: how many of them are not the data owner's own machine.
        setup_bytes: once a model. offline_bytes: for each query, before it, dealer's messages included. online_bytes: in the query.
        rounds: one after the other; each system's notes say what counts as one.
        key_storage_bytes: correlated randomness that a party holds for one query.
        compute_s: seconds of computing, where a published time could be scaled; on `compute_hardware`.
        machine: what the system is meant to run on.
        not_priced: what the formulas don't cover, and so isn't in the figures.
        by_kind: kind of work -> its part.
        notes: what to know before relying on the figures.
        source: where the formulas come from.
    """

    system: str
    variant: str
    parties: int
    servers: int
    setup_bytes: int
    offline_bytes: int
    online_bytes: int
    rounds: int
    key_storage_bytes: int
    machine: Literal["cpu", "gpu"]
    compute_s: float | None = None
    compute_hardware: str = ""
    not_priced: tuple[NotPriced, ...] = ()
    by_kind: Mapping[str, Tally] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""
    notice: str = NOTICE

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **self.__dict__,
            "not_priced": [dict(n.__dict__) for n in self.not_priced],
            "by_kind": {
                kind: {
                    "online_bytes": round(t.online),
                    "rounds": round(t.rounds),
                    "offline_bytes": round(t.offline),
                }
                for kind, t in self.by_kind.items()
            },
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class System:
    """Another system: its formulas, and what must be said with every figure from them.

    Args:
        name: for `peers.get`; variant: the choices made, in words.
        price: the works with their costs, and those without a formula.
        extra: what the whole costs besides, from the works (an output's mask, padding).
        seconds: seconds of computing from the works and the whole's cost, where known.
        caution: a note that depends on the works ("" for none).
        servers: parties that are not the data owner's own machine; 0: all of them.
    """

    name: str
    title: str
    variant: str
    parties: int
    machine: Literal["cpu", "gpu"]
    source: str
    price: Callable[[Sequence[Work]], Priced]
    notes: tuple[str, ...] = ()
    extra: Callable[[Sequence[Work], Tally], Tally] = lambda works, tally: Tally()
    seconds: Callable[[Sequence[Work], Tally], float] | None = None
    hardware: str = ""
    caution: Callable[[Sequence[Work]], str] = lambda works: ""
    servers: int = 0

    def estimate(self, works: Sequence[Work]) -> Estimate:
        """What these works would cost, one after the other."""
        priced, missing = self.price(works)
        by_kind: dict[str, Tally] = {}
        for work, tally in priced:
            by_kind[work.kind] = by_kind.get(work.kind, Tally()) + tally
        whole = total(tally for _, tally in priced)
        whole += self.extra(works, whole)
        caution = self.caution(works)
        return Estimate(
            self.name,
            self.variant,
            self.parties,
            self.servers or self.parties,
            round(whole.setup),
            round(whole.offline),
            round(whole.online),
            round(whole.rounds),
            round(whole.keys),
            self.machine,
            None if self.seconds is None else self.seconds(works, whole),
            self.hardware if self.seconds is not None else "",
            _summary(missing),
            by_kind,
            self.notes + ((caution,) if caution else ()),
            self.source,
        )


def by_formulas(formulas: Formulas) -> Callable[[Sequence[Work]], Priced]:
    """Prices each work by the formula of its kind."""

    def price(works: Sequence[Work]) -> Priced:
        priced = [(w, formulas[w.kind](w)) for w in works if w.kind in formulas]
        return priced, [w for w in works if w.kind not in formulas]

    return price


def _summary(missing: Sequence[Work]) -> tuple[NotPriced, ...]:
    kinds: dict[str, list[Work]] = {}
    for work in missing:
        kinds.setdefault(work.kind, []).append(work)
    return tuple(
        NotPriced(kind, len(found), sum(w.elements for w in found), found[0].site)
        for kind, found in kinds.items()
    )
