"""Choose on validation data, then run the teacher, the baselines and the chosen students under MPC on test
examples.

The test split is read here for the first time, after the choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes.context import TITLES, Context
from recipes.costs import predicted_figures, profiles
from recipes.errors import RecipeError
from recipes.files import read_json, write_json
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import section
from recipes.secure_run import secure_run
from recipes.stages import distill as distill_stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cost_models import Cost


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
            },
            needs=("teacher", "search", *(f"distill/{student.id}" for student in trained)),
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
    """{"predicted": {id: figures}, "within": {id: bool}, "ranking": [id, best first], "chosen", "reason"}.

    Best validation score among the students within the limits; ties go to the cheaper one.
    Raises RecipeError if no student is within the limits, with each one's figures.
    """
    trained = distill_stage.results(context)
    names = ["teacher", *trained]
    predicted = {}
    for done, name in enumerate(names):
        progress(done, len(names), f"predicting {name}")
        predicted[name] = predicted_figures(cost_of(context, name), context.recipe.secure)
    progress(len(names), len(names), "predicted")
    own = [name for name in trained if name not in distill_stage.baselines(context)]
    network = context.recipe.secure.network
    bounds = bounds_of(context, predicted)
    within = {name: not exceeded(predicted[name], bounds, network) for name in names}
    allowed = [name for name in own if within[name]]
    if not allowed:
        lines = [f"{name}: {'; '.join(exceeded(predicted[name], bounds, network))}" for name in own]
        raise RecipeError("no distilled student is within search.limits:", lines)
    seconds = {name: predicted[name]["seconds"][network]["total"] for name in allowed}
    ranking = sorted(allowed, key=lambda name: (-trained[name]["validation"], seconds[name], name))
    reason = (
        f"Chosen among {len(own)} distilled student{'s' if len(own) > 1 else ''}, {len(allowed)} of them "
        "within the "
        "limits, by the score on validation data; ties go to the cheaper. Test data was not looked at."
    )
    return {
        "predicted": predicted,
        "within": within,
        "ranking": ranking,
        "chosen": ranking[0],
        "reason": reason,
    }


def cost_of(context: Context, identifier: str) -> Cost:
    """Predicted cost of a trained model, taken from the search where that has predicted it whole."""
    point = next((c for c in context.front.evaluated if c.id == identifier), None)
    if point is not None and point.whole is not None and point.whole.roles:
        return point.whole
    return context.predict(model_of(context, identifier))


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


def model_of(context: Context, identifier: str) -> PreTrainedModel:
    """A trained model by its id."""
    if identifier == "teacher":
        return context.teacher
    import distill

    return distill.restore(context.run / f"distill/{identifier}/model")


def _step(context: Context, identifier: str) -> Step:
    recipe = context.recipe
    folder = f"verify/{identifier}"
    title = TITLES.get(identifier, f"student {identifier[:6]}")

    def work(progress: Callback) -> None:
        import distill

        model, tokens, kind = model_of(context, identifier), context.tokens("test"), context.splits.kind
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
            predicted=read_json(context.run / "verify/choice.json")["predicted"][identifier],
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
        needs=("data", "teacher", *(() if identifier == "teacher" else (f"distill/{identifier}",))),
        folder=folder,
        outputs=(f"{folder}/result.json",),
        work=work,
    )
