"""Sums, products and powers."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, inf
from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.clear_operations import operation
from secure_eval.operations.error import Approximate, Steps, product_error
from secure_eval.operations.operation import (
    Interval,
    Known,
    Operation,
    ValidRange,
    always,
    products,
    times,
    union,
)
from secure_eval.operations.scaling import fit, plus_clear, sum_operands, times_clear
from secure_eval.program import Node
from secure_eval.protocols.base import LINEAR, MATMUL, MUL, Bilinear, Protocol, Secret
from secure_eval.scheduler import start


def real(value: Any) -> Tensor:
    """A clear operand in float64."""
    return value.to(torch.float64) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _times_transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ real(weight).mT
    return product if bias is None else product + bias


def _windows_times(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Sequence[Sequence[Any]]) -> Tensor:
    for target, *rest in steps:
        x = operation(target)(x, *rest)
    return _times_transposed(x, weight, bias)


async def add(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if not isinstance(x, Secret):
        return await plus_clear(p, y, x, node)
    if not isinstance(y, Secret):
        return await plus_clear(p, x, y, node)
    return p.add(*await sum_operands(p, x, y, node))


async def sub(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if not isinstance(x, Secret):
        return await plus_clear(p, p.scale(y, -1), x, node)
    if not isinstance(y, Secret):
        return await plus_clear(p, x, -y, node)
    return p.sub(*await sum_operands(p, x, y, node))


async def _neg(p: Protocol, node: Node, x: Secret) -> Secret:
    return p.scale(x, -1)


async def mul(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if not isinstance(x, Secret):
        x, y = y, x
    if not isinstance(y, Secret):
        integral = isinstance(y, Tensor) and not y.is_floating_point()
        return await times_clear(p, x, y, integral, node)
    return await p.bilinear(MUL, *await fit(p, x, y, node))


async def _square(p: Protocol, node: Node, x: Secret) -> Secret:
    bits = min(x.fraction_bits, p.fraction_bits)
    opened = await p.open_masked(x, shift=x.fraction_bits - bits, degree=2)
    if x.fraction_bits > bits:
        x.memo.setdefault(("rescale", bits), await start(opened.truncated()))
    return await opened.polynomial([0.0, 0.0, 1.0], 2 * bits)


async def _raised(p: Protocol, node: Node, x: Secret, n: int) -> Secret:
    while n > 1:
        x = await _square(p, node, x)
        n //= 2
    return x


async def _product(p: Protocol, op: Bilinear, x: Any, y: Any, node: Node) -> Secret:
    if isinstance(x, Secret) and isinstance(y, Secret):
        return await p.bilinear(op, *await fit(p, x, y, node))
    if isinstance(x, Secret):
        x = await p.rescale(x)
        clear = ring.encode(y, p.fraction_bits)
        return x.map(lambda s: op(s, clear), x.fraction_bits + p.fraction_bits)
    y = await p.rescale(y)
    clear = ring.encode(x, p.fraction_bits)
    return y.map(lambda s: op(clear, s), y.fraction_bits + p.fraction_bits)


async def _matmul(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    return await _product(p, MATMUL, x, y, node)


async def _linear(p: Protocol, node: Node, x: Secret, weight: Any, bias: Any) -> Secret:
    x = await p.rescale(x)
    return await _plus_bias(p, node, await _product(p, LINEAR, x, weight, node), bias)


async def _plus_bias(p: Protocol, node: Node, result: Secret, bias: Any) -> Secret:
    if bias is None:
        return result
    if isinstance(bias, Secret):
        return p.add(*await sum_operands(p, result, bias, node))
    return await plus_clear(p, result, bias, node)


async def _conv(p: Protocol, node: Node, x: Any, weight: Any, bias: Any, steps: list[Any]) -> Secret:
    x = await p.rescale(x) if isinstance(x, Secret) else x
    windows = tuple(tuple(tuple(v) if isinstance(v, list) else v for v in step) for step in steps)
    return await _plus_bias(p, node, await _product(p, Bilinear("linear", windows), x, weight, node), bias)


def powers(x: Interval, n: int) -> Interval:
    try:
        ends = [abs(v) ** n if abs(v) < inf else inf for v in x]
    except OverflowError:
        ends = [inf, inf]
    return 0.0 if x[0] <= 0 <= x[1] else min(ends), max(ends)


def _difference(known: Known, node: Node) -> Interval:
    x, y = node.args
    (low, high), (low_y, high_y) = known.look(x), known.look(y)
    found = low - high_y, high - low_y
    if _is_absolute(known, x, y):
        return 0.0, max(abs(low_y), abs(high_y))
    subtracted = known.node(y)
    if subtracted is not None and subtracted.op == "amax" and subtracted.args[0] == x:
        return found[0], 0.0
    return found


def _is_absolute(known: Known, x: Any, y: Any) -> bool:
    """Whether x - y is 2 relu(y) - y."""
    double = known.node(x)
    if double is None or double.op != "mul" or double.args[1] != 2.0:
        return False
    relu = known.node(double.args[0])
    return relu is not None and relu.op == "relu" and relu.args[0] == y


def _is_share(known: Known, x: Any, y: Any) -> bool:
    """Whether x y is x over a sum that x is a part of."""
    inverse = known.node(y)
    if inverse is None or inverse.op != "reciprocal":
        return False
    total = known.by_name[inverse.args[0].name]
    return total.op == "view" and total.args[0].startswith("aten.sum.") and total.args[1] == x


def _product_interval(known: Known, node: Node) -> Interval:
    x, y = node.args
    if _is_share(known, x, y) and known.look(x)[0] >= 0:
        return 0.0, 1.0
    return powers(known.look(x), 2) if x == y else products(known.look(x), known.look(y))


def _sums_of_products(known: Known, node: Node) -> Interval:
    """Of a matrix product, of windows as well, in which zeros may be padded; with the bias that a layer has."""
    x, y, bias = (*node.args, None)[:3]
    terms = known.shape(x)[-1] if node.op == "matmul" else known.shape(y)[-1]
    low, high = products(union([known.look(x), (0.0, 0.0)]), known.look(y))
    low_b, high_b = (0.0, 0.0) if bias is None else known.look(bias)
    return times(terms, low) + low_b, times(terms, high) + high_b


def _sum_error(steps: Steps, value: Tensor, x: Any, y: Any) -> Tensor:
    """Operands with different fraction bits keep 2f at most."""
    return steps.operand(x, steps.fine).error + steps.operand(y, steps.fine).error


def _mul_error(steps: Steps, value: Tensor, x: Any, y: Any) -> Tensor:
    if isinstance(x, Approximate) and isinstance(y, Approximate):
        cuts = [steps.cut * 2.0 ** max(0, more) for more in (steps.spread, -steps.spread)]
        return product_error(torch.mul, steps.operand(x, cuts[0]), steps.operand(y, cuts[1]))
    secret, clear = (x, y) if isinstance(x, Approximate) else (y, x)
    if isinstance(clear, Tensor):
        # A public factor takes f fraction bits at least; whole numbers are never truncated.
        cut = torch.where(secret.error > 0, steps.cut, 0.0) if not clear.is_floating_point() else steps.cut
        return product_error(torch.mul, Approximate(secret.value, secret.error + cut), steps.operand(clear))
    factor = torch.tensor(float(clear), dtype=torch.float64)
    exact = frexp(abs(clear))[0] == 0.5 or (clear == int(clear) and abs(clear) < 2**10)
    if exact:  # the binary point moves, to more fraction bits than stay perhaps, or an integer multiplies
        before = torch.where(secret.error > 0, secret.error + steps.cut, 0.0)
        return before * factor.abs() + (steps.cut if abs(clear) < 1 else 0.0)
    # Public factors keep nine significant bits, or the fraction bits that the secret leaves of the ring's 62.
    least = torch.tensor(2.0 ** (steps.fraction_bits - ring.VALUE_BITS))
    off = Approximate(factor, torch.maximum(factor.abs() * 2.0**-10, least))
    return product_error(torch.mul, steps.operand(secret, steps.cut), off)


def _square_error(steps: Steps, value: Tensor, x: Approximate) -> Tensor:
    off = steps.operand(x, steps.cut)
    return 2 * off.value.abs() * off.error + off.error**2


def _power_error(steps: Steps, value: Tensor, x: Approximate, n: int) -> Tensor:
    while n > 1:
        x = Approximate(x.value**2, _square_error(steps, value, x))
        n //= 2
    return x.error


def _matmul_error(steps: Steps, value: Tensor, x: Any, y: Any) -> Tensor:
    return product_error(torch.matmul, steps.operand(x, steps.cut), steps.operand(y, steps.cut))


def _linear_error(steps: Steps, value: Tensor, x: Approximate, weight: Any, bias: Any) -> Tensor:
    off = product_error(lambda a, b: a @ b.mT, steps.operand(x, steps.cut), steps.operand(weight, steps.cut))
    return off if bias is None else off + steps.operand(bias, steps.fine).error


def _conv_error(steps: Steps, value: Tensor, x: Any, weight: Any, bias: Any, windows: Any) -> Tensor:
    def function(a: Tensor, b: Tensor) -> Tensor:
        return _windows_times(a, b, None, windows)

    off = product_error(function, steps.operand(x, steps.cut), steps.operand(weight, steps.cut))
    return off if bias is None else off + steps.operand(bias, steps.fine).error


def _times_power_of_two(node: Node) -> bool:
    """The binary point moves."""
    factor = node.args[1]
    return isinstance(factor, (int, float)) and frexp(abs(factor))[0] == 0.5


OPERATIONS: dict[str, Operation] = {
    "add": Operation(
        "x, y",
        ("v", "v"),
        lambda x, y: x + y,
        add,
        _sum_error,
        lambda known, node: (
            sum(known.look(a)[0] for a in node.args),
            sum(known.look(a)[1] for a in node.args),
        ),
    ),
    "sub": Operation("x, y", ("v", "v"), lambda x, y: x - y, sub, _sum_error, _difference),
    "neg": Operation(
        "x",
        ("s",),
        lambda x: -x,
        _neg,
        lambda steps, value, x: x.error,
        lambda known, node: (-known.look(node.args[0])[1], -known.look(node.args[0])[0]),
        exact=always,
    ),
    "mul": Operation(
        "x, y",
        ("v", "v"),
        lambda x, y: x * y,
        mul,
        _mul_error,
        _product_interval,
        multiplied=(0, 1),
        exact=_times_power_of_two,
    ),
    "square": Operation(
        "x",
        ("s",),
        lambda x: x * x,
        _square,
        _square_error,
        lambda known, node: powers(known.look(node.args[0]), 2),
    ),
    "power": Operation(
        "x, n: n a power of two",
        ("s", "-"),
        lambda x, n: x**n,
        _raised,
        _power_error,
        lambda known, node: powers(known.look(node.args[0]), node.args[1]),
    ),
    "matmul": Operation(
        "x, y",
        ("v", "v"),
        lambda x, y: real(x) @ real(y),
        _matmul,
        _matmul_error,
        _sums_of_products,
        multiplied=(0, 1),
    ),
    "linear": Operation(
        "x, weight, bias or None: x @ weight^T + bias",
        ("s", "v", "v?"),
        _times_transposed,
        _linear,
        _linear_error,
        _sums_of_products,
        ValidRange(
            lambda x, weight, bias: {"product without the bias": _times_transposed(x, weight, None).abs()}
        ),
        multiplied=(1,),
    ),
    "conv": Operation(
        "x, weight, bias or None, steps: windows @ weight^T + bias, the windows by the views [target, ...] of x in steps",
        ("v", "v", "v?", "-"),
        _windows_times,
        _conv,
        _conv_error,
        _sums_of_products,
        multiplied=(1,),
    ),
}
