"""Random secure programs that stay within what the operations are right for, with inputs and an error bound for every value.

A program is sketched operation by operation on values that are known: each step looks at the magnitudes and errors of its operands, and
puts a scaling before an operation whose result would not fit. So hardly a draw is wasted, and every program is one that has to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, log2, prod
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from secure_eval.functions.layer_norm import deviation_scale
from secure_eval.functions.root_mean_square import widest
from secure_eval.magnitudes import bits, own_limit, promise, with_bounds
from secure_eval.operations import OPERATIONS
from secure_eval.program import Node, Program, Ref, substitute
from secure_eval.spec import check
from secure_eval.testing.bounds import Approximate, Steps, error

COARSE = 2.0**-5
"""An operation whose error bound would exceed this part of max(1, its result) gets smaller operands."""

MAX_OPERATIONS = 12
COMPARISONS = ("less", "equal")
SHAPES: tuple[tuple[int, ...], ...] = (
    (3,),
    (2, 3),
    (2, 3, 4),
    (),
    (4,),
    (1, 3),
    (2, 3),
    (2, 1),
    (2, 3, 4),
    (1,),
    (2, 1, 4),
    (1, 4, 4),
)
SCALES = (2.0**-13, 2.0**-6, 0.1, 1.0, 1.0, 1.0, 3.0, 30.0, 1500.0, 2.0**20, 2.0**28)
CONSTANTS = (
    0.0,
    1.0,
    -1.0,
    2.0,
    0.5,
    -0.25,
    1024.0,
    2.0**-20,
    2.0**20,
    3.0,
    -7.0,
    1000.0,
    0.3,
    -1.7,
    1e-3,
    2.5e-6,
    1e-9,
    777.7,
    2e4,
    3e7,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]


class DoesNotApply(Exception):
    """An operation finds no operands that it is right for."""


@dataclass
class Sketch:
    """A program in the making, with everything in float64 at hand."""

    draw: Draw
    fraction_bits: int = 16
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    secrets: list[Ref] = field(default_factory=list)
    certified: bool = False

    @property
    def limit(self) -> float:
        """What the engine promises of any value: magnitudes below it."""
        return 2.0 ** promise(self.fraction_bits)

    @property
    def steps(self) -> Steps:
        return Steps(self.fraction_bits)

    @property
    def operations(self) -> int:
        return sum(n.level == "secret" and not n.op.startswith("share_") for n in self.nodes)

    # -- values ----------------------------------------------------------------------------------------

    def value(self, argument: Any) -> Any:
        """What an argument stands for: Approximate for a secret, the tensor of a clear node, anything else as it is."""
        return substitute(argument, lambda r: self.values[r.name])

    def exact(self, argument: Any) -> Any:
        """The same with secrets as plain float64 tensors."""
        found = self.value(argument)
        if isinstance(found, (list, tuple)):
            return type(found)(v.value if isinstance(v, Approximate) else v for v in found)
        return found.value if isinstance(found, Approximate) else found

    def tensor(self, ref: Ref) -> Tensor:
        found: Tensor = self.exact(ref)
        return found

    def largest(self, ref: Ref) -> float:
        return float(self.tensor(ref).abs().max())

    def numbers(self, shape: Sequence[int]) -> Tensor:
        """float32 values of a drawn scale, as large as the engine promises; some have zeros and equal entries."""
        generator = torch.Generator().manual_seed(self.draw(st.integers(0, 2**16)))
        x = torch.randn(tuple(shape), generator=generator) * self.draw(st.sampled_from(SCALES))
        if self.draw(st.booleans()):
            x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x.round(), x)
        return x.clamp(-0.99 * self.limit, 0.99 * self.limit)

    def whole(self, ref: Ref) -> bool:
        """Whether the value was shared as whole numbers (0 to 3)."""
        return next(n.integral for n in self.nodes if n.name == ref.name)

    # -- nodes -----------------------------------------------------------------------------------------

    def clear(self, op: str, level: str, value: Tensor) -> Ref:
        name = f"{op[0]}{len(self.nodes)}"
        integral = not value.is_floating_point()
        args = (name,) if op == "input" else ()
        self.nodes.append(
            Node(name, op, args, level, tuple(value.shape), value.dtype, f"made.{name}", integral)
        )
        self.values[name] = value if integral else value.double()
        {"input": self.inputs, "constant": self.constants, "parameter": self.parameters}[op][name] = value
        return Ref(name)

    def shared(self, value: Tensor, owner: bool = False) -> Ref:
        """A secret input, or a secret weight."""
        source = self.clear(*(("parameter", "owner") if owner else ("input", "client")), value)
        return self.secret(
            "share_weight" if owner else "share_input", source, integral=not value.is_floating_point()
        )

    def secret(self, op: str, *args: Any, integral: bool = False) -> Ref:
        """Appends a secret operation if its result fits and is precise enough; DoesNotApply otherwise.

        Where the program is a certified one, values are bound to up to eight times what they are.
        """
        value = OPERATIONS[op].meaning(*(self.exact(a) for a in args)).double()
        node = Node(f"{op}_{len(self.nodes)}", op, args, "secret", tuple(value.shape), site=f"made.{op}")
        node = replace(node, dtype=torch.bool if op in COMPARISONS else torch.float32, integral=integral)
        node_as_drawn, node = node, self.bounded(node)
        off = error(node, self.steps, value, [self.value(a) for a in args])
        if value.numel() and op not in ("share_input", "share_weight", *COMPARISONS):
            worst = float((off / value.abs().clamp(min=1)).max())
            # What hangs on an open comparison may be far off.
            determined = float((off / value.abs().clamp(min=1)).median())
            if min(worst, determined) > COARSE:
                raise DoesNotApply
            if not float((value.abs() + off).max()) < 2.0 ** own_limit(node_as_drawn, self.fraction_bits):
                raise DoesNotApply
            assert node.bound is not None
            beyond = f"{node!r} is {value.tolist()}, above what its operands prove"
            assert float(value.abs().max()) < 2.0**node.bound, beyond
        bound = None
        if self.certified and value.numel():
            largest = float((value.abs() + off).max()) * self.draw(st.sampled_from((1.0, 1.5, 8.0)))
            bound = bits(largest) if bits(largest) < promise(self.fraction_bits) else None
        dtype = torch.bool if op in COMPARISONS else torch.int64 if integral else torch.float32
        self.nodes.append(
            Node(node.name, op, args, "secret", node.shape, dtype, node.site, integral, bound=bound)
        )
        self.values[node.name] = Approximate(value, off)
        self.secrets.append(Ref(node.name))
        return Ref(node.name)

    def bounded(self, node: Node) -> Node:
        """A node with the bound and the spread that the engine finds for it after those that there are."""
        program = Program((*self.nodes, node), (), (), self.constants)
        return with_bounds(program, self.fraction_bits).nodes[-1]

    # -- operands --------------------------------------------------------------------------------------

    def any(self, suitable: Callable[[Tensor], bool] = lambda x: True) -> Ref:
        """A secret value that suits; the latest are the likeliest."""
        found = [r for r in self.secrets if suitable(self.tensor(r))]
        if not found:
            raise DoesNotApply
        return found[-1 - min(self.draw(st.integers(0, 5)), len(found) - 1)]

    def scaled(self, ref: Ref, limit: float) -> Ref:
        """The value times a public factor that brings it below `limit`."""
        largest = self.largest(ref)
        if largest <= limit:
            return ref
        factor = 2.0 ** floor(log2(limit / largest))
        if self.draw(st.booleans()):
            factor = 0.7 * limit / largest
        return self.secret("mul", ref, factor)

    def other(self, shape: Sequence[int]) -> Any:
        """Something that broadcasts with `shape`: a secret, a constant of any kind, a public mask, or a number."""
        kind = self.draw(
            st.sampled_from(("secret", "secret", "number", "constant", "mask", "weight", "input"))
        )
        if kind == "secret":
            return self.any(lambda x: _broadcasts(x.shape, shape))
        if kind == "number":
            return self.draw(st.sampled_from(CONSTANTS))
        fitting = [s for s in SHAPES if _broadcasts(s, shape)]
        if not fitting:
            raise DoesNotApply
        chosen = self.draw(st.sampled_from(fitting))
        if kind == "mask":
            bits = torch.randint(0, 2, chosen, generator=torch.Generator().manual_seed(len(self.nodes)))
            return self.clear("input", "public", bits)
        if kind == "constant":
            return self.clear("constant", "constant", self.numbers(chosen))
        return self.shared(self.numbers(chosen), owner=kind == "weight")

    def program(self, outputs: Sequence[Ref]) -> Program:
        return check(
            Program(
                tuple(self.nodes),
                tuple(n.name for n in self.nodes if n.op == "input"),
                tuple(outputs),
                self.constants,
                self.parameters,
            )
        )


def _broadcasts(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether the two shapes broadcast to a small one."""
    try:
        return len(torch.broadcast_shapes(tuple(a), tuple(b))) <= 4
    except RuntimeError:
        return False


