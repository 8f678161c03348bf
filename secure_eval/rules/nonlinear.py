"""Operations that have a function of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.functions.gelu import gelu
from secure_eval.functions.layer_norm import layer_norm
from secure_eval.functions.maximum import amax
from secure_eval.functions.normalised import reciprocal, rsqrt
from secure_eval.functions.softmax import softmax_numerator
from secure_eval.functions.tanh import tanh
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.rules.registry import rule
from secure_eval.rules.scaling import plus_clear

MASK_BELOW = -5e3
"""An additive public mask below this selects; above, it is a number and is added."""


@rule
async def _relu(p: Protocol, node: Node, x: Secret) -> Secret:
    positive = p.invert(await p.less_than(x, [0.0]))[0]
    return await p.select(positive, x)


@rule
async def _gelu(p: Protocol, node: Node, x: Secret, approximate: str) -> Secret:
    return await gelu(p, x, approximate)


@rule
async def _tanh(p: Protocol, node: Node, x: Secret) -> Secret:
    return await tanh(p, x)


@rule
async def _reciprocal(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await reciprocal(p, x, low, high)


@rule
async def _rsqrt(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await rsqrt(p, x, low, high)


@rule
async def _softmax_numerator(p: Protocol, node: Node, x: Secret, mask: Tensor | None, dim: int) -> Secret:
    if mask is None:
        return await softmax_numerator(p, x, None, dim)
    if mask.dtype == torch.bool:
        return await softmax_numerator(p, x, mask, dim)
    keep = mask > MASK_BELOW
    x = await plus_clear(p, x, torch.where(keep, mask, torch.zeros_like(mask)))
    return await softmax_numerator(p, x, keep, dim)


@rule
async def _layer_norm(
    p: Protocol, node: Node, x: Secret, dims: int, weight: Any, bias: Any, eps: float
) -> Secret:
    secret_weight, secret_bias = (
        v
        if v is None or isinstance(v, Secret)
        else p.public(ring.encode(v, p.fraction_bits), p.fraction_bits)
        for v in (weight, bias)
    )
    return await layer_norm(p, x, dims, secret_weight, secret_bias, eps)


@rule
async def _amax(p: Protocol, node: Node, x: Secret, dim: int, keepdim: bool) -> Secret:
    return await amax(p, x, dim, keepdim)
