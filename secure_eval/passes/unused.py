"""Values that nothing needs."""

from __future__ import annotations

from secure_eval.program import Program, Ref


def remove_unused(program: Program) -> Program:
    """Drops what no output needs, except inputs: a caller may pass them."""
    needed = {o.name for o in program.outputs if isinstance(o, Ref)}
    kept = []
    for node in reversed(program.nodes):
        if node.name in needed or node.op == "input":
            kept.append(node)
            needed.update(node.references())
            if node.op == "table":  # it names what the owner gives away, which is no argument of the client's
                needed.add(node.args[0])
    return program.with_nodes(kept[::-1])