# -- one way to draw each operation ----------------------------------------------------------------------------


def _sum(s: Sketch, op: str) -> Ref:
    x = s.any()
    y = s.other(s.tensor(x).shape)
    if isinstance(y, float):
        y = max(-s.limit, min(s.limit, y))
    pair = (x, y) if s.draw(st.booleans()) else (y, x)
    try:
        return s.secret(op, *pair)
    except DoesNotApply:
        return s.secret(op, *(s.scaled(v, s.limit / 4) if v in s.secrets else v for v in pair))


def _mul(s: Sketch) -> Ref:
    x = s.any()
    y = s.other(s.tensor(x).shape)
    pair = (x, y) if s.draw(st.booleans()) else (y, x)
    for limit in (s.limit, s.limit**0.5 / 2, 16.0, 1.0):
        try:
            return s.secret("mul", *(s.scaled(v, limit) if v in s.secrets else v for v in pair))
        except DoesNotApply:
            continue
    raise DoesNotApply


def _power(s: Sketch, op: str) -> Ref:
    arguments = (s.draw(st.sampled_from((2, 4, 8))),) if op == "power" else ()
    x = s.any()
    for limit in (s.limit, s.limit**0.5 / 2, 8.0, 2.0):
        try:
            return s.secret(op, s.scaled(x, limit), *arguments)
        except DoesNotApply:
            continue
    raise DoesNotApply


