"""A program with one more output: whether an argument left the range that its operation is right for, in this query.

Every guarded argument is compared with the ends of its range, the bits are added up, and one last comparison makes one bit of them: 1
where any was left. It is a declared output like the others, so that the client alone learns it, and nothing else of the arguments. The
comparisons are operations of the program: what they cost is counted like all else.

What is guarded: reciprocals, roots, exponentials and logarithms whose range is not proven, and the variances of norms where a comparison
of their own can tell (from 2^-20 on, up to what a sum of squares with 2f fraction bits holds). A value that has left the ring itself
may be anything, and its bits too.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, prod
from typing import Any

from secure_eval.functions.exponential import LOWEST
from secure_eval.intervals import Intervals
from secure_eval.program import Node, Program, Ref
from secure_eval.spec import check

GUARD = "guard"
"""Name and site of the output."""
_BEYOND = 2.0**-7
"""Part of an end by which an argument may be beyond it: what approximate functions before it overstep by, and functions bear."""
_LEAST_VARIANCE = 2.0**-20
_MOST_SQUARES = 2.0**28
_POSITIVE = ("reciprocal", "rsqrt", "log")

Ends = tuple[list[tuple[float, int]], int]
"""Thresholds and what the bit [x < threshold] counts; and what all of them come to inside. Outside it is one less."""


def is_guarded(program: Program) -> bool:
    return Ref(GUARD) in program.outputs


def with_guard(program: Program) -> Program:
    """The program with its guard as last output; its `restore` leaves that out. Unchanged where nothing is guarded or already is."""
    if is_guarded(program):
        return program
    known = Intervals(program.by_name, program.constants)
    known.extend(program.nodes)
    added: list[Node] = []

    def node(op: str, args: tuple[Any, ...], shape: tuple[int, ...], name: str = "") -> Ref:
        added.append(Node(name or f"{GUARD}_{len(added)}", op, args, "secret", shape, site=GUARD))
        return Ref(added[-1].name)

    def variance(n: Node) -> Ref:
        shape, dims = n.shape, n.args[1]
        x, size = n.args[0], prod(shape[len(shape) - dims :])
        axes = list(range(-dims, 0))
        rows = (*shape[: len(shape) - dims], *[1] * dims)
        if n.op == "layer_norm":
            total = node("view", ("aten.sum.dim_IntList", x, axes, True), rows)
            x = node("sub", (x, node("mul", (total, 1.0 / size), rows)), shape)
        square = node("square", (x,), shape)
        total = node("view", ("aten.sum.dim_IntList", square, axes, True), rows)
        return node("mul", (total, 1.0 / size), rows)

    counts: list[Ref] = []
    wanted = 0
    for n in program.nodes:
        ends, inside = _ends(n, known)
        if not ends:
            continue
        x = variance(n) if n.op in ("layer_norm", "rms_norm") else n.args[0]
        shape = added[-1].shape if n.op in ("layer_norm", "rms_norm") else program[x.name].shape
        wanted += inside * prod(shape)
        for threshold, counted in ends:
            total = node("view", ("aten.sum.default", node("less", (x, threshold), shape)), ())
            counts.append(total if counted > 0 else node("neg", (total,), ()))
    if not counts:
        return program
    total = counts[0]
    for count in counts[1:]:
        total = node("add", (total, count), ())
    node("less", (total, wanted - 0.5), (), GUARD)
    restore = program.restore
    return check(
        replace(
            program,
            nodes=(*program.nodes, *added),
            outputs=(*program.outputs, Ref(GUARD)),
            restore=None if restore is None else lambda outputs: restore(outputs[:-1]),
        )
    )


def _ends(node: Node, known: Intervals) -> Ends:
    """Of a node: nothing where it has no range, or what is known of its argument keeps inside."""
    if node.op in ("layer_norm", "rms_norm"):
        eps, low, high = node.args[-3:]
        n = prod(node.shape[len(node.shape) - node.args[1] :])
        return _between(
            low - eps if low > max(2 * eps, _LEAST_VARIANCE) else -inf,
            high if high * n < _MOST_SQUARES else inf,
        )
    if node.op not in (*_POSITIVE, "signed_reciprocal", "sqrt", "exp"):
        return [], 0
    (least, most), (low, high) = known.look(node.args[0]), node.args[-2:]
    least = max(least, 1.0) if _is_sum_from_one(known, node.args[0]) else least
    if node.op == "signed_reciprocal":
        low, high = low * (1 - _BEYOND), high * (1 + _BEYOND)
        return [(high, 1), (low, -1), (-low, 1), (-high, -1)], 1
    if node.op == "exp":
        return _between(low if low > LOWEST and least < low else -inf, high if most > high else inf)
    low = 0.0 if node.op == "sqrt" else low
    return _between(
        low if least < low * (1 - _BEYOND) else -inf, high if most > high * (1 + _BEYOND) else inf
    )


def _between(low: float, high: float) -> Ends:
    """Inside from low to high, give or take _BEYOND; infinite for no end."""
    ends = []
    if high < inf:
        ends.append((high + _BEYOND * abs(high), 1))
    if low > -inf:
        ends.append((low - _BEYOND * max(abs(low), 2.0**-3 * (low == 0)), -1))
    return ends, int(high < inf)


def _is_sum_from_one(known: Intervals, x: Ref) -> bool:
    """Whether x is a sum over exponentials of which the largest is exp(0): the denominator of a softmax."""
    total = known.by_name[x.name]
    if total.op != "view" or not total.args[0].startswith("aten.sum."):
        return False
    terms = known.by_name[total.args[1].name]
    if terms.op == "softmax_numerator":
        return True
    below = known.by_name[terms.args[0].name] if terms.op == "exp" else None
    if below is None or below.op != "sub" or not isinstance(below.args[1], Ref):
        return False
    largest = known.by_name[below.args[1].name]
    return largest.op == "amax" and largest.args[0] == below.args[0]
