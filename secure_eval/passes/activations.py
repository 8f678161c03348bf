"""A pass that finds activation functions however they are written, by what they compute.

GELU is spelled in a dozen ways: by erf or tanh, the cube as a power or as products, the half in front or behind, constants of eight digits
or sixteen. All of them are a value x that goes through sums, products with numbers and with itself, and a function or two. So every such
expression around a tanh, an erf, a sigmoid or an exponential is evaluated at some hundreds of points, and where it is a multiple of a
known function there, the one operation takes its place. It is right where the parts are not, whose x^3 is beyond what tanh takes, and it
costs less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from secure_eval.operations import OPERATIONS
from secure_eval.program import Node, Program, Ref

_CURVED = ("tanh", "erf", "sigmoid", "exp", "softplus")
"""Operations that a spelled-out activation has at least one of."""

_ELEMENTWISE = ("add", "sub", "neg", "mul", "square", "power", "reciprocal", *_CURVED)
_DEPTH = 8
_POINTS = torch.linspace(-12.0, 12.0, 481, dtype=torch.float64)
_TOLERANCE = 2e-6
"""Of what both compute, in parts of the factor between them: constants of eight digits are nearer, erf and tanh are 4e-4 apart."""


@dataclass(frozen=True)
class _Known:
    op: str
    args: tuple[Any, ...]
    inner: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return OPERATIONS[self.op].meaning(self.inner * x, *self.args) / self.inner


_ACTIVATIONS = (
    _Known("gelu", ("none",)),
    _Known("gelu", ("tanh",)),
    _Known("silu", ()),
    _Known("silu", (), 1.702),
    _Known("mish", ()),
)
"""What is looked for: a function of inner * x, divided by `inner`. The quick GELU is the SiLU of 1.702 x."""


def recognise_activations(program: Program) -> Program:
    """Expressions that compute a multiple of a GELU, a SiLU, a quick GELU or a Mish become that operation, and a product where needed."""
    finder = _Finder(program)
    inserted: dict[str, list[Node]] = {}
    for node in program.nodes:
        if node.level != "secret" or node.op not in _CURVED:
            continue
        found = finder.around(node)
        if found is not None:
            result, nodes = found
            inserted.setdefault(result, nodes)
    if not inserted:
        return program
    return program.with_nodes(
        [n for node in program.nodes for n in inserted.get(node.name, [node])],
    )


class _Finder:
    def __init__(self, program: Program):
        self.program, self.nodes, self.users = program, program.by_name, program.users()

    def around(self, curved: Node) -> tuple[str, list[Node]] | None:
        """The name of the furthest result that is an activation, and the nodes that take its place."""
        sources = list(self._sources(curved))
        for result in reversed(list(self._results(curved))):
            for x in sources:
                if x.shape != result.shape or x.name == result.name:
                    continue
                values = self._evaluate(result, x)
                match = None if values is None else _matching(values)
                if match is not None:
                    return result.name, _spelled(result, x, *match)
        return None

    def _results(self, curved: Node) -> Iterator[Node]:
        """Nodes that the curved one leads to by elementwise steps, nearest first."""
        seen, level = {curved.name}, [curved]
        for _ in range(_DEPTH):
            level = [
                u
                for n in level
                for u in self.users[n.name]
                if u.level == "secret" and u.op in _ELEMENTWISE and u.name not in seen
            ]
            seen.update(n.name for n in level)
            yield from dict.fromkeys(level)

    def _sources(self, curved: Node) -> Iterator[Node]:
        """Secret nodes that lead to the curved one by elementwise steps, nearest first."""
        seen, level = {curved.name}, [curved]
        for _ in range(_DEPTH):
            names = [r for n in level if n.op in _ELEMENTWISE for r in n.references() if r not in seen]
            level = [self.nodes[r] for r in dict.fromkeys(names) if self.nodes[r].level == "secret"]
            seen.update(names)
            yield from level

    def _evaluate(self, result: Node, x: Node) -> Tensor | None:
        """The result at all points for x, None where it depends on anything else."""
        known: dict[str, Tensor] = {x.name: _POINTS}
        budget = 4 * _DEPTH

        def value(argument: Any) -> Any:
            nonlocal budget
            if not isinstance(argument, Ref):
                return argument if isinstance(argument, (int, float)) else _raise()
            if argument.name in known:
                return known[argument.name]
            number = self.program.constants.get(argument.name)
            if number is not None and number.numel() == 1 and not number.is_meta:
                return float(number)
            node, budget = self.nodes[argument.name], budget - 1
            if budget < 0 or node.level != "secret" or node.op not in _ELEMENTWISE or node.shape != x.shape:
                _raise()
            operands = 2 if node.op in ("add", "sub", "mul") else 1
            values = [value(a) for a in node.args[:operands]]
            known[node.name] = OPERATIONS[node.op].meaning(*values, *node.args[operands:])
            return known[node.name]

        try:
            found = value(Ref(result.name))
        except _OtherArguments:
            return None
        return found if isinstance(found, Tensor) and bool(found.isfinite().all()) else None


class _OtherArguments(Exception):
    """An expression is of more than x."""


def _raise() -> Any:
    raise _OtherArguments


def _matching(values: Tensor) -> tuple[_Known, float] | None:
    """The activation that the values are a multiple of, and the factor."""
    for known in _ACTIVATIONS:
        wanted = known(_POINTS)
        factor = float((values @ wanted) / (wanted @ wanted))
        if abs(factor) >= 2.0**-10 and float((values - factor * wanted).abs().max()) < _TOLERANCE * abs(
            factor
        ):
            nearest = round(factor * 2**10) / 2**10
            return known, nearest if abs(factor - nearest) < _TOLERANCE * abs(factor) else factor
    return None


def _spelled(result: Node, x: Node, known: _Known, factor: float) -> list[Node]:
    """factor * activation(x), the last node under the result's name."""
    made: list[Node] = []

    def make(suffix: str, op: str, args: tuple[Any, ...]) -> Ref:
        made.append(replace(result, name=f"{result.name}_{suffix}", op=op, args=args, kwargs=(), bound=None))
        return Ref(made[-1].name)

    argument = Ref(x.name) if known.inner == 1.0 else make("argument", "mul", (Ref(x.name), known.inner))
    value = make(known.op, known.op, (argument, *known.args))
    if factor != known.inner:
        make("scaled", "mul", (value, factor / known.inner))
    made[-1] = replace(made[-1], name=result.name)
    return made
