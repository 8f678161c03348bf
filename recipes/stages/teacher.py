"""The teacher: the checkpoint as it is, or fine-tuned on the task if it has no head or the recipe asks for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from recipes.checkpoints import is_local
from recipes.context import Context
from recipes.errors import RecipeError
from recipes.files import fingerprint, read_json, write_json
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import TeacherTraining, section


def steps(context: Context) -> list[Step]:
    def work(progress: Callback) -> None:
        import distill

        folder = context.run / "teacher"
        if context.given:
            context.say("teacher: the checkpoint as it is, without fine-tuning")
            model = as_it_is(context)
            distill.save(model, folder / "model", context.tokenizer)
        else:
            training = context.recipe.teacher.train or TeacherTraining()
            config = distill.FinetuneConfig(
                **training.model_dump(), seed=context.recipe.seed, max_length=context.sequence_length
            )
            model = distill.finetune(
                context.checkpoint, context.splits, config, folder, progress, context.tokenizer
            )
        progress(1, 1, "evaluating")
        tokens = context.tokens("validation")
        logits = distill.evaluate(model, tokens)
        labels = distill.labels_of(tokens)
        score = distill.score(logits, labels, context.splits.kind)
        if context.given:
            check_better_than_guessing(score, labels.tolist(), context)
        log = read_json(folder / "training" / "progress.json")
        history = log["progress"]["history"] if log is not None else []
        write_json(folder / "scores.json", {"validation": score, "history": history})
        shutil.rmtree(
            folder / "training", ignore_errors=True
        )  # optimiser states; the model and its history are kept

    secure = context.recipe.secure
    return [
        Step(
            name="teacher",
            title="teacher",
            inputs={
                "checkpoint": checkpoint_inputs(context),
                "train": None if context.given else training_inputs(context),
                "sequence_length": secure.sequence_length,
                "seed": context.recipe.seed,
            },
            needs=("data",),
            folder="teacher",
            outputs=("teacher/model/config.json", "teacher/scores.json"),
            work=work,
        )
    ]


def training_inputs(context: Context) -> dict[str, object]:
    """The settings of the fine-tuning that its result depends on."""
    given = section(context.recipe, "teacher")["teacher"]["train"] or TeacherTraining().model_dump()
    return {name: value for name, value in given.items() if name != "checkpoint_seconds"}


def check_better_than_guessing(score: float, labels: list[int], context: Context) -> None:
    """Raises RecipeError if a given classifier does worse than the most frequent class: its classes are then most
    likely numbered in another order than the data's."""
    if context.splits.kind != "classification":
        return
    frequent = max(labels.count(label) for label in set(labels)) / len(labels)
    if score < frequent:
        raise RecipeError(
            f"the checkpoint is used as it is, but is right on {score:.1%} of the validation examples, and the most "
            f"frequent class alone makes {frequent:.1%} of them; its classes are "
            f"{', '.join(map(str, context.config.id2label.values()))}, the data's {', '.join(context.splits.label_names)}: "
            "are they in the same order? `teacher.train` fine-tunes it"
        )


def as_it_is(context: Context):  # type: ignore[no-untyped-def]
    """The checkpoint with the head it has (preflight has made sure of it)."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from distill.finetuning import check_loaded
    from distill.padding import settle_padding

    model, found = AutoModelForSequenceClassification.from_pretrained(
        context.checkpoint, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    check_loaded(model, found, context.checkpoint, head=True)
    settle_padding(context.tokenizer, model.config)
    return model.eval()


def checkpoint_inputs(context: Context) -> dict[str, object]:
    """What names the checkpoint: its content, or for a hub id the id."""
    located = context.checkpoint
    return {"content": fingerprint(Path(located))} if is_local(located) else {"hub": located}
