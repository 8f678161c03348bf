"""Convolutions."""

from __future__ import annotations

from typing import Any

from secure_eval.program import Node
from secure_eval.protocols.base import Bilinear, Protocol, Secret
from secure_eval.rules.arithmetic import product
from secure_eval.rules.registry import rule
from secure_eval.rules.scaling import plus_clear


@rule
async def _conv(p: Protocol, node: Node, x: Any, weight: Any, bias: Any, steps: list[Any]) -> Secret:
    x = await p.rescale(x) if isinstance(x, Secret) else x
    windows = tuple(tuple(tuple(v) if isinstance(v, list) else v for v in step) for step in steps)
    result = await product(p, Bilinear("linear", windows), x, weight)
    if bias is None:
        return result
    return p.add(result, bias) if isinstance(bias, Secret) else await plus_clear(p, result, bias)
