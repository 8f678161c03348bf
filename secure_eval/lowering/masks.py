"""Masks, recognised by what they do to a softmax and not by how they are written.

Scores may reach a softmax through sums, scales, selections, views and joins with public values: padding masks that are added, subtracted,
filled in or chosen, causal masks, relative positions, slopes. `split` walks back through these and takes the public part out:
scores = secret + public. What the public part is, number or mask, its values decide when they are known:

* A softmax does not change when a number is added to a row. So each row's largest public summand is subtracted from the row.
* What is then below MASK_BELOW selects: the entry is zero and takes part in nothing. It is -inf from then on.
* What is above is a number, and is added: slopes, relative positions, and masks of -1e4 alike. exp gives zero where it is small enough.
* A row whose largest summand is below ABSORBS is uniform over its kept entries: floating point holds no score beside such a number. A
  row of nothing but -inf, of which torch's softmax makes no numbers, is uniform over all entries.

A mask that only the client knows (made of its tokens) is bounded by the client, shared and added.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from secure_eval.lowering.activations import number
from secure_eval.lowering.builder import Builder
from secure_eval.lowering.indexing import clear, shaped
from secure_eval.lowering.summands import combined, filled, joint, owner_parts, real
from secure_eval.operations.arrangement import MOVED
from secure_eval.program import Node, Ref

MASK_BELOW = -(2.0**23)
"""A public summand this far below the largest of its row is a mask: scores that softmax is right for do not make up for it."""

ABSORBS = -(2.0**25)
"""Beside a number this large single precision rounds scores to multiples of four, and soon holds none."""

FLOOR = -(2.0**14)
"""What stands for a masked value where it has to be a number: exp of it is zero beside every score of the same row."""

_NO_NUMBER = -(2.0**100)
"""What is filled in below this is a type's smallest number, or -inf: no number that is computed with."""

_CLEAR = ("constant", "public")


@dataclass(frozen=True)
class Split:
    """x as scores + public + client: a secret value, and summands known to all and to the client. None for none."""

    scores: Any
    public: Ref | None = None
    client: Ref | None = None

    @property
    def plain(self) -> bool:
        return self.public is None and self.client is None


def split(b: Builder, x: Ref) -> Split:
    """What `x` is the sum of; a Split with x itself where nothing is known to be public in it."""
    if x.name not in b.splits:
        b.splits[x.name] = _split(b, x, b.by_name[x.name])
    return b.splits[x.name]


def _split(b: Builder, x: Ref, node: Node) -> Split:
    found = _RULES[node.op](b, node) if node.op in _RULES else None
    return Split(x) if found is None or found.plain else found


# -- operations that are walked through ----------------------------------------------------------------------------


def _part(b: Builder, value: Any) -> Split:
    """An operand: a secret is split further; what is known in the clear is all summand."""
    if not isinstance(value, Ref):
        return Split(0.0, filled(b, value) if value else None)
    level = b.level(value)
    if level in _CLEAR:
        return Split(0.0, real(b, value))
    if (clear_value := _of_client(b, value)) is not None:
        return Split(0.0, None, real(b, clear_value))
    return split(b, b.secret(value))


def _of_client(b: Builder, value: Ref) -> Ref | None:
    """The client's own value behind a share of it, if the client computed it from its tokens: a mask, say. What a model is given is
    scores like any secret."""
    node = b.by_name[value.name]
    if node.op == "share_input":
        node = b.by_name[node.args[0].name]
    return Ref(node.name) if node.level == "client" and node.op != "input" and b.of_tokens(node) else None


def _sum(b: Builder, node: Node) -> Split | None:
    x, y = (_part(b, a) for a in node.args)
    if x.plain and y.plain:
        return None
    target = f"aten.{node.op}.Tensor"
    public = combined(b, target, x.public, y.public)
    client = combined(b, target, x.client, y.client)
    if isinstance(y.scores, float):
        scores = x.scores
    elif isinstance(x.scores, float) and node.op == "add":
        scores = y.scores
    else:
        shapes = [b.shape(v) for v in (x.scores, y.scores) if isinstance(v, Ref)]
        scores = b.op(node.op, [x.scores, y.scores], shaped(torch.broadcast_shapes(*shapes)))
    return Split(scores, public, client)


