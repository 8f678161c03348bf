"""Distil the named baselines and the front's best candidates, each a resumable step of its own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipes.context import TITLES, Context
from recipes.files import read_json, write_json
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import PublishedTraining, section

if TYPE_CHECKING:
    from distill import Architecture

CACHE = "distill/.teacher"
EMULATED = "verify/emulated"
"""Folder of the queries over emulated networks: <network>/<id of a model>."""


@dataclass(frozen=True)
class Student:
    """One model to train. `training` are the settings of `distill.DistillConfig` that the recipe gives."""

    id: str
    title: str
    architecture: Architecture
    training: dict[str, Any]
    proxy: dict[str, float]


def students(context: Context) -> list[Student]:
    """The baselines and the candidates, in the order in which they are trained. Needs the search's front."""
    recipe, front = context.recipe, context.front
    common = section(recipe, "distill")["distill"]
    found = []
    named = front.baselines
    for name in baselines(context):
        architecture = context.baseline(name)
        same = next((point for point in named.values() if point.architecture == architecture), None)
        proxy = {} if same is None else dict(same.scores)
        found.append(Student(name, TITLES[name], architecture, baseline_training(context, name), proxy))
    limit = recipe.search.limits.baseline
    points = front.select(recipe.search.candidates, no_costlier_than=named.get(limit) if limit else None)
    for point in points:
        found.append(
            Student(point.id, f"student {point.id[:6]}", point.architecture, common, dict(point.scores))
        )
    return found


def baselines(context: Context) -> list[str]:
    """Names of the baselines that this recipe trains."""
    chosen = context.recipe.baselines
    return [name for name in type(chosen).model_fields if getattr(chosen, name) is not None]


def baseline_training(context: Context, name: str) -> dict[str, Any]:
    """Settings of a baseline's training: the published ones, or those of `distill`."""
    recipe = context.recipe
    own = section(recipe, "distill")["distill"]
    chosen = getattr(recipe.baselines, name)
    epochs = {
        key: getattr(chosen, key)
        for key in ("layerwise_epochs", "prediction_epochs")
        if getattr(chosen, key) is not None
    }
    if not isinstance(chosen, PublishedTraining):
        return own | epochs
    from distill import mpcformer

    examples = read_json(context.run / "data/info.json")["examples"]
    texts = examples["train"] + examples.get("unlabelled", 0)
    most = chosen.budget
    if most is not None:
        most *= own["layerwise_epochs"] + own["prediction_epochs"]
    kept = {key: own[key] for key in ("cache_bytes", "checkpoint_seconds")}
    return kept | mpcformer.settings(texts, most) | epochs


def steps(context: Context) -> list[Step]:
    return [_step(context, student) for student in students(context)]


def _step(context: Context, student: Student) -> Step:
    recipe = context.recipe
    folder = f"distill/{student.id}"

    def work(progress: Callback) -> None:
        import distill

        training, validation = context.training_texts(), context.tokens("validation")
        teacher = context.teacher
        cache = distill.TeacherCache.build(
            teacher,
            training,
            context.run / CACHE,
            max_bytes=student.training["cache_bytes"],
            progress=progress,
        )
        context.say(cache.describe())
        model = distill.apply(teacher, student.architecture, context.calibration)
        config = distill.DistillConfig(
            **student.training, seed=recipe.seed, max_length=context.sequence_length, kind=context.splits.kind
        )
        work_dir = context.run / folder / "training"
        trained = distill.train(
            model, teacher, training, validation, config, context.tokenizer, work_dir, progress, cache
        )
        context.say(
            f"{student.title}: checkpoints of {trained.checkpoint_bytes / 1e6:,.1f} MB took "
            f"{trained.checkpoint_seconds:.1f} s of {trained.seconds:.0f} s"
        )
        progress(1, 1, "evaluating")
        logits, expected = distill.evaluate(model, validation), distill.evaluate(teacher, validation)
        labels, kind = distill.labels_of(validation), context.splits.kind
        distill.save(model, context.run / folder / "model", context.tokenizer)
        write_json(
            context.run / folder / "result.json",
            {
                "id": student.id,
                "title": student.title,
                "architecture": student.architecture.to_dict(),
                "proxy": student.proxy,
                "validation": distill.score(logits, labels, kind),
                "agreement": distill.agreement(logits, expected) if kind == "classification" else None,
                "settings": student.training,
                "teacher_outputs": trained.teacher_outputs,
                "history": trained.history,
                "seconds": trained.seconds,
            },
        )
        shutil.rmtree(work_dir, ignore_errors=True)  # optimiser states; the model and its history are kept

    return Step(
        name=folder,
        title=f"distill {student.title}",
        inputs={
            "architecture": student.architecture.to_dict(),
            "training": {k: v for k, v in student.training.items() if k != "checkpoint_seconds"},
            "sequence_length": context.sequence_length,
            "seed": recipe.seed,
        },
        needs=("teacher", "calibrate"),
        folder=folder,
        outputs=(f"{folder}/model/config.json", f"{folder}/result.json"),
        work=work,
    )


def tidy(context: Context) -> None:
    """Remove the cached teacher outputs, which are large, and what earlier fronts' students have left behind."""
    shutil.rmtree(context.run / CACHE, ignore_errors=True)
    present = {"teacher", *(student.id for student in students(context))}
    folders = [*(context.run / "distill").glob("*/"), *(context.run / EMULATED).glob("*/*/")]
    folders += (context.run / "certify").glob("*/")
    folders += [folder for folder in (context.run / "verify").glob("*/") if folder != context.run / EMULATED]
    for folder in folders:
        if folder.name not in present:
            shutil.rmtree(folder)


def results(context: Context) -> dict[str, dict[str, Any]]:
    """What each finished student left, by id, in the order of training."""
    return {
        student.id: read_json(context.run / f"distill/{student.id}/result.json")
        for student in students(context)
    }
