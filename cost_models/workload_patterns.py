"""Where several nodes are one operation of the model: softmax and rotary embeddings."""

from __future__ import annotations

from typing import Any

from secure_eval.program import Node, Program, Ref

_SUM = "aten.sum.dim_IntList"


class Patterns:
    """What was recognised in a program, all by names of nodes.

    Attributes:
        softmax: numerators whose row sum, reciprocal and product are all there.
        rotary: the last node of each that is written out.
        skipped: nodes that are part of another's work.
    """

    def __init__(self, program: Program):
        self._nodes, self._users = program.by_name, program.users()
        self.softmax: set[str] = set()
        self.rotary: set[str] = set()
        self.skipped: set[str] = set()
        for node in program.nodes:
            if node.level != "secret":
                continue
            if node.op == "softmax_numerator":
                self._whole_softmax(node)
            elif node.op == "add":
                self._rotary_at(node)

    # -- looking around ----------------------------------------------------------------------------------------

    def _node(self, value: Any, op: str) -> Node | None:
        node = self._nodes[value.name] if isinstance(value, Ref) else None
        return node if node is not None and node.op == op else None

    def _only_user(self, node: Node, op: str) -> Node | None:
        users = self._users[node.name]
        return users[0] if len(users) == 1 and users[0].op == op else None

    # -- softmax -----------------------------------------------------------------------------------------------

    def _whole_softmax(self, numerator: Node) -> None:
        for total in self._users[numerator.name]:
            if total.op != "view" or total.args[0] != _SUM:
                continue
            for inverse in self._users[total.name]:
                products = self._users[inverse.name]
                if inverse.op == "reciprocal" and products and all(n.op == "mul" for n in products):
                    self.softmax.add(numerator.name)
                    self.skipped |= {inverse.name, *(n.name for n in products)}

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
