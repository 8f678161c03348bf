"""Cost: sums, differences and round trips."""

from __future__ import annotations

import json

import pytest

from cost_models import Cost, Phase
from secure_eval.measurement import Memory, Work


def _cost(factor: int) -> Cost:
    return Cost(
        setup=Phase(bytes=10 * factor, rounds=1),
        offline=Phase(bytes=100 * factor, work={"product 64": Work(1, 7 * factor, 2)}),
        online=Phase(bytes=1000 * factor, rounds=3 * factor),
        sites_of={"online": {"layer": Phase(bytes=factor)}, "offline": {"layer": Phase()}},
        memory={"party0": Memory(1, 2, 3, 1, 1)},
    )


def test_costs_add_subtract_and_scale() -> None:
    a, b = _cost(1), _cost(4)
    assert (a + b).online == Phase(bytes=5000, rounds=15)
    assert (b - a).online == Phase(bytes=3000, rounds=9)
    assert (3 * a).offline == Phase(bytes=300, work={"product 64": Work(3, 21, 6)})
    assert (b / 4).online.bytes == 1000.0
    assert (a + b).offline.macs == 35 and (a + b).offline.kernels == 2 and (a + b).offline.traffic_bytes == 4
    assert a.by_site and not (a + b).by_site and not (a + b).memory


def test_json_round_trip_keeps_everything() -> None:
    cost = _cost(2)
    assert Cost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost


def test_unknown_counts_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown counts \['byte'\].*bytes"):
        Cost.from_dict({"online": {"byte": 1}})
