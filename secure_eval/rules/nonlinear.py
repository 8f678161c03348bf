"""Norms, softmax and what else works on rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secure_eval import ring
from secure_eval.functions.layer_norm import layer_norm
from secure_eval.functions.rms_norm import rms_norm
from secure_eval.functions.softmax import softmax_numerator
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.rules.registry import rule


@rule
async def _softmax_numerator(p: Protocol, node: Node, x: Secret, mask: Tensor | None, dim: int) -> Secret:
    return await softmax_numerator(p, x, mask, dim)


@rule
async def _layer_norm(
    p: Protocol, node: Node, x: Secret, dims: int, weight: Any, bias: Any, eps: float, low: float, high: float
) -> Secret:
    return await layer_norm(p, x, dims, _shared(p, weight), _shared(p, bias), eps, (low, high))


@rule
async def _rms_norm(
    p: Protocol, node: Node, x: Secret, dims: int, weight: Any, eps: float, low: float, high: float
) -> Secret:
    return await rms_norm(p, x, dims, _shared(p, weight), eps, (low, high))


def _shared(p: Protocol, value: Any) -> Secret | None:
    """An affine parameter, public or secret or none, as a secret."""
    if value is None or isinstance(value, Secret):
        return value
    return p.public(ring.encode(value, p.fraction_bits), p.fraction_bits)
