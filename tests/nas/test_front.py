"""The front's geometry on made-up candidates."""

from __future__ import annotations

import dataclasses
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
    points = [candidate(table, f"p{i}", 1 / (i + 1), 1.0 + i) for i in range(11)]
    front = front_of(*points, candidate(table, "teacher", 0.0, 30.0, sites=0, names=("teacher",)))
    chosen = [int(p.id[1:]) for p in front.select(3)]
    assert len(set(chosen)) == 3 and chosen[0] <= 1 and chosen[-1] >= 4, "spread over cost and closeness"
    assert 2 <= int(front.select(1)[0].id[1:]) <= 5, (
        "one candidate is the knee, neither the cheapest nor the best"
    )
    assert len(front.select(99)) == 11
    assert front.select(2, no_costlier_than=points[0]), "equal counts are no costlier"
    with pytest.raises(ValueError, match="at least 1"):
        front.select(0)


def test_the_cheapest_is_not_taken_whatever_its_divergence(table: nas.CostTable) -> None:
    """As many points lie together at the cheap end as anywhere: a rule by cost or rank alone takes them."""
    cheap = [candidate(table, f"cheap{i}", 3.0 - 0.001 * i, 1.0 + 0.001 * i) for i in range(8)]
    knee, best = candidate(table, "knee", 0.05, 2.0), candidate(table, "best", 0.01, 8.0)
    front = front_of(*cheap, knee, best)
    assert [p.id for p in front.select(1)] == ["knee"]
    assert [p.id for p in front.select(3)] == ["cheap0", "knee", "best"]
    informed = dataclasses.replace(front, uninformed=1.5)
    assert [p.id for p in informed.select(3)] == ["knee", "best"], "what knows less than nothing is hopeless"
    hopeless = dataclasses.replace(front_of(*cheap), uninformed=1.5)
    assert len(hopeless.select(2)) == 2, "where nothing else is left, it is what there is"


def test_a_point_that_breaks_in_fixed_point_is_not_on_the_front(table: nas.CostTable) -> None:
    front = front_of(
        candidate(table, "a", 0.1, 5, dropped="it predicts otherwise"), candidate(table, "b", 0.2, 6)
    )
    assert [p.id for p in front.points] == ["b"] == [p.id for p in front.select(1)]


def test_json_round_trip(table: nas.CostTable) -> None:
    front = front_of(candidate(table, "a", 0.1, 5.0, names=("mpcformer",)), candidate(table, "b", 0.2, 4.0))
    front = front.repredicted({"b": (table.base, 4.5)})
    again = nas.Front.from_dict(json.loads(json.dumps(front.to_dict())))
    assert again.to_dict() == front.to_dict()
    assert again.points[0].difference() == {"online_bytes": 0.0, "online_rounds": 0.0, "seconds": 0.5}
    assert again.points[0].seconds == 4.5, "the whole prediction is the price"
    assert again.points[1].difference() == {}
