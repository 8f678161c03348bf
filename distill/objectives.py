"""What a student is trained to minimise: its distance from the teacher's outputs, layer by layer and in the end."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from distill.cache import TeacherCache
from distill.distill_config import DistillConfig
from distill.losses import hidden_loss, prediction_loss, scores_loss
from distill.recording import record_scores

Extra = Callable[[], AbstractContextManager[Callable[[], Tensor]]]
"""A further term of the loss: entered around each forward pass of the student, it yields the function that then
gives the term, a scalar, from what it saw of the pass."""


class Objectives:
    """The losses of one student. `layerwise` and `predictions` are those of a stage: loss(items, batch) -> scalar.

    Scores are recorded during a training step's forward pass and at no other time: kept over a validation, those
    of BERT-base on 10,000 texts of 128 tokens would take 94 GB.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        cache: TeacherCache,
        config: DistillConfig,
        extras: Sequence[Extra] = (),
    ) -> None:
        """cache: the teacher's outputs on the training texts; extras: terms that every stage's loss has."""
        self.student, self.cache, self.config, self.extras = student, cache, config, tuple(extras)
        self._variance = float(cache.logits.var(correction=0))

    def layerwise(self, items: list[int], batch: dict[str, Tensor]) -> Tensor:
        """Hidden states and scores of every layer; with losses "joint" the predictions as well."""
        config, mask = self.config, batch["attention_mask"]
        with record_scores(self.student) as calls:
            output, extra = self._forward(batch, output_hidden_states=True)
        targets = self.cache.targets(items, mask.shape[1], mask.device)
        hidden = hidden_loss(output.hidden_states, targets.hidden, mask, config.units)
        scores = scores_loss(calls, targets.scores, mask, config.units)
        loss = config.hidden_weight * hidden + config.scores_weight * scores
        if config.losses == "joint":
            loss = loss + config.prediction_weight * self._distance(output.logits, targets.logits)
        return loss + extra

    def predictions(self, items: list[int], batch: dict[str, Tensor]) -> Tensor:
        """The predictions alone."""
        output, extra = self._forward(batch)
        return self._distance(output.logits, self.cache.logits[items].to(output.logits.device)) + extra

    def _forward(self, batch: dict[str, Tensor], **options: Any) -> tuple[Any, Tensor | float]:
        """The student's outputs, and the sum of the further terms."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with ExitStack() as stack:
            terms = [stack.enter_context(extra()) for extra in self.extras]
            output = self.student(**inputs, **options)
        return output, sum((term() for term in terms), 0.0)

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return prediction_loss(student, teacher, self.config.kind, self._variance)
