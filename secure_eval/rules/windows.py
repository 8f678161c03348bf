"""Convolutions."""

from __future__ import annotations

from typing import Any

from secure_eval.program import Node
from secure_eval.protocols.base import Bilinear, Protocol, Secret
from secure_eval.rules.arithmetic import plus_bias, product
from secure_eval.rules.registry import rule


@rule
async def _conv(p: Protocol, node: Node, x: Any, weight: Any, bias: Any, steps: list[Any]) -> Secret:
    x = await p.rescale(x) if isinstance(x, Secret) else x
    windows = tuple(tuple(tuple(v) if isinstance(v, list) else v for v in step) for step in steps)
    return await plus_bias(p, node, await product(p, Bilinear("linear", windows), x, weight, node), bias)
