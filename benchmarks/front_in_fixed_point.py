"""Whether every point of a search's front predicts in fixed point as it does in float.

python -m benchmarks.front_in_fixed_point RUN                       a run directory with a finished search
python -m benchmarks.front_in_fixed_point RUN --recipe RECIPE       makes the run up to its search first
python -m benchmarks.front_in_fixed_point RUN --free                the quickstart without its limit, power8 allowed

Each untrained student answers validation examples under the protocol `plain`, which computes as the parties do. Ends with
status 1 if a point agrees with its own float on less than 99 %. Points that the search has scored on as many are not run again
unless --again is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from nas.fixed_point import LEAST_AGREEMENT, fixed_point_scores


def free_quickstart(folder: Path) -> Path:
    """The shipped quickstart without limits, written beside the run."""
    from recipes.run import shipped

    recipe = yaml.safe_load(shipped()["quickstart"].read_text(encoding="utf-8"))
    recipe["name"] = "quickstart-free"
    del recipe["search"]["limits"]
    assert "power8" in recipe["search"]["sites"]["softmax"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "free.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def context_of(run: Path) -> Any:
    """The run's context, from the recipe that lies in it."""
    from recipes.context import Context
    from recipes.reading import parse
    from recipes.run import package_version
    from recipes.rundir import RunDirectory

    text = (run / "recipe.yaml").read_text(encoding="utf-8")
    origin = Path(json.loads((run / ".state/origin.json").read_text())["origin"])
    return Context(parse(text, str(origin)), RunDirectory(run, package_version()), origin, text, "")


def scored(run: Path, samples: int, again: bool) -> list[dict[str, Any]]:
    """One row a point of the front: id, what it is made of, KL, seconds, spare bits, and its fixed-point scores."""
    import distill
    from nas import Classification
    from recipes.stages.search import QUERY_ITEMS, _even

    context = context_of(run)
    tokens = context.tokens("validation")
    items = range(min(samples, len(tokens)))
    queries = [tokens.collate(g, context.sequence_length, labels=False) for g in _even(items, QUERY_ITEMS)]
    rows = []
    for point in context.front.points:
        found = dict(point.fixed_point)
        if again or found.get("items", 0) < len(items):
            student = distill.apply(context.teacher, point.architecture, context.calibration)
            found = fixed_point_scores(student, queries, Classification())
        tally: dict[str, int] = {}
        for variant in point.architecture.sites.values():
            tally[variant] = tally.get(variant, 0) + 1
        rows.append(
            {
                "id": point.id,
                "made_of": ", ".join(f"{v} x{n}" for v, n in sorted(tally.items())) or "exact",
                "kl": point.scores["kl"],
                "seconds": point.seconds,
                "spare_bits": point.scores["spare_bits"],
                **found,
            }
        )
        print(
            f"{point.id}  {found['agreement']:7.2%} of {found['items']:.0f}  logit error {found['max_logit_error']:.4f}  "
            f"spare bits {point.scores['spare_bits']:5.1f}  KL {point.scores['kl']:.4f}  {point.seconds:.2f} s  {rows[-1]['made_of']}",
            flush=True,
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--recipe", type=Path, help="make the run from this recipe, up to its search")
    parser.add_argument(
        "--free", action="store_true", help="make the run from the quickstart without its limit"
    )
    parser.add_argument("--samples", type=int, default=96, help="validation examples of each point")
    parser.add_argument("--again", action="store_true", help="score points anew that the search has scored")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    given = parser.parse_args()
    recipe = free_quickstart(given.run.parent) if given.free else given.recipe
    if recipe is not None:
        from recipes.run import run

        run(recipe, given.run, until="search")
    rows = scored(given.run, given.samples, given.again)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    broken = [row for row in rows if row["agreement"] < LEAST_AGREEMENT]
    print(f"{len(rows)} points, {len(broken)} below {LEAST_AGREEMENT:.0%}")
    return 1 if broken or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
