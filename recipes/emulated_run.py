"""A model answering test examples over an emulated network: measured seconds beside the predicted ones."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.costs import predicted_figures
from recipes.progress import Callback
from recipes.queries import Queries
from recipes.schema import Secure
from recipes.secure_run import answer, as_predicted

if TYPE_CHECKING:
    from distill import Tokens
    from recipes.certification import Certified

TIMED = ("offline", "online")


def emulated_run(
    tokens: Tokens,
    *,
    network: str,
    secure: Secure,
    samples: int,
    parties: str,
    timeout: float,
    log: Path,
    progress: Callback,
    certified: Certified,
) -> dict[str, Any]:
    """Answer the first `samples` items of `tokens` with every link between roles held to the delay and bandwidth
    of the profile `network`. `log` keeps each query's figures, so that a killed run goes on after the last one.

    certified: as for `secure_run`.

    Returns `results.record.Emulated` as JSON. Raises ProfileError for an unknown network.
    """
    import cost_models

    profile = cost_models.network_profile(network)
    queries = Queries(tokens, samples, secure)
    cost = certified.cost(secure.protocol)
    done = answer(
        certified,
        queries,
        log,
        parties=parties,
        timeout=timeout,
        progress=progress,
        network=profile.link(),
        where=f" on an emulated {profile.name.upper()}",
        warm_up=True,
    )
    found: dict[str, Any] = {
        "round_trip_s": profile.round_trip_s,
        "bandwidth_bytes_per_s": profile.bandwidth_bytes_per_s,
        "parties": parties,
        "queries": len(done),
        "equal": as_predicted(done, predicted_figures(cost, secure)),
    }
    here = dataclasses.replace(profile, one_machine=True)
    for phase in TIMED:
        predicted = cost_models.seconds(cost, network=here, device=secure.device, phase=phase)
        found[phase] = timing(predicted.total, [entry[phase]["seconds"] for entry in done])
    return found


def timing(predicted: float, measured: list[float]) -> dict[str, float | None]:
    """`results.record.Timing` as JSON: seconds predicted, and measured query by query."""
    median = statistics.median(measured)
    return {
        "predicted": predicted,
        "measured": median,
        "least": min(measured),
        "most": max(measured),
        "deviation": median / predicted - 1 if predicted else None,
    }
