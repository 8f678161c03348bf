"""Run the verified models over emulated networks, a step for each model and network.

A part of the verify stage with steps of its own: another list of networks leaves the verified models as they
are.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.context import TITLES, Context
from recipes.files import digest, read_json, write_json
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import section
from recipes.stages import certify as certify_stage
from recipes.stages.distill import EMULATED
from recipes.stages.verify import verified


def steps(context: Context) -> list[Step]:
    return [
        _step(context, identifier, network)
        for identifier in verified(context)
        for network in context.recipe.verify.emulate
    ]


def results(context: Context, identifier: str) -> dict[str, Any]:
    """What a verified model's emulated runs found, by network profile as the recipe names it."""
    found = {}
    for network in context.recipe.verify.emulate:
        result = read_json(context.run / _folder(identifier, network) / "result.json")
        if result is not None:
            found[network] = result
    return found


def _folder(identifier: str, network: str) -> str:
    """The step's folder, which is its name as well; a profile's file is named by its path, which may have any
    letters."""
    path = Path(network)
    name = f"{path.stem}-{digest(network)}" if path.suffix else network
    return f"{EMULATED}/{name}/{identifier}"


def _step(context: Context, identifier: str, network: str) -> Step:
    import cost_models

    recipe, profile = context.recipe, cost_models.network_profile(network)
    folder = _folder(identifier, network)
    title = TITLES.get(identifier, f"student {identifier[:6]}")

    def work(progress: Callback) -> None:
        from recipes.certification import certified
        from recipes.emulated_run import emulated_run

        tokens = context.tokens("test")
        found = emulated_run(
            tokens,
            network=network,
            secure=recipe.secure,
            samples=recipe.verify.emulated_samples,
            parties=recipe.verify.parties,
            timeout=recipe.verify.timeout_s,
            log=context.run / folder / "queries.jsonl",
            progress=progress,
            certified=certified(
                context.trained(identifier),
                tokens,
                recipe.secure,
                certify_stage.result(context, identifier),
            ),
        )
        write_json(context.run / folder / "result.json", found)

    shape = section(recipe, "secure")["secure"]
    return Step(
        name=folder,
        title=f"emulate {profile.name.upper()}, {title}",
        inputs={
            "secure": {name: shape[name] for name in ("protocol", "sequence_length", "batch")},
            "device": asdict(cost_models.device_profile(recipe.secure.device)),
            "network": asdict(profile),
            "samples": recipe.verify.emulated_samples,
            "parties": recipe.verify.parties,
        },
        needs=(
            "data",
            "teacher",
            *(() if identifier == "teacher" else (f"distill/{identifier}",)),
            certify_stage.step_name(identifier),
        ),
        folder=folder,
        outputs=(f"{folder}/result.json",),
        work=work,
    )