def _scaled(b: Builder, node: Node) -> Split | None:
    """c (x + m) = c x + c m, for a positive number c."""
    for value, c in (node.args, node.args[::-1]):
        factor = number(b, c)
        if isinstance(value, Ref) and isinstance(factor, (int, float)) and factor > 0:
            x = _part(b, value)
            if x.plain or isinstance(x.scores, float):
                return None
            scores = b.op("mul", [x.scores, float(factor)], shaped(b.shape(x.scores)))
            public, client = (
                m and clear(b, "aten.mul.Scalar", b.level(m), shaped(b.shape(m)), m, float(factor))
                for m in (x.public, x.client)
            )
            return Split(scores, public, client)
    return None


def _selected(b: Builder, node: Node) -> Split | None:
    """One of two values by a condition that all parties know, or the client: a selection of the secret parts plus one of the others."""
    condition, *branches = node.args
    if b.is_secret(condition):
        return _filled_by_client(b, condition, branches)
    x, y = (_part(b, branch) for branch in branches)
    if x.plain and y.plain:
        return None
    public = _chosen(b, condition, x.public, y.public)
    client = _chosen(b, condition, x.client, y.client)
    for secret, fill in ((x.scores, branches[1]), (y.scores, branches[0])):
        if isinstance(secret, Ref) and _far(b, fill):
            return Split(secret, public, client)
    return Split(b.op("where", [condition, x.scores, y.scores], shaped(node.shape)), public, client)


def _far(b: Builder, fill: Any) -> bool:
    """Whether a number that is filled in masks for certain, so that the score below it does not matter."""
    value = number(b, fill)
    return isinstance(value, (int, float)) and value < _NO_NUMBER


def _filled_by_client(b: Builder, condition: Ref, branches: list[Any]) -> Split | None:
    """A far negative number filled in where the client says so. The scores below it stay: so far down they do not matter."""
    private = _of_client(b, condition)
    fills = [number(b, v) for v in branches]
    if private is None or not any(isinstance(f, (int, float)) and f <= FLOOR for f in fills):
        return None
    x, y = (_part(b, branch) for branch in branches)
    secrets = [v.scores for v in (x, y) if isinstance(v.scores, Ref)]
    if len(secrets) != 1:
        return None
    known = [combined(b, "aten.add.Tensor", v.public, v.client) for v in (x, y)]
    return Split(secrets[0], None, _chosen(b, private, *known))


def _chosen(b: Builder, condition: Ref, x: Ref | None, y: Ref | None) -> Ref | None:
    if x is None and y is None:
        return None
    first, second = (filled(b, 0.0) if part is None else part for part in (x, y))
    shape = torch.broadcast_shapes(b.shape(condition), b.shape(first), b.shape(second))
    level = joint(b, condition, first, second)
    return b.add("aten::aten.where.self", (_as_bool(b, condition), first, second), level, shape)


def _as_bool(b: Builder, condition: Ref) -> Ref:
    node = b.by_name[condition.name]
    return (
        condition
        if node.dtype == torch.bool
        else clear(b, "aten.ne.Scalar", node.level, shaped(node.shape, torch.bool), condition, 0)
    )


def _moved(b: Builder, node: Node) -> Split | None:
    target, value, *rest = node.args
    if target not in MOVED:
        return None
    x = _part(b, value)
    if x.plain or isinstance(x.scores, float):
        return None
    shape = b.shape(value)

    def same(m: Ref | None) -> Ref | None:
        if m is None:
            return None
        whole = (
            clear(b, "aten.expand.default", b.level(m), shaped(shape), m, list(shape))
            if b.shape(m) != shape
            else m
        )
        return clear(b, target, b.level(m), shaped(node.shape), whole, *rest)

    scores = _expanded(b, x.scores, shape)
    return Split(b.op("view", [target, scores, *rest], shaped(node.shape)), same(x.public), same(x.client))


def _expanded(b: Builder, x: Ref, shape: Any) -> Ref:
    if b.shape(x) == tuple(shape):
        return x
    return b.op("view", ["aten.expand.default", x, list(shape)], shaped(shape))


