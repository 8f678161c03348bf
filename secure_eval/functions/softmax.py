"""The numerator of softmax; the denominator is its sum, and the division a reciprocal a row."""

from __future__ import annotations

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.functions.exponential import exp_nonpositive
from secure_eval.functions.maximum import amax
from secure_eval.protocols.base import Protocol, Secret

_FAR_BELOW_BITS = 60
"""A masked entry is 2^_FAR_BELOW_BITS ring units below zero: farther than any score may be, so that differences of the two still fit."""

MOST_BITS = 32
"""Fraction bits of scores: with these the numbers that a mask adds fit."""


async def softmax_numerator(p: Protocol, x: Secret, mask: Tensor | None, dim: int) -> Secret:
    """exp(y - max(y)), y = x + mask, where the mask is above -inf, 0 elsewhere; any shape, along `dim`.

    `mask` is public and broadcastable: numbers that are added, and -inf for what is left out; or bool, true for what is kept; None:
    everything. What is left out takes no part in the maximum and never reaches exp. A row with nothing to keep becomes uniform. Needs
    abs(y) < 2^(60 - fraction bits of x), which are 32 at most: 2^28. The largest entry of a row is 1, so the row's sum is between 1 and
    its length.
    """
    x = await p.rescale(x, min(x.fraction_bits, 2 * p.fraction_bits, MOST_BITS))
    keep = None
    if mask is not None:
        keep = mask if mask.dtype == torch.bool else mask != -torch.inf
        if mask.dtype != torch.bool:
            x = p.lift(x, max(x.fraction_bits, p.fraction_bits))
            added = torch.where(keep, mask, torch.zeros_like(mask))
            x = p.add_public(x, ring.encode(added, x.fraction_bits))
        keep = torch.broadcast_to(keep, x.shape)
        some = keep.any(dim, keepdim=True)
        keep = (keep | ~some).to(torch.int64)
        inside = keep * some
        bottom = (1 - keep) * -(1 << _FAR_BELOW_BITS)
        x = p.add_public(p.scale(x, inside), bottom)
    y = p.sub(x, await amax(p, x, dim, keepdim=True))
    if keep is not None:
        y = p.scale(y, keep)
    e = await p.rescale(await exp_nonpositive(p, y))
    return e if keep is None else p.scale(e, keep)
