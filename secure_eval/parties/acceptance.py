"""What a role checks of a program that it was sent, before it runs any of it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from secure_eval.engine import evaluate_clear
from secure_eval.program import Node, Program
from secure_eval.spec import InvalidProgram, check

MAX_NODES = 1 << 20
"""Nodes that a role takes a program of."""

MAX_ELEMENTS = 1 << 36
"""Elements that a role takes a program of, all its values together: 512 GiB in the ring."""

_META = torch.device("meta")


def accept(program: Program, max_elements: int = MAX_ELEMENTS) -> Program:
    """The program itself, once it keeps the rules of spec.py, is not of absurd size, and its clear values have the shapes that it states.

    Nothing is allocated to find that out. Shapes of secret values are held against their statements where the plan is made, on meta
    tensors too (engine.py). Raises InvalidProgram.
    """
    if len(program.nodes) > MAX_NODES:
        raise InvalidProgram(f"{len(program.nodes)} nodes; allowed: {MAX_NODES}")
    total = sum(prod(node.shape) for node in program.nodes)
    if total > max_elements:
        largest = max(program.nodes, key=lambda n: prod(n.shape))
        raise InvalidProgram(
            f"{total} elements in all; allowed: {max_elements}. The largest is {largest.name} with {prod(largest.shape)}"
        )
    check(program)
    values: dict[str, Any] = {}
    for node in program.nodes:
        if node.level in ("constant", "public"):
            values[node.name] = _on_meta(program, node, values, max_elements)
    return program


def _on_meta(program: Program, node: Node, values: dict[str, Any], max_elements: int) -> Any:
    """A clear value's shape, which has to be the stated one."""
    if node.op == "input":
        return torch.empty(node.shape, dtype=node.dtype, device=_META)
    if node.op == "constant" and node.name not in program.constants:
        raise InvalidProgram(f"{node!r}: the constant was not sent")
    try:
        value = evaluate_clear(node, values, program.constants, _META)
    except Exception as error:
        raise InvalidProgram(f"{node!r} cannot be computed: {type(error).__name__}: {error}") from None
    if isinstance(value, Tensor) and (tuple(value.shape), value.dtype) != (node.shape, node.dtype):
        raise InvalidProgram(f"{node!r} would be {value.dtype} {tuple(value.shape)}")
    parts = value if isinstance(value, (list, tuple)) else ()
    if sum(part.numel() for part in parts if isinstance(part, Tensor)) > max_elements:
        raise InvalidProgram(f"{node!r} has more than {max_elements} elements")
    return value