def _joined(b: Builder, node: Node) -> Split | None:
    target, values, dim = node.args
    parts = [_part(b, v) for v in values]
    if (
        target != "aten.cat.default"
        or all(p.plain for p in parts)
        or any(isinstance(p.scores, float) for p in parts)
    ):
        return None
    shapes = [b.shape(v) for v in values]
    scores = [_expanded(b, p.scores, s) for p, s in zip(parts, shapes, strict=True)]

    def together(summands: list[Ref | None]) -> Ref | None:
        if not any(summands):
            return None
        whole = [
            clear(b, "aten.expand.default", b.level(m), shaped(s), m, list(s))
            for m, s in zip((m or filled(b, 0.0) for m in summands), shapes, strict=True)
        ]
        return clear(b, "aten.cat.default", joint(b, *whole), shaped(node.shape), whole, dim)

    joined = b.op("cat", [target, scores, dim], shaped(node.shape))
    return Split(joined, together([p.public for p in parts]), together([p.client for p in parts]))


def _of_owner(b: Builder, node: Node) -> Split | None:
    """A table of the model owner's to which it added a mask of the architecture: biases of relative positions that hide what follows."""
    found = owner_parts(b, node.args[0])
    if found is None:
        return None
    own, known = found
    return Split(0.0 if own is None else b.secret(own), known)


_RULES = {
    "share_weight": _of_owner,
    "add": _sum,
    "sub": _sum,
    "mul": _scaled,
    "where": _selected,
    "view": _moved,
    "cat": _joined,
}


# -- what is made of the parts -------------------------------------------------------------------------------------


def masked(b: Builder, x: Ref, dim: int) -> tuple[Ref, Ref | None]:
    """Scores x as (secret, mask) for a softmax along `dim`: the mask is public, a number where it is added, -inf where it selects, None
    where there is none; the secret has x's shape."""
    shape = b.shape(x)
    rank = len(shape)
    dim %= max(1, rank)
    found = split(b, _without_rows(b, x, dim))
    if found.plain or isinstance(found.scores, float):
        return x, None
    scores = _expanded(b, found.scores, shape)
    if found.client is not None:
        bounded = _bounded(b, found.client, rank, dim)
        if bounded is not None:
            scores = b.op("add", [scores, bounded], shaped(shape))
    if (
        found.public is None
        or b.shape(found.public) == ()
        or _size(b, found.public, rank, dim) == 1 != shape[dim]
    ):
        return scores, None
    key = (found.public.name, rank, dim)
    if key not in b.masks:
        b.masks[key] = _prepared(b, found.public, rank, dim)
    mask, live = b.masks[key]
    if live is not None:
        scores = b.op("where", [live, scores, 0.0], shaped(shape))
    return scores, mask


def _without_rows(b: Builder, x: Ref, dim: int) -> Ref:
    """x without summands that are the same all over a row, also below a positive factor: a softmax does not see them. (A row's own
    maximum, for one.)"""
    node = b.by_name[x.name]
    if node.op in ("add", "sub") and isinstance(node.args[0], Ref) and b.is_secret(node.args[0]):
        value, other = node.args
        whole = b.shape(value) == node.shape
        if whole and (not isinstance(other, Ref) or _size(b, other, len(node.shape), dim) == 1):
            return _without_rows(b, value, dim)
    if node.op == "mul" and isinstance(node.args[0], Ref):
        value, factor = node.args
        if (
            isinstance(factor, (int, float))
            and factor > 0
            and (inner := _without_rows(b, value, dim)) != value
        ):
            return b.op("mul", [inner, factor], shaped(node.shape))
    return x


def _size(b: Builder, x: Ref, rank: int, dim: int) -> int:
    """Size along a dimension of a tensor of `rank` dimensions that x is broadcast to."""
    shape = b.shape(x)
    place = dim - (rank - len(shape))
    return shape[place] if place >= 0 else 1


def _below_largest(b: Builder, m: Ref, dim: int) -> tuple[Ref, Ref, Ref]:
    """m less its row's largest, that largest, and where m itself is -inf."""
    level, shape = b.level(m), b.shape(m)
    row = list(shape)
    row[dim] = 1
    largest = clear(b, "aten.amax.default", level, shaped(row), m, [dim], True)
    shifted = clear(b, "aten.sub.Tensor", level, shaped(shape), m, largest)
    nothing = clear(b, "aten.eq.Scalar", level, shaped(shape, torch.bool), m, -inf)
    return shifted, largest, nothing


