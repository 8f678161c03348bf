"""The front's geometry on made-up candidates."""

from __future__ import annotations

import json

import numpy as np
import pytest

import distill
import nas


def candidate(
    table: nas.CostTable, name: str, kl: float, seconds: float, sites: int = 1, **changes: object
) -> nas.Candidate:
    picked = dict.fromkeys([site for group in table.groups for site in group.sites][:sites], "2quad")
    return nas.Candidate(
        id=name,
        architecture=distill.Architecture(picked),
        scores={"kl": kl, "agreement": 1 - kl},
        cost=table.base,
        seconds=seconds,
        **changes,  # type: ignore[arg-type]
    )


def front_of(*candidates: nas.Candidate) -> nas.Front:
    return nas.Front(candidates, ("kl", "seconds"), "lan", "cpu", "dealer2pc")


def test_points_are_the_non_dominated_ones(table: nas.CostTable) -> None:
    front = front_of(
        candidate(table, "teacher", 0.0, 10, sites=0, names=("teacher",)),
        candidate(table, "a", 0.1, 5),
        candidate(table, "same", 0.1, 5),
        candidate(table, "worse", 0.2, 6),
        candidate(table, "b", 0.5, 2),
        candidate(table, "forbidden", 0.01, 1, feasible=False),
        candidate(table, "guessed", 0.01, 1, screened=True),
    )
    assert [p.id for p in front.points] == ["b", "a", "teacher"]
    assert front.baselines["teacher"].id == "teacher"


def test_hypervolume() -> None:
    reference = np.array([4.0, 4.0])
    assert nas.hypervolume(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]), reference) == 6.0
    assert nas.hypervolume(np.array([[1.0, 3.0], [2.0, 3.5]]), reference) == 3.0
    assert nas.hypervolume(np.array([[5.0, 0.0]]), reference) == 0.0
    cube = np.array([[1.0, 2.0, 2.0], [2.0, 1.0, 2.0], [2.0, 2.0, 1.0]])
    assert nas.hypervolume(cube, np.array([3.0, 3.0, 3.0])) == 4.0


def test_hypervolume_in_three_dimensions_against_counting() -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(0, 8, (20, 3)).astype(float)
    cells = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), -1).reshape(-1, 3)
    covered = (points[:, None, :] <= cells[None]).all(-1).any(0).sum()
    assert nas.hypervolume(points, np.array([8.0, 8.0, 8.0])) == covered


def test_hypervolume_of_a_front(table: nas.CostTable) -> None:
    teacher = candidate(table, "t", 0.0, 10, sites=0, names=("teacher",))
    recipe = candidate(table, "m", 1.0, 2, names=("mpcformer",))
    middle = candidate(table, "x", 0.25, 4)
    front = front_of(teacher, recipe, middle)
    assert front.hypervolume() == pytest.approx(0.75 * 6)
    assert front.hypervolume({"kl": 2.0, "seconds": 12.0}, points=[recipe]) == pytest.approx(10.0)
    with pytest.raises(ValueError, match="reference"):
        front_of(middle).hypervolume()


def test_selection_spreads_over_the_cost(table: nas.CostTable) -> None:
    points = [candidate(table, f"p{i}", 1 / (i + 1), float(i)) for i in range(11)]
    front = front_of(*points, candidate(table, "teacher", 0.0, 30.0, sites=0, names=("teacher",)))
    assert [p.id for p in front.select(3)] == ["p0", "p5", "p10"], "the teacher itself is nothing to distil"
    assert [p.id for p in front.select(1)] == ["p0"]
    assert len(front.select(99)) == 11
    assert front.select(2, no_costlier_than=points[0]), "equal counts are no costlier"
    with pytest.raises(ValueError, match="at least 1"):
        front.select(0)


def test_json_round_trip(table: nas.CostTable) -> None:
    front = front_of(candidate(table, "a", 0.1, 5.0, names=("mpcformer",)), candidate(table, "b", 0.2, 4.0))
    front = front.repredicted({"b": (table.base, 4.5)})
    again = nas.Front.from_dict(json.loads(json.dumps(front.to_dict())))
    assert again.to_dict() == front.to_dict()
    assert again.points[0].difference() == {"online_bytes": 0.0, "online_rounds": 0.0, "seconds": 0.5}
    assert again.points[1].difference() == {}
