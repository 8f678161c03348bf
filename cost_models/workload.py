"""What a model computes on secrets, as a list of works: products, activations, softmaxes, norms, each with its shape.

The formulas of other systems (cost_models.peers) price works, because those systems would run the model's own operations and not the
engine's. So `works` reads a program as the model says it, before the passes that move factors and divisions to where the engine has
them cheaper; `READ_AFTER` lists those that may have run. Softmax is one work (numerator, row sum, reciprocal and product), and so are
rotary embeddings that a model writes out. Shifts and scales of a whole channel are folded into a weight (a batch norm), as other systems
fold them. A secret operation that is not known here becomes a work of its own kind, so that nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from cost_models.workload_patterns import Patterns
from secure_eval.engine import evaluate_clear
from secure_eval.passes import (
    Pass,
    fold_channel_affine,
    fold_channels_into_windows,
    recognise_activations,
    recognise_squares,
    remove_unused,
    run_passes,
)
from secure_eval.program import Node, Program, Ref

FREE = frozenset({"view", "cat", "add", "sub", "neg", "share_input", "share_weight", "take"})
"""Secret operations that cost nothing in any system priced here: rearrangements, sums, and what was shared before."""


@dataclass(frozen=True)
class Work:
    """One operation on secrets, with its shape. Fields that a kind doesn't have are 0.

    Args:
        kind: "linear" (product with a weight), "matmul" (product of two secrets), "public_product" (with a public matrix), "conv",
            "embedding" (one-hot rows times a secret table), "lookup" (embedding that the client looks up in the clear), "mul" (elementwise,
            both secret), "square", "scale" (by a public number or tensor), "rotary" (x cos + rotated(x) sin), "softmax", "layer_norm",
            "rms_norm", "max", or the name of the program's operation: "relu", "gelu", "tanh", "exp", "reciprocal", "less", "where", ...
        site: path of the module that it comes from.
        elements: elements of the result.
        left, right: elements of the operands of a product, the activation's first.
        batch, m, k, n: a product of batch matrices [m, k] and [k, n]; of a convolution, of its windows.
        rows, columns: of what is done to each row; of a lookup, tokens and width.
        kept: elements of scores, or of a softmax, that no public mask removes; as many as there are if there is no mask.
        factor: of a scale by a number.
        operand: names the activation that a product takes; layers with the same one could share what they open.
        weight: whether the right operand, or a norm's gain, is the model owner's.
    """

    kind: str
    site: str = ""
    elements: int = 0
    left: int = 0
    right: int = 0
    batch: int = 0
    m: int = 0
    k: int = 0
    n: int = 0
    rows: int = 0
    columns: int = 0
    kept: int = 0
    factor: float | None = None
    operand: str = ""
    weight: bool = False


def within(works: Sequence[Work], *prefixes: str) -> tuple[Work, ...]:
    """The works whose site begins with one of the prefixes."""
    return tuple(w for w in works if w.site.startswith(prefixes))


READ_AFTER: tuple[Pass, ...] = (
    recognise_activations,
    remove_unused,
    recognise_squares,
    fold_channels_into_windows,
    fold_channel_affine,
)
"""The passes that leave works as the model has them."""


def works(program: Program) -> tuple[Work, ...]:
    """A program's works, in order. Public inputs count as all ones: nothing is padded.

    program: captured with `passes=()`, or with some of `READ_AFTER`. Raises ValueError for another, which is not what the model says.
    """
    if program.passes is None:
        raise ValueError(
            "it is not known what ran on this program; works are read from one captured with passes=()"
        )
    allowed = {one.__name__ for one in READ_AFTER}
    if others := [name for name in program.passes if name not in allowed]:
        raise ValueError(
            f"{', '.join(others)} ran on this program; works are read from one captured with passes=()"
        )
    if not program.passes:
        program = run_passes(program, READ_AFTER)
    return tuple(_Reader(program).read())


class _Reader:
    def __init__(self, program: Program):
        self.program = program
        self.patterns = Patterns(program)
        self.kept = _kept_elements(program)

    def read(self) -> list[Work]:
        found: list[Work] = []
        for node in self.program.nodes:
            if (looked_up := self._lookup(node)) is not None:
                found.append(looked_up)
            if node.level != "secret" or node.name in self.patterns.skipped:
                continue
            if node.op in FREE and node.name not in self.patterns.rotary:
                continue
            found += self._works(node)
        return found

    # -- one node ----------------------------------------------------------------------------------------------

    def _works(self, node: Node) -> list[Work]:
        size, site = prod(node.shape), node.site
        if node.name in self.patterns.rotary:
            return [Work("rotary", site, size)]
        if node.op in ("linear", "matmul"):
            return [self._product(node)]
        if node.op == "conv":
            return [self._convolution(node)]
        if node.op == "mul":
            return [self._elementwise(node)]
        if node.op == "power":
            return [Work("square", site, size)] * (int(node.args[1]).bit_length() - 1)
        if node.op == "softmax_numerator":
            columns = self._shape(node.args[0])[node.args[2]]
            kind = "softmax" if node.name in self.patterns.softmax else node.op
            return [Work(kind, site, size, rows=size // columns, columns=columns, kept=self._kept(node))]
        if node.op in ("layer_norm", "rms_norm"):
            columns = prod(node.shape[-node.args[1] :])
            weight = node.args[2] is not None
            return [Work(node.op, site, size, rows=size // columns, columns=columns, weight=weight)]
        if node.op in ("amax", "max_with_index"):
            shape = self._shape(node.args[0])
            columns = shape[node.args[1]]
            return [Work("max", site, prod(shape) // columns, rows=prod(shape) // columns, columns=columns)]
        if node.op == "where" and not self._secret(node.args[0]):
            return []
        return [Work(node.op, site, size)]

    def _product(self, node: Node) -> Work:
        x, y = node.args[:2]
        if node.op == "matmul" and self._weight(x) and not self._weight(y):
            x, y = y, x
            k = self._shape(y)[-1]
        else:
            k = self._shape(x)[-1]
        n = node.shape[-1]
        left, right = prod(self._shape(x)), prod(self._shape(y))
        public = not self._secret(x) or not self._secret(y)
        batch = 1 if len(self._shape(y)) <= 2 else prod(node.shape[:-2])
        source = self.program.by_name[x.name]
        while source.op == "view" and source.args[0] == "aten.reshape.default":
            source = self.program.by_name[source.args[1].name]
        one_hot = source.op == "share_input" and self._op(source.args[0]) == "aten::aten.one_hot.default"
        kind = "public_product" if public else "linear" if self._weight(y) else "matmul"
        return Work(
            "embedding" if one_hot and kind == "linear" else kind,
            node.site,
            prod(node.shape),
            left,
            right,
            batch,
            prod(node.shape) // (batch * n),
            k,
            n,
            kept=self._kept(node),
            operand=source.name,
            weight=kind == "linear",
        )

    def _convolution(self, node: Node) -> Work:
        x, weight = node.args[:2]
        shape = self._shape(weight)
        batch = prod(shape[:-2])
        n, size = shape[-2], prod(node.shape)
        left, right = prod(self._shape(x)), prod(shape)
        return Work(
            "conv",
            node.site,
            size,
            left,
            right,
            batch,
            size // (batch * n),
            shape[-1],
            n,
            kept=size,
            operand=x.name,
            weight=self._weight(weight),
        )

    def _elementwise(self, node: Node) -> Work:
        size = prod(node.shape)
        for y in (node.args[1], node.args[0]):
            if isinstance(y, (int, float)):
                return Work("scale", node.site, size, kept=self._kept(node), factor=float(y))
            if not self._secret(y):
                return Work("scale", node.site, size)
        x, y = node.args[:2]
        if self._weight(x) and not self._weight(y):
            x, y = y, x
        left, right = prod(self._shape(x)), prod(self._shape(y))
        return Work("mul", node.site, size, max(left, right), min(left, right), weight=self._weight(y))

    def _lookup(self, node: Node) -> Work | None:
        if node.level != "client" or node.op != "aten::aten.embedding.default":
            return None
        if self._op(node.args[0]) != "table":
            return None
        columns = node.shape[-1]
        rows = prod(node.shape) // columns
        return Work("lookup", node.site, prod(node.shape), rows=rows, columns=columns)

    # -- what an argument is -----------------------------------------------------------------------------------

    def _op(self, value: Any) -> str:
        return self.program.by_name[value.name].op if isinstance(value, Ref) else ""

    def _shape(self, value: Any) -> tuple[int, ...]:
        return self.program.by_name[value.name].shape

    def _secret(self, value: Any) -> bool:
        return isinstance(value, Ref) and self.program.by_name[value.name].level == "secret"

    def _weight(self, value: Any) -> bool:
        return self._op(value) == "share_weight"

    def _kept(self, node: Node) -> int:
        return self.kept.get(node.name, prod(node.shape))


def _kept_elements(program: Program) -> dict[str, int]:
    """Softmax numerators, and the scores and products that lead to them -> the elements that no mask removes."""
    found: dict[str, int] = {}
    counted: dict[str, int | None] = {}
    for node in program.nodes:
        if node.op != "softmax_numerator":
            continue
        mask = node.args[1]
        if not isinstance(mask, Ref):
            continue
        if mask.name not in counted:
            counted[mask.name] = _positions(program, mask.name)
        positions = counted[mask.name]
        if positions is None:
            continue
        total = prod(node.shape)
        kept = positions * (total // prod(program.by_name[mask.name].shape))
        source: Node | None = node
        while source is not None and prod(source.shape) == total:
            found[source.name] = kept
            source = _scores_behind(program, source)
    return found


def _scores_behind(program: Program, node: Node) -> Node | None:
    """The scores that a softmax's numerator, a public mask or a public scale is applied to."""
    if node.op not in ("softmax_numerator", "mul", "add", "where"):
        return None
    operands = [program.by_name[a.name] for a in node.args if isinstance(a, Ref)]
    secret = [n for n in operands if n.level == "secret"]
    return secret[0] if len(secret) == 1 else None


def _positions(program: Program, mask: str) -> int | None:
    """How many positions a public mask keeps; None where it depends on what is not known here."""
    needed, waiting = {mask}, [mask]
    while waiting:
        for name in program.by_name[waiting.pop()].references():
            if name not in needed:
                needed.add(name)
                waiting.append(name)
    values: dict[str, Any] = {}
    constants: Mapping[str, Tensor] = program.constants
    for node in program.nodes:
        if node.name not in needed:
            continue
        if node.op == "input" and node.level == "public":
            values[node.name] = torch.ones(node.shape, dtype=node.dtype)
        elif node.op == "constant" and constants[node.name].is_meta or node.op in ("input", "parameter"):
            return None
        else:
            values[node.name] = evaluate_clear(node, values, constants, torch.device("cpu"))
    value = values[mask]
    return int((value if value.dtype == torch.bool else value != -torch.inf).sum())