def _product(s: Sketch, op: str, right: Callable[[Ref], tuple[Any, ...]], x: Ref) -> Ref:
    for limit in (s.limit, s.limit**0.5 / 8, 8.0, 1.0):
        try:
            smaller = s.scaled(x, limit)
            rest = right(smaller)
            return s.secret(op, smaller, *(s.scaled(v, limit) if v in s.secrets else v for v in rest))
        except DoesNotApply:
            continue
    raise DoesNotApply


def _operand(s: Sketch, shape: Sequence[int]) -> Ref:
    kind = s.draw(st.sampled_from(("weight", "weight", "input", "constant")))
    numbers = s.numbers(shape) / 4
    return (
        s.clear("constant", "constant", numbers)
        if kind == "constant"
        else s.shared(numbers, kind == "weight")
    )


def _matmul(s: Sketch) -> Ref:
    x = s.any(lambda v: v.dim() >= 2)

    def right(x: Ref) -> tuple[Any, ...]:
        shape = s.tensor(x).shape
        if s.draw(st.booleans()):
            return (s.secret("view", "aten.transpose.int", x, -1, -2),)
        batch = shape[:-2] if s.draw(st.booleans()) else ()
        return (_operand(s, (*batch, shape[-1], s.draw(st.integers(1, 3)))),)

    return _product(s, "matmul", right, x)


def _linear(s: Sketch) -> Ref:
    x = s.any(lambda v: v.dim() >= 1)

    def right(x: Ref) -> tuple[Any, ...]:
        rows = s.draw(st.integers(1, 3))
        weight = _operand(s, (rows, s.tensor(x).shape[-1]))
        return (weight, _operand(s, (rows,)) if s.draw(st.booleans()) else None)

    return _product(s, "linear", right, x)


def _views(shape: Sequence[int]) -> list[tuple[Any, ...]]:
    """Views of a shape: (target, arguments after the value)."""
    rank = len(shape)
    found: list[tuple[Any, ...]] = [("aten.unsqueeze.default", 0), ("aten.reshape.default", [-1])]
    if rank < 4:
        found += [("aten.expand.default", [2, *shape]), ("aten.repeat.default", [2, *[1] * rank])]
    for d in range(rank):
        found += [
            ("aten.sum.dim_IntList", [d], bool(d % 2)),
            ("aten.select.int", d, shape[d] - 1),
            ("aten.slice.Tensor", d, 0, max(1, shape[d] - 1)),
            ("aten.flip.default", [d]),
            ("aten.cumsum.default", d),
            ("aten.roll.default", [1], [d]),
        ]
    if rank >= 2:
        found += [
            ("aten.transpose.int", 0, -1),
            ("aten.permute.default", [*range(1, rank), 0]),
            ("aten.movedim.int", 0, -1),
            ("aten.sum.dim_IntList", list(range(rank)), False),
        ]
    return found


