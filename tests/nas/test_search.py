"""The search as a whole: right, the same every time, within limits, and undisturbed by being killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest

import distill
import nas
from distill.fixed_point import ENGINE
from nas.study import study_path
from tests import forked

Run = Callable[..., nas.Front]


def test_a_search(
    run_search: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str], space: nas.SearchSpace, teacher: Any
) -> None:
    seen: list[tuple[int, int, str]] = []
    front = run_search(tmp_path, progress=lambda *a: seen.append(a))
    assert set(front.baselines) == {"teacher", "mpcformer", "all_cheapest"}
    assert front.baselines["teacher"].scores["kl"] == pytest.approx(0, abs=1e-6)
    points = front.points
    assert len(points) > 3
    for cheaper, dearer in pairwise(points):
        assert cheaper.seconds < dearer.seconds and cheaper.scores["kl"] > dearer.scores["kl"]
    sites = distill.find_sites(teacher)
    assert all(space.contains(p.architecture, sites) for p in front.evaluated)
    assert len({p.id for p in front.evaluated}) == len(front.evaluated)
    assert front.hypervolume() >= front.hypervolume(points=list(front.baselines.values()))
    done = [d for d, _, _ in seen]
    assert done == sorted(done) and done[-1] == seen[-1][1], "progress only goes forward, and ends"
    printed = capfd.readouterr()
    assert printed.out == "" and "Trial" not in printed.err
    kept = nas.Front.from_dict(json.loads((tmp_path / "search" / "front.json").read_text()))
    assert kept.to_dict() == front.to_dict()


def test_points_of_the_front_are_measured_whole(run_search: Run, tmp_path: Path, make_evaluator: Any) -> None:
    front = run_search(tmp_path)
    screened = [c for c in front.evaluated if c.screened]
    assert screened, "some candidates were given up early"
    evaluator = make_evaluator()
    for point in front.points:
        assert dict(evaluator.evaluate(point.architecture).scores) == pytest.approx(
            dict(point.scores), abs=1e-6
        )
    for candidate in screened:
        assert any(
            p.seconds <= candidate.seconds and p.scores["kl"] < candidate.scores["kl"] for p in front.points
        ), "what was given up is dominated, also by its estimate"


def test_same_seed_same_front(run_search: Run, tmp_path: Path) -> None:
    first = run_search(tmp_path / "a", seed=3)
    assert run_search(tmp_path / "b", seed=3).to_dict() == first.to_dict()
    other = run_search(tmp_path / "c", seed=4)
    assert [c.id for c in other.evaluated] != [c.id for c in first.evaluated]


def test_more_trials_go_on_from_where_it_was(
    run_search: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_search(tmp_path / "whole", trials=30)
    first = run_search(tmp_path / "parts", trials=20)
    evaluated: list[str] = []
    original = nas.Evaluator.evaluate

    def counting(self: Any, architecture: Any, *rest: Any) -> Any:
        evaluated.append(architecture.key())
        return original(self, architecture, *rest)

    monkeypatch.setattr(nas.Evaluator, "evaluate", counting)
    again = run_search(tmp_path / "parts", trials=20)
    assert again.to_dict() == first.to_dict() and not evaluated, "finished: nothing is evaluated"
    more = run_search(tmp_path / "parts", trials=30)
    assert len(evaluated) == len(set(evaluated)) <= 10
    assert not set(evaluated) & {c.architecture.key() for c in first.evaluated}
    assert len(more.evaluated) == len(first.evaluated) + len(evaluated)
    assert {c.id for c in whole.evaluated} >= {c.id for c in whole.points}
    run_search(tmp_path / "parts", trials=5, seed=9)
    names = optuna.get_all_study_names(nas.study.open_journal(study_path(tmp_path / "parts")))
    assert len(names) == 2, "another question is another study in the same file"


CHILD = """
import json, os, signal, sys
import distill, nas
import torch
from pathlib import Path
from transformers import BertForSequenceClassification

run, stop = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
teacher = BertForSequenceClassification.from_pretrained(run / "teacher", attn_implementation="eager").eval()
calibration = distill.Calibration.load(run / "calibration.safetensors")
batches = torch.load(run / "batches.pt")
table = nas.CostTable.from_dict(json.loads((run / "table.json").read_text()))
space = nas.SearchSpace(json.loads((run / "space.json").read_text()))

def progress(done, total, message):
    if stop in message and (stop != "search" or done > 45):
        os.kill(os.getpid(), signal.SIGKILL)