def _prepared(b: Builder, m: Ref, rank: int, dim: int) -> tuple[Ref, Ref | None]:
    """The mask of public summands m, and the rows whose scores count at all."""
    dim -= rank  # from the end: m may have fewer dimensions
    level, shape = b.level(m), b.shape(m)
    shifted, largest, nothing = _below_largest(b, m, dim)
    below = clear(b, "aten.lt.Scalar", level, shaped(shape, torch.bool), shifted, MASK_BELOW)
    out = clear(b, "aten.logical_or.default", level, shaped(shape, torch.bool), below, nothing)
    mask = clear(b, "aten.masked_fill.Scalar", level, shaped(shape), shifted, out, -inf)
    live = clear(b, "aten.gt.Scalar", level, shaped(b.shape(largest), torch.bool), largest, ABSORBS)
    return mask, live


def _bounded(b: Builder, m: Ref, rank: int, dim: int) -> Ref | None:
    """A client's summands as numbers that the ring holds, 0 for the largest of a row."""
    if _size(b, m, rank, dim) == 1:
        return None
    shifted, _, nothing = _below_largest(b, m, dim - rank)
    level, shape = b.level(m), b.shape(m)
    finite = clear(b, "aten.masked_fill.Scalar", level, shaped(shape), shifted, nothing, FLOOR)
    return clear(b, "aten.clamp.default", level, shaped(shape), finite, FLOOR)


def floored(b: Builder, x: Ref, dim: int) -> tuple[Ref, Ref | None]:
    """x for a function that returns values like x, as log-softmax: public numbers added, FLOOR in place of what a mask takes away; and
    the public number [.., 1, ..] that each row is short of, None for none."""
    rank = len(b.shape(x))
    dim %= max(1, rank)
    found = split(b, x)
    if found.public is None or isinstance(found.scores, float) or _size(b, found.public, rank, dim) == 1:
        return x, None
    public, whole = found.public, shaped(b.shape(x))
    shifted, largest, nothing = _below_largest(b, public, dim - rank)
    level, shape = b.level(public), b.shape(public)
    below = clear(b, "aten.lt.Scalar", level, shaped(shape, torch.bool), shifted, FLOOR)
    out = clear(b, "aten.logical_or.default", level, shaped(shape, torch.bool), below, nothing)
    numbers = clear(b, "aten.masked_fill.Scalar", level, shaped(shape), shifted, out, 0.0)
    kept = clear(b, "aten.logical_not.default", level, shaped(shape, torch.bool), out)
    scores = _expanded(b, found.scores, b.shape(x))
    if found.client is not None:
        scores = b.op(
            "add",
            [
                scores,
                clear(b, "aten.clamp.default", "client", shaped(b.shape(found.client)), found.client, FLOOR),
            ],
            whole,
        )
    dropped = clear(b, "aten.clamp.default", level, shaped(b.shape(largest)), largest, FLOOR)
    return b.op("where", [kept, b.op("add", [scores, numbers], whole), FLOOR], whole), dropped


def for_exponential(b: Builder, x: Ref) -> Ref:
    """x with FLOOR where a public summand is below that, so that the ring holds it: exp of either is zero."""
    return cut_below(b, x, FLOOR)


def cut_below(b: Builder, x: Ref, floor: float) -> Ref:
    """x with `floor` where a public summand is below that; a client's summand counts down to there."""
    found = split(b, x)
    if found.public is None or isinstance(found.scores, float):
        return x
    m, whole = found.public, shaped(b.shape(x))
    level, shape = b.level(m), b.shape(m)
    kept = clear(b, "aten.ge.Scalar", level, shaped(shape, torch.bool), m, floor)
    zero = clear(b, "aten.zeros_like.default", level, shaped(shape), m)
    numbers = b.add("aten::aten.where.self", (kept, m, zero), level, shape)
    x = b.op("add", [_expanded(b, found.scores, b.shape(x)), numbers], whole)
    if found.client is not None:
        held = clear(b, "aten.clamp.default", "client", shaped(b.shape(found.client)), found.client, floor)
        x = b.op("add", [x, held], whole)
    return b.op("where", [kept, x, floor], whole)
