"""The search from end to end: prices, sensitivities, surrogate, study, front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import cost_models
import distill
from distill import Architecture, Calibration, Site
from distill.fixed_point import ENGINE
from nas.evaluate import SPARE, Evaluator
from nas.files import write_json
from nas.fixed_point import FixedPointScores, broken
from nas.front import Candidate, Front
from nas.limits import Limits, LimitsError, cost_figures
from nas.pricing import CostTable, build_cost_table, predict_whole, priced_variants
from nas.ranges import offered
from nas.scores import Classification, Scorer
from nas.sensitivity import sensitivity
from nas.space import EXACT, SearchSpace
from nas.study import StudySettings, run_study
from nas.surrogate import SurrogatePoint, surrogate_front

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int, str], None]

#: Share of the trials that the surrogate's front may take; the rest is the sampler's.
START_SHARE = 0.25
#: Fewest points of the surrogate's front that are tried, however few trials there are.
START_LEAST = 8


def search(
    teacher: PreTrainedModel,
    calibration: Calibration | None,
    batches: Sequence[Mapping[str, torch.Tensor]],
    space: SearchSpace,
    *,
    run_dir: str | Path,
    cost_table: CostTable | None = None,
    example_inputs: Mapping[str, torch.Tensor] | None = None,
    protocol: str = "dealer2pc",
    network: str = "lan",
    device: str = "cpu",
    limits: Mapping[str, float] | Limits | None = None,
    objectives: Sequence[str] | None = None,
    trials: int = 200,
    seed: int = 0,
    repredict: int = 3,
    scorer: Scorer | None = None,
    evaluate_on: torch.device | str = "cpu",
    fixed_point: Sequence[Mapping[str, torch.Tensor]] = (),
    progress: Progress | None = None,
) -> Front:
    """Find the architectures that trade divergence from the teacher against cost best, without training any.

    teacher: the fine-tuned model; not changed.
    calibration: from `distill.calibrate`; None only if no variant of the space needs it.
    batches: the validation sample, dicts of the model's inputs (labels are not used). A few hundred
        sentences in batches sorted by length; the scores are means over it.
    space: what may be chosen.
    run_dir: prices, sensitivities, the study's journal and the front are kept in `search/` there. The same
        call on the same directory goes on after a kill, and returns at once what is finished.
    cost_table: from `build_cost_table`; or give `example_inputs`, one query whose shapes are priced, and
        `protocol`.
    network, device: profiles for seconds, as for `cost_models.seconds`.
    limits: hard limits by name (`Limits`), e.g. ``{"latency_s": 5}``.
    objectives: the divergence and one or more cost figures; ("kl", "seconds") if None.
    trials: finished trials of the study; more may be asked for later and go on from there.
    seed: the sampler's. Same seed and inputs give the same front (one worker).
    repredict: how many points of the front are predicted whole; where one differs from the table's sum, all of them
        are, and the whole predictions are their prices. Needs `example_inputs`.
    scorer: scores for tasks without class logits; `Classification` if None.
    evaluate_on: torch device for the forward passes.
    fixed_point: queries' inputs, all of one shape, on which every point of the front is scored in fixed point; one
        that does not predict as in float (`nas.fixed_point`) is dropped, and what it hid is scored in turn. Scored
        on nothing if empty.
    progress: called as progress(done, total, message) over all steps.

    Raises SearchSpaceError for a space that does not fit the model and LimitsError for limits that no
    candidate meets (both ValueError), before any model is evaluated.
    """
    scorer = scorer or Classification()
    if cost_table is None and example_inputs is None:
        raise ValueError("search needs a cost_table, or example_inputs to make one from")
    bounds = Limits.of(limits, (scorer.divergence,), (scorer.agreement, SPARE))
    # Fixed point belongs to the question: a student whose values do not fit is no answer, however close it is in float.
    bounds = replace(bounds, at_least={SPARE: ENGINE.margin_bits, **bounds.at_least})
    settings = StudySettings(
        network=network,
        device=device,
        objectives=tuple(objectives) if objectives else (scorer.divergence, "seconds"),
        limits=bounds,
        trials=trials,
        seed=seed,
    )
    settings.check(scorer.divergence)
    sites = distill.find_sites(teacher)
    offer = offered(space.options(sites), sites, calibration)
    options = offer.options
    singles = sum(len(variants) for variants in options.values())
    steps = _Steps(progress, [20, singles, trials, repredict, 20 if fixed_point else 0])

    if cost_table is None:
        assert example_inputs is not None
        cost_table = build_cost_table(
            teacher,
            calibration,
            space,
            example_inputs,
            protocol=protocol,
            run_dir=run_dir,
            progress=steps.of(0),
        )
    check_limits(cost_table, space, sites, bounds, network=network, device=device)

    held = {
        site: [v for v in variants if v in options[site] or v not in offer.unfitted(site)]
        for site, variants in priced_variants(space, sites).items()
    }
    evaluator = Evaluator(teacher, calibration, batches, held, scorer=scorer, device=evaluate_on)
    singly = sensitivity(evaluator, options, run_dir, steps.of(1))
    prices = {
        site: {variant: cost_table.site_seconds(site, variant, network, device) for variant in variants}
        for site, variants in options.items()
    }
    surrogate = surrogate_front(singly.of(scorer.divergence), prices)
    candidates = run_study(
        evaluator,
        cost_table,
        options,
        settings,
        run_dir,
        baselines=space.baselines(sites, lambda site, variant: prices[site][variant], options),
        start=[
            point.architecture for point in _spread(surrogate, max(START_LEAST, round(START_SHARE * trials)))
        ],
        progress=steps.of(2),
    )
    front = Front(
        tuple(candidates),
        settings.objectives,
        network,
        device,
        cost_table.protocol,
        evaluator.uninformed(),
        offer.refused,
    )
    if not front.points:
        inside = [candidate for candidate in candidates if candidate.in_space]
        nearest = min(inside, key=lambda c: sum(max(0.0, v) for v in _missed(bounds, c)))
        raise LimitsError(
            f"limits: none of {len(inside)} candidates meets all of {_say(bounds)}; the nearest has "
            + ", ".join(f"{name} {value:.4g}" for name, value in nearest.figures(_names(bounds)).items())
        )
    if example_inputs is not None and repredict > 0:
        report = steps.of(3)

        def predicted(points: Sequence[Candidate]) -> Front:
            wholes = {}
            for done, point in enumerate(points):
                report(done, len(points), f"predicting {point.id} whole")
                whole = predict_whole(
                    teacher, point.architecture, calibration, example_inputs, cost_table.protocol
                )
                wholes[point.id] = (whole, cost_models.seconds(whole, network=network, device=device).total)
            return _feasible(front.repredicted(wholes), bounds)

        front = predicted(front.select(repredict))
        if any(c.summed for c in front.evaluated):
            while rest := [c for c in front.points if c.whole is None]:
                front = predicted(rest)
    if fixed_point:
        scores = FixedPointScores(Path(run_dir), evaluator.fingerprint, fixed_point)

        def in_fixed_point(point: Candidate) -> dict[str, float]:
            # A student of its own: the evaluator's watches its variants, which a capture would take for operations.
            student = distill.apply(teacher, point.architecture, calibration, share_weights=True, sites=sites)
            return scores.of(point.architecture, student, scorer)

        front = _in_fixed_point(front, in_fixed_point, steps.of(4))
        if not front.points:
            lines = [f"{c.id}: {c.dropped}" for c in front.evaluated if c.dropped]
            raise LimitsError("no point of the front is right in fixed point: " + "; ".join(lines))
    write_json(Path(run_dir) / "search" / "front.json", front.to_dict())
    steps.of(4)(1, 1, f"search done: {len(front.points)} points on the front")
    return front


def _feasible(front: Front, bounds: Limits) -> Front:
    """The front with candidates that were predicted whole judged by that."""
    judged = {
        c.id: replace(c, feasible=bounds.met({**cost_figures(c.cost, c.seconds), **c.scores}))
        for c in front.evaluated
        if c.summed
    }
    return front.changed(judged)


def _in_fixed_point(
    front: Front, score: Callable[[Candidate], dict[str, float]], progress: Progress
) -> Front:
    """The front with every point scored in fixed point and the broken ones dropped, until all that are on it hold."""
    done = 0
    while waiting := [point for point in front.points if not point.fixed_point]:
        for point in waiting:
            progress(done, done + len(waiting), f"{point.id} in fixed point")
            found = score(point)
            front = front.changed({point.id: replace(point, fixed_point=found, dropped=broken(found))})
            done += 1
    return front


def check_limits(
    table: CostTable,
    space: SearchSpace,
    sites: Sequence[Site],
    limits: Limits,
    *,
    network: str = "lan",
    device: str = "cpu",
) -> None:
    """Raise LimitsError if no candidate of the space can meet one of the limits on cost.

    Prices add up over sites, so the least of each figure is found site by site. Needs no trained teacher: a
    table made from the model's configuration will do.
    """
    for name, bound in limits.on_cost().at_most.items():

        def figure(architecture: Architecture, name: str = name) -> float:
            return cost_figures(table.price(architecture), table.seconds(architecture, network, device))[name]

        def alone(site: str, variant: str) -> float:
            return figure(Architecture({} if variant == EXACT else {site: variant}))

        cheapest = space.baselines(sites, alone)["all_cheapest"]
        least = figure(cheapest)
        if least > bound:
            made_of = sorted({f"{site.kind} {cheapest.sites.get(site.name, EXACT)}" for site in sites})
            where = f" on {network}" if name == "seconds" else ""
            raise LimitsError(
                f"limits: {name} at most {bound:,g} cannot be met: the cheapest candidate "
                f"({', '.join(made_of)}) has {least:,.6g}{where}; raise the limit or allow cheaper variants"
            )


def _spread(points: Sequence[SurrogatePoint], count: int) -> list[SurrogatePoint]:
    """`count` of the points, evenly by rank, the first and the last included."""
    if len(points) <= count:
        return list(points)
    last = len(points) - 1
    return [points[round(index * last / (count - 1))] for index in range(count)]


def _names(limits: Limits) -> list[str]:
    return [*limits.at_most, *limits.at_least]


def _missed(limits: Limits, candidate: Candidate) -> list[float]:
    return list(limits.violations(candidate.figures(_names(limits))).values())


def _say(limits: Limits) -> str:
    return ", ".join(
        [f"{name} <= {bound:g}" for name, bound in limits.at_most.items()]
        + [f"{name} >= {bound:g}" for name, bound in limits.at_least.items()]
    )


class _Steps:
    """One count over several steps, each of which counts its own way."""

    def __init__(self, progress: Progress | None, sizes: Sequence[int]) -> None:
        self._progress, self._sizes = progress, list(sizes)

    def of(self, step: int) -> Progress:
        """A progress function for one step: its share done becomes a share of the step's size."""
        before, size, total = sum(self._sizes[:step]), self._sizes[step], sum(self._sizes)

        def report(done: int, whole: int, message: str) -> None:
            if self._progress is not None:
                self._progress(before + round(size * done / max(1, whole)), total, message)

        return report