for folder in sys.argv[3:]:
    front = nas.search(teacher, calibration, batches, space, cost_table=table, trials=30, run_dir=run /
                       folder, progress=progress if stop != "never" else None)
    (run / folder / "result.json").write_text(json.dumps(front.to_dict(), sort_keys=True))
"""


def test_a_killed_search_ends_as_if_it_had_not_been(
    teacher: Any, calibration: Any, batches: Any, table: nas.CostTable, space: nas.SearchSpace, tmp_path: Path
) -> None:
    import torch

    teacher.save_pretrained(tmp_path / "teacher")
    calibration.save(tmp_path / "calibration.safetensors")
    torch.save(batches, tmp_path / "batches.pt")
    (tmp_path / "table.json").write_text(json.dumps(table.to_dict()))
    (tmp_path / "space.json").write_text(json.dumps({kind: list(v) for kind, v in space.kinds.items()}))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def child(stop: str, *folders: str) -> int:
        done = forked.run(CHILD, str(tmp_path), stop, *folders, env=environment)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    assert child("search", "killed") == -signal.SIGKILL
    journal = study_path(tmp_path / "killed")
    with open(journal, "ab") as file:
        file.write(b'{"op_code": 6, "worker_id": "torn li')
    assert child("never", "killed", "whole") == 0
    killed, whole = ((tmp_path / folder / "result.json").read_text() for folder in ("killed", "whole"))
    assert killed == whole


def test_sensitivities_go_on_at_the_site_where_they_were(
    make_evaluator: Any, space: nas.SearchSpace, teacher: Any, tmp_path: Path
) -> None:
    options = space.options(distill.find_sites(teacher))
    evaluator = make_evaluator()

    class Killed(Exception):
        pass

    def stop(done: int, total: int, message: str) -> None:
        if done >= total // 2:
            raise Killed

    with pytest.raises(Killed):
        nas.sensitivity(evaluator, options, tmp_path, stop)
    measured: list[str] = []
    original = evaluator.single
    evaluator.single = lambda site, variant: (measured.append(site), original(site, variant))[1]
    found = nas.sensitivity(evaluator, options, tmp_path)
    assert 0 < len(measured) <= len(options) * 2 // 2 + 2, "only what was missing"
    measured.clear()
    assert nas.sensitivity(evaluator, options, tmp_path) == found and not measured
    assert set(found.scores) == set(options)
    scores = found.of("kl")
    assert all(of_site["exact"] == 0.0 and min(of_site.values()) >= 0 for of_site in scores.values())
    assert found == nas.sensitivity(make_evaluator(cache_bytes=0), options, tmp_path / "other") or all(
        scores[s][v] == pytest.approx(k, rel=1e-3, abs=1e-7)
        for s, of_site in nas.sensitivity(make_evaluator(cache_bytes=0), options, tmp_path / "x")
        .of("kl")
        .items()
        for v, k in of_site.items()
    )


def test_limits_hold(run_search: Run, tmp_path: Path, table: nas.CostTable) -> None:
    free = run_search(tmp_path / "free")
    seconds = sorted(c.seconds for c in free.points)
    limit = (seconds[0] + seconds[-1]) / 2
    rounds = table.base.online.rounds
    front = run_search(
        tmp_path / "limited", limits={"latency_s": limit, "online_rounds": rounds, "agreement": 0.01}
    )
    assert front.points and all(p.seconds <= limit for p in front.points)
    assert not front.baselines["teacher"].feasible, "a reference is shown though it is over the limit"
    assert all(
        c.feasible == (c.seconds <= limit and c.scores["spare_bits"] >= ENGINE.margin_bits)
        for c in front.evaluated
        if not c.screened
    )


def test_limits_that_nothing_meets_fail_at_once(
    run_search: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nas.Evaluator, "evaluate", lambda *_: pytest.fail("a model was evaluated"))
    with pytest.raises(nas.LimitsError, match=r"seconds at most 1e-09.*cheapest candidate.*softmax"):
        run_search(tmp_path, limits={"latency_s": 1e-9})
    with pytest.raises(nas.LimitsError, match="online_rounds at most 1 "):
        run_search(tmp_path, limits={"online_rounds": 1})
    with pytest.raises(nas.LimitsError, match="latncy_s.*did you mean 'latency_s'"):
        run_search(tmp_path, limits={"latncy_s": 1})
    with pytest.raises(nas.LimitsError, match="a finite number"):
        run_search(tmp_path, limits={"latency_s": "5"})


def test_limits_on_scores_that_nothing_meets(run_search: Run, tmp_path: Path) -> None:
    narrow = nas.SearchSpace({"softmax": ["2quad"], "activation": ["quad"]})
    with pytest.raises(nas.LimitsError, match="none of .* nearest has kl"):
        run_search(tmp_path, space=narrow, limits={"agreement": 1.0, "kl": 1e-7}, trials=3)


def test_a_space_without_the_baselines(run_search: Run, tmp_path: Path) -> None:
    front = run_search(tmp_path, space=nas.SearchSpace({"softmax": ["2quad", "power4"]}), trials=30)
    assert set(front.baselines) == {"teacher", "mpcformer", "all_cheapest"}
    assert not front.baselines["teacher"].in_space and not front.baselines["mpcformer"].in_space
    assert (
        not set(front.baselines) & {"teacher", "mpcformer"} & {name for p in front.points for name in p.names}
    )
    inside = [c for c in front.evaluated if c.in_space]
    assert len(inside) == 8, "the study ends when everything has been tried"


def test_more_objectives(run_search: Run, tmp_path: Path) -> None:
    front = run_search(tmp_path, objectives=("kl", "seconds", "online_rounds"), trials=15)
    assert front.objectives == ("kl", "seconds", "online_rounds") and front.points
    assert front.hypervolume() >= 0
    with pytest.raises(ValueError, match="unknown 'second'.*did you mean 'seconds'"):
        run_search(tmp_path, objectives=("kl", "second"))
    with pytest.raises(ValueError, match="first"):
        run_search(tmp_path, objectives=("seconds", "kl"))
    with pytest.raises(ValueError, match="trials"):
        run_search(tmp_path, trials=0)


def test_whole_predictions_stand_beside_the_table(
    run_search: Run,
    tmp_path: Path,
    example_inputs: Any,
    made_up_prices: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nas.pricing.cost_models", made_up_prices)
    front = run_search(tmp_path, example_inputs=example_inputs, repredict=2, trials=12)
    compared = [p for p in front.points if p.whole is not None]
    assert len(compared) == 2
    for point in compared:
        assert point.whole is not None
        difference = point.difference()
        assert difference["online_bytes"] == pytest.approx(point.whole.online.bytes - point.cost.online.bytes)
        assert abs(difference["online_bytes"]) < 0.01 * point.cost.online.bytes
    with pytest.raises(ValueError, match="example_inputs"):
        run_search(tmp_path, cost_table=None)


def test_the_surrogates_front_is_tried_first(
    run_search: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its cheapest to its closest point; all of it before the sampler's own ideas."""
    given: dict[str, Any] = {}
    original = nas.search.__globals__["run_study"]

    def remember(*arguments: Any, **named: Any) -> Any:
        given.update(named)
        return original(*arguments, **named)

    found: list[Any] = []
    surrogate = nas.search.__globals__["surrogate_front"]

    def keep(*arguments: Any) -> Any:
        found.extend(surrogate(*arguments))
        return found

    monkeypatch.setitem(nas.search.__globals__, "run_study", remember)
    monkeypatch.setitem(nas.search.__globals__, "surrogate_front", keep)
    front = run_search(tmp_path, trials=20)
    start = given["start"]
    assert start[0] == found[0].architecture and start[-1] == found[-1].architecture
    assert len(start) == min(len(found), 8)
    tried = [c.architecture for c in front.evaluated]
    assert set(start) <= set(tried)
    before = max(tried.index(architecture) for architecture in start)
    assert before < len(front.baselines) + len(start) + 1


