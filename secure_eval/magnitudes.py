"""How large each value of a program may be, as a power of two: what says how many fraction bits it has room for.

A ring element has to stay below 2^VALUE_BITS, so a value below 2^b has room for VALUE_BITS - b fraction bits. With f fraction bits the
promise is that every value may be as large as 2^promise(f), which leaves room for a product of two values with f fraction bits each. A
value of which more is known has more room, and so is truncated less often. More is known where

* its making proves it: a sigmoid, a share of a sum, what follows from the bounds of operands (intervals.py);
* its function states it: arguments beyond what a function is right for are refused by the check (ranges/checking.py), and so is the
  result of a normalisation that is not below 2^normalised(f);
* it is certified by calibration, with a margin (Node.bound, ranges/certificate.py).

Whoever runs a program works its bounds out by the same steps: sums, products and square roots, which round alike on all machines.
"""

from __future__ import annotations

from dataclasses import replace
from math import frexp, inf, nextafter

from secure_eval import ring
from secure_eval.intervals import SLACK, Intervals
from secure_eval.operations import OPERATIONS
from secure_eval.operations.operation import Interval
from secure_eval.program import Node, Program, Ref

_MOST_SPREAD = 6


def promise(fraction_bits: int) -> int:
    """Values may be below 2^this in magnitude, whatever is known of them."""
    return ring.VALUE_BITS - 2 * fraction_bits


def own_limit(node: Node, fraction_bits: int) -> int:
    """The exponent that a node's value has to stay below whatever its operands are: promised, stated or certified."""
    operation = OPERATIONS.get(node.op)
    own = operation.limit(fraction_bits) if operation and operation.limit else ring.VALUE_BITS
    return min(promise(fraction_bits), own, ring.VALUE_BITS if node.bound is None else node.bound)


def bits(magnitude: float) -> int:
    """The least whole number b >= 0 for which magnitude < 2^b."""
    return max(0, frexp(magnitude)[1])


def with_bounds(program: Program, fraction_bits: int) -> Program:
    """The program with a bound for every secret value, and a spread for every product of two (see program.Node). Worked out once."""
    kept: dict[int, Program] = program.__dict__.setdefault("_with_bounds", {})
    if fraction_bits not in kept:
        kept[fraction_bits] = _with_bounds(program, fraction_bits)
    return kept[fraction_bits]


def _with_bounds(program: Program, fraction_bits: int) -> Program:
    def limit(node: Node) -> float:
        return nextafter(2.0 ** own_limit(node, fraction_bits), 0.0)

    known = Intervals(program.by_name, program.constants, valid=True, slack=SLACK, limit=limit)
    known.extend(program.nodes)
    return program.with_nodes(
        [
            node
            if node.level != "secret"
            else replace(node, bound=bits(max(map(abs, known.known[node.name]))), spread=_spread(known, node))
            for node in program.nodes
        ]
    )


def proven(program: Program) -> dict[str, int]:
    """The bounds of secret values that follow from how they are made, with arguments that functions are right for, whatever the inputs."""
    known = Intervals(program.by_name, program.constants, valid=True, slack=SLACK)
    known.extend(program.nodes)
    largest = {n.name: max(map(abs, known.known[n.name])) for n in program.nodes if n.level == "secret"}
    return {name: bits(value) for name, value in largest.items() if value < inf}


def _spread(known: Intervals, node: Node) -> int:
    """Half of how many more fraction bits the second factor gets where the ring has no room for the bits of both.

    The error of x y is |y| times x's plus |x| times y's. A factor known to lie in [2^-k, 1], such as one over a sum of up to 2^k, is
    2^-(k/2) or so; both errors count the same where it has k/2 more bits than it would, and the other k/2 fewer.
    """
    if node.op != "mul" or not all(isinstance(a, Ref) for a in node.args) or node.args[0] == node.args[1]:
        return 0
    first, second = (_fineness(known.look(a)) for a in node.args)
    return max(-_MOST_SPREAD, min(_MOST_SPREAD, second - first))


def _fineness(interval: Interval) -> int:
    """Minus the exponent in the middle of what is known to be positive and below 2; 0 otherwise."""
    low, high = interval
    return max(0, -(frexp(low)[1] + frexp(high)[1]) // 2) if 0 < low <= high < 2 else 0
