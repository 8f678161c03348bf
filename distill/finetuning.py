"""Fine-tuning a checkpoint into a teacher, resumable (see `distill.loop` for the files)."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from distill import fingerprint
from distill.batching import tokenize
from distill.checkpoints import restore, save
from distill.data import Splits
from distill.errors import DistillError
from distill.loop import Loop, LoopSettings, Stage
from distill.metrics import divergence, evaluate, score
from distill.padding import settle_padding


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training split; may be fractional.
        lr: peak learning rate, after a linear warm-up over the share `warmup` of the steps, then linear decay
            to 0.
        batch_size: items a step.
        weight_decay: AdamW's, on matrices only.
        seed: of the new head, the order and the dropout.
        freeze_embeddings: keep the word embeddings as they are (half of a small model's weights).
        max_length: longest item in tokens.
        clip: largest gradient norm.
        precision: "auto", "float32" or "bfloat16" (see `distill.precision`).
        checkpoint_seconds: least time between checkpoints; more passes where writing one takes long (at most a
            twentieth of the time goes into them), and 0 writes one after each step.
    """

    epochs: float = 3
    lr: float = 5e-5
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0
    freeze_embeddings: bool = True
    max_length: int = 128
    clip: float = 1.0
    precision: str = "auto"
    checkpoint_seconds: float = 30.0


def check_loaded(model: PreTrainedModel, found: Mapping[str, Any], place: str, head: bool = False) -> None:
    """Refuse a model of which tensors were not in the checkpoint: they have random values.

    found: what from_pretrained reports. head: whether the head has to be there too; if not, it and a pooling layer may be new.

    Raises DistillError.
    """
    lacking = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    inside = f"{model.base_model_prefix}."
    if not head:
        lacking = [name for name in lacking if name.startswith(inside) and ".pooler." not in name]
    if lacking:
        raise DistillError(
            f"checkpoint {place!r} has no weights that fit {len(lacking)} of the tensors of {type(model).__name__}: "
            + ", ".join(lacking[:3])
            + (", …" if len(lacking) > 3 else "")
            + "; is config.json that of these weights?"
        )


def finetune(
    checkpoint: str | os.PathLike[str],
    splits: Splits,
    config: FinetuneConfig,
    out_dir: str | os.PathLike[str],
    progress: Callable[[int, int, str], None] | None = None,
    tokenizer: Any = None,
) -> PreTrainedModel:
    """Fine-tune `checkpoint` (hub id or directory) on `splits`; the model of the best validation score, in
    eval mode.

    It continues from `out_dir/training` if it was interrupted, and only loads if it was finished.
    `out_dir/model` is the teacher with its tokenizer as a plain Hugging Face directory.

    Raises:
        DistillError: a local checkpoint that is not there, or `out_dir` holds another training.
    """
    root = Path(out_dir)
    place = str(checkpoint)
    if ("/" in place and place.startswith((".", "/", "~"))) or isinstance(checkpoint, Path):
        place = str(Path(place).expanduser())
        if not Path(place, "config.json").exists():
            raise DistillError(f"checkpoint {place!r}: no such directory, or no config.json in it")
    tokenizer = AutoTokenizer.from_pretrained(place) if tokenizer is None else tokenizer
    names = list(splits.label_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the new head's weights
        model, found = AutoModelForSequenceClassification.from_pretrained(
            place,
            num_labels=splits.num_labels,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            problem_type="single_label_classification" if splits.kind == "classification" else "regression",
            attn_implementation="eager",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head for other classes gives way to a new one
            output_loading_info=True,
        )
    check_loaded(model, found, place)
    settle_padding(tokenizer, model.config)
    tokens = tokenize(splits.train, tokenizer, config.max_length)
    held_out = tokenize(splits.validation, tokenizer, config.max_length)
    labels = torch.tensor(held_out.labels)

    def loss(items: list[int], batch: dict[str, Tensor]) -> Tensor:
        if splits.kind == "regression":
            batch["labels"] = batch["labels"].float()
        return model(**batch).loss.float()

    def validate() -> dict[str, Any]:
        logits = evaluate(model, held_out)
        reached = score(logits, labels, splits.kind)
        if splits.kind == "classification":
            excess = float(torch.nn.functional.cross_entropy(logits, labels))
        else:
            excess = divergence(labels.float()[:, None], logits, "regression")
        # Equal scores are common on small validation splits: the lower loss then decides.
        return {"value": reached - 1e-4 * excess, "score": reached, "validation_loss": excess}

    described = {key: value for key, value in asdict(config).items() if key != "checkpoint_seconds"}
    key = fingerprint.of_json(
        [
            described,
            fingerprint.of_model(model),
            fingerprint.of_tokens(tokens),
            fingerprint.of_tokens(held_out),
            model.device.type,
            fingerprint.versions(),
        ]
    )
    stage = Stage("fine-tuning", config.epochs, config.lr, config.lr, config.warmup, True, loss)
    settings = LoopSettings(
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        clip=config.clip,
        seed=config.seed,
        precision=config.precision,
        dropout=True,
        freeze_embeddings=config.freeze_embeddings,
        checkpoint_seconds=config.checkpoint_seconds,
        validate_every=1.0,
    )
    loop = Loop(model, tokens, [stage], validate, settings, root / "training", key, progress)
    loop.run()
    # Written even if there is one: what lies there may be another training's, or half of one.
    save(model, root / "model", tokenizer)
    return restore(root / "model")
