"""Divisions, roots, exponentials and logarithms."""

from __future__ import annotations

from secure_eval.functions.exponential import ExpRange, exp
from secure_eval.functions.logarithm import log
from secure_eval.functions.normalised import reciprocal, rsqrt
from secure_eval.functions.octave_power import signed_reciprocal, sqrt
from secure_eval.functions.octaves import Octaves
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.rules.registry import rule


@rule
async def _reciprocal(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await reciprocal(p, x, low, high)


@rule
async def _signed_reciprocal(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await signed_reciprocal(p, x, Octaves(low, high, signed=True))


@rule
async def _rsqrt(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await rsqrt(p, x, low, high)


@rule
async def _sqrt(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await sqrt(p, x, Octaves(low, high))


@rule
async def _exp(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    result = await exp(p, x, ExpRange(low, high))
    return await p.rescale(result, min(result.fraction_bits, 2 * p.fraction_bits))  # sums of it have to fit


@rule
async def _log(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await log(p, x, Octaves(low, high))
