"""Factors moved into the weights of linear layers."""

from __future__ import annotations

from secure_eval.passes.rewriter import Rewriter
from secure_eval.program import Node, Program, Ref

_SMALLEST_PUSHED = 2.0**-4
"""Weights have a fixed number of fraction bits: a smaller factor, as that of a mean, would cost them too many."""


def push_scales_into_weights(program: Program) -> Program:
    """c * f(linear(x, W, b)) becomes f(linear(x, cW, cb)) where f is made of views and matmuls: attention's 1/sqrt(d) costs nothing."""
    rw = Rewriter(program)
    for name in [n.name for n in program.nodes if n.op == "mul" and n.level == "secret"]:
        node = rw.nodes.get(name)
        if node is None:
            continue
        for x, c in (node.args, node.args[::-1]):
            if (
                isinstance(c, (int, float))
                and isinstance(x, Ref)
                and _SMALLEST_PUSHED <= abs(c) <= 1 / _SMALLEST_PUSHED
            ):
                target = _scalable_linear(rw, x)
                if target is not None:
                    _scale_linear(rw, target, float(c))
                    rw.bypass(node, x)
                    rw.commit()
                break
            if isinstance(x, Ref) and isinstance(c, Ref) and _scale_heads(rw, node, x, rw.nodes[c.name]):
                break
    return rw.finish()


def _scale_heads(rw: Rewriter, node: Node, x: Ref, factor: Node) -> bool:
    """The same for one public factor per attention head (shape [heads, 1, 1]) on the scores q @ k^T: it scales the rows of q's weight."""
    product = rw.get(x)
    if product is None or product.op != "matmul" or not rw.single(product) or factor.level != "constant":
        return False
    moved = rw.get(product.args[0])
    split = rw.get(moved.args[1]) if moved is not None and moved.op == "view" else None
    if (
        moved is None
        or split is None
        or moved.args[0] != "aten.transpose.int"
        or list(moved.args[2:]) != [1, 2]
        or split.op != "view"
    ):
        return False
    linear = rw.get(split.args[1])
    if (
        linear is None
        or linear.op != "linear"
        or not all(map(rw.single, (moved, split, linear)))
        or len(split.shape) != 4
    ):
        return False
    heads, width = split.shape[2:]
    weight, bias = rw.weight(linear.args[1]), rw.weight(linear.args[2])
    if (
        factor.shape != (heads, 1, 1)
        or linear.shape[-1] != heads * width
        or weight is None
        or (linear.args[2] is not None and bias is None)
    ):
        return False
    rw.counter += 1
    flat = Node(
        f"{linear.name}_heads{rw.counter}",
        "aten::aten.reshape.default",
        (Ref(factor.name), [heads]),
        "constant",
        (heads,),
    )
    rows = Node(
        f"{flat.name}_rows",
        "aten::aten.repeat_interleave.self_int",
        (Ref(flat.name), width),
        "constant",
        (heads * width,),
    )
    column = Node(
        f"{flat.name}_column",
        "aten::aten.reshape.default",
        (Ref(rows.name), [heads * width, 1]),
        "constant",
        (heads * width, 1),
    )
    rw.before.setdefault(linear.name, []).extend([flat, rows, column])
    scaled = rw.owner_op(linear, "aten.mul.Tensor", (weight.args[0], Ref(column.name)), weight.shape)
    shift = (
        linear.args[2]
        if bias is None
        else rw.owner_op(linear, "aten.mul.Tensor", (bias.args[0], Ref(rows.name)), bias.shape)
    )
    rw.change(linear, args=(linear.args[0], scaled, shift))
    rw.bypass(node, x)
    # A constant of the architecture may be defined after the layer that it now scales.
    if list(rw.nodes).index(factor.name) > list(rw.nodes).index(linear.name):
        rw.nodes = {factor.name: rw.nodes[factor.name], **rw.nodes}
    rw.commit()
    return True


def _scalable_linear(rw: Rewriter, value: Ref) -> Node | None:
    """A linear layer with a weight of its own that `value` is proportional to, reached through values with one use."""
    node = rw.get(value)
    if node is None or not rw.single(node):
        return None
    if node.op == "view" and isinstance(node.args[1], Ref):
        return _scalable_linear(rw, node.args[1])
    if node.op == "matmul":
        return _scalable_linear(rw, node.args[0]) or _scalable_linear(rw, node.args[1])
    if node.op == "linear" and rw.weight(node.args[1]) and (node.args[2] is None or rw.weight(node.args[2])):
        return node
    return None


def _scale_linear(rw: Rewriter, node: Node, c: float) -> None:
    x, weight, bias = node.args
    w = rw.weight(weight)
    assert w is not None
    scaled = rw.owner_op(node, "aten.mul.Scalar", (w.args[0], c), w.shape)
    b = rw.weight(bias)
    if b is not None:
        bias = rw.owner_op(node, "aten.mul.Scalar", (b.args[0], c), b.shape)
    rw.change(node, args=(x, scaled, bias))