def _view(s: Sketch) -> Ref:
    x = s.any()
    target, *rest = s.draw(st.sampled_from(_views(tuple(s.tensor(x).shape))))
    if s.tensor(x).numel() > 64 and target in ("aten.expand.default", "aten.repeat.default"):
        raise DoesNotApply
    return s.secret("view", target, s.scaled(x, s.limit / 32), *rest)


def _cat(s: Sketch) -> Ref:
    x = s.any(lambda v: 1 <= v.dim() <= 3 and v.numel() <= 64)
    shape = s.tensor(x).shape
    fitting = [r for r in s.secrets if s.tensor(r).shape == shape]
    parts: list[Any] = [x, s.draw(st.sampled_from(fitting))]
    if s.draw(st.booleans()):
        parts.append(s.clear("constant", "constant", s.numbers(shape)))
    target = s.draw(st.sampled_from(("aten.cat.default", "aten.stack.default")))
    return s.secret("cat", target, parts, s.draw(st.integers(0, len(shape) - 1)))


def _take(s: Sketch) -> Ref:
    x = s.any(lambda v: 1 <= v.dim() <= 3)
    rows = s.tensor(x).shape[0]
    index = torch.tensor(s.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=3)))
    return s.secret(
        "take", x, s.clear(*s.draw(st.sampled_from((("constant", "constant"), ("input", "public")))), index)
    )


def _in_range(s: Sketch, op: str, x: Ref, *rest: Any) -> None:
    """DoesNotApply where what the operation has a range for, at either end of x's error, is outside."""
    known: Approximate = s.value(x)
    arguments = [s.exact(a) for a in rest]
    valid = OPERATIONS[op].valid
    if valid is None:
        return
    limits = valid.limits(Node("", op, (x, *rest), "secret", tuple(known.value.shape)), s.fraction_bits)
    for sign in (-1, 0, 1):
        found = valid.quantities(known.value + sign * known.error, *arguments)
        for name, (low, high) in limits.items():
            if low is not None and bool((found[name] < low * 1.05).any()):
                raise DoesNotApply
            if high is not None and bool((found[name] > high * 0.95).any()):
                raise DoesNotApply


def _function(s: Sketch, op: str) -> Ref:
    x = s.any()
    rest: tuple[Any, ...] = ()
    if op == "gelu":
        rest = (s.draw(st.sampled_from(("none", "tanh"))),)
    if op == "elu":
        rest = (s.draw(st.sampled_from((1.0, 0.5))),)
    _in_range(s, op, x, *rest)
    return s.secret(op, x, *rest)


def _clamp(s: Sketch) -> Ref:
    low = s.draw(st.sampled_from((-1000.0, -1.0, -0.3, 0.0, 0.5)))
    return s.secret("clamp", s.any(), low, low + s.draw(st.sampled_from((0.25, 1.7, 6.0, 2000.0))))


def _positive(s: Sketch) -> Ref:
    """A value above 2^-6: as it is, or c + x^2."""
    x = s.any()
    known: Approximate = s.value(x)
    if float((known.value - known.error).min()) < 2.0**-6:
        x = s.secret("square", s.scaled(x, 16.0))
        x = s.secret("add", x, s.draw(st.sampled_from((0.02, 0.5, 1.0, 30.0))))
        known = s.value(x)
    if float((known.value - known.error).min()) < 2.0**-6:
        raise DoesNotApply
    return x


def _normalised(s: Sketch, op: str) -> Ref:
    """An operation on a positive number with a range; the signed reciprocal also on a negative one."""
    x = _positive(s)
    known: Approximate = s.value(x)
    low, high = float((known.value - known.error).min()), float((known.value + known.error).max())
    margin = s.draw(st.sampled_from((1.1, 2.0, 16.0)))
    low, high = low / margin, high * margin
    if s.draw(st.booleans()):
        low, high = 2.0 ** floor(log2(low)), 2.0 ** ceil(log2(high))
    if op == "signed_reciprocal" and s.draw(st.booleans()):
        x = s.secret("neg", x)
    return s.secret(op, x, low, high)


