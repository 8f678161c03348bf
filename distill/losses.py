"""The losses of distillation (MPCFormer, ICLR 2023, section 3.3), with the errors of each layer in units of
the teacher's energy.

In those units a layer with large activations does not drown the others, and hidden states and scores can be
added.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], tokens: Tensor) -> Tensor:
    """Σ over layers of Σ (s - t)² / Σ t² over the real tokens.

    student, teacher: hidden states [batch, tokens, width], embedding output included; tokens: [batch,
        tokens], 1 for real ones.
    """
    mask = tokens[..., None].float()
    terms = []
    for ours, theirs in zip(student, teacher, strict=True):
        ours, theirs = ours.float(), theirs.float()
        energy = (theirs.square() * mask).sum().clamp_min(1e-12)
        terms.append(((ours - theirs).square() * mask).sum() / energy)
    return torch.stack(terms).sum()


def scores_loss(
    student: Sequence[tuple[Tensor, Tensor | None]], teacher: Sequence[Tensor], tokens: Tensor
) -> Tensor:
    """Σ over attentions of Σ (s - t)² / Σ t² over pairs of a real query and a kept key.

    student: (scores [batch, heads, queries, keys], keep); teacher: scores of the same shapes; tokens: [batch,
        tokens].
    """
    terms = []
    for (ours, keep), theirs in zip(student, teacher, strict=True):
        ours, theirs = ours.float(), theirs.float()
        mask = torch.ones_like(ours[:, :1])
        if tokens.shape == (ours.shape[0], ours.shape[2]):
            mask = mask * tokens[:, None, :, None]
        if keep is not None:
            mask = mask * keep
        energy = (theirs.square() * mask).sum().clamp_min(1e-12)
        terms.append(((ours - theirs).square() * mask).sum() / energy)
    return torch.stack(terms).sum()


def prediction_loss(student: Tensor, teacher: Tensor, kind: str, variance: float = 1.0) -> Tensor:
    """Soft cross-entropy at temperature 1 ("classification"), or squared error over the teacher's variance
    ("regression").

    student, teacher: [batch, labels].
    """
    if kind == "classification":
        return -(torch.softmax(teacher.float(), -1) * torch.log_softmax(student.float(), -1)).sum(-1).mean()
    return (student.float() - teacher.float()).square().mean() / max(variance, 1e-12)
