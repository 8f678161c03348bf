"""Fixed point in the search: constants that fit, what is not offered, what the study and the front are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import distill
import nas
import secure_eval
from distill import variants
from distill.calibration import Calibration
from distill.fixed_point import ENGINE, MOST_BITS, Limits, Met, met_by, note, watched
from distill.kinds import KINDS
from nas.evaluate import SPARE
from nas.fixed_point import FixedPointScores, broken, fixed_point_scores
from nas.ranges import offered
from nas.study import study_path
from secure_eval import ring
from secure_eval.functions.normalised import reciprocal


def rows(largest: float, keys: int = 8, padded: int = 2) -> dict[str, torch.Tensor]:
    """Statistics of a softmax site with two heads whose scores reach `largest`, some keys masked."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 2, keys, generator=generator)
    scores *= largest / scores.abs().max()
    keep = torch.ones(200, keys, dtype=torch.uint8)
    keep[::3, -padded:] = 0
    extremes = torch.stack([scores[index] for index in (0, 1, 2)])
    return {
        "scores": scores,
        "keep": keep,
        "extreme_scores": extremes,
        "extreme_keep": torch.ones(3, 2, keys, dtype=torch.uint8),
    }


def made(name: str, statistics: dict[str, torch.Tensor], heads: int = 2) -> torch.nn.Module:
    variant = variants.get("softmax", name)
    assert variant.module is not None and variant.fit is not None
    module: torch.nn.Module = variant.module(**variant.arguments(heads))
    module.load_state_dict(variant.fit(statistics, variant.arguments(heads)))
    return module


def test_the_limits_are_no_wider_than_what_the_engine_states() -> None:
    parameters = reciprocal.__defaults__
    assert parameters is not None
    low, high = parameters
    assert ENGINE.product <= 2.0 ** (ring.VALUE_BITS - 32)
    assert low <= ENGINE.divisor[0] and ENGINE.divisor[1] <= high


@pytest.mark.parametrize("name", ["power2", "power4", "power8", "power16"])
@pytest.mark.parametrize("largest", [0.5, 6.0, 60.0])
def test_fitted_powers_are_right_in_fixed_point(name: str, largest: float) -> None:
    """Scores of 57 were seen in MiniLM's first layer, where a power of 8 reaches 2^39 with a factor of 1."""
    statistics = rows(largest)
    module = made(name, statistics)
    inputs = KINDS["softmax"].observer.inputs(statistics)  # type: ignore[attr-defined]
    assert met_by(module, inputs).spare_bits() >= ENGINE.margin_bits
    scores, keep = inputs[0][0][:40], inputs[0][1][:40]
    expected = module(scores, keep)
    found = secure_eval.run(lambda s, k: module(s, k), scores, keep, protocol="plain", public=[1])
    # The smallest sums of wide scores have few fraction bits left, which powers make fewer.
    assert float((found - expected).abs().max()) < (0.005 if largest < 60 else 0.04)


def test_extremes_that_the_sample_misses_count() -> None:
    statistics = rows(4.0)
    plain = made("power16", statistics)
    statistics["extreme_scores"] = statistics["extreme_scores"].clone()
    statistics["extreme_scores"][0, 1] = 90.0
    inputs = KINDS["softmax"].observer.inputs(statistics)  # type: ignore[attr-defined]
    assert met_by(plain, inputs).spare_bits() < 0
    assert met_by(made("power16", statistics), inputs).spare_bits() >= ENGINE.margin_bits


def test_calibration_keeps_the_extreme_rows_of_padding_too() -> None:
    from distill.observers import ActivationObserver, SoftmaxObserver

    scores = torch.zeros(2, 1, 3, 4)
    scores[0, 0, 2, 1] = 50.0  # a padding query looking at a kept key
    scores[0, 0, 0, 3] = 70.0  # a masked key: nobody attends to it
    scores[1, 0, 1, 0] = -40.0
    keep = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    keep[0, ..., 3] = False
    tokens = torch.ones(2, 3, dtype=torch.bool)
    tokens[0, 2] = False
    observer = SoftmaxObserver(1)
    observer.update((scores, keep), scores, tokens)
    found = observer.statistics()
    kept = found["extreme_scores"].masked_fill(found["extreme_keep"] == 0, 0.0)
    assert float(kept.max()) == 50.0 and float(kept.min()) == -40.0
    assert float(found["scores"].float().masked_fill(found["keep"][:, None] == 0, 0).max()) == 0.0, (
        "constants are fitted to real tokens"
    )
    activation = ActivationObserver(2)
    x = torch.tensor([[[1.0, 2.0], [30.0, -40.0]]])
    activation.update((x,), x, torch.tensor([[True, False]]))
    assert activation.statistics()["moments"][0].tolist() == [1, 1]
    assert activation.statistics()["extent"].tolist() == [[1.0, -40.0], [30.0, 2.0]]