def _exponential(s: Sketch) -> Ref:
    x = s.scaled(s.any(), 8.0)
    low, high = s.draw(st.sampled_from(((-12.0, 20.0), (-12.0, 9.0), (-5.0, 8.5), (-12.0, 0.0))))
    known: Approximate = s.value(x)
    if float((known.value + known.error).max()) > high:
        raise DoesNotApply
    return s.secret("exp", x, low, high)


def _conv(s: Sketch) -> Ref:
    """Windows of two neighbours along the last dimension."""
    x = s.any(lambda v: 1 <= v.dim() <= 3 and v.shape[-1] >= 2)
    steps = [["aten.unfold.default", -1, 2, 1]]

    def right(x: Ref) -> tuple[Any, ...]:
        rows = s.draw(st.integers(1, 3))
        return _operand(s, (rows, 2)), _operand(s, (rows,)) if s.draw(st.booleans()) else None, steps

    return _product(s, "conv", right, x)


def _one_hot(s: Sketch) -> Ref:
    found = [r for r in s.secrets if r.name.startswith("share_input") and s.whole(r)]
    if not found:
        raise DoesNotApply
    x = s.draw(st.sampled_from(found))
    return s.secret("one_hot", x, s.draw(st.integers(4, 5)))


def _numerator(s: Sketch) -> Ref:
    x = s.any(lambda v: v.dim() >= 1)
    shape = s.tensor(x).shape
    mask: Any = None
    kind = s.draw(st.sampled_from(("none", "bool", "additive", "public")))
    generator = torch.Generator().manual_seed(s.draw(st.integers(0, 2**10)))
    keep = torch.rand(shape, generator=generator) < 0.6
    if kind == "additive":
        bias = torch.where(keep, torch.randn(shape, generator=generator), torch.finfo(torch.float32).min)
        mask = s.clear("constant", "constant", bias)
    elif kind != "none":
        mask = s.clear(*(("constant", "constant") if kind == "bool" else ("input", "public")), keep)
    dim = s.draw(st.integers(-len(shape), len(shape) - 1))
    _in_range(s, "softmax_numerator", x, mask, dim)
    return s.secret("softmax_numerator", x, mask, dim)


def _layer_norm(s: Sketch, op: str) -> Ref:
    x = s.any(lambda v: v.dim() >= 1 and v.shape[-1] >= 3)
    shape = s.tensor(x).shape
    dims = s.draw(st.integers(1, min(2, len(shape))))
    affine = s.draw(st.sampled_from((0, 1, 2)))
    rest: tuple[Any, ...] = (_operand(s, shape[-dims:]) if affine else None,)
    if op == "layer_norm":
        rest = (*rest, _operand(s, shape[-dims:]) if affine == 2 else None)
    n, eps = prod(shape[-dims:]), s.draw(st.sampled_from((1e-5, 1e-12)))
    rest = (dims, *rest, eps, *widest(n, deviation_scale(n) if op == "layer_norm" else 1.0, eps))
    _in_range(s, op, x, *rest)
    _certain_rows(s, x, dims, op == "layer_norm", eps)
    return s.secret(op, x, *rest)


def _certain_rows(s: Sketch, x: Ref, dims: int, centred: bool, eps: float) -> None:
    """DoesNotApply where a row may be half as large as it is off: what becomes of it has no bound worth the name."""
    known, axes = s.value(x), tuple(range(-dims, 0))
    y = known.value - known.value.mean(axes, keepdim=True) if centred else known.value
    size = ((y**2).mean(axes) + eps).sqrt()
    if bool((known.error.amax(axes) * 4 > size).any()):
        raise DoesNotApply


def _amax(s: Sketch, op: str) -> Ref:
    x = s.any(lambda v: v.dim() >= 1)
    dim = s.draw(st.integers(-s.tensor(x).dim(), s.tensor(x).dim() - 1))
    return s.secret(op, x, dim, s.draw(st.booleans()))


def _compared(s: Sketch, op: str) -> Ref:
    x = s.any()
    y = s.other(s.tensor(x).shape)
    return s.secret(op, *((x, y) if s.draw(st.booleans()) else (y, x)))


