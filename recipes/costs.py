"""Predicted and measured costs in the words of a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from recipes.schema import Secure

if TYPE_CHECKING:
    import cost_models

PHASES = ("setup", "offline", "online")


def predicted_figures(cost: cost_models.Cost, secure: Secure) -> dict[str, Any]:
    """`results.record.Predicted` as JSON: a cost's counts, its seconds on every profile of the recipe, its
    parts."""
    import cost_models

    figures: dict[str, Any] = {name: _counts(getattr(cost, name), macs=True) for name in PHASES}
    figures["seconds"] = {
        name: _seconds(cost_models.seconds(cost, network=name, device=secure.device))
        for name in secure.priced
    }
    figures["by_role"] = cost.communication
    for part in ("by_site", "by_operation"):
        figures[part] = {name: _counts(value) for name, value in getattr(cost, part).items()}
    return figures


def profiles(secure: Secure) -> dict[str, Any]:
    """The contents of the profiles that a recipe names: an edited profile is another input."""
    import cost_models

    networks = {name: asdict(cost_models.network_profile(name)) for name in secure.priced}
    return {"networks": networks, "device": cost_models.device_profile(secure.device).to_dict()}


def measured_phase(phase: Any) -> dict[str, Any]:
    """A measured phase: counts and seconds."""
    return _counts(phase) | {"seconds": phase.seconds}


def counts_of(figures: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Bytes and rounds of each phase: what must be equal, predicted and measured."""
    return {name: (figures[name]["bytes"], figures[name]["rounds"]) for name in PHASES}


def _counts(phase: Any, macs: bool = False) -> dict[str, Any]:
    figures: dict[str, Any] = {"bytes": round(phase.bytes), "rounds": round(phase.rounds)}
    if macs:
        figures["macs"] = round(phase.macs)
    return figures


def _seconds(value: Any) -> dict[str, float]:
    return {"compute": float(value.compute), "network": float(value.network), "total": float(value.total)}
