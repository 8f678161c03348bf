"""The figures a candidate is judged by, and hard limits on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cost_models import Cost
from distill.errors import suggestion

PHASES = ("setup", "offline", "online")
FIELDS = ("bytes", "rounds", "macs")
#: Names of the figures that a price alone gives: `seconds` is one online query on the search's network and
#: device.
COST_FIGURES = ("seconds", *(f"{phase}_{field}" for phase in PHASES for field in FIELDS))
ALIASES = MappingProxyType({"latency_s": "seconds"})


class LimitsError(ValueError):
    """An unknown limit, or limits that no candidate of the space can meet; the message says what can be
    had.
    """


def cost_figures(cost: Cost, seconds: float) -> dict[str, float]:
    """Every figure of `COST_FIGURES` for one candidate."""
    figures = {"seconds": seconds}
    for phase in PHASES:
        for name in FIELDS:
            figures[f"{phase}_{name}"] = float(getattr(getattr(cost, phase), name))
    return figures


@dataclass(frozen=True)
class Limits:
    """Upper bounds on cost figures and on the divergence; lower bounds on agreement.

    Names: `latency_s` (or `seconds`), `online_bytes`, `online_rounds`, … (`COST_FIGURES`), and the names of
    the scores that the search measures (`kl` at most, `agreement` at least). Raises LimitsError for another
    name.
    """

    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(
        limits: Mapping[str, float] | Limits | None, at_most: Iterable[str] = (), at_least: Iterable[str] = ()
    ) -> Limits:
        """Read limits by name; `at_most` and `at_least` name the scores (beside the cost figures) that
        may occur.
        """
        if isinstance(limits, Limits):
            return limits
        upper, lower = (*COST_FIGURES, *at_most), tuple(at_least)
        allowed = (*ALIASES, *upper, *lower)
        bounds: tuple[dict[str, float], dict[str, float]] = ({}, {})
        for given, value in (limits or {}).items():
            name = ALIASES.get(given, given)
            if name not in upper and name not in lower:
                raise LimitsError(f"limits: unknown limit {given!r}{suggestion(given, allowed)}")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise LimitsError(f"limits.{given}: a finite number is needed, not {value!r}")
            bounds[name in lower][name] = float(value)
        return Limits(*bounds)

    def violations(self, figures: Mapping[str, float]) -> dict[str, float]:
        """limit -> by how much it is missed, as a share of the limit; zero or less where it is met."""
        missed = {}
        for name, bound in self.at_most.items():
            missed[name] = (figures[name] - bound) / (abs(bound) or 1.0)
        for name, bound in self.at_least.items():
            missed[name] = (bound - figures[name]) / (abs(bound) or 1.0)
        return missed

    def met(self, figures: Mapping[str, float]) -> bool:
        return all(value <= 0 for value in self.violations(figures).values())

    def on_cost(self) -> Limits:
        """The limits that a price alone decides."""
        return Limits({name: bound for name, bound in self.at_most.items() if name in COST_FIGURES})
