"""Distillation of a student, resumable (see `distill.loop` for the files).

"two_stage" has the form of MPCFormer's recipe (ICLR 2023, section 3.3): first hidden states and scores of every
layer, at a constant rate, then predictions only. Unlike there, the teacher is in eval mode, each stage keeps its best
validation, and errors of layers are in units of the teacher's energy. "joint" adds the three losses from the
start; with a calibrated student it needs fewer epochs. `distill.mpcformer` has the settings as published.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from distill import fingerprint
from distill.batching import Tokens, as_tokens
from distill.cache import TeacherCache
from distill.distill_config import LOSSES, DistillConfig
from distill.errors import DistillError, suggestion
from distill.fixed_point import range_term
from distill.loop import Loop, LoopSettings, Stage
from distill.losses import UNITS
from distill.metrics import agreement, divergence, evaluate, score
from distill.objectives import Objectives
from distill.surgery import architecture_of

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TrainResult:
    """What training did.

    Attributes:
        history: one dict a validation (stage, epoch, step, loss, score, agreement, divergence, value,
            seconds) and one a roll-back.
        best_validation: the entry of the model that was kept.
        seconds: training time over all resumptions.
        resumed: whether this call continued (or only loaded) an earlier one.
        teacher_outputs: how many of the teacher's outputs were stored and how many computed again, in words.
        checkpoint_bytes, checkpoint_seconds: size of the last checkpoint, time that all of them took.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_validation: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: bool = False
    teacher_outputs: str = ""
    checkpoint_bytes: int = 0
    checkpoint_seconds: float = 0.0


def train(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    train: "Tokens | Dataset",
    validation: "Tokens | Dataset",
    config: DistillConfig | None = None,
    tokenizer: Any = None,
    out_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    cache: TeacherCache | None = None,
) -> TrainResult:
    """Distil `teacher` into `student`, in place; the student of the best validation divergence is in it at
    the end.

    Args:
        train, validation: splits (then `tokenizer` is needed) or tokens; labels are only used for the
            reported score.
        out_dir: where to keep checkpoints; an interrupted call continues there, a finished one only loads.
            None keeps none.
        cache: the teacher's outputs on `train`, to share between students; built in `out_dir/teacher` if not
            given.

    Raises:
        DistillError: unknown losses, a student that shares its weights with the teacher, or `out_dir` holds
        another training.
    """
    config = DistillConfig() if config is None else config
    if config.losses not in LOSSES:
        raise DistillError(f"distill.losses: unknown {config.losses!r}{suggestion(config.losses, LOSSES)}")
    if config.units not in UNITS:
        raise DistillError(f"distill.units: unknown {config.units!r}{suggestion(config.units, UNITS)}")
    if config.layerwise_epochs + config.prediction_epochs <= 0:
        raise DistillError("distill: no epochs at all: layerwise_epochs and prediction_epochs are both 0")
    shared = {parameter.data_ptr() for parameter in teacher.parameters()}
    if any(parameter.data_ptr() in shared for parameter in student.parameters()):
        raise DistillError(
            "the student shares weights with the teacher; build it with share_weights=False for training"
        )
    tokens = as_tokens(train, tokenizer, config.max_length)
    held_out = as_tokens(validation, tokenizer, config.max_length)
    if cache is not None:
        return _train(student, teacher, tokens, held_out, config, out_dir, progress, cache)
    if out_dir is not None:
        cache = TeacherCache.build(
            teacher, tokens, Path(out_dir) / "teacher", max_bytes=config.cache_bytes, progress=progress
        )
        return _train(student, teacher, tokens, held_out, config, out_dir, progress, cache)
    with tempfile.TemporaryDirectory() as directory:
        cache = TeacherCache.build(
            teacher, tokens, directory, max_bytes=config.cache_bytes, progress=progress
        )
        return _train(student, teacher, tokens, held_out, config, None, progress, cache)


def _train(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokens: Tokens,
    held_out: Tokens,
    config: DistillConfig,
    out_dir: str | os.PathLike[str] | None,
    progress: Callable[[int, int, str], None] | None,
    cache: TeacherCache,
) -> TrainResult:
    """`train` once its arguments are in order."""
    reference = evaluate(teacher, held_out)
    labels = None if held_out.labels is None else torch.tensor(held_out.labels)
    # Read before the first step: the student's tensors are part of what names this training.
    key = _key(student, teacher, tokens, held_out, config, cache)
    extras = [range_term(student, config.range_penalty)] if config.range_penalty else []
    objectives = Objectives(student, cache, config, extras)
    joint = config.losses == "joint"

    def validate() -> dict[str, Any]:
        logits = evaluate(student, held_out)
        distance = divergence(reference, logits, config.kind)
        figures: dict[str, Any] = {"value": -distance, "divergence": distance}
        if config.kind == "classification":
            figures["agreement"] = agreement(reference, logits)
        if labels is not None:
            figures["score"] = score(logits, labels, config.kind)
        return figures

    stages = [
        Stage(
            "joint" if joint else "layerwise",
            config.layerwise_epochs,
            config.lr,
            config.lr * config.coefficient_lr,
            config.warmup if config.layerwise_warmup is None else config.layerwise_warmup,
            joint,
            objectives.layerwise,
        ),
        Stage(
            "predictions",
            config.prediction_epochs,
            config.prediction_lr,
            config.prediction_lr * config.coefficient_lr,
            config.warmup,
            True,
            objectives.predictions,
        ),
    ]
    settings = LoopSettings(
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        clip=config.clip,
        seed=config.seed,
        precision=config.precision,
        dropout=config.dropout,
        freeze_embeddings=config.freeze_embeddings,
        checkpoint_seconds=config.checkpoint_seconds,
        validate_every=config.validate_every,
    )
    directory = None if out_dir is None else Path(out_dir) / "training"
    loop = Loop(student, tokens, stages, validate, settings, directory, key, progress)
    loop.run()
    return TrainResult(
        history=loop.state.history,
        best_validation=loop.state.best or {},
        seconds=loop.state.seconds,
        resumed=loop.resumed,
        teacher_outputs=cache.describe(),
        checkpoint_bytes=loop.state.checkpoint_bytes,
        checkpoint_seconds=loop.state.checkpoint_seconds,
    )


def _key(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokens: Tokens,
    held_out: Tokens,
    config: DistillConfig,
    cache: TeacherCache,
) -> str:
    """Names everything that the trained student depends on: both models' tensors, both data sets, the settings,
    which of the teacher's outputs are rounded for storage, the kind of device and the libraries' versions."""
    named = {k: v for k, v in asdict(config).items() if k not in ("checkpoint_seconds", "cache_bytes")}
    return fingerprint.of_json(
        [
            named,
            architecture_of(student).to_dict(),
            fingerprint.of_model(student),
            fingerprint.of_model(teacher),
            fingerprint.of_tokens(tokens),
            fingerprint.of_tokens(held_out),
            cache.stored,
            student.device.type,
            fingerprint.versions(),
        ]
    )
