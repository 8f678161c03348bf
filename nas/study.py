"""Step C: an Optuna study with several objectives on assembled, untrained students.

A trial is one architecture: its divergence from the teacher on the validation sample and its price. The
named baselines and the surrogate's front are tried first; TPE (multivariate, grouped) goes on from there.

* Every finished trial is in the journal file. A killed study goes on, and as each trial's sampler is seeded
  from the study's seed and the number of finished trials, a single worker ends where it would have ended
  without the kill.
* An architecture that was evaluated before is not evaluated again.
* After a quarter of the sample a candidate is given up if a cheaper one was clearly better on that quarter.
  Its divergence is then estimated from the two quarters, and it is marked `screened`; points on the front
  never are.
* Limits are Optuna constraints, so the sampler learns where the feasible region is.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from cost_models import Cost
from distill import Architecture
from distill.errors import suggestion
from nas.evaluate import Evaluator
from nas.files import digest
from nas.front import Candidate
from nas.journal import WORKER, fail_abandoned, open_journal, worker_name
from nas.limits import COST_FIGURES, Limits, cost_figures
from nas.pricing import CostTable
from nas.space import architecture_of

Progress = Callable[[int, int, str], None]

#: A candidate is given up when its divergence on the screening part is this many times that of a cheaper one.
SCREEN_MARGIN = 1.5
FORMAT = 2


@dataclass(frozen=True)
class StudySettings:
    """What a study is asked.

    network, device: profile names or paths, as for `cost_models.seconds`.
    objectives: the scorer's divergence and one or more cost figures (`limits.COST_FIGURES`), all minimised.
    limits: hard limits.
    trials: finished trials after which the study is done (those of earlier, killed runs count).
    seed: of the sampler.
    """

    network: str = "lan"
    device: str = "cpu"
    objectives: tuple[str, ...] = ("kl", "seconds")
    limits: Limits = field(default_factory=Limits)
    trials: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials: at least 1 is needed, not {self.trials}")

    def check(self, divergence: str) -> None:
        """Raises ValueError for objectives that are not the divergence and cost figures."""
        known = (divergence, *COST_FIGURES)
        for name in self.objectives:
            if name not in known:
                raise ValueError(f"objectives: unknown {name!r}{suggestion(name, known)}")
        if self.objectives[:1] != (divergence,) or len(set(self.objectives)) < 2:
            raise ValueError(
                f"objectives: {divergence!r} first and then one or more cost figures, not {self.objectives}"
            )


def study_path(run_dir: str | Path) -> Path:
    """Where a run directory keeps its study; `optuna-dashboard` opens the file."""
    return Path(run_dir) / "search" / "study.journal"


def run_study(
    evaluator: Evaluator,
    table: CostTable,
    options: Mapping[str, Sequence[str]],
    settings: StudySettings,
    run_dir: str | Path,
    *,
    baselines: Mapping[str, Architecture] | None = None,
    start: Sequence[Architecture] = (),
    progress: Progress | None = None,
) -> list[Candidate]:
    """Run the study in `run_dir`, or go on with it, until `settings.trials` trials are finished.

    evaluator: holds every variant of `options` and of the baselines.
    options: site -> variants that may be sampled.
    baselines: named references, evaluated on the whole sample whether or not they lie in `options`.
    start: architectures to try before sampling (the surrogate's front).

    Returns every architecture tried, once each, the baselines first and then in the order of trials. A
    changed question (other teacher, sample, options, prices, objectives, limits or seed) is another study
    in the same file.
    """
    return _Study(evaluator, table, options, settings, Path(run_dir), dict(baselines or {}), start).run(
        progress
    )


class _Study:
    def __init__(
        self,
        evaluator: Evaluator,
        table: CostTable,
        options: Mapping[str, Sequence[str]],
        settings: StudySettings,
        run_dir: Path,
        baselines: dict[str, Architecture],
        start: Sequence[Architecture],
    ) -> None:
        self.evaluator, self.table, self.settings = evaluator, table, settings
        self.options = {site: tuple(variants) for site, variants in options.items()}
        self.baselines = baselines
        self.queue = [*baselines.values(), *start]
        self.divergence = evaluator.scorer.divergence
        settings.check(self.divergence)
        # A site with one variant is no question, and Optuna would carry it along in every trial.
        self.distributions: dict[str, BaseDistribution] = {
            site: CategoricalDistribution(variants)
            for site, variants in self.options.items()
            if len(variants) > 1
        }
        self.tried: dict[str, Candidate] = {}
        self.recalled: set[int] = set()
        name = digest(
            FORMAT,
            evaluator.fingerprint,
            table.key,
            self.options,
            {name: a.key() for name, a in baselines.items()},
            [a.key() for a in start],
            [settings.network, settings.device, settings.objectives, settings.seed],
            [settings.limits.at_most, settings.limits.at_least],
            # Prices of a profile may change without the table changing.
            table.seconds(Architecture({}), settings.network, settings.device),
        )
        with quiet_optuna():
            self.study = optuna.create_study(
                storage=open_journal(study_path(run_dir)),
                study_name=name,
                directions=["minimize"] * len(settings.objectives),
                load_if_exists=True,
                sampler=self._sampler(0),
            )
            if not self.study.metric_names:
                self.study.set_metric_names(list(settings.objectives))

    def _sampler(self, finished: int) -> TPESampler:
        return TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=int(digest(self.settings.seed, finished), 16) % 2**32,
        )

    def run(self, progress: Progress | None) -> list[Candidate]:
        report = progress or (lambda done, total, message: None)
        with quiet_optuna():
            fail_abandoned(self.study)
            self._recall()
            total = self.settings.trials
            for name, architecture in self.baselines.items():
                self._baseline(name, architecture)
                report(min(len(self._finished()), total), total, f"baseline {name}")
            space = math.prod(len(variants) for variants in self.options.values())
            while (finished := len(self._recall())) < total:
                if sum(candidate.in_space for candidate in self.tried.values()) >= space:
                    break  # everything has been tried
                self.study.sampler = self._sampler(finished)
                self._enqueue_next()
                self._trial()
                report(finished + 1, total, self._message())
            report(total, total, self._message())
        return list(self.tried.values())

    def _finished(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _message(self) -> str:
        feasible = sum(candidate.feasible for candidate in self.tried.values())
        return f"search: {len(self.tried)} architectures tried, {feasible} within the limits"

    # -- what is known already
    # ---------------------------------------------------------------------------------------

    def _recall(self) -> list[FrozenTrial]:
        """Bring `tried` up to the journal: baselines in their order, then trials in theirs, other workers' as well.

        Returns the finished trials.
        """
        for name, architecture in self.baselines.items():
            kept = self.study.user_attrs.get(f"baseline:{name}")
            if kept is not None and name not in getattr(self.tried.get(architecture.key()), "names", ()):
                self._keep(architecture, kept, name)
        finished = self._finished()
        for trial in finished:
            kept = trial.user_attrs.get("result")
            if kept is not None and trial.number not in self.recalled:
                self._keep(self._architecture(trial.params), kept)
            self.recalled.add(trial.number)
        return finished

    def _keep(
        self, architecture: Architecture, result: Mapping[str, Any], name: str | None = None
    ) -> Candidate:
        key = architecture.key()
        cost, seconds = self._price(architecture)
        known = self.tried.get(key)
        names = known.names if known else ()
        candidate = Candidate(
            id=key[:10],
            architecture=architecture,
            scores=dict(result["scores"]),
            screening=dict(result["screening"]),
            cost=cost,
            seconds=seconds,
            names=names if name is None or name in names else (*names, name),
            feasible=self.settings.limits.met({**cost_figures(cost, seconds), **result["scores"]}),
            in_space=self._inside(architecture),
            screened=bool(result["screened"]),
        )
        self.tried[key] = candidate
        return candidate

    # -- candidates
    # --------------------------------------------------------------------------------------------------

    def _architecture(self, params: Mapping[str, str]) -> Architecture:
        return architecture_of(
            {site: params.get(site, variants[0]) for site, variants in self.options.items()}
        )

    def _inside(self, architecture: Architecture) -> bool:
        return all(architecture.variant(site) in variants for site, variants in self.options.items())

    def _figures(self, architecture: Architecture) -> dict[str, float]:
        return cost_figures(*self._price(architecture))

    def _price(self, architecture: Architecture) -> tuple[Cost, float]:
        """Cost and seconds of one online query, from the table."""
        cost = self.table.price(architecture)
        return cost, self.table.seconds(architecture, self.settings.network, self.settings.device)

    def _evaluate(self, architecture: Architecture, whole: bool = False) -> dict[str, Any]:
        """Scores of an architecture that was not evaluated yet, given up early where a cheaper one is
        clearly better.
        """
        figures = self._figures(architecture)
        costs = [name for name in self.settings.objectives if name != self.divergence]
        feasible = self.settings.limits.on_cost().met(figures)
        rivals = [
            rival
            for rival in self.tried.values()
            if rival.feasible
            and not rival.screened
            and all(value <= figures[name] for name, value in rival.figures(costs).items())
        ]
        chosen: list[Candidate] = []

        def give_up(screening: Mapping[str, float]) -> bool:
            own = screening[self.divergence]
            beaten = [r for r in rivals if own > SCREEN_MARGIN * r.screening[self.divergence]]
            chosen.extend(sorted(beaten, key=lambda r: (r.scores[self.divergence], r.id))[:1])
            return bool(chosen) or not feasible

        evaluation = self.evaluator.evaluate(architecture, None if whole else give_up)
        scores = dict(evaluation.scores)
        if not evaluation.complete and chosen:
            rival = chosen[0]
            if rival.screening[self.divergence] > 0:
                # The same quarter of the sample was as hard for both, so their ratio carries over to the
                # whole.
                scores[self.divergence] *= rival.scores[self.divergence] / rival.screening[self.divergence]
        return {
            "scores": scores,
            "screening": dict(evaluation.screening),
            "screened": not evaluation.complete,
        }

    def _baseline(self, name: str, architecture: Architecture) -> None:
        known = self.tried.get(architecture.key())
        if self.study.user_attrs.get(f"baseline:{name}") is None:
            if known is not None and not known.screened:
                result: dict[str, Any] = {
                    "scores": known.scores,
                    "screening": known.screening,
                    "screened": False,
                }
            else:
                result = self._evaluate(architecture, whole=True)
            self.study.set_user_attr(f"baseline:{name}", result)
            self._keep(architecture, result, name)

    def _enqueue_next(self) -> None:
        """Queue the first architecture that is to be tried before sampling and has no trial yet.

        One at a time, so that the order is kept when a kill has lost the one that was running.
        """
        busy = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
        if not self.distributions or any(trial.state is TrialState.WAITING for trial in busy):
            return
        present = {self._architecture(trial.params).key() for trial in (*self._finished(), *busy)}
        while self.queue:
            architecture = self.queue[0]
            if self._inside(architecture) and architecture.key() not in present:
                self.study.enqueue_trial({site: architecture.variant(site) for site in self.distributions})
                return
            self.queue.pop(0)

    def _trial(self) -> None:
        trial = self.study.ask(self.distributions)
        trial.set_user_attr(WORKER, worker_name())
        architecture = self._architecture(trial.params)
        known = self.tried.get(architecture.key())
        if known is None:
            result = self._evaluate(architecture)
            known = self._keep(architecture, result)
        else:
            result = {"scores": known.scores, "screening": known.screening, "screened": known.screened}
        figures = {**self._figures(architecture), **result["scores"]}
        trial.set_user_attr("result", result)
        for limit, missed in self.settings.limits.violations(figures).items():
            trial.set_constraint(limit, missed)
        self.study.tell(trial, [figures[name] for name in self.settings.objectives])


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's line a trial and its notice that grouped TPE is experimental; warnings of its own
    still show.
    """
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
