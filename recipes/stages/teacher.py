"""The teacher: the checkpoint, fine-tuned on the task if it has no head for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from recipes.checkpoints import is_local
from recipes.context import Context
from recipes.files import fingerprint, read_json, write_json
from recipes.progress import Callback
from recipes.rundir import Step
from recipes.schema import section


def steps(context: Context) -> list[Step]:
    def work(progress: Callback) -> None:
        import distill

        given = context.recipe.teacher.train
        folder = context.run / "teacher"
        if given.epochs == 0:
            model = as_it_is(context)
            distill.save(model, folder / "model", context.tokenizer)
        else:
            config = distill.FinetuneConfig(
                **given.model_dump(), seed=context.recipe.seed, max_length=context.sequence_length
            )
            model = distill.finetune(
                context.checkpoint, context.splits, config, folder, progress, context.tokenizer
            )
        progress(1, 1, "evaluating")
        tokens = context.tokens("validation")
        logits = distill.evaluate(model, tokens)
        score = distill.score(logits, distill.labels_of(tokens), context.splits.kind)
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
                "train": section(context.recipe, "teacher")["teacher"]["train"],
                "sequence_length": secure.sequence_length,
                "seed": context.recipe.seed,
            },
            needs=("data",),
            folder="teacher",
            outputs=("teacher/model/config.json", "teacher/scores.json"),
            work=work,
        )
    ]


def as_it_is(context: Context):  # type: ignore[no-untyped-def]
    """The checkpoint with the head it has (preflight has made sure of it)."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        context.checkpoint, attn_implementation="eager"
    ).eval()


def checkpoint_inputs(context: Context) -> dict[str, object]:
    """What names the checkpoint: its content, or for a hub id the id."""
    located = context.checkpoint
    return {"content": fingerprint(Path(located))} if is_local(located) else {"hub": located}
