"""Evaluation: logits in data order, and the figures that compare a student with labels and with its
teacher."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distill.batching import Tokens, as_tokens, plan
from distill.errors import DistillError
from distill.precision import autocast


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Any,
    tokenizer: Any = None,
    *,
    batch_size: int = 64,
    max_length: int = 128,
    precision: str = "float32",
    progress: Callable[[int, int, str], None] | None = None,
) -> Tensor:
    """Logits [items, labels] float32 on the CPU, in the order of `data`; the model is in eval mode meanwhile.

    Args:
        model: a transformers model whose output has `.logits`.
        data: a split (with `tokenizer`), `Tokens`, or an iterable of batches (dicts of tensors; "labels" is
            ignored).
        precision: "float32", "bfloat16" (autocast, with errors of about 1 % in the logits), or "auto" (see
            `precision`).
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        if _is_data(data):
            tokens = as_tokens(data, tokenizer, max_length)
            groups = plan(tokens.lengths, batch_size)
            pieces, done = [], 0
            for items in groups:
                inputs = {k: v.to(device) for k, v in tokens.collate(items, labels=False).items()}
                with autocast(device, precision):
                    pieces.append(model(**inputs).logits.float().cpu())
                done += len(items)
                if progress is not None:
                    progress(done, len(tokens), "evaluating")
            order = torch.tensor([item for items in groups for item in items])
            logits = torch.cat(pieces)
            return logits[torch.argsort(order)]
        outputs = []
        for batch in data:
            inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
            with autocast(device, precision):
                outputs.append(model(**inputs).logits.float().cpu())
        return torch.cat(outputs)
    finally:
        model.train(training)


def labels_of(data: Any) -> Tensor:
    """Labels [items] in the order in which `evaluate` gives logits. Raises DistillError if there are none."""
    if isinstance(data, Tokens):
        if data.labels is None:
            raise DistillError("the data has no labels")
        return torch.tensor(data.labels)
    if _is_data(data):
        return torch.tensor(list(data["label"]))
    return torch.cat([batch["labels"] for batch in data])


def _is_data(data: Any) -> bool:
    """Whether `data` is a split or tokens, rather than ready batches."""
    # A split is known by its columns: importing `datasets` to ask for its type takes a second.
    return isinstance(data, Tokens) or hasattr(data, "column_names")


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of items whose largest logit is the label's; logits [items, classes], labels [items]."""
    return float((logits.argmax(-1) == labels.to(logits.device)).float().mean())


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of items on which two models' largest logits are the same; both [items, classes]."""
    return float((first.argmax(-1) == second.argmax(-1)).float().mean())


def kl(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Mean KL(teacher ‖ student) in nats of the predicted distributions; both [items, classes]."""
    teacher = torch.log_softmax(teacher_logits.double(), -1)
    student = torch.log_softmax(student_logits.double(), -1)
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


def mean_squared_error(teacher_logits: Tensor, student_logits: Tensor) -> float:
    """Mean squared difference of outputs in units of the teacher's variance: the divergence to use for
    regression."""
    difference = (teacher_logits.double() - student_logits.double()).square().mean()
    return float(difference / teacher_logits.double().var(correction=0).clamp_min(1e-12))


def pearson(outputs: Tensor, labels: Tensor) -> float:
    """Pearson correlation of a regression's outputs [items, 1] or [items] with labels [items]."""
    pair = torch.stack([outputs.double().reshape(-1), labels.double().reshape(-1)])
    return float(torch.corrcoef(pair)[0, 1])


def score(logits: Tensor, labels: Tensor, kind: str) -> float:
    """The task's headline figure: accuracy for "classification", Pearson correlation for "regression"."""
    return accuracy(logits, labels) if kind == "classification" else pearson(logits, labels)


def divergence(teacher_logits: Tensor, student_logits: Tensor, kind: str) -> float:
    """How far a student is from its teacher: `kl` for "classification", `mean_squared_error` for
    "regression"."""
    return (kl if kind == "classification" else mean_squared_error)(teacher_logits, student_logits)