def test_no_constant_within_range_is_said() -> None:
    statistics = rows(60.0)
    with pytest.raises(distill.OutOfRange, match="head 0, 1"):
        variants.softmax_power.fit_power(
            statistics, {"power": 8}, Limits(divisor=(0.5, 2.0), margin_bits=1.0)
        )
    x = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]
    y = torch.nn.functional.gelu(x)
    moments = torch.stack([t.sum(0) for t in (torch.ones_like(x), x, x**2, x**3, x**4, y, x * y, x * x * y)])
    seen = {"moments": moments, "extent": torch.tensor([[-3.0], [3.0]])}
    fit = variants.activation_quad_channel.fit_quad_channel
    with pytest.raises(distill.OutOfRange, match="quad_channel"):
        fit(seen, {"channels": 1}, Limits(product=16.0))
    tight = Limits(product=49.0)
    for limits in (ENGINE, tight):
        fitted = fit(seen, {"channels": 1}, limits)
        assert float((3.0 + fitted["shift"].abs()).max()) ** 2 <= limits.product / 4 + 1e-3
    assert fit(seen, {"channels": 1}, tight)["scale"] > fit(seen, {"channels": 1}, ENGINE)["scale"] + 0.05


def test_what_does_not_fit_is_not_offered(teacher: Any, calibration: Calibration) -> None:
    sites = distill.find_sites(teacher)
    space = nas.SearchSpace(
        {"softmax": ["exact", "2quad", "power4"], "activation": ["exact", "quad_channel"]}
    )
    options = space.options(sites)
    assert offered(options, sites, calibration).options == options
    softmax, activation = (
        next(s.name for s in sites if s.kind == kind) for kind in ("softmax", "activation")
    )
    wild = Calibration({name: dict(found) for name, found in calibration.statistics.items()})
    wild.statistics[softmax]["extreme_scores"] = wild.statistics[softmax]["extreme_scores"] * 0 + 200.0  # type: ignore[index]
    wild.statistics[activation]["extent"] = torch.tensor([[-1e5], [1e5]]).expand(2, 32)  # type: ignore[index]
    found = offered(options, sites, wild)
    assert found.options[softmax] == ("exact", "power4"), "2quad has no constant to fit"
    assert "bits to spare" in found.refused[softmax]["2quad"]
    assert found.options[activation] == ("exact",)
    assert "quad_channel" in found.refused[activation]["quad_channel"]
    assert found.unfitted(activation) == ("quad_channel",) and found.unfitted(softmax) == ()
    with pytest.raises(nas.SearchSpaceError, match="quad_channel.*lie up to"):
        offered({**options, activation: ("quad_channel",)}, sites, wild)


def test_the_search_leaves_out_what_does_not_fit(
    run_search: Callable[..., nas.Front], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: Any
) -> None:
    site = next(s.name for s in distill.find_sites(teacher) if s.kind == "softmax")
    original = nas.search.__globals__["offered"]

    def narrower(options: Any, sites: Any, calibration: Any) -> Any:
        found = original(options, sites, calibration)
        return type(found)({**found.options, site: ("exact", "2quad")}, {site: {"power4": "too large"}})

    monkeypatch.setitem(nas.search.__globals__, "offered", narrower)
    front = run_search(tmp_path, trials=12)
    assert front.not_offered == {site: {"power4": "too large"}}
    assert all(c.architecture.variant(site) != "power4" for c in front.evaluated if c.in_space)
    assert nas.Front.from_dict(front.to_dict()).not_offered == front.not_offered


def test_spare_bits_of_assembled_students(
    teacher: Any, calibration: Any, batches: Any, make_evaluator: Any
) -> None:
    """The same with outputs of leading blocks kept and without, and as measured on a student of its own."""
    picked = {s.name: "2quad" if s.kind == "softmax" else "quad" for s in distill.find_sites(teacher)}
    names = list(picked)
    kept, plain = make_evaluator(), make_evaluator(cache_bytes=0)
    for count in (2, 6, 3, 1):
        architecture = distill.Architecture({name: picked[name] for name in names[:count]})
        student = distill.apply(teacher, architecture, calibration)
        modules = {name: student.get_submodule(name) for name in names[:count]}
        met = Met()
        with torch.no_grad(), watched(modules, lambda site, kind, x: note(met, kind, x)):  # noqa: B023
            for batch in batches:
                student(**{k: v for k, v in batch.items() if k != "labels"})
        for evaluator in (kept, plain):
            for _ in range(2):  # the second time, no block but the last is run
                found = evaluator.evaluate(architecture).scores[SPARE]
                assert found == pytest.approx(met.spare_bits(), abs=1e-3)
    assert kept.evaluate(distill.Architecture({})).scores[SPARE] == MOST_BITS