def test_workers_see_each_others_trials(
    make_evaluator: Any, table: nas.CostTable, space: nas.SearchSpace, teacher: Any, tmp_path: Path
) -> None:
    from nas.study import StudySettings, _Study

    options = space.options(distill.find_sites(teacher))
    settings = StudySettings(trials=14)
    studies = [_Study(make_evaluator(), table, options, settings, tmp_path, {}, []) for _ in range(2)]
    evaluated: list[list[str]] = [[], []]
    for study, seen in zip(studies, evaluated, strict=True):
        original = study._evaluate

        def counting(
            architecture: Any, whole: bool = False, original: Any = original, seen: Any = seen
        ) -> Any:
            seen.append(architecture.key())
            return original(architecture, whole)

        study._evaluate = counting  # type: ignore[method-assign]
    first, second = studies
    trial = first._trial

    def meanwhile() -> None:
        first._trial = trial  # type: ignore[method-assign]
        trial()
        second.run(None)  # another process, while this one is at work

    first._trial = meanwhile  # type: ignore[method-assign]
    candidates = first.run(None)
    assert len(evaluated[1]) > 5
    assert {c.architecture.key() for c in candidates} == {*evaluated[0], *evaluated[1]}
    assert not set(evaluated[0]) & set(evaluated[1]), "nothing is evaluated twice"
