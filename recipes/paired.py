"""Whether a student keeps its teacher's quality: paired tests on the same examples.

Teacher and student answer the same examples, so what counts are the ones on which just one of them is right: `worse`,
where it is the teacher, and `better`, where it is the student. The drop in accuracy is (worse - better) / items. Its
confidence bounds are those of the score test for a difference of paired proportions (T. Tango, Statistics in Medicine
17, 1998, 891-908), which hold for a few dozen examples as well and do not collapse to a point when nobody disagrees, as
those of a bootstrap or of Wald's interval do.

A student is accepted if the upper bound of its drop is at most the drop allowed: the examples have to show that it keeps
the contract. Over 30 to 1000 examples and rates of disagreement up to 0.2, a student whose true drop is exactly what is
allowed, 0.02 or 0.05, is accepted at 95 % confidence with a probability of at most 0.056 (`false_acceptance`, exact).
What can be shown with few examples is little: where teacher and student are never right apart, 133 examples are needed
to show a drop of at most 0.02, and 545 where each is right alone on three in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

STEPS = 60
"""Halvings of a bound's interval: beyond double precision."""


@dataclass(frozen=True)
class Comparison:
    """A student against its teacher on the same examples.

    items: how many. worse, better: on how many only the teacher, only the student is right.
    """

    items: int
    worse: int
    better: int

    @classmethod
    def of(cls, teacher: Sequence[bool], student: Sequence[bool]) -> Comparison:
        """From who was right where. Raises ValueError for lists of different or no length."""
        if len(teacher) != len(student) or not teacher:
            raise ValueError(f"{len(teacher)} and {len(student)} answers cannot be paired")
        pairs = list(zip(teacher, student, strict=True))
        return cls(len(pairs), sum(t and not s for t, s in pairs), sum(s and not t for t, s in pairs))

    @property
    def drop(self) -> float:
        """Teacher's accuracy minus the student's."""
        return (self.worse - self.better) / self.items

    def upper(self, level: float) -> float:
        """One-sided upper confidence bound of the drop."""
        return _bound(self.worse, self.better, self.items, level)

    def lower(self, level: float) -> float:
        """One-sided lower confidence bound of the drop."""
        return -_bound(self.better, self.worse, self.items, level)

    def to_dict(self, level: float) -> dict[str, Any]:
        """JSON-ready, with both one-sided bounds."""
        return {
            "items": self.items,
            "worse": self.worse,
            "better": self.better,
            "drop": self.drop,
            "lower": self.lower(level),
            "upper": self.upper(level),
            "level": level,
        }


def _bound(worse: int, better: int, items: int, level: float) -> float:
    """The largest drop that the score test at `level` does not refute."""
    limit = -NormalDist().inv_cdf(level)
    low, high = (worse - better) / items, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if _score(worse, better, items, middle) >= limit:
            low = middle
        else:
            high = middle
    return high


def _score(worse: int, better: int, items: int, drop: float) -> float:
    """The observed drop minus a supposed one, in standard errors under the supposed one (Tango 1998, equation 4)."""
    a = 2.0 * items
    b = -worse - better + (2.0 * items - worse + better) * drop
    c = -better * drop * (1.0 - drop)
    # The most likely rate of `better` if the drop is as supposed.
    rate = max(0.0, (-b + math.sqrt(max(0.0, b * b - 4.0 * a * c))) / (2.0 * a))
    variance = items * (2.0 * rate + drop - drop * drop)
    distance = worse - better - items * drop
    if variance <= 0.0:
        return 0.0 if distance == 0.0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def false_acceptance(items: int, allowed: float, level: float, better: float) -> float:
    """Probability of accepting a student whose true drop is `allowed`, where only it is right at the rate `better`.

    Exact: the sum over all outcomes of `items` examples.
    """
    worse = better + allowed
    if worse + better > 1:
        raise ValueError(f"rates of disagreement {worse} and {better} are more than 1 together")
    total = 0.0
    rest = 1.0 - worse - better
    for b in range(items + 1):
        # Acceptance is monotone: with so many worse, at least so many better are needed.
        least = _least_better(b, items, allowed, level)
        if least is None:
            break
        for c in range(least, items - b + 1):
            log = (
                math.lgamma(items + 1)
                - math.lgamma(b + 1)
                - math.lgamma(c + 1)
                - math.lgamma(items - b - c + 1)
            )
            for count, rate in ((b, worse), (c, better), (items - b - c, rest)):
                if count:
                    log += count * math.log(rate) if rate > 0 else -math.inf
            total += math.exp(log)
    return total


def _least_better(worse: int, items: int, allowed: float, level: float) -> int | None:
    """The fewest `better` with which so many `worse` are accepted; None if no number will do."""
    limit = -NormalDist().inv_cdf(level)
    low, high = 0, items - worse
    if _score(worse, high, items, allowed) > limit:
        return None
    while low < high:
        middle = (low + high) // 2
        if _score(worse, middle, items, allowed) <= limit:
            high = middle
        else:
            low = middle + 1
    return low


def bootstrap_bounds(
    drop: Callable[[Sequence[int]], float], items: int, level: float, seed: int, rounds: int = 2000
) -> tuple[float, float]:
    """One-sided bounds (lower, upper) of a score's drop that is no mean over examples, a correlation for instance.

    drop: the drop on a sample, given as numbers of examples, drawn with repetition.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    drops = sorted(drop(torch.randint(items, (items,), generator=generator).tolist()) for _ in range(rounds))
    rank = min(rounds - 1, math.ceil(level * rounds) - 1)
    return drops[rounds - 1 - rank], drops[rank]
