"""The surrogate's front is exact: it equals the front found by trying everything."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nas

Table = dict[str, dict[str, float]]


def brute_force(divergence: Table, seconds: Table) -> list[tuple[float, float]]:
    sites = list(divergence)
    sums = [
        (
            sum(divergence[s][v] for s, v in zip(sites, picked, strict=True)),
            sum(seconds[s][v] for s, v in zip(sites, picked, strict=True)),
        )
        for picked in itertools.product(*(divergence[s] for s in sites))
    ]
    return sorted(
        {
            (round(k, 9), round(t, 9))
            for k, t in sums
            if not any(
                (a < k - 1e-12 and b <= t + 1e-12) or (a <= k + 1e-12 and b < t - 1e-12) for a, b in sums
            )
        },
        key=lambda point: point[1],
    )


VALUES = st.integers(0, 12).map(lambda n: n / 8)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=4), min_size=1, max_size=5))
def test_equals_brute_force(of_sites: list[list[tuple[float, float]]]) -> None:
    divergence = {f"s{i}": {f"v{j}": k for j, (k, _) in enumerate(vs)} for i, vs in enumerate(of_sites)}
    # Prices may be negative: what a variant saves against exact.
    seconds = {f"s{i}": {f"v{j}": t - 1 for j, (_, t) in enumerate(vs)} for i, vs in enumerate(of_sites)}
    found = nas.surrogate_front(divergence, seconds)
    assert [(round(p.divergence, 9), round(p.seconds, 9)) for p in found] == brute_force(divergence, seconds)
    for point in found:
        picked = {s: point.architecture.sites.get(s, "exact") for s in divergence}
        assert sum(seconds[s][v] for s, v in picked.items()) == pytest.approx(point.seconds)


def test_rounding_makes_no_points() -> None:
    divergence = {f"s{i}": {"a": 0.1 * (i + 1), "b": 0.0} for i in range(12)}
    seconds = {f"s{i}": {"a": 0.1, "b": 0.3} for i in range(12)}
    assert len(nas.surrogate_front(divergence, seconds)) == 13, "one point for each number of replaced sites"


def test_large_spaces_are_quick() -> None:
    rng = np.random.default_rng(0)
    names = [f"v{j}" for j in range(8)]
    prices = {name: float(p) for name, p in zip(names, rng.random(8), strict=True)}
    divergence = {f"s{i}": {name: float(rng.random()) for name in names} for i in range(48)}
    started = time.perf_counter()
    found = nas.surrogate_front(divergence, {site: prices for site in divergence})
    assert time.perf_counter() - started < 20
    assert len(found) > 100


def test_tables_must_fit() -> None:
    with pytest.raises(ValueError, match="same sites"):
        nas.surrogate_front({"a": {"x": 0.0}}, {"a": {"y": 0.0}})
