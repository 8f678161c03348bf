"""Scales and shifts of channels folded into the linear layers around them."""

from __future__ import annotations

from typing import Any

from secure_eval.passes.rewriter import Rewriter
from secure_eval.program import Node, Program, Ref


def fold_channel_affine(program: Program) -> Program:
    """Folds per-channel scales and shifts that the model owner knows into the linear layers around them.

    linear(x) + v: into the bias. linear(a * u + v): W a into the weight, W v into the bias. So a calibrated per-channel quadratic
    a (x + s)^2 + b between two linear layers costs one square.
    """
    rw = Rewriter(program)
    changed = True
    while changed:
        changed = False
        for name in list(rw.nodes):
            node = rw.nodes[name]
            if node.level == "secret" and (_fold_shift_after(rw, node) or _fold_before(rw, node)):
                rw.commit()
                changed = True
                break
    return rw.finish()


def _channel_operand(rw: Rewriter, node: Node, width: int) -> tuple[Ref, Node] | None:
    """For a binary node the operand that is a secret activation and the one that is an owner's vector of the last dimension."""
    for x, v in (node.args[:2], node.args[1::-1]):
        w = rw.weight(v)
        if (
            w is not None
            and isinstance(x, Ref)
            and rw.weight(x) is None
            and w.shape in ((width,), (1,) * (len(node.shape) - 1) + (width,))
        ):
            return x, w
    return None


def _flat(rw: Rewriter, node: Node, vector: Node) -> Any:
    """The owner's clear vector with one dimension."""
    if len(vector.shape) == 1:
        return vector.args[0]
    rw.counter += 1
    flat = Node(
        f"{node.name}_flat{rw.counter}",
        "aten::aten.reshape.default",
        (vector.args[0], [vector.shape[-1]]),
        "owner",
        (vector.shape[-1],),
    )
    rw.before.setdefault(node.name, []).append(flat)
    return Ref(flat.name)


def _fold_shift_after(rw: Rewriter, node: Node) -> bool:
    """add(linear(x, W, b), v) -> linear(x, W, b + v)."""
    if node.op != "add":
        return False
    found = _channel_operand(rw, node, node.shape[-1])
    linear = rw.get(found[0]) if found else None
    if (
        found is None
        or linear is None
        or linear.op != "linear"
        or not rw.single(linear)
        or linear.shape != node.shape
    ):
        return False
    x, weight, bias = linear.args
    b = rw.weight(bias)
    if bias is not None and b is None or rw.weight(weight) is None:
        return False
    # The vector may be defined after the linear layer: the sum takes the later node's place.
    vector = _flat(rw, node, found[1])
    total = (
        vector if b is None else rw.owner_op(node, "aten.add.Tensor", (b.args[0], vector), (node.shape[-1],))
    )
    if b is None:
        total = rw.owner_op(node, "aten.clone.default", (vector,), (node.shape[-1],))
    rw.change(node, op="linear", args=(x, weight, total))
    return True


def _fold_before(rw: Rewriter, node: Node) -> bool:
    """linear(u + v, W, b) -> linear(u, W, b + W v);  linear(a * u, W, b) -> linear(u, W a, b)."""
    if node.op != "linear":
        return False
    x, weight, bias = node.args
    inner, w = rw.get(x), rw.weight(weight)
    if inner is None or w is None or inner.op not in ("add", "mul") or not rw.single(inner):
        return False
    found = _channel_operand(rw, inner, inner.shape[-1])
    b = rw.weight(bias)
    if found is None or bias is not None and b is None or rw.nodes[found[0].name].shape != inner.shape:
        return False
    vector = _flat(rw, node, found[1])
    if inner.op == "mul":
        rw.change(
            node, args=(found[0], rw.owner_op(node, "aten.mul.Tensor", (w.args[0], vector), w.shape), bias)
        )
        return True
    rw.counter += 1
    moved = Node(
        f"{node.name}_mv{rw.counter}", "aten::aten.mv.default", (w.args[0], vector), "owner", (w.shape[0],)
    )
    rw.before.setdefault(node.name, []).append(moved)
    terms = (Ref(moved.name),) if b is None else (b.args[0], Ref(moved.name))
    target = "aten.clone.default" if b is None else "aten.add.Tensor"
    rw.change(node, args=(found[0], weight, rw.owner_op(node, target, terms, (w.shape[0],))))
    return True