def _where(s: Sketch) -> Ref:
    x = s.any()
    shape = s.tensor(x).shape
    bits = [r for r in s.secrets if r.name.startswith(COMPARISONS) and _broadcasts(s.tensor(r).shape, shape)]
    if s.draw(st.integers(0, 3)):
        c = s.draw(st.sampled_from(bits)) if bits else _compared(s, s.draw(st.sampled_from(COMPARISONS)))
    else:
        fitting = [v for v in SHAPES if _broadcasts(v, shape)]
        keep = torch.rand(s.draw(st.sampled_from(fitting)), generator=torch.Generator().manual_seed(7)) < 0.5
        c = s.clear(*s.draw(st.sampled_from((("constant", "constant"), ("input", "public")))), keep)
    both = torch.broadcast_shapes(s.tensor(c).shape, shape) if _broadcasts(s.tensor(c).shape, shape) else None
    if both is None:
        raise DoesNotApply
    y = s.other(both)
    x = s.draw(st.sampled_from(CONSTANTS)) if c in s.secrets and s.draw(st.integers(0, 4)) == 0 else x
    return s.secret("where", c, *((x, y) if s.draw(st.booleans()) else (y, x)))


DRAWS: dict[str, Callable[[Sketch], Ref]] = {
    "add": lambda s: _sum(s, "add"),
    "sub": lambda s: _sum(s, "sub"),
    "neg": lambda s: s.secret("neg", s.any()),
    "mul": _mul,
    "square": lambda s: _power(s, "square"),
    "power": lambda s: _power(s, "power"),
    "matmul": _matmul,
    "linear": _linear,
    "view": _view,
    "cat": _cat,
    "take": _take,
    "relu": lambda s: s.secret("relu", s.any()),
    "clamp": _clamp,
    **{
        op: (lambda s, op=op: _function(s, op))  # type: ignore[misc]
        for op in ("gelu", "tanh", "sigmoid", "silu", "erf", "softplus", "elu", "mish")
    },
    **{
        op: (lambda s, op=op: _normalised(s, op))  # type: ignore[misc]
        for op in ("reciprocal", "signed_reciprocal", "rsqrt", "sqrt", "log")
    },
    "exp": _exponential,
    "conv": _conv,
    "one_hot": _one_hot,
    "rms_norm": lambda s: _layer_norm(s, "rms_norm"),
    "softmax_numerator": _numerator,
    "layer_norm": lambda s: _layer_norm(s, "layer_norm"),
    "amax": lambda s: _amax(s, "amax"),
    "max_with_index": lambda s: _amax(s, "max_with_index"),
    **{op: (lambda s, op=op: _compared(s, op)) for op in COMPARISONS},  # type: ignore[misc]
    "where": _where,
}
"""Secret operation -> how it is drawn."""

OFTEN = ("mul", "matmul", "linear", "view", "where", "layer_norm", "softmax_numerator", "cat")
"""Drawn three times as often as the others: they find operands less often, or combine with more."""


@dataclass(frozen=True)
class Drawn:
    """A program with inputs, and for each of its outputs the float64 value and the error bound at so many fraction bits."""

    program: Program
    fraction_bits: int
    inputs: dict[str, Tensor]
    expected: tuple[Approximate, ...]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        lines = [f"\n{self.program}", f"{self.fraction_bits} fraction bits"]
        lines += [f"{name} = {value.tolist()}" for name, value in self.inputs.items()]
        for name, value in {**self.program.constants, **self.program.parameters}.items():
            lines.append(f"{name} = {value.tolist()}")
        return "\n".join(lines)


@st.composite
def programs(draw: Draw) -> Drawn:
    """A program of up to MAX_OPERATIONS secret operations, for 16 fraction bits or for the most that there can be."""
    s = Sketch(draw, draw(st.sampled_from((16, 16, 20))), certified=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.sampled_from(SHAPES))
        if draw(st.integers(0, 3)) == 0:  # whole numbers are shared without fraction bits
            generator = torch.Generator().manual_seed(draw(st.integers(0, 2**8)))
            s.shared(torch.randint(0, 4, shape, generator=generator))
        else:
            s.shared(s.numbers(shape))
    wanted = draw(st.integers(1, MAX_OPERATIONS))
    for _ in range(wanted):
        if s.operations >= MAX_OPERATIONS:
            break
        op = draw(st.sampled_from([*DRAWS, *OFTEN, *OFTEN]))
        try:
            DRAWS[op](s)
        except DoesNotApply:
            continue
    used = {name for n in s.nodes for name in n.references()}
    last = [r for r in s.secrets if r.name not in used]
    outputs = s.secrets if draw(st.booleans()) else last
    expected = tuple(s.value(r) for r in outputs)
    return Drawn(s.program(outputs), s.fraction_bits, s.inputs, expected)
