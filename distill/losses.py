"""The losses of distillation (MPCFormer, ICLR 2023, section 3.3).

Errors of a layer are measured in units of the teacher's energy, so that a layer with large activations does not
drown the others, and hidden states and scores can be added; or, as published, as raw mean squares.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Units = Literal["energy", "raw"]
UNITS = ("energy", "raw")


def hidden_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], tokens: Tensor, units: Units = "energy"
) -> Tensor:
    """Σ over layers of Σ (s - t)² / Σ t² over the real tokens; with raw units, of the mean of (s - t)².

    student, teacher: hidden states [batch, tokens, width], embedding output included; tokens: [batch,
        tokens], 1 for real ones.
    """
    mask = tokens[..., None].float()
    terms = []
    for ours, theirs in zip(student, teacher, strict=True):
        ours, theirs = ours.float(), theirs.float()
        terms.append(_distance(ours, theirs, mask, mask.sum() * ours.shape[-1], units))
    return torch.stack(terms).sum()


def scores_loss(
    student: Sequence[tuple[Tensor, Tensor | None]],
    teacher: Sequence[Tensor],
    tokens: Tensor,
    units: Units = "energy",
) -> Tensor:
    """Σ over attentions of Σ (s - t)² / Σ t² over pairs of a real query and a kept key; with raw units, of the mean
    over pairs of real query and real key, in which masked ones count as equal (MPCFormer sets both to 0).

    student: (scores [batch, heads, queries, keys], keep); teacher: scores of the same shapes; tokens: [batch,
        tokens].
    """
    terms = []
    for (ours, keep), theirs in zip(student, teacher, strict=True):
        ours, theirs = ours.float(), theirs.float()
        batch, heads, queries, keys = ours.shape
        mask = torch.ones_like(ours[:, :1])
        pairs = mask
        if tokens.shape == (batch, queries):
            mask = mask * tokens[:, None, :, None]
            pairs = mask * tokens[:, None, None, :] if queries == keys else mask
        if keep is not None:
            mask = mask * keep
        terms.append(_distance(ours, theirs, mask, pairs.sum() * heads, units))
    return torch.stack(terms).sum()


def _distance(ours: Tensor, theirs: Tensor, mask: Tensor, count: Tensor, units: Units) -> Tensor:
    """Squared error where the mask is 1, over the energy there or over a count."""
    error = ((ours - theirs).square() * mask).sum()
    return error / (
        (theirs.square() * mask).sum().clamp_min(1e-12) if units == "energy" else count.clamp_min(1)
    )


def prediction_loss(student: Tensor, teacher: Tensor, kind: str, variance: float = 1.0) -> Tensor:
    """Soft cross-entropy at temperature 1 ("classification"), or squared error over the teacher's variance
    ("regression").

    student, teacher: [batch, labels].
    """
    if kind == "classification":
        return -(torch.softmax(teacher.float(), -1) * torch.log_softmax(student.float(), -1)).sum(-1).mean()
    return (student.float() - teacher.float()).square().mean() / max(variance, 1e-12)
