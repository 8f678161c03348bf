"""The record of a run, put together from what its stages left."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from recipes.certification import recorded
from recipes.context import TITLES, Context
from recipes.files import read_json
from recipes.gains import gains
from recipes.paired import Comparison
from recipes.schema import dump
from recipes.stages import certify as certify_stage
from recipes.stages import distill as distill_stage
from recipes.stages import emulate as emulate_stage
from recipes.stages import verify as verify_stage
from results.record import (
    Candidate,
    FrontPoint,
    Predicted,
    Ranges,
    Record,
    Score,
    TrainingPoint,
    hardware,
    versions,
)

POINT_PARTS = ("by_site", "by_operation", "by_role")
"""Left out of the points of the search: hundreds of them, and the trained models have theirs."""


def build(context: Context, export: dict[str, Any] | None = None) -> Record:
    """Everything up to the verify stage, and `export` when that is done."""
    import cost_models

    recipe, run = context.recipe, context.run
    choice = read_json(run / "verify/choice.json")
    info = read_json(run / "data/info.json")
    trained = distill_stage.results(context)
    baselines = distill_stage.baselines(context)
    front = read_json(run / "search/front.json")
    points = [_point(context, point, set(front["points"])) for point in front["evaluated"]]
    students = [_student(context, name, found, choice) for name, found in trained.items()]
    return Record(
        name=context.name,
        title=recipe.report.title or context.name,
        description=recipe.report.description,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=context.command,
        recipe=dump(recipe),
        recipe_text=context.text,
        versions=versions(),
        hardware=hardware(),
        seeds={"run": recipe.seed},
        task={
            "kind": info["kind"],
            "metric": "accuracy" if info["kind"] == "classification" else "correlation",
            "label_names": info["label_names"],
            "examples": info["examples"],
            "dataset": recipe.teacher.task.data.source.rsplit("/", 1)[-1].removeprefix("hub:"),
            "sites": [{"name": s.name, "kind": s.kind, "layer": s.layer} for s in context.sites],
        },
        secure={
            "protocol": recipe.secure.protocol,
            "network": recipe.secure.network,
            "device": recipe.secure.device,
            "device_profile": cost_models.device_profile(recipe.secure.device).source(),
            "sequence_length": recipe.secure.sequence_length,
            "batch": recipe.secure.batch,
            "parties": recipe.verify.parties,
        },
        limits={key: value for key, value in recipe.search.limits.model_dump().items() if value is not None},
        disclosure=disclosure(recipe.secure.protocol, _public(context, choice)),
        teacher=_teacher(context, choice),
        baselines={s.id: s for s in students if s.id in baselines},
        front=[point for point in points if point.on_front],
        trials=points,
        candidates=[s for s in students if s.id not in baselines],
        chosen=choice["chosen"],
        choice={
            **{name: choice[name] for name in ("reason", "ranking", "tests", "kept")},
            "gains": gains(students, choice["chosen"]),
        },
        not_offered=front["not_offered"],
        contract=contract(context),
        export=export or {},
    )


def contract(context: Context) -> dict[str, Any]:
    """Whether `verify.max_drop` holds for the chosen student.

    It does if the validation examples show it (the choice's own test) and the answers under MPC do not speak against it:
    the lower confidence bound of the drop, accuracy under MPC against the teacher's plaintext accuracy on the same test
    examples, is at most what is allowed. A few dozen answers cannot show more.
    """
    allowed, level = context.recipe.verify.max_drop, context.recipe.verify.level
    choice = read_json(context.run / "verify/choice.json")
    chosen = choice["chosen"]
    teacher = read_json(context.run / "verify/teacher/result.json")["secure"]["plaintext"]
    student = read_json(context.run / f"verify/{chosen}/result.json")["secure"]
    drop = teacher - student["accuracy"]
    text = (
        f"{choice['reason']} On {student['samples']} test examples the teacher scores {teacher:.4f} in plaintext and the "
        f"chosen student {student['accuracy']:.4f} under MPC: a drop of {drop:.4f}"
    )
    of_items = [context.run / f"verify/{name}/right.json" for name in ("teacher", chosen)]
    if all(path.exists() for path in of_items):
        ours, theirs = (read_json(path) for path in reversed(of_items))
        lower = Comparison.of(theirs["plaintext"], ours["secure"]).lower(level)
        text += f", and at least {lower:.4f} at {level:.1%} confidence"
    else:
        lower = drop
    met = choice["kept"] and lower <= allowed + 1e-9
    return {"max_drop": allowed, "drop": drop, "lower": lower, "met": met, "text": f"{text}."}


def unequal(context: Context) -> list[str]:
    """Verified models whose counted bytes or rounds differ from the predicted ones: there must be none."""
    found = {}
    for name in verify_stage.verified(context):
        found[name] = read_json(context.run / f"verify/{name}/result.json")
        for network, result in emulate_stage.results(context, name).items():
            found[f"{name} on an emulated {network}"] = result
    return [name for name, result in found.items() if not result["equal"]]


def _public(context: Context, choice: dict[str, Any]) -> list[str]:
    """What all parties saw of the chosen model's numbers when it ran under MPC."""
    if choice["chosen"] not in verify_stage.verified(context):
        return []
    return read_json(context.run / f"verify/{choice['chosen']}/result.json")["measured"].get("public") or []


def disclosure(protocol: str, public: Sequence[str] = ()) -> list[str]:
    """What the protocol says of its adversary and of what is visible, and what is public of the model."""
    from secure_eval import protocols

    described = protocols.get(protocol)
    visible = [f"Visible {line}" if line.startswith("to ") else line for line in described.disclosure]
    return [f"Adversary: {described.adversary}", *visible, *public]


def _teacher(context: Context, choice: dict[str, Any]) -> Candidate:
    scores = read_json(context.run / "teacher/scores.json")
    given = _verification(context, "teacher", choice)
    return Candidate(
        id="teacher",
        title=TITLES["teacher"],
        accuracy=Score(validation=scores["validation"], test=given.pop("test", None)),
        agreement=Score(),
        within_limits=choice["within"]["teacher"],
        ranges=_ranges(context, "teacher"),
        training=_history(scores["history"]),
        **_without(given, "agreement"),
    )


def _student(context: Context, name: str, found: dict[str, Any], choice: dict[str, Any]) -> Candidate:
    given = _verification(context, name, choice)
    title = f"chosen student ({name[:6]})" if name == choice["chosen"] else found["title"]
    return Candidate(
        id=name,
        title=title,
        architecture=found["architecture"]["sites"],
        structure=found["architecture"]["structure"],
        proxy=found["proxy"],
        accuracy=Score(validation=found["validation"], test=given.pop("test", None)),
        agreement=Score(validation=found["agreement"], test=given.pop("agreement", None)),
        within_limits=choice["within"][name],
        settings=found["settings"],
        ranges=_ranges(context, name),
        training=_history(found["history"]),
        train_seconds=found["seconds"],
        **given,
    )


def _verification(context: Context, name: str, choice: dict[str, Any]) -> dict[str, Any]:
    """A verified model's result; of one that was not verified, its predicted cost alone."""
    if name not in verify_stage.verified(context):
        return {"predicted": choice["predicted"][name]}
    found = read_json(context.run / f"verify/{name}/result.json")
    return found | {"emulated": emulate_stage.results(context, name)}


def _ranges(context: Context, name: str) -> Ranges:
    return Ranges(**recorded(certify_stage.result(context, name)))


def _without(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in names}


def _history(entries: list[dict[str, Any]]) -> list[TrainingPoint]:
    """A training log in the record's words, epochs counted over all its stages; events are kept as notes."""
    points: list[TrainingPoint] = []
    stage, before = "", 0.0
    for entry in entries:
        if entry["stage"] != stage:
            stage, before = entry["stage"], points[-1].epoch if points else 0.0
        epoch = before + entry.get("epoch", 0.0)
        points.append(
            TrainingPoint(
                stage=stage,
                epoch=epoch,
                loss=entry.get("loss"),
                validation=entry.get("score"),
                divergence=entry.get("divergence"),
                agreement=entry.get("agreement"),
                note=entry.get("event"),
            )
        )
    return points


def _point(context: Context, point: dict[str, Any], front: set[str]) -> FrontPoint:
    from cost_models import Cost
    from recipes.costs import predicted_figures

    # The price that the search compared: the table's, or the assembled student's where the front was predicted whole.
    figures = predicted_figures(Cost.from_dict(point["cost"]), context.recipe.secure)
    return FrontPoint(
        id=point["id"],
        architecture=point["architecture"]["sites"],
        structure=point["architecture"]["structure"],
        proxy=point["scores"],
        predicted=Predicted(**_without(figures, *POINT_PARTS)),
        name=point["names"][0] if point["names"] else None,
        on_front=point["id"] in front,
        feasible=point["feasible"],
        difference=_difference(point),
        fixed_point=point["fixed_point"],
        dropped=point["dropped"],
    )


def _difference(point: dict[str, Any]) -> dict[str, float]:
    """Whole prediction minus the price table's sum, where the search made both."""
    from nas import Candidate as Tried

    difference = Tried.from_dict(point).difference()
    return {name.removeprefix("online_"): value for name, value in difference.items()}
