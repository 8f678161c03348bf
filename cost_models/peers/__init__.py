"""What the same model would cost on other systems: CrypTen, SHAFT, SIGMA, SPU (SEMI2K, ABY3, Cheetah), DELPHI, BumbleBee, NEXUS.

Formulas, one system a file, over the works that a captured program holds (cost_models.workload). They are estimates and say so in
every result, unlike `cost_models.predict`, which counts a run of Sordino's engine exactly; `deviations` sets them against
published and measured figures.

estimate(program, "sigma").online_bytes
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from cost_models.peers import bumblebee, cheetah, crypten, delphi, nexus, shaft, sigma, spu
from cost_models.peers.estimate import Estimate, NotPriced, System
from cost_models.peers.figure import Deviation, Figure
from cost_models.peers.published import deviations
from cost_models.workload import Work, works
from secure_eval.program import Program

SYSTEMS: dict[str, System] = {
    s.name: s
    for s in (
        crypten.SYSTEM,
        crypten.STOCK,
        shaft.SYSTEM,
        sigma.SYSTEM,
        spu.SEMI2K_SYSTEM,
        spu.ABY3_SYSTEM,
        cheetah.SYSTEM,
        bumblebee.SYSTEM,
        delphi.SYSTEM,
        delphi.QUADRATIC,
        nexus.SYSTEM,
    )
}


class UnknownSystem(ValueError):
    """There is no system of that name."""

    def __init__(self, name: str):
        close = difflib.get_close_matches(name, SYSTEMS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown system {name!r}{hint} Known: {', '.join(SYSTEMS)}")


def names() -> tuple[str, ...]:
    """The systems that can be priced."""
    return tuple(SYSTEMS)


def get(name: str, **options: Any) -> System:
    """A system by name. "sigma" takes `bits`, the width of its ring (50 unless given).

    Raises:
        UnknownSystem: a ValueError that says which is meant.
        ValueError: the system has no such option, or not that value.
    """
    if name not in SYSTEMS:
        raise UnknownSystem(name)
    if not options:
        return SYSTEMS[name]
    allowed = ("bits",) if name == "sigma" else ()
    wrong = sorted(set(options) - set(allowed))
    if wrong:
        raise ValueError(f"{name} has no option {wrong[0]!r}; allowed: {', '.join(allowed) or 'none'}")
    return sigma.system(**options)


def estimate(program_or_works: Program | Sequence[Work], system: str, **options: Any) -> Estimate:
    """What a query would cost on another system.

    Args:
        program_or_works: a captured program, or works of one (all of them, or some of its sites').
        system, options: as `get` takes them.

    Raises:
        UnknownSystem, ValueError: as `get` does.
    """
    chosen = get(system, **options)
    found = works(program_or_works) if isinstance(program_or_works, Program) else tuple(program_or_works)
    return chosen.estimate(found)


__all__ = [
    "SYSTEMS",
    "Deviation",
    "Estimate",
    "Figure",
    "NotPriced",
    "System",
    "UnknownSystem",
    "deviations",
    "estimate",
    "get",
    "names",
]
