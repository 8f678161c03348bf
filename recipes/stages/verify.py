"""Choose on validation data, then run the teacher, the baselines and the chosen students under MPC on test
examples.

The choice is the cheapest student within the limits for which the validation examples show, by a paired one-sided test,
that it loses no more than `verify.max_drop` against the teacher. The test split is read here for the first time, after
the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recipes.certification import certified as certified_again
from recipes.certification import refusal
from recipes.context import TITLES, Context
from recipes.costs import predicted_figures, profiles
from recipes.errors import RecipeError
from recipes.files import read_json, write_json
from recipes.paired import Comparison, bootstrap_bounds
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import section
from recipes.secure_run import read_log, secure_run
from recipes.stages import certify as certify_stage
from recipes.stages import distill as distill_stage

if TYPE_CHECKING:
    import torch


def choice_steps(context: Context) -> list[Step]:
    """The choice: predicted costs of every trained model, and the best student within the limits."""

    def work(progress: Callback) -> None:
        write_json(context.run / "verify/choice.json", choose(context, progress))

    trained = distill_stage.students(context)
    return [
        Step(
            name="choice",
            title="predict and choose",
            inputs={
                "secure": section(context.recipe, "secure")["secure"],
                "profiles": profiles(context.recipe.secure),
                "limits": section(context.recipe, "search")["search"]["limits"],
                "max_drop": context.recipe.verify.max_drop,
                "level": context.recipe.verify.level,
                "seed": context.recipe.seed,
            },
            needs=(
                "data",
                "teacher",
                "search",
                *(f"distill/{student.id}" for student in trained),
                *(step.name for step in certify_stage.steps(context)),
            ),
            folder=None,
            outputs=("verify/choice.json",),
            work=work,
        )
    ]


def steps(context: Context) -> list[Step]:
    return [_step(context, identifier) for identifier in verified(context)]


def verified(context: Context) -> list[str]:
    """Ids of the models that run under MPC: the teacher, the baselines, the chosen student and the next
    best."""
    choice = read_json(context.run / "verify/choice.json")
    ranked = choice["ranking"][: context.recipe.verify.candidates]
    return ["teacher", *distill_stage.baselines(context), *ranked]


def choose(context: Context, progress: Callback) -> dict[str, Any]:
    """{"predicted": {id: figures}, "compared": {id: online figures before certificates, of which limits hold}, "within":
    {id: bool}, "tests": {id: paired test on validation}, "ranking": [id, best first], "chosen", "kept", "reason"}.

    The cheapest student within the limits that keeps `verify.max_drop` on validation data (`recipes.paired`); the next
    ones in rising cost. The level is split evenly over the students tested, so that it holds for the choice. If none
    keeps it, the one that comes closest is taken, `kept` is false and the run ends as one that missed its contract.

    Raises RecipeError if no student is within the limits, with each one's figures.
    """
    from cost_models import Cost

    trained = distill_stage.results(context)
    names = ["teacher", *trained]
    certified = {name: certify_stage.result(context, name) for name in names}
    predicted = {
        name: predicted_figures(Cost.from_dict(found["cost"]), context.recipe.secure)
        for name, found in certified.items()
    }
    own = [name for name in trained if name not in distill_stage.baselines(context)]
    network = context.recipe.secure.network
    # Limits hold of what the search compared: what certificates save depends on the texts that they were made with.
    captured = {
        name: predicted_figures(Cost.from_dict(found["captured_cost"]), context.recipe.secure)
        for name, found in certified.items()
    }
    bounds = bounds_of(context, captured)
    faults = {name: exceeded(captured[name], bounds, network) for name in names}
    within = {name: not found for name, found in faults.items()}
    for name in own:  # what fixed point cannot hold is no candidate, whatever it scores
        if not certified[name]["fits"]:
            faults[name].append(refusal(certified[name]["violations"]))
    allowed = [name for name in own if not faults[name]]
    if not allowed:
        lines = [f"{name}: {'; '.join(faults[name])}" for name in own]
        raise RecipeError("no distilled student fits fixed point and is within search.limits:", lines)
    seconds = {name: predicted[name]["seconds"][network]["total"] for name in allowed}
    tests = compared(context, allowed, progress)
    ranking = ranked(tests, seconds)
    chosen = ranking[0]
    return {
        "predicted": predicted,
        "compared": {name: figures["online"] for name, figures in captured.items()},
        "within": within,
        "fits": {name: found["fits"] for name, found in certified.items()},
        "tests": tests,
        "ranking": ranking,
        "chosen": chosen,
        "kept": tests[chosen]["kept"],
        "reason": reason_for(tests, chosen, len(own)),
    }


def ranked(tests: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float]) -> list[str]:
    """Students by preference: those that keep the contract by rising cost, then the others by how closely they miss it."""
    kept = sorted((name for name in tests if tests[name]["kept"]), key=lambda name: (seconds[name], name))
    missed = [name for name in tests if not tests[name]["kept"]]
    return [*kept, *sorted(missed, key=lambda name: (tests[name]["upper"], seconds[name], name))]


def compared(context: Context, names: Sequence[str], progress: Callback) -> dict[str, dict[str, Any]]:
    """Each student's paired test against the teacher on validation data: `Comparison.to_dict` (a correlation has no
    "worse" and "better"), "allowed", "kept", and "missed_by", how far the upper bound lies above what is allowed."""
    import distill

    tokens, kind = context.tokens("validation"), context.splits.kind
    labels = distill.labels_of(tokens)
    allowed, level = context.recipe.verify.max_drop, context.recipe.verify.level
    each = 1.0 - (1.0 - level) / len(names)
    reference = distill.evaluate(context.teacher, tokens)
    found = {}
    for done, name in enumerate(names):
        progress(done, len(names), f"comparing {name} with the teacher")
        logits = distill.evaluate(context.trained(name), tokens)
        if kind == "classification":
            pair = Comparison.of(right(reference, labels), right(logits, labels))
            test = pair.to_dict(each)
        else:
            test = _correlations(reference, logits, labels, each, context.recipe.seed)
        test |= {"allowed": allowed, "kept": test["upper"] <= allowed}
        found[name] = test | {"missed_by": max(0.0, test["upper"] - allowed)}
    return found


def right(logits: torch.Tensor, labels: torch.Tensor) -> list[bool]:
    """On which items the prediction is the label."""
    return [bool(one) for one in logits.argmax(-1) == labels]


def _correlations(
    reference: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, level: float, seed: int
) -> dict[str, Any]:
    import distill

    def drop(items: Sequence[int]) -> float:
        chosen = list(items)
        teacher, student = (
            distill.score(outputs[chosen], labels[chosen], "regression") for outputs in (reference, logits)
        )
        return teacher - student

    lower, upper = bootstrap_bounds(drop, len(labels), level, seed)
    return {
        "items": len(labels),
        "drop": drop(range(len(labels))),
        "lower": lower,
        "upper": upper,
        "level": level,
    }


def reason_for(tests: Mapping[str, Mapping[str, Any]], chosen: str, students: int) -> str:
    """The choice in words."""
    test = tests[chosen]
    measured = (
        f"on {test['items']} validation examples it loses {test['drop']:.4f} against the teacher, and at most "
        f"{test['upper']:.4f} at {test['level']:.1%} confidence, where verify.max_drop allows {test['allowed']:g}"
    )
    of = f"{students} distilled student{'s' if students > 1 else ''}, {len(tests)} of them within the limits"
    if test["kept"]:
        return f"The cheapest that keeps the contract, of {of}: {measured}. Test data was not looked at."
    missed = "; ".join(f"{name[:6]} by {one['missed_by']:.4f}" for name, one in tests.items())
    return (
        f"None of {of}, can be shown to keep the contract; they miss it {missed}. The one that comes closest was taken: "
        f"{measured}. Test data was not looked at."
    )


def bounds_of(context: Context, predicted: dict[str, Any]) -> dict[str, float]:
    """The recipe's limits as numbers: "latency_s", "bytes", "rounds"; a baseline stands for its own predicted
    counts."""
    given = context.recipe.search.limits
    bounds = {"latency_s": given.latency_s, "bytes": given.online_bytes, "rounds": given.rounds}
    found = {name: value for name, value in bounds.items() if value is not None}
    if given.baseline is not None:
        reference = predicted[given.baseline]["online"]
        for name in ("bytes", "rounds"):
            found[name] = min(found.get(name, float("inf")), reference[name])
    return found


def exceeded(figures: dict[str, Any], bounds: dict[str, float], network: str) -> list[str]:
    """What of a predicted cost lies beyond a limit, in words."""
    had = {
        "latency_s": figures["seconds"][network]["total"],
        **{k: figures["online"][k] for k in ("bytes", "rounds")},
    }
    return [
        f"{name} {had[name]:,.6g} is more than {bound:,.6g}"
        for name, bound in bounds.items()
        if had[name] > bound
    ]


def _step(context: Context, identifier: str) -> Step:
    recipe = context.recipe
    folder = f"verify/{identifier}"
    title = TITLES.get(identifier, f"student {identifier[:6]}")

    def work(progress: Callback) -> None:
        import torch

        import distill

        model, tokens, kind = context.trained(identifier), context.tokens("test"), context.splits.kind
        labels = distill.labels_of(tokens)
        logits = distill.evaluate(model, tokens, progress=progress)
        found: dict[str, Any] = {"test": distill.score(logits, labels, kind)}
        if identifier != "teacher" and kind == "classification":
            found["agreement"] = distill.agreement(logits, distill.evaluate(context.teacher, tokens))
        found |= secure_run(
            model,
            tokens,
            kind=kind,
            secure=recipe.secure,
            samples=recipe.verify.samples,
            parties=recipe.verify.parties,
            timeout=recipe.verify.timeout_s,
            folder=context.run / folder,
            progress=progress,
            certified=certified_again(
                model, tokens, recipe.secure, certify_stage.result(context, identifier)
            ),
        )
        if kind == "classification":
            answers = torch.tensor(
                [row for entry in read_log(context.run / folder / "queries.jsonl") for row in entry["logits"]]
            )
            asked = len(answers)
            write_json(
                context.run / folder / "right.json",
                {
                    "plaintext": right(logits[:asked], labels[:asked]),
                    "secure": right(answers, labels[:asked]),
                },
            )
        write_json(context.run / folder / "result.json", found)

    return Step(
        name=folder,
        title=f"verify {title}",
        inputs={
            "secure": section(recipe, "secure")["secure"],
            "profiles": profiles(recipe.secure),
            "samples": recipe.verify.samples,
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
