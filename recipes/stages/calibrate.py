"""One pass of the teacher over unlabelled training examples: what every variant needs to start from at every
site."""

from __future__ import annotations

from recipes.context import Context
from recipes.progress import Callback
from recipes.rundir import Step

QUERIES = 128
"""Calibration samples that are run once more, padded as queries are, for the extremes of their values."""


def steps(context: Context) -> list[Step]:
    search = context.recipe.search

    def work(progress: Callback) -> None:
        import distill

        tokens = context.tokens("train")
        batches = distill.batches(
            tokens, context.tokenizer, batch_size=32, limit=search.calibration_samples, labels=False
        )
        # As a query is padded: fixed point has to hold what padding leads to as well.
        queries = distill.batches(
            tokens,
            context.tokenizer,
            batch_size=32,
            max_length=context.sequence_length,
            pad="max_length",
            limit=min(search.calibration_samples, QUERIES),
            labels=False,
        )
        calibration = distill.calibrate(context.teacher, batches, progress, extremes=queries)
        calibration.save(context.run / "calibrate/calibration.safetensors")

    return [
        Step(
            name="calibrate",
            title="calibrate",
            inputs={"samples": search.calibration_samples, "sequence_length": context.sequence_length},
            needs=("teacher",),
            folder="calibrate",
            outputs=("calibrate/calibration.safetensors",),
            work=work,
        )
    ]
