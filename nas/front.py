"""The search's answer: the non-dominated candidates, what they were measured against, and the few worth
distilling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cost_models import Cost
from distill import Architecture
from nas.limits import cost_figures

RESOLUTION = 0.01
"""Divergence in nats below which a few hundred items tell no two students apart: about 1 % of disagreement."""


@dataclass(frozen=True)
class Candidate:
    """One architecture that the search tried.

    id: first digits of the architecture's content hash.
    scores: on the whole validation sample, untrained (estimated if `screened`): {"kl": nats, "agreement":
        share, "spare_bits": bits between the variants' values and the nearest limit of fixed point}.
    screening: the same on the part of the sample that every candidate is evaluated on.
    cost: predicted, from the price table, or for the assembled student where the table turned out not to be exact.
    seconds: of one online query of that cost on the search's network and device.
    names: the baselines that it is ("teacher", "mpcformer", …), if any.
    feasible: whether it meets the limits.
    in_space: False for a baseline with variants that the search space doesn't allow: a reference, no
        candidate.
    screened: given up after the screening part, being clearly dominated.
    whole: cost predicted for the assembled student, with its split by site, where that was done
        (`Front.repredicted`). It is `cost`, then.
    summed: what the table said of a candidate whose whole prediction is another: bytes, rounds and seconds.
    fixed_point: {"agreement" with its own float predictions, "max_logit_error", "items"} in fixed point, where scored.
    dropped: why a point is not on the front though nothing dominates it; None if it may be.
    """

    id: str
    architecture: Architecture
    scores: Mapping[str, float]
    cost: Cost
    seconds: float
    names: tuple[str, ...] = ()
    feasible: bool = True
    in_space: bool = True
    screened: bool = False
    screening: Mapping[str, float] = field(default_factory=dict)
    whole: Cost | None = None
    summed: Mapping[str, float] = field(default_factory=dict)
    fixed_point: Mapping[str, float] = field(default_factory=dict)
    dropped: str | None = None

    @property
    def name(self) -> str | None:
        """The first of `names`, or None."""
        return self.names[0] if self.names else None

    def figures(self, names: Sequence[str]) -> dict[str, float]:
        """Cost figures and scores by name."""
        known = {**cost_figures(self.cost, self.seconds), **self.scores}
        return {name: known[name] for name in names}

    def difference(self) -> dict[str, float]:
        """Whole prediction minus price table: online_bytes, online_rounds, seconds. Empty where none was
        made.
        """
        if self.whole is None:
            return {}
        now = self._summed()
        return {name: now[name] - self.summed.get(name, now[name]) for name in now}

    def _summed(self) -> dict[str, float]:
        return {
            "online_bytes": float(self.cost.online.bytes),
            "online_rounds": float(self.cost.online.rounds),
            "seconds": self.seconds,
        }

    def predicted_whole(self, whole: Cost, seconds: float) -> Candidate:
        """This candidate with the assembled student's cost as its own."""
        same = replace(self, cost=_plain(whole), seconds=seconds, whole=whole)
        summed, now = self._summed(), same._summed()
        exact = all(math.isclose(summed[name], now[name], rel_tol=1e-9) for name in now)
        return same if exact else replace(same, summed=summed)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "names": list(self.names),
            "architecture": self.architecture.to_dict(),
            "scores": dict(self.scores),
            "screening": dict(self.screening),
            "cost": self.cost.to_dict(),
            "seconds": self.seconds,
            "feasible": self.feasible,
            "in_space": self.in_space,
            "screened": self.screened,
            "whole": None if self.whole is None else self.whole.to_dict(),
            "summed": dict(self.summed),
            "fixed_point": dict(self.fixed_point),
            "dropped": self.dropped,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Candidate:
        return Candidate(
            id=data["id"],
            architecture=Architecture.from_dict(data["architecture"]),
            scores=data["scores"],
            cost=Cost.from_dict(data["cost"]),
            seconds=data["seconds"],
            names=tuple(data["names"]),
            feasible=data["feasible"],
            in_space=data["in_space"],
            screened=data["screened"],
            screening=data["screening"],
            whole=None if data["whole"] is None else Cost.from_dict(data["whole"]),
            summed=data["summed"],
            fixed_point=data["fixed_point"],
            dropped=data["dropped"],
        )


@dataclass(frozen=True)
class Front:
    """What `search` returns.

    evaluated: every candidate tried, each once.
    objectives: names of the minimised figures, the divergence first.
    network, device, protocol: what `seconds` and `cost` were predicted for.
    uninformed: divergence of answering everything with the teacher's mean prediction; None if not known.
    not_offered: site -> variant -> why fixed point cannot hold it there.
    """

    evaluated: tuple[Candidate, ...]
    objectives: tuple[str, ...]
    network: str
    device: str
    protocol: str
    uninformed: float | None = None
    not_offered: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def points(self) -> tuple[Candidate, ...]:
        """The feasible candidates of the space, evaluated on the whole sample and right in fixed point as far as
        that was scored, that no other one dominates; by rising cost.
        """
        feasible = [
            c for c in self.evaluated if c.feasible and c.in_space and not c.screened and c.dropped is None
        ]
        values = np.array([list(c.figures(self.objectives).values()) for c in feasible])
        values = values.reshape(-1, len(self.objectives))
        kept = []
        for index, candidate in enumerate(feasible):
            others = np.delete(values, index, axis=0)
            no_worse = (others <= values[index]).all(axis=1)
            better = (others < values[index]).any(axis=1)
            equal_before = (values[:index] == values[index]).all(axis=1)
            if not (no_worse & better).any() and not equal_before.any():
                kept.append(candidate)
        return tuple(sorted(kept, key=lambda c: (*list(c.figures(self.objectives).values())[1:], c.id)))

    @property
    def baselines(self) -> dict[str, Candidate]:
        """The named references, feasible or not."""
        return {name: candidate for candidate in self.evaluated for name in candidate.names}

    def hypervolume(
        self, reference: Mapping[str, float] | None = None, points: Sequence[Candidate] | None = None
    ) -> float:
        """Volume that the front dominates up to `reference` (objective -> worst value that counts).

        Without a reference, the worst value of each objective among the baselines. `points` measures others
        instead,
        for instance one fixed recipe: ``front.hypervolume(points=[front.baselines["mpcformer"]])``.
        """
        if reference is None:
            named = list(self.baselines.values())
            if not named:
                raise ValueError("reference: the front has no baselines to take it from")
            reference = {o: max(c.figures([o])[o] for c in named) for o in self.objectives}
        bound = np.array([reference[o] for o in self.objectives], dtype=np.float64)
        chosen = self.points if points is None else points
        values = np.array([list(c.figures(self.objectives).values()) for c in chosen]).reshape(-1, len(bound))
        return hypervolume(values, bound)

    def select(self, k: int, no_costlier_than: Candidate | None = None) -> tuple[Candidate, ...]:
        """At most `k` points worth distilling, by rising cost: those that together dominate most.

        no_costlier_than: only points whose online bytes and rounds are at most this candidate's. May leave
            none.

        The rule: each axis is put on a scale from 0 to 1 over the points, costs logarithmically, the divergence as
        log(divergence + RESOLUTION), since below that two students cannot be told apart. Points are taken one at a
        time, each time the one that adds most to the volume dominated up to 1.1 on every axis (the first one in cost
        among equals): the knee of the front first, then what lies far from it on either side.

        The untrained teacher's own point is left out while there are others: there is nothing to distil in it. So
        is a hopeless one, which is further from the teacher than answering everything with the teacher's mean
        prediction (`uninformed`).
        """
        if k < 1:
            raise ValueError(f"k: at least 1 is needed, not {k}")
        points = list(self.points)
        if no_costlier_than is not None:
            bound = no_costlier_than.figures(("online_bytes", "online_rounds"))
            points = [
                p
                for p in points
                if all(v <= bound[name] + 0.5 for name, v in p.figures(tuple(bound)).items())
            ]
        changed = [p for p in points if p.architecture.sites or p.architecture.structure]
        points = changed or points
        divergence = self.objectives[0]
        bound_on_it = math.inf if self.uninformed is None else self.uninformed
        points = [p for p in points if p.scores[divergence] < bound_on_it] or points
        if len(points) <= k:
            return tuple(points)
        scaled = _unit_axes(np.array([list(p.figures(self.objectives).values()) for p in points]))
        taken: list[int] = []
        while len(taken) < k:
            free = [i for i in range(len(points)) if i not in taken]
            # Rounded, so that equals are equal whatever the order of the sums.
            gains = {
                i: round(hypervolume(scaled[[*taken, i]], np.full(scaled.shape[1], 1.1)), 12) for i in free
            }
            taken.append(max(free, key=lambda i: (gains[i], -i)))
        return tuple(points[i] for i in sorted(taken))

    def repredicted(self, wholes: Mapping[str, tuple[Cost, float]]) -> Front:
        """This front with whole predictions (id -> cost, seconds) in place of the table's."""
        return self.changed(
            {c.id: c.predicted_whole(*wholes[c.id]) for c in self.evaluated if c.id in wholes}
        )

    def changed(self, candidates: Mapping[str, Candidate]) -> Front:
        """This front with some candidates (by id) replaced."""
        return replace(self, evaluated=tuple(candidates.get(c.id, c) for c in self.evaluated))

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible; `from_dict` is the inverse."""
        return {
            "objectives": list(self.objectives),
            "network": self.network,
            "device": self.device,
            "protocol": self.protocol,
            "evaluated": [candidate.to_dict() for candidate in self.evaluated],
            "points": [candidate.id for candidate in self.points],
            "uninformed": self.uninformed,
            "not_offered": {site: dict(reasons) for site, reasons in self.not_offered.items()},
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Front:
        return Front(
            tuple(Candidate.from_dict(c) for c in data["evaluated"]),
            tuple(data["objectives"]),
            data["network"],
            data["device"],
            data["protocol"],
            data["uninformed"],
            data["not_offered"],
        )


def _plain(cost: Cost) -> Cost:
    """A cost without its split by site and operation, as the table's are."""
    return Cost(cost.setup, cost.offline, cost.online, roles=cost.roles)


def _unit_axes(values: np.ndarray) -> np.ndarray:
    """Figures [points, objectives], the divergence first, on logarithmic scales from 0 to 1 each."""
    logs = np.log(np.maximum(values, 1e-300))
    logs[:, 0] = np.log(values[:, 0] + RESOLUTION)
    low, high = logs.min(axis=0), logs.max(axis=0)
    unit: np.ndarray = (logs - low) / np.where(high > low, high - low, 1.0)
    return unit


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume dominated by `points` [n, objectives] (minimised) within `reference` [objectives].

    Exact, by slicing along the last objective (While et al., 2006); meant for the few hundred points and
    two to four objectives of a search.
    """
    inside = points[(points < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - inside.min())
    order = np.argsort(inside[:, -1], kind="stable")
    inside = inside[order]
    upper = np.append(inside[1:, -1], reference[-1])
    volume = 0.0
    for index in range(len(inside)):
        depth = upper[index] - inside[index, -1]
        if depth > 0:
            volume += depth * hypervolume(inside[: index + 1, :-1], reference[:-1])
    return float(volume)
