"""Where several nodes are one operation of the model: softmax, moved divisions and scales, written-out GELU and rotary embeddings."""

from __future__ import annotations

import re
from math import pi, sqrt
from typing import Any

from secure_eval.program import Node, Program, Ref

_SUM = "aten.sum.dim_IntList"


class Patterns:
    """What was recognised in a program, all by names of nodes.

    Attributes:
        softmax: numerators whose row sum, reciprocal and product are all there.
        divided: products by a row's reciprocal that stand behind a matmul -> that matmul's left operand, which the model divides.
        gelu, rotary: the last node of each that is written out.
        skipped: nodes that are part of another's work.
    """

    def __init__(self, program: Program):
        self._nodes, self._users = program.by_name, program.users()
        self.softmax: set[str] = set()
        self.divided: dict[str, str] = {}
        self.gelu: set[str] = set()
        self.rotary: set[str] = set()
        self.skipped: set[str] = set()
        self._scales: dict[str, float] = {}
        for node in program.nodes:
            if node.level != "secret":
                continue
            if node.op == "mul":
                self._divided_behind(node)
            elif node.op == "softmax_numerator":
                self._whole_softmax(node)
            elif node.op == "tanh":
                self._gelu_around(node)
            elif node.op == "add":
                self._rotary_at(node)
            elif node.op == "linear":
                self._scale_of(node)

    def scaled_after(self, node: Node) -> float | None:
        """The factor by which the model scales a node's value though the program has it in a weight."""
        return self._scales.get(node.name)

    # -- looking around ----------------------------------------------------------------------------------------

    def _node(self, value: Any, op: str) -> Node | None:
        node = self._nodes[value.name] if isinstance(value, Ref) else None
        return node if node is not None and node.op == op else None

    def _only_user(self, node: Node, op: str) -> Node | None:
        users = self._users[node.name]
        return users[0] if len(users) == 1 and users[0].op == op else None

    def _scaled(self, value: Any, factor: float) -> Any:
        """What is multiplied with (about) `factor` to give the value; None where it isn't that."""
        node = self._node(value, "mul")
        for x, c in (node.args[:2], node.args[1::-1]) if node is not None else ():
            if isinstance(c, (int, float)) and abs(c - factor) < 1e-3 * abs(factor):
                return x
        return None

    # -- softmax -----------------------------------------------------------------------------------------------

    def _divided_behind(self, node: Node) -> None:
        for x, y in (node.args[:2], node.args[1::-1]):
            product = self._node(x, "matmul")
            # The pass that moves a division behind a matmul names the matmul so.
            if product is not None and product.name == f"{node.name}_undivided" and isinstance(y, Ref):
                self.divided[node.name] = product.args[0].name

    def _whole_softmax(self, numerator: Node) -> None:
        for total in self._users[numerator.name]:
            if total.op != "view" or total.args[0] != _SUM:
                continue
            for inverse in self._users[total.name]:
                products = self._users[inverse.name]
                if inverse.op == "reciprocal" and products and all(n.op == "mul" for n in products):
                    self.softmax.add(numerator.name)
                    self.skipped |= {inverse.name, *(n.name for n in products)}

    # -- scales ------------------------------------------------------------------------------------------------

    def _scale_of(self, linear: Node) -> None:
        weight = self._node(linear.args[1], "share_weight")
        factor = 1.0
        while weight is not None:
            source = self._nodes[weight.args[0].name]
            # The pass that pushes a scale into a weight names the scaled one so.
            if source.op != "aten::aten.mul.Scalar" or not re.fullmatch(
                rf"{linear.name}_mul\d+", source.name
            ):
                break
            factor *= float(source.args[1])
            weight = self._node(source.args[0], "share_weight")
        if factor == 1.0:
            return
        target, node = linear, linear
        while (following := self._only_user(node, "view")) is not None:
            node = following
        scores = self._only_user(node, "matmul")
        if scores is not None and all(self._node(a, "share_weight") is None for a in scores.args):
            target = scores
        self._scales[target.name] = self._scales.get(target.name, 1.0) * factor

    # -- GELU by tanh ------------------------------------------------------------------------------------------

    def _gelu_around(self, tanh: Node) -> None:
        """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the one half before or after the product."""
        inner = self._node(self._scaled(tanh.args[0], sqrt(2 / pi)), "add")
        shifted = self._only_user(tanh, "add")
        if inner is None or shifted is None or 1.0 not in shifted.args:
            return
        final = self._only_user(shifted, "mul")
        if final is None:
            return
        for x, cubic in (inner.args[:2], inner.args[1::-1]):
            cube = self._node(self._scaled(cubic, 0.044715), "mul")
            if cube is None or x not in cube.args or not isinstance(x, Ref):
                continue
            square = self._node(cube.args[1 - cube.args.index(x)], "square")
            other = final.args[1 - final.args.index(Ref(shifted.name))]
            if square is None or square.args[0] != x:
                continue
            parts = [square, cube, self._nodes[cubic.name], inner, self._nodes[tanh.args[0].name], tanh]
            parts.append(shifted)
            if self._scaled(other, 0.5) == x:
                parts.append(self._nodes[other.name])
            elif other == x and (half := self._only_user(final, "mul")) is not None and 0.5 in half.args:
                parts.append(final)
                final = half
            else:
                continue
            names = {n.name for n in parts}
            if all({u.name for u in self._users[n]} <= names | {final.name} for n in names):
                self.gelu.add(final.name)
                self.skipped |= names
                return

    # -- rotary embeddings -------------------------------------------------------------------------------------

    def _rotary_at(self, node: Node) -> None:
        """x cos + rotated(x) sin for public cos and sin; rotated moves elements within rows and changes signs."""
        products = [self._node(a, "mul") for a in node.args]
        if len(products) != 2 or None in products:
            return
        parts: list[Node] = [p for p in products if p is not None]
        values = []
        for p in parts:
            secret = [a for a in p.args if isinstance(a, Ref) and self._nodes[a.name].level == "secret"]
            public = [a for a in p.args if isinstance(a, Ref) and self._nodes[a.name].level != "secret"]
            if len(secret) != 1 or len(public) != 1 or self._only_user(p, "add") is None:
                return
            values.append(secret[0])
        for x, rotated in (values, values[::-1]):
            cat = self._node(rotated, "cat")
            if cat is not None and self._origins(cat) == {x.name}:
                self.rotary.add(node.name)
                self.skipped |= {p.name for p in parts}
                return

    def _origins(self, node: Node) -> set[str]:
        """What a value is made of by views, negations and concatenation."""
        found: set[str] = set()
        for name in node.references():
            inner = self._nodes[name]
            if inner.op == "neg" or inner.op == "view" and inner.args[0] == "aten.slice.Tensor":
                found |= self._origins(inner)
            else:
                found.add(name)
        return found