def test_spare_bits() -> None:
    assert Met(product=2.0**28).spare_bits() == 2.0
    assert Met(1.0, 2.0**-5, 2.0**10).spare_bits() == 1.0
    assert Met(1.0, 0.0, 1.0).spare_bits() == -MOST_BITS == Met(math.inf).spare_bits()
    assert Met(1.0, -3.0, 1.0).spare_bits() == -MOST_BITS, "a divisor that may be negative has no range"
    assert Met().spare_bits() == MOST_BITS


def test_optuna_is_told_of_every_limit(run_search: Callable[..., nas.Front], tmp_path: Path) -> None:
    front = run_search(tmp_path, trials=12, limits={"online_rounds": 150.0})
    storage = nas.study.open_journal(study_path(tmp_path))
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    known = {c.architecture.key(): c for c in front.evaluated}
    outside = 0
    for trial in trials:
        constraints = dict(trial.constraints)
        assert set(constraints) == {"online_rounds", SPARE}
        sites = {site: variant for site, variant in trial.params.items() if variant != "exact"}
        candidate = known[distill.Architecture(sites).key()]
        assert constraints["online_rounds"] == pytest.approx((candidate.cost.online.rounds - 150.0) / 150.0)
        assert (max(constraints.values()) <= 0) == candidate.feasible
        outside += not candidate.feasible
    assert 0 < outside < len(trials)


def test_a_student_beyond_its_range_is_on_no_front(
    run_search: Callable[..., nas.Front], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = run_search(tmp_path / "free", trials=16)
    best = free.points[0]

    def spare(self: Met, limits: Limits = ENGINE) -> float:
        return 1.0

    monkeypatch.setattr(Met, "spare_bits", spare)
    monkeypatch.setitem(
        nas.search.__globals__, "offered", lambda options, *_: nas.ranges.Offer(dict(options))
    )
    assert best.scores[SPARE] >= ENGINE.margin_bits
    with pytest.raises(nas.LimitsError, match="spare_bits >= 2"):
        run_search(
            tmp_path / "none",
            trials=16,
            space=nas.SearchSpace({"softmax": ["2quad"], "activation": ["quad"]}),
        )


def test_scores_in_fixed_point(teacher: Any, calibration: Any, batches: Any, tmp_path: Path) -> None:
    inputs = [{k: v for k, v in batches[2].items() if k != "labels"}]
    architecture = distill.Architecture.uniform(teacher, {"softmax": "power4", "activation": "quad_channel"})
    student = distill.apply(teacher, architecture, calibration)
    scorer = nas.Classification()
    found = fixed_point_scores(student, inputs, scorer)
    assert found["agreement"] == 1.0 and found["items"] == 8 and 0 < found["max_logit_error"] < 0.02
    assert broken(found) is None
    site = next(s.name for s in distill.find_sites(teacher) if s.kind == "softmax")
    student.get_submodule(site).offset.mul_(2.0**7)
    student.get_submodule(site).slope.mul_(2.0**7)  # the same probabilities, powers 2^28 times as large
    worse = fixed_point_scores(student, inputs, scorer)
    assert worse["max_logit_error"] > 10 * found["max_logit_error"]
    assert "in fixed point it predicts as in float on 49 of 50 items" in str(
        broken({"agreement": 0.98, "items": 50.0, "max_logit_error": 3.0})
    )
    with pytest.raises(ValueError, match="one shape"):
        fixed_point_scores(student, [inputs[0], {k: v[:, :3] for k, v in inputs[0].items()}], scorer)
    kept = FixedPointScores(tmp_path, "key", inputs)
    kept.of(architecture, student, scorer)
    again = FixedPointScores(tmp_path, "key", inputs)
    assert again.known(architecture) and not FixedPointScores(tmp_path, "other", inputs).known(architecture)
    assert again.of(architecture, None, scorer) == worse  # type: ignore[arg-type]


def test_points_that_break_are_dropped_and_what_they_hid_is_scored(
    run_search: Callable[..., nas.Front], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: Any
) -> None:
    free = run_search(tmp_path, trials=20)
    bad = [p for p in free.points if p.architecture.sites][0]
    scored: list[str] = []

    def of(self: Any, architecture: Any, model: Any, scorer: Any) -> dict[str, float]:
        assert distill.architecture_of(model) == architecture
        scored.append(architecture.key()[:10])
        share = 0.5 if architecture == bad.architecture else 1.0
        return {"agreement": share, "max_logit_error": 0.1, "items": 8.0}

    monkeypatch.setattr(FixedPointScores, "of", of)
    front = run_search(tmp_path, trials=20, fixed_point=[batches[0]])
    assert bad.id not in [p.id for p in front.points]
    (dropped,) = [c for c in front.evaluated if c.dropped]
    assert dropped.id == bad.id and "4 of 8" in str(dropped.dropped)
    assert all(p.fixed_point["agreement"] == 1.0 for p in front.points) and len(scored) == len(set(scored))
    assert {p.id for p in front.points} <= set(scored)
