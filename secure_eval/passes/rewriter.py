"""A program being edited."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from secure_eval.passes.unused import remove_unused
from secure_eval.program import Node, Program, Ref, substitute


class Rewriter:
    """Nodes by name, in order, with insertions before a node."""

    def __init__(self, program: Program):
        self.program = program
        self.nodes = {n.name: n for n in program.nodes}
        self.before: dict[str, list[Node]] = {}
        # Names made here end in a number above all those at the end of a name: earlier passes made some as well.
        self.counter = max((int(m.group()) for n in self.nodes if (m := re.search(r"\d+$", n))), default=0)
        self.refresh()

    def refresh(self) -> None:
        order = list(self.nodes.values())
        current = self.program.with_nodes(order)
        self.users = current.users()
        self.outputs = {o.name for o in self.program.outputs if isinstance(o, Ref)}

    def get(self, value: Any) -> Node | None:
        return self.nodes.get(value.name) if isinstance(value, Ref) else None

    def single(self, node: Node) -> bool:
        """Whether exactly one other node uses the value, once."""
        users = self.users[node.name]
        return (
            node.name not in self.outputs
            and len(users) == 1
            and list(users[0].references()).count(node.name) == 1
        )

    def weight(self, value: Any) -> Node | None:
        """The share_weight node behind a value."""
        node = self.get(value)
        return node if node is not None and node.op == "share_weight" else None

    def owner_op(self, at: Node, target: str, args: tuple[Any, ...], shape: tuple[int, ...]) -> Ref:
        """Inserts, before node `at`, a clear operation of the model owner's, and shares its result."""
        self.counter += 1
        base = f"{at.name}_{target.split('.')[1]}{self.counter}"
        clear = Node(base, f"aten::{target}", args, "owner", shape, torch.float32, at.site)
        shared = Node(f"{base}_share", "share_weight", (Ref(base),), "secret", shape, torch.float32, at.site)
        self.before.setdefault(at.name, []).extend([clear, shared])
        return Ref(shared.name)

    def change(self, node: Node, **fields: Any) -> None:
        self.nodes[node.name] = replace(node, **fields)

    def bypass(self, node: Node, by: Ref) -> None:
        """Makes every user of `node` use `by` instead."""
        for user in self.users[node.name]:
            current = self.nodes[user.name]
            args = substitute(current.args, lambda r: by if r.name == node.name else r)
            self.nodes[user.name] = replace(current, args=args)
        outputs = tuple(by if isinstance(o, Ref) and o.name == node.name else o for o in self.program.outputs)
        self.program = replace(self.program, outputs=outputs)

    def commit(self) -> None:
        """Puts insertions in place, drops what no longer has a use, and recomputes who uses what."""
        ordered: dict[str, Node] = {}
        for name, node in self.nodes.items():
            for inserted in self.before.pop(name, []):
                ordered[inserted.name] = inserted
            ordered[name] = node
        self.nodes = {
            n.name: n for n in remove_unused(replace(self.program, nodes=tuple(ordered.values()))).nodes
        }
        self.refresh()

    def finish(self) -> Program:
        self.commit()
        return replace(self.program, nodes=tuple(self.nodes.values()))
