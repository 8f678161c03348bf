"""Cost: sums, differences and round trips."""

from __future__ import annotations

import json

import pytest

from cost_models import Cost, Phase


def _cost(factor: int) -> Cost:
    return Cost(
        setup=Phase(bytes=10 * factor, rounds=1),
        offline=Phase(bytes=100 * factor, macs=7 * factor),
        online=Phase(bytes=1000 * factor, rounds=3 * factor, kernels=factor),
        by_site={"layer": Phase(bytes=factor)},
    )


def test_costs_add_subtract_and_scale() -> None:
    a, b = _cost(1), _cost(4)
    assert (a + b).online == Phase(bytes=5000, rounds=15, kernels=5)
    assert (b - a).online == Phase(bytes=3000, rounds=9, kernels=3)
    assert (3 * a).offline == Phase(bytes=300, macs=21)
    assert (b / 4).online.bytes == 1000.0
    assert not (a + b).by_site


def test_json_round_trip_keeps_everything() -> None:
    cost = _cost(2)
    assert Cost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost


def test_unknown_counts_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown counts \['byte'\].*bytes"):
        Cost.from_dict({"online": {"byte": 1}})
