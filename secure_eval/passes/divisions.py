"""Divisions of rows moved behind a product."""

from __future__ import annotations

from secure_eval.passes.rewriter import Rewriter
from secure_eval.program import Node, Program, Ref


def divide_after_matmul(program: Program) -> Program:
    """(a / s) @ v becomes (a @ v) / s for a factor s per row: fewer products, and the reciprocal runs beside the matmul."""
    rw = Rewriter(program)
    for name in [n.name for n in program.nodes if n.op == "matmul" and n.level == "secret"]:
        node = rw.nodes[name]
        inner = rw.get(node.args[0])
        if inner is None or inner.op != "mul" or not rw.single(inner):
            continue
        for a, s in (inner.args, inner.args[::-1]):
            per_row, rows = rw.get(s), rw.get(a)
            if (
                per_row is not None
                and rows is not None
                and per_row.op == "reciprocal"
                and per_row.shape[-1] == 1
                and rows.shape == inner.shape
            ):
                product = Node(
                    f"{node.name}_undivided",
                    "matmul",
                    (a, node.args[1]),
                    "secret",
                    node.shape,
                    node.dtype,
                    node.site,
                )
                rw.before.setdefault(node.name, []).append(product)
                rw.change(node, op="mul", args=(Ref(product.name), s))
                rw.commit()
                break
    return rw.finish()
