"""Certify every trained model: what its values are on training texts, whether they fit fixed point, and what it then costs.

A student that does not fit is never chosen, exported or published; the teacher or a baseline that does not is run all the same, and the
record says so.
"""

from __future__ import annotations

from typing import Any

from recipes.context import TITLES, Context
from recipes.files import read_json, write_json
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import section
from recipes.stages import distill as distill_stage

SHAPES = ("protocol", "sequence_length", "batch", "range_samples", "range_margin_bits")


def steps(context: Context) -> list[Step]:
    return [_step(context, name) for name in ("teacher", *(s.id for s in distill_stage.students(context)))]


def result(context: Context, identifier: str) -> dict[str, Any]:
    """What a model's step left: "fits", "violations", "certificate", "nodes", "cost" of the certified program, and
    "captured_cost" of the one before, which the search compared."""
    found: dict[str, Any] = read_json(context.run / _file(identifier))
    return found


def step_name(identifier: str) -> str:
    return f"certify/{identifier}"


def _file(identifier: str) -> str:
    return f"{step_name(identifier)}/result.json"


def _step(context: Context, identifier: str) -> Step:
    recipe = context.recipe

    def work(progress: Callback) -> None:
        import cost_models
        from recipes.certification import certify

        found = certify(context.trained(identifier), context.tokens("train"), recipe.secure, progress)
        costs = {
            "cost": found.cost(recipe.secure.protocol).to_dict(),
            "captured_cost": cost_models.predict(found.captured, protocol=recipe.secure.protocol).to_dict(),
        }
        write_json(context.run / _file(identifier), found.to_dict() | costs)

    shape = section(recipe, "secure")["secure"]
    return Step(
        name=step_name(identifier),
        title=f"certify {TITLES.get(identifier, f'student {identifier[:6]}')}",
        inputs={name: shape[name] for name in SHAPES},
        needs=("data", "teacher", *(() if identifier == "teacher" else (f"distill/{identifier}",))),
        folder=step_name(identifier),
        outputs=(_file(identifier),),
        work=work,
    )
