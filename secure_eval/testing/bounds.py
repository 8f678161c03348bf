"""Error bounds of whole programs: each operation's own bound (operations/error.py), node by node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secure_eval.operations import OPERATIONS
from secure_eval.operations.error import Approximate, Steps
from secure_eval.program import Node

__all__ = ["RELATIVE", "Approximate", "Steps", "error"]

RELATIVE = 2.0**-22
"""Of float32: inputs are given and outputs returned in it."""


def error(node: Node, steps: Steps, value: Tensor, args: list[Any]) -> Tensor:
    """The bound of a node's error, of the shape of its value."""
    result = OPERATIONS[node.op].error(replace(steps, spread=node.spread), value, *args)
    return torch.broadcast_to(result, value.shape)
