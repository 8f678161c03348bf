"""Scales and shifts of channels folded into convolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from secure_eval.passes.rewriter import Rewriter
from secure_eval.program import Node, Program, Ref


def fold_channels_into_windows(program: Program) -> Program:
    """Scales and shifts of channels that the model owner knows, after a convolution, into its weight and bias: a batch norm costs nothing.

    v * rearranged(conv(x, W, b)) + u with v and u of shape [channels, 1, ...] becomes rearranged(conv(x, vW, vb + u)).
    """
    rw = Rewriter(program)
    for name in [n.name for n in program.nodes if n.op in ("mul", "add") and n.level == "secret"]:
        node = rw.nodes.get(name)
        if node is not None and _fold_channels(rw, node):
            rw.commit()
    return rw.finish()


def _fold_channels(rw: Rewriter, node: Node) -> bool:
    for x, v in (node.args[:2], node.args[1::-1]):
        vector, views = rw.weight(v), _views_behind(rw, x)
        if vector is None or not views or rw.weight(x) is not None:
            continue
        channels, *rest = vector.shape or (0,)
        product = rw.get(views[0].args[1])
        if product is None or product.op not in ("conv", "linear") or not rw.single(product):
            continue
        w, bias = rw.weight(product.args[1]), product.args[2]
        if (
            views[-1].shape == node.shape == (node.shape[0], channels, *node.shape[2:])
            and set(rest) <= {1}
            and len(rest) == len(node.shape) - 2
            and w is not None
            and (bias is None or rw.weight(bias) is not None)
            and _channels_first(product, w, views)
        ):
            _refold(rw, node, product, w, vector, views)
            return True
    return False


def _views_behind(rw: Rewriter, value: Any) -> list[Node]:
    """The views, each with one use, that lead to `value`, the first first."""
    found: list[Node] = []
    node = rw.get(value)
    while node is not None and node.op == "view" and rw.single(node):
        found.insert(0, node)
        node = rw.get(node.args[1])
    return found


def _channels_first(product: Node, weight: Node, views: list[Node]) -> bool:
    """Whether the views bring the last dimension (with groups, the first and the last) of a product to dimension 1, and do no more."""
    names = [v.args[0] for v in views]
    if len(weight.shape) == 2:
        last = len(product.shape) - 1
        return names == ["aten.permute.default"] and list(views[0].args[2]) == [0, last, *range(1, last)]
    if names != ["aten.reshape.default", "aten.permute.default", "aten.reshape.default"]:
        return False
    split = views[0].shape
    last = len(split) - 1
    order = [1, 0, last, *range(2, last)]
    whole = (split[1], split[0] * split[last], *split[2:last])
    ends = (split[0], split[last]) == (product.shape[0], product.shape[-1])
    return ends and list(views[1].args[2]) == order and views[2].shape == whole


def _refold(rw: Rewriter, node: Node, product: Node, weight: Node, vector: Node, views: list[Node]) -> None:
    """Puts the product and its views where `node` is, after everything that the new weight is made of."""

    def column(shape: tuple[int, ...]) -> Ref:
        rw.counter += 1
        name = f"{node.name}_column{rw.counter}"
        args = (vector.args[0], list(shape))
        rw.before.setdefault(node.name, []).append(
            Node(name, "aten::aten.reshape.default", args, "owner", shape, torch.float32, node.site)
        )
        return Ref(name)

    x, w, bias, *steps = product.args
    rows = (*weight.shape[:-1], 1)
    bias_shape = weight.shape[:1] if len(weight.shape) == 2 else (weight.shape[0], 1, weight.shape[1])
    b = rw.weight(bias)
    if node.op == "mul":
        w = rw.owner_op(node, "aten.mul.Tensor", (weight.args[0], column(rows)), weight.shape)
        if b is not None:
            bias = rw.owner_op(node, "aten.mul.Tensor", (b.args[0], column(bias_shape)), bias_shape)
    elif b is not None:
        bias = rw.owner_op(node, "aten.add.Tensor", (b.args[0], column(bias_shape)), bias_shape)
    else:
        bias = rw.owner_op(node, "aten.clone.default", (column(bias_shape),), bias_shape)
    rw.counter += 1
    name = f"{node.name}_{product.op}{rw.counter}"
    inserted = rw.before[node.name]
    inserted.append(replace(product, name=name, args=(x, w, bias, *steps)))
    for view in views[:-1]:
        rw.counter += 1
        inserted.append(
            replace(view, name=f"{name}_view{rw.counter}", args=(view.args[0], Ref(name), *view.args[2:]))
        )
        name = inserted[-1].name
    last = views[-1].args
    rw.change(node, op="view", args=(last[0], Ref(name), *last[2:]), site=views[-1].site)
