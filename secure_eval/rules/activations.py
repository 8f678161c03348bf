"""Functions of one number."""

from __future__ import annotations

from secure_eval.functions.clamp import clamp
from secure_eval.functions.elu import elu
from secure_eval.functions.erf import erf
from secure_eval.functions.gelu import gelu
from secure_eval.functions.mish import mish
from secure_eval.functions.sigmoid import sigmoid
from secure_eval.functions.silu import silu
from secure_eval.functions.softplus import softplus
from secure_eval.functions.tanh import tanh
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.rules.registry import rule


@rule
async def _relu(p: Protocol, node: Node, x: Secret) -> Secret:
    positive = p.invert(await p.less_than(x, [0.0]))[0]
    return await p.select(positive, x)


@rule
async def _clamp(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await clamp(p, x, low, high)


@rule
async def _gelu(p: Protocol, node: Node, x: Secret, approximate: str) -> Secret:
    return await gelu(p, x, approximate)


@rule
async def _tanh(p: Protocol, node: Node, x: Secret) -> Secret:
    return await tanh(p, x)


@rule
async def _sigmoid(p: Protocol, node: Node, x: Secret) -> Secret:
    return await sigmoid(p, x)


@rule
async def _silu(p: Protocol, node: Node, x: Secret) -> Secret:
    return await silu(p, x)


@rule
async def _erf(p: Protocol, node: Node, x: Secret) -> Secret:
    return await erf(p, x)


@rule
async def _softplus(p: Protocol, node: Node, x: Secret) -> Secret:
    return await softplus(p, x)


@rule
async def _elu(p: Protocol, node: Node, x: Secret, alpha: float) -> Secret:
    return await elu(p, x, alpha)


@rule
async def _mish(p: Protocol, node: Node, x: Secret) -> Secret:
    return await mish(p, x)
