"""Step B, second half: the best architectures if the sites' effects simply added up.

Single-site divergences rank variants well, though their sum falls several times short of the joint one, so
the front of the sums is a good place to start a study from and nothing more. It can be had exactly: sites
are added one at a time, and of the partial sums only the non-dominated ones are kept, since whatever
completes a dominated partial sum completes the dominating one at least as well (Bellman's principle for two
sums; Nemhauser & Ullmann 1969).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from distill import Architecture
from nas.space import architecture_of

#: Sums that differ by less than this share of the largest possible sum are the same: rounding, not a trade-
#: off.
RESOLUTION = 1e-9


@dataclass(frozen=True)
class SurrogatePoint:
    """One point of the additive front: the sums over the sites of divergence and of seconds."""

    architecture: Architecture
    divergence: float
    seconds: float


def surrogate_front(
    divergence: Mapping[str, Mapping[str, float]], seconds: Mapping[str, Mapping[str, float]]
) -> list[SurrogatePoint]:
    """The exact Pareto front of (sum of divergence, sum of seconds) over all choices of one variant a site.

    divergence: site -> variant -> divergence >= 0 of that single replacement.
    seconds: site -> variant -> seconds that the variant adds at the site (relative to anything, may be
        negative). Must hold the same sites and variants.

    Returns the points by rising seconds. Where several architectures share a point, the one found first is
    returned, which depends only on the order of the mappings. Work is the sum over sites of (front so far)
    x (variants): sites that share prices, as the equal layers of a transformer do, keep the fronts small.
    """
    if {s: set(v) for s, v in divergence.items()} != {s: set(v) for s, v in seconds.items()}:
        raise ValueError("divergence and seconds must name the same sites and variants")
    total_divergence = np.zeros(1)
    total_seconds = np.zeros(1)
    history: list[tuple[str, list[str], np.ndarray, np.ndarray]] = []
    for site, of_site in divergence.items():
        names = list(of_site)
        own_divergence = np.array([of_site[name] for name in names], dtype=np.float64)
        own_seconds = np.array([seconds[site][name] for name in names], dtype=np.float64)
        joint_divergence = (total_divergence[:, None] + own_divergence[None, :]).reshape(-1)
        joint_seconds = (total_seconds[:, None] + own_seconds[None, :]).reshape(-1)
        kept = _non_dominated(joint_divergence, joint_seconds)
        history.append((site, names, kept // len(names), kept % len(names)))
        total_divergence, total_seconds = joint_divergence[kept], joint_seconds[kept]
    points = []
    for index in range(len(total_seconds)):
        picked: dict[str, str] = {}
        at = index
        for site, names, parent, option in reversed(history):
            picked[site] = names[int(option[at])]
            at = int(parent[at])
        ordered = {site: picked[site] for site in divergence}
        points.append(
            SurrogatePoint(
                architecture_of(ordered),
                float(sum(divergence[site][variant] for site, variant in ordered.items())),
                float(sum(seconds[site][variant] for site, variant in ordered.items())),
            )
        )
    return points


def _non_dominated(divergence: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Indices of the points that no other one equals or beats in both (up to RESOLUTION), by rising
    seconds.
    """
    order = np.lexsort((np.arange(len(seconds)), divergence, seconds))
    divergence, seconds = divergence[order], seconds[order]
    slack = RESOLUTION * float(np.abs(divergence).max(initial=0.0))
    wait = RESOLUTION * float(np.abs(seconds).max(initial=0.0))
    # The least divergence among the points that are not slower than a point, rounding allowed for…
    reach = np.searchsorted(seconds, seconds + wait, side="right") - 1
    good = np.flatnonzero(divergence <= np.minimum.accumulate(divergence)[reach] + slack)
    # … and of those that share a place, the first.
    before = np.concatenate(([np.inf], np.minimum.accumulate(divergence[good])[:-1]))
    return order[good[divergence[good] < before - slack]]
