"""One pass of the teacher over unlabelled training examples: what every variant needs to start from at every
site."""

from __future__ import annotations

from recipes.context import Context
from recipes.progress import Callback
from recipes.rundir import Step


def steps(context: Context) -> list[Step]:
    search = context.recipe.search

    def work(progress: Callback) -> None:
        import distill

        tokens = context.tokens("train")
        batches = distill.batches(
            tokens, context.tokenizer, batch_size=32, limit=search.calibration_samples, labels=False
        )
        calibration = distill.calibrate(context.teacher, batches, progress)
        calibration.save(context.run / "calibrate/calibration.safetensors")

    return [
        Step(
            name="calibrate",
            title="calibrate",
            inputs={"samples": search.calibration_samples},
            needs=("teacher",),
            folder="calibrate",
            outputs=("calibrate/calibration.safetensors",),
            work=work,
        )
    ]
