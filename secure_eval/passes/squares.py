"""Squares with a factor between."""

from __future__ import annotations

from dataclasses import replace

from secure_eval.passes.rewriter import Rewriter
from secure_eval.program import Program, Ref


def recognise_squares(program: Program) -> Program:
    """(c x) x becomes c x^2: one opening in place of two."""
    rw = Rewriter(program)
    for name in [n.name for n in program.nodes if n.op == "mul" and n.level == "secret"]:
        node = rw.nodes[name]
        for scaled, x in (node.args, node.args[::-1]):
            inner, plain = rw.get(scaled), rw.get(x)
            if inner is None or plain is None or inner.op != "mul" or x not in inner.args:
                continue
            factor = inner.args[1 - inner.args.index(x)]
            if isinstance(factor, (int, float)):
                rw.counter += 1
                square = replace(
                    plain, name=f"{name}_square{rw.counter}", op="square", args=(x,), site=node.site
                )
                rw.before.setdefault(name, []).append(square)
                rw.change(node, args=(Ref(square.name), factor))
                rw.commit()
                break
    return rw.finish()
