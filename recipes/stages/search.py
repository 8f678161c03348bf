"""The search for architectures worth distilling. Its own files under search/ are content-keyed, so it resumes
by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recipes.context import BASELINE_VARIANTS, Context
from recipes.costs import profiles
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import Recipe, section

if TYPE_CHECKING:
    from distill import Site
    from nas import CostTable, SearchSpace


QUERY_ITEMS = 16
"""Items that are scored in fixed point at once."""


def steps(context: Context) -> list[Step]:
    recipe = context.recipe
    inputs = section(recipe, "search", "secure")
    inputs["search"].pop("candidates")  # how many are taken from the front does not change the front
    inputs["secure"].pop("networks")  # only reported

    def work(progress: Callback) -> None:
        import distill
        import nas

        tokens = context.tokens("validation")
        limit = recipe.search.validation_samples
        batches = list(distill.batches(tokens, context.tokenizer, batch_size=32, limit=limit, labels=False))
        items = range(min(recipe.search.fixed_point_samples, len(tokens)))
        queries = [
            tokens.collate(list(group), context.sequence_length, labels=False)
            for group in _even(items, QUERY_ITEMS)
        ]
        table = price_table(context, progress)
        nas.search(
            context.teacher,
            context.calibration,
            batches,
            space(recipe),
            run_dir=context.run.path,
            cost_table=table,
            example_inputs=context.example_inputs(),
            protocol=recipe.secure.protocol,
            network=recipe.secure.network,
            device=recipe.secure.device,
            limits=limits(recipe, table, context.sites),
            objectives=recipe.search.objectives,
            fixed_point=queries,
            trials=recipe.search.trials,
            seed=recipe.seed,
            progress=progress,
        )

    return [
        Step(
            name="search",
            title="search",
            inputs={**inputs, "profiles": profiles(recipe.secure), "seed": recipe.seed},
            needs=("teacher", "calibrate"),
            folder=None,
            outputs=("search/front.json",),
            work=work,
        )
    ]


def _even(items: Sequence[int], most: int) -> list[list[int]]:
    """The items in groups of equal size, at most `most`; the last group is filled by repeating its last item."""
    if not items:
        return []
    size = min(most, len(items))
    groups = [list(items[at : at + size]) for at in range(0, len(items), size)]
    groups[-1] += [groups[-1][-1]] * (size - len(groups[-1]))
    return groups


def space(recipe: Recipe) -> SearchSpace:
    """The recipe's search space."""
    from nas import SearchSpace

    return SearchSpace(recipe.search.sites, recipe.search.only)


def price_table(context: Context, progress: Callback | None = None) -> CostTable:
    """Prices for the recipe's space on the teacher's shapes, kept in the run directory."""
    import nas

    return nas.build_cost_table(
        context.teacher,
        context.calibration,
        space(context.recipe),
        context.example_inputs(),
        protocol=context.recipe.secure.protocol,
        run_dir=context.run.path,
        progress=progress,
    )


def limits(recipe: Recipe, table: CostTable, sites: Sequence[Site]) -> dict[str, float]:
    """The recipe's limits as numbers: a named baseline stands for its own online bytes and rounds, from the
    same table."""
    from distill import Architecture

    given = recipe.search.limits
    found: dict[str, float] = {}
    if given.latency_s is not None:
        found["latency_s"] = given.latency_s
    if given.online_bytes is not None:
        found["online_bytes"] = given.online_bytes
    if given.rounds is not None:
        found["online_rounds"] = given.rounds
    if given.baseline is not None:
        variants = BASELINE_VARIANTS.get(given.baseline, {})
        reference = table.price(Architecture.uniform(sites, variants)).online
        # Half a unit: sums of shares of a group's price are not exact integers.
        found["online_bytes"] = min(found.get("online_bytes", float("inf")), reference.bytes + 0.5)
        found["online_rounds"] = min(found.get("online_rounds", float("inf")), reference.rounds + 0.5)
    return found
