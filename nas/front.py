"""The search's answer: the non-dominated candidates, what they were measured against, and the few worth
distilling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cost_models import Cost
from distill import Architecture
from nas.limits import cost_figures


@dataclass(frozen=True)
class Candidate:
    """One architecture that the search tried.

    id: first digits of the architecture's content hash.
    scores: on the whole validation sample, untrained (estimated if `screened`): {"kl": nats, "agreement":
        share}.
    screening: the same on the part of the sample that every candidate is evaluated on.
    cost: predicted, from the price table. seconds: of one online query on the search's network and device.
    names: the baselines that it is ("teacher", "mpcformer", …), if any.
    feasible: whether it meets the limits.
    in_space: False for a baseline with variants that the search space doesn't allow: a reference, no
        candidate.
    screened: given up after the screening part, being clearly dominated.
    whole: cost predicted for the assembled student, and `whole_seconds`, where that was done
        (`Front.repredicted`).
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
    whole_seconds: float | None = None

    @property
    def name(self) -> str | None:
        """The first of `names`, or None."""
        return self.names[0] if self.names else None

    def figures(self, names: Sequence[str]) -> dict[str, float]:
        """Cost figures and scores by name, from the price table's cost."""
        known = {**cost_figures(self.cost, self.seconds), **self.scores}
        return {name: known[name] for name in names}

    def difference(self) -> dict[str, float]:
        """Whole prediction minus price table: online_bytes, online_rounds, seconds. Empty where none was
        made.
        """
        if self.whole is None or self.whole_seconds is None:
            return {}
        return {
            "online_bytes": float(self.whole.online.bytes - self.cost.online.bytes),
            "online_rounds": float(self.whole.online.rounds - self.cost.online.rounds),
            "seconds": self.whole_seconds - self.seconds,
        }

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
            "whole_seconds": self.whole_seconds,
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
            whole_seconds=data["whole_seconds"],
        )


@dataclass(frozen=True)
class Front:
    """What `search` returns.

    evaluated: every candidate tried, each once.
    objectives: names of the minimised figures, the divergence first.
    network, device, protocol: what `seconds` and `cost` were predicted for.
    """

    evaluated: tuple[Candidate, ...]
    objectives: tuple[str, ...]
    network: str
    device: str
    protocol: str

    @property
    def points(self) -> tuple[Candidate, ...]:
        """The feasible candidates of the space, evaluated on the whole sample, that no other one dominates;
        by rising cost.
        """
        feasible = [c for c in self.evaluated if c.feasible and c.in_space and not c.screened]
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
        """At most `k` points spread evenly over the cost axis, cheapest and dearest included, by rising cost.

        no_costlier_than: only points whose online bytes and rounds are at most this candidate's. May leave
            none.

        The untrained teacher's own point is left out while there are others: there is nothing to distil in
        it.
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
        if len(points) <= k:
            return tuple(points)
        axis = self.objectives[1]
        positions = np.array([p.figures([axis])[axis] for p in points])
        if k == 1:
            return (points[0],)
        taken: list[int] = []
        for target in np.linspace(positions[0], positions[-1], k):
            free = [i for i in range(len(points)) if i not in taken]
            taken.append(min(free, key=lambda i: (abs(positions[i] - target), i)))
        return tuple(points[i] for i in sorted(taken))

    def repredicted(self, wholes: Mapping[str, tuple[Cost, float]]) -> Front:
        """This front with whole predictions (id -> cost, seconds) beside the table's."""
        evaluated = tuple(
            replace(c, whole=wholes[c.id][0], whole_seconds=wholes[c.id][1]) if c.id in wholes else c
            for c in self.evaluated
        )
        return replace(self, evaluated=evaluated)

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible; `from_dict` is the inverse."""
        return {
            "objectives": list(self.objectives),
            "network": self.network,
            "device": self.device,
            "protocol": self.protocol,
            "evaluated": [candidate.to_dict() for candidate in self.evaluated],
            "points": [candidate.id for candidate in self.points],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Front:
        return Front(
            tuple(Candidate.from_dict(c) for c in data["evaluated"]),
            tuple(data["objectives"]),
            data["network"],
            data["device"],
            data["protocol"],
        )


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
