"""Which variants fixed point can hold at which site, before anything is searched.

A variant's constants are fitted under the engine's limits; where no constants will do, or a variant without constants
meets values beyond them on the calibration sample, it is not offered at that site. What is offered still has to fit
together: the study measures each assembled student's spare bits as well (`nas.evaluate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distill import Calibration, OutOfRange, Site
from distill import variants as registry
from distill.fixed_point import ENGINE, Limits, met_by
from distill.kinds import KINDS
from nas.space import SearchSpaceError


@dataclass(frozen=True)
class Offer:
    """What the search may choose from, site by site.

    options: site -> variants that fit. refused: site -> variant -> why it is not offered there.
    spare_bits: site -> variant -> bits between what it meets on the calibration sample and the nearest limit.
    """

    options: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    spare_bits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def unfitted(self, site: str) -> tuple[str, ...]:
        """Variants that no constants make fit at a site; what is refused for its values can still be assembled."""
        measured = self.spare_bits.get(site, {})
        return tuple(v for v in self.refused.get(site, {}) if v not in measured)


def offered(
    options: Mapping[str, Sequence[str]],
    sites: Sequence[Site],
    calibration: Calibration | None,
    limits: Limits = ENGINE,
) -> Offer:
    """The options that fixed point can hold with `limits.margin_bits` to spare on the calibration sample.

    Without a calibration nothing is known about values, and everything is offered. The model's own functions
    ("exact") are the engine's, whose ranges are checked on the whole program, not here.

    Raises SearchSpaceError, which lists every reason, if a site is left without any variant.
    """
    if calibration is None:
        return Offer({site: tuple(variants) for site, variants in options.items()})
    known = {site.name: site for site in sites}
    kept: dict[str, tuple[str, ...]] = {}
    refused: dict[str, dict[str, str]] = {}
    spare: dict[str, dict[str, float]] = {}
    for name, variants in options.items():
        for variant in variants:
            reason, bits = _fits(known[name], variant, calibration, limits)
            if bits is not None:
                spare.setdefault(name, {})[variant] = bits
            if reason is not None:
                refused.setdefault(name, {})[variant] = reason
        kept[name] = tuple(v for v in variants if v not in refused.get(name, {}))
    empty = [name for name, variants in kept.items() if not variants]
    if empty:
        lines = [f"{name}: {reason}" for name in empty for reason in refused[name].values()]
        raise SearchSpaceError(
            "no allowed variant fits fixed point at some sites; allow others there, such as exact: "
            + "; ".join(lines)
        )
    return Offer(kept, refused, spare)


def _fits(
    site: Site, variant: str, calibration: Calibration, limits: Limits
) -> tuple[str | None, float | None]:
    """Why the variant is not offered (None if it is), and its spare bits where they could be measured."""
    entry = registry.get(site.kind, variant)
    if entry.module is None or variant == "exact" or site.name not in calibration.statistics:
        return None, None
    module = entry.module(**entry.arguments(site.size))
    if entry.fit is not None:
        try:
            module.load_state_dict(calibration.fit(site.name, entry, site.size))
        except OutOfRange as error:
            return str(error), None
    statistics = calibration.statistics[site.name]
    bits = met_by(module, KINDS[site.kind].observer.inputs(statistics)).spare_bits(limits)  # type: ignore[attr-defined]
    if bits < limits.margin_bits:
        return (
            f"{variant}: {bits:.1f} bits to spare on the calibration sample, where {limits.margin_bits:g} are needed"
        ), bits
    return None, bits
