"""Named rewrites of a program. Each keeps its meaning in real arithmetic and is checked by spec.py afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from secure_eval.program import Node, Program, Ref, substitute
from secure_eval.recognition import recognise_activations
from secure_eval.spec import check

Pass = Callable[[Program], Program]

_SMALLEST_PUSHED = 2.0**-4
"""Weights have a fixed number of fraction bits: a smaller factor, as that of a mean, would cost them too many."""


class _Rewriter:
    """A program being edited: nodes by name, in order, with insertions before a node."""

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


def push_scales_into_weights(program: Program) -> Program:
    """c * f(linear(x, W, b)) becomes f(linear(x, cW, cb)) where f is made of views and matmuls: attention's 1/sqrt(d) costs nothing."""
    rw = _Rewriter(program)
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


def _scale_heads(rw: _Rewriter, node: Node, x: Ref, factor: Node) -> bool:
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


def _scalable_linear(rw: _Rewriter, value: Ref) -> Node | None:
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


def _scale_linear(rw: _Rewriter, node: Node, c: float) -> None:
    x, weight, bias = node.args
    w = rw.weight(weight)
    assert w is not None
    scaled = rw.owner_op(node, "aten.mul.Scalar", (w.args[0], c), w.shape)
    b = rw.weight(bias)
    if b is not None:
        bias = rw.owner_op(node, "aten.mul.Scalar", (b.args[0], c), b.shape)
    rw.change(node, args=(x, scaled, bias))


def fold_channel_affine(program: Program) -> Program:
    """Folds per-channel scales and shifts that the model owner knows into the linear layers around them.

    linear(x) + v: into the bias. linear(a * u + v): W a into the weight, W v into the bias. So a calibrated per-channel quadratic
    a (x + s)^2 + b between two linear layers costs one square.
    """
    rw = _Rewriter(program)
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


def _channel_operand(rw: _Rewriter, node: Node, width: int) -> tuple[Ref, Node] | None:
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


def _flat(rw: _Rewriter, node: Node, vector: Node) -> Any:
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


def _fold_shift_after(rw: _Rewriter, node: Node) -> bool:
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


def _fold_before(rw: _Rewriter, node: Node) -> bool:
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


def fold_channels_into_windows(program: Program) -> Program:
    """Scales and shifts of channels that the model owner knows, after a convolution, into its weight and bias: a batch norm costs nothing.

    v * rearranged(conv(x, W, b)) + u with v and u of shape [channels, 1, ...] becomes rearranged(conv(x, vW, vb + u)).
    """
    rw = _Rewriter(program)
    for name in [n.name for n in program.nodes if n.op in ("mul", "add") and n.level == "secret"]:
        node = rw.nodes.get(name)
        if node is not None and _fold_channels(rw, node):
            rw.commit()
    return rw.finish()


def _fold_channels(rw: _Rewriter, node: Node) -> bool:
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


def _views_behind(rw: _Rewriter, value: Any) -> list[Node]:
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


def _refold(rw: _Rewriter, node: Node, product: Node, weight: Node, vector: Node, views: list[Node]) -> None:
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


def divide_after_matmul(program: Program) -> Program:
    """(a / s) @ v becomes (a @ v) / s for a factor s per row: fewer products, and the reciprocal runs beside the matmul."""
    rw = _Rewriter(program)
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


def recognise_squares(program: Program) -> Program:
    """(c x) x becomes c x^2: one opening in place of two."""
    rw = _Rewriter(program)
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


PASSES: tuple[Pass, ...] = (
    recognise_activations,
    remove_unused,
    recognise_squares,
    push_scales_into_weights,
    fold_channels_into_windows,
    fold_channel_affine,
    divide_after_matmul,
    remove_unused,
)


def run_passes(program: Program) -> Program:
    """All passes in order, the program checked after each."""
    for rewrite in PASSES:
        program = check(rewrite(program))
    return program
