"""Sums, products and powers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secure_eval import ring
from secure_eval.program import Node
from secure_eval.protocols.base import LINEAR, MATMUL, MUL, Bilinear, Protocol, Secret
from secure_eval.rules.registry import rule
from secure_eval.rules.scaling import fit, plus_clear, sum_operands, times_clear
from secure_eval.scheduler import start


@rule
async def add(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if not isinstance(x, Secret):
        return await plus_clear(p, y, x, node)
    if not isinstance(y, Secret):
        return await plus_clear(p, x, y, node)
    return p.add(*await sum_operands(p, x, y, node))


@rule
async def sub(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if not isinstance(x, Secret):
        return await plus_clear(p, p.scale(y, -1), x, node)
    if not isinstance(y, Secret):
        return await plus_clear(p, x, -y, node)
    return p.sub(*await sum_operands(p, x, y, node))


@rule
async def _neg(p: Protocol, node: Node, x: Secret) -> Secret:
    return p.scale(x, -1)


@rule
async def mul(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if not isinstance(x, Secret):
        x, y = y, x
    if not isinstance(y, Secret):
        integral = isinstance(y, Tensor) and not y.is_floating_point()
        return await times_clear(p, x, y, integral, node)
    return await p.bilinear(MUL, *await fit(p, x, y, node))


@rule
async def _square(p: Protocol, node: Node, x: Secret) -> Secret:
    bits = min(x.fraction_bits, p.fraction_bits)
    opened = await p.open_masked(x, shift=x.fraction_bits - bits, degree=2)
    if x.fraction_bits > bits:
        x.memo.setdefault(("rescale", bits), await start(opened.truncated()))
    return await opened.polynomial([0.0, 0.0, 1.0], 2 * bits)


@rule
async def _power(p: Protocol, node: Node, x: Secret, n: int) -> Secret:
    while n > 1:
        x = await _square(p, node, x)
        n //= 2
    return x


async def product(p: Protocol, op: Bilinear, x: Any, y: Any, node: Node) -> Secret:
    if isinstance(x, Secret) and isinstance(y, Secret):
        return await p.bilinear(op, *await fit(p, x, y, node))
    if isinstance(x, Secret):
        x = await p.rescale(x)
        clear = ring.encode(y, p.fraction_bits)
        return x.map(lambda s: op(s, clear), x.fraction_bits + p.fraction_bits)
    y = await p.rescale(y)
    clear = ring.encode(x, p.fraction_bits)
    return y.map(lambda s: op(clear, s), y.fraction_bits + p.fraction_bits)


@rule
async def _matmul(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    return await product(p, MATMUL, x, y, node)


@rule
async def _linear(p: Protocol, node: Node, x: Secret, weight: Any, bias: Any) -> Secret:
    x = await p.rescale(x)
    return await plus_bias(p, node, await product(p, LINEAR, x, weight, node), bias)


async def plus_bias(p: Protocol, node: Node, result: Secret, bias: Any) -> Secret:
    if bias is None:
        return result
    if isinstance(bias, Secret):
        return p.add(*await sum_operands(p, result, bias, node))
    return await plus_clear(p, result, bias, node)
