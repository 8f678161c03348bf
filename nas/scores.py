"""How far a student's predictions are from the teacher's, without labels.

A score is a mean over items (sentences, tokens, …), so that it can be added up batch by batch. The search
minimises the divergence and reports the agreement beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

import distill


class Scorer(Protocol):
    """A pair of scores for one task kind. A new kind is one class with these members."""

    #: Name of the score that the search minimises, zero for the teacher itself.
    divergence: str
    #: Name of the score that people read, one for the teacher itself.
    agreement: str

    def predictions(self, output: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The items' predictions [items, classes] in a model's output for a batch."""

    def compare(self, teacher: torch.Tensor, student: torch.Tensor) -> dict[str, float]:
        """Both scores, as means over the items of `predictions`."""


class Classification:
    """KL(teacher || student) in nats and the share of equal arg-maxes; one item a row, or a token when
    the logits are [batch, position, classes] (padding left out).
    """

    divergence = "kl"
    agreement = "agreement"

    def predictions(self, output: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor):
            raise ValueError(
                f"the model's output {type(output).__name__} has no logits; pass a scorer for this task"
            )
        if logits.shape[-1] < 2:
            raise ValueError(
                "the model has one output, so KL says nothing about it; pass a scorer for this task"
            )
        if logits.ndim > 2:
            mask = batch.get("attention_mask")
            if mask is not None and mask.shape == logits.shape[:-1]:
                return logits[mask.to(device=logits.device, dtype=torch.bool)]
            return logits.reshape(-1, logits.shape[-1])
        return logits

    def compare(self, teacher: torch.Tensor, student: torch.Tensor) -> dict[str, float]:
        if not bool(torch.isfinite(student).all()):
            # A student that overflows is as far from the teacher as can be said with a number a sampler can
            # use.
            return {self.divergence: WORST, self.agreement: 0.0}
        divergence = min(max(0.0, float(distill.kl(teacher, student))), WORST)
        return {self.divergence: divergence, self.agreement: float(distill.agreement(teacher, student))}


#: Divergence of a student whose output is not finite (a sampler needs a number).
WORST = 1e6
