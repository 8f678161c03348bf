"""How to distil."""

from dataclasses import dataclass
from typing import Literal

from distill.cache import DEFAULT_BYTES
from distill.losses import Units

LOSSES = ("two_stage", "joint")


@dataclass(frozen=True)
class DistillConfig:
    """How to distil.

    Attributes:
        losses: "two_stage" or "joint" (see the module docstring).
        layerwise_epochs: epochs of the first stage, or of the joint loss; may be fractional, 0 leaves it out.
        prediction_epochs: epochs of the last stage, predictions only; 0 leaves it out.
        lr: peak rate of the first stage or the joint loss. prediction_lr: of the last stage.
        coefficient_lr: rate of the variants' own coefficients, as a multiple of the stage's rate.
        hidden_weight, scores_weight, prediction_weight: of the losses in the first stage or the joint loss.
        range_penalty: weight of the penalty on variants' values that leave fixed point's range (`fixed_point`); it is
            zero, without gradient, while they are inside by its margin.
        units: "energy" measures a layer's error in units of the teacher's energy, "raw" as a mean square.
        layerwise_warmup: share of the first stage's steps in which the rate rises; None is `warmup`.
        batch_size, warmup, weight_decay, clip, freeze_embeddings, max_length, precision, checkpoint_seconds,
            seed: as in `FinetuneConfig`.
        dropout: train the student with its dropout (the teacher never has any).
        validate_every: epochs between validations.
        kind: "classification" or "regression": what the predictions are.
        cache_bytes: most that the teacher's stored layers may take on disk; what does not fit is computed
            again at each step.
    """

    losses: Literal["two_stage", "joint"] = "two_stage"
    layerwise_epochs: float = 2
    prediction_epochs: float = 1
    lr: float = 5e-5
    prediction_lr: float = 1e-5
    coefficient_lr: float = 10.0
    hidden_weight: float = 1.0
    scores_weight: float = 1.0
    prediction_weight: float = 1.0
    range_penalty: float = 0.01
    units: Units = "energy"
    layerwise_warmup: float | None = None
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    freeze_embeddings: bool = True
    dropout: bool = False
    max_length: int = 128
    precision: str = "auto"
    checkpoint_seconds: float = 30.0
    validate_every: float = 1.0
    kind: Literal["classification", "regression"] = "classification"
    cache_bytes: int = DEFAULT_BYTES
