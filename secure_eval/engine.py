"""The one interpreter: runs a program's secret operations over a protocol, each as soon as its operands are there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from math import frexp, log2
from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.functions.gelu import gelu
from secure_eval.functions.layer_norm import layer_norm
from secure_eval.functions.maximum import amax
from secure_eval.functions.normalised import reciprocal, rsqrt
from secure_eval.functions.softmax import softmax_numerator
from secure_eval.functions.tanh import tanh
from secure_eval.program import Node, Program, Ref, substitute
from secure_eval.protocols.base import LINEAR, MATMUL, MUL, Bilinear, Protocol, Secret
from secure_eval.scheduler import Task, gather, start

MAX_PRODUCT_BITS = 48
"""Products are truncated first where their fraction bits would exceed this: 14 integer bits stay."""

MASK_BELOW = -5e3
"""An additive public mask below this selects; above, it is a number and is added."""

MULTIPLIED = {"mul": (0, 1), "matmul": (0, 1), "linear": (1,), "layer_norm": (2,)}
"""Arguments that operations multiply with: weights there get a fixed mask when the model is set up."""


def evaluate_clear(
    node: Node, environment: Mapping[str, Any], constants: Mapping[str, Tensor], device: torch.device
) -> Any:
    """A clear operation in torch, from operands in `environment`."""
    if node.op == "constant":
        value = constants[node.name]
        return value.to(device) if device.type != "meta" else torch.empty_like(value, device=device)
    args = [substitute(a, lambda r: environment[r.name]) for a in node.args]
    if node.op == "getitem":
        return args[0][args[1]]
    if node.op == "aten::aten.one_hot.default":
        rows = torch.arange(args[1], device=device)
        return (args[0].unsqueeze(-1) == rows).to(torch.int64)
    namespace, name, overload = node.op.removeprefix("aten::").split(".")
    if namespace != "aten":
        raise ValueError(f"{node.op} is not a torch operation")
    kwargs = {k: substitute(v, lambda r: environment[r.name]) for k, v in node.kwargs}
    function = getattr(getattr(torch.ops.aten, name), overload)
    if any(a.name == "device" for a in function._schema.arguments):
        kwargs["device"] = device
    return function(*args, **kwargs)


def multiplied_weights(program: Program) -> list[str]:
    """Names of the shared weights that some operation multiplies with."""
    found: dict[str, None] = {}
    for node in program.nodes:
        for position in MULTIPLIED.get(node.op, ()):
            argument = node.args[position]
            if isinstance(argument, Ref) and program.by_name[argument.name].op == "share_weight":
                found[argument.name] = None
    return list(found)


class Engine:
    """Evaluates a program's secret nodes for one party.

    Args:
        weights: shares of the share_weight nodes, by name.
        clear: values of constant nodes, by name.
    """

    def __init__(
        self, program: Program, weights: Mapping[str, Secret], clear: Mapping[str, Any], device: torch.device
    ):
        self._program, self._weights, self._clear, self._device = program, weights, clear, device
        self._integral = {n.name for n in program.nodes if n.integral}
        self._uses = {name: len(users) for name, users in program.users().items()}
        for output in program.outputs:
            if isinstance(output, Ref):
                self._uses[output.name] += 1

    async def run(self, p: Protocol, public: Mapping[str, Tensor], inputs: Mapping[str, Secret]) -> list[Any]:
        """The program's outputs: Secrets, or clear values. `inputs` are the shares of the share_input nodes, by name."""
        clear: dict[str, Any] = {**self._clear, **public}
        uses = dict(self._uses)
        tasks: dict[str, Task[Any]] = {}
        for node in self._program.nodes:
            if node.level == "public" and node.op != "input":
                clear[node.name] = evaluate_clear(node, clear, self._program.constants, self._device)
            elif node.level == "secret" and node.op not in ("share_input", "share_weight"):
                tasks[node.name] = await start(self._node(p, node, clear, inputs, tasks, uses), node.name)
        return [await self._value(o, clear, inputs, tasks) for o in self._program.outputs]

    async def _value(
        self,
        value: Any,
        clear: Mapping[str, Any],
        inputs: Mapping[str, Secret],
        tasks: Mapping[str, Task[Any]],
    ) -> Any:
        if isinstance(value, (list, tuple)):
            return [await self._value(v, clear, inputs, tasks) for v in value]
        if not isinstance(value, Ref):
            return value
        if value.name in tasks:
            return await tasks[value.name]
        if value.name in inputs:
            return inputs[value.name]
        if value.name in self._weights:
            return self._weights[value.name]
        found = clear[value.name]
        # A mask that was cast to floating point still scales exactly, without fraction bits of its own.
        return (
            found.to(ring.DTYPE)
            if value.name in self._integral and isinstance(found, Tensor) and found.is_floating_point()
            else found
        )

    async def _node(
        self,
        p: Protocol,
        node: Node,
        clear: Mapping[str, Any],
        inputs: Mapping[str, Secret],
        tasks: Mapping[str, Task[Any]],
        uses: dict[str, int],
    ) -> Any:
        args = [await self._value(a, clear, inputs, tasks) for a in node.args]
        result = await RULES[node.op](p, node, *args)
        for name in dict.fromkeys(node.references()):
            uses[name] -= 1
            if not uses[name] and name in tasks:
                tasks[name].result = None  # the last user is done: its memory is free for the next
        return result


Rule = Callable[..., Coroutine[Any, Any, Any]]
RULES: dict[str, Rule] = {}


def _rule(function: Rule) -> Rule:
    RULES[function.__name__.removeprefix("_").removesuffix("_")] = function
    return function


def _constant_bits(p: Protocol, x: Secret, magnitude: float) -> int:
    """Fraction bits for a public factor: 16 significant ones, fewer where the product would exceed MAX_PRODUCT_BITS."""
    wanted = 16 - (int(log2(magnitude)) if magnitude > 0 else 0)
    return max(0, min(wanted, MAX_PRODUCT_BITS - x.fraction_bits))


async def _times_clear(p: Protocol, x: Secret, factor: Any, integral: bool) -> Secret:
    if isinstance(factor, Tensor):
        if integral:
            return p.scale(x, factor.to(ring.DTYPE))
        x = await p.rescale(x, min(x.fraction_bits, 2 * p.fraction_bits))
        bits = MAX_PRODUCT_BITS - 2 * p.fraction_bits
        return p.scale(x, ring.encode(factor, bits), bits)
    mantissa, exponent = frexp(abs(factor))
    if mantissa == 0.5:
        moved = Secret(x.shares, x.fraction_bits - (exponent - 1))
        return moved if factor > 0 else p.scale(moved, -1)
    if factor == int(factor) and abs(factor) < 2**10:
        return p.scale(x, int(factor))
    bits = _constant_bits(p, x, abs(factor))
    if abs(factor) * 2**bits < 2**9:
        x = await p.rescale(x)
        bits = _constant_bits(p, x, abs(factor))
    return p.scale(x, round(factor * 2**bits), bits)


async def _plus_clear(p: Protocol, x: Secret, value: Any) -> Secret:
    """x + value, x truncated first where the summand would not fit its fraction bits."""
    tensor = isinstance(value, Tensor)
    if x.fraction_bits > MAX_PRODUCT_BITS if tensor else abs(value) * 2.0**x.fraction_bits >= 2.0**61:
        x = await p.rescale(x, min(x.fraction_bits, 2 * p.fraction_bits))
    if tensor:
        return p.add_public(x, ring.encode(value, x.fraction_bits))
    return p.add_real(x, float(value))


async def _fit(p: Protocol, x: Secret, y: Secret) -> tuple[Secret, Secret]:
    """Operands of a product, truncated where their fraction bits add up to more than MAX_PRODUCT_BITS."""
    while x.fraction_bits + y.fraction_bits > MAX_PRODUCT_BITS:
        if x.fraction_bits >= y.fraction_bits:
            x = await p.rescale(x)
        else:
            y = await p.rescale(y)
    return x, y


async def _sum_operands(p: Protocol, x: Secret, y: Secret) -> tuple[Secret, Secret]:
    """Operands of a sum: no more fraction bits than a product of two values has, unless both have as many."""
    if x.fraction_bits == y.fraction_bits:
        return x, y
    limit = 2 * p.fraction_bits
    return (await p.rescale(x, min(limit, x.fraction_bits)), await p.rescale(y, min(limit, y.fraction_bits)))


@_rule
async def _view(p: Protocol, node: Node, target: str, x: Secret, *rest: Any) -> Secret:
    _, name, overload = target.split(".")
    function = getattr(getattr(torch.ops.aten, name), overload)
    return x.map(lambda s: function(s, *rest))


@_rule
async def _cat(p: Protocol, node: Node, target: str, parts: list[Any], dim: int) -> Secret:
    secrets = [
        v if isinstance(v, Secret) else p.public(ring.encode(v, p.fraction_bits), p.fraction_bits)
        for v in parts
    ]
    bits = max(s.fraction_bits for s in secrets)
    if any(s.fraction_bits != bits for s in secrets):
        secrets = await gather(*(p.rescale(s) for s in secrets))
        bits = p.fraction_bits
    join = torch.cat if target == "aten.cat.default" else torch.stack
    return Secret(
        [join(list(shares), dim) for shares in zip(*(s.shares for s in secrets), strict=True)], bits
    )


@_rule
async def _take(p: Protocol, node: Node, table: Secret, index: Tensor) -> Secret:
    return table.map(lambda s: s[index])


@_rule
async def _add(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if not isinstance(x, Secret):
        return await _plus_clear(p, y, x)
    if not isinstance(y, Secret):
        return await _plus_clear(p, x, y)
    return p.add(*await _sum_operands(p, x, y))


@_rule
async def _sub(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if not isinstance(x, Secret):
        return await _plus_clear(p, p.scale(y, -1), x)
    if not isinstance(y, Secret):
        return await _plus_clear(p, x, -y)
    return p.sub(*await _sum_operands(p, x, y))


@_rule
async def _neg(p: Protocol, node: Node, x: Secret) -> Secret:
    return p.scale(x, -1)


@_rule
async def _mul(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if not isinstance(x, Secret):
        x, y = y, x
    if not isinstance(y, Secret):
        integral = isinstance(y, Tensor) and not y.is_floating_point()
        return await _times_clear(p, x, y, integral)
    return await p.bilinear(MUL, *await _fit(p, x, y))


@_rule
async def _square(p: Protocol, node: Node, x: Secret) -> Secret:
    bits = min(x.fraction_bits, p.fraction_bits)
    opened = await p.open_masked(x, shift=x.fraction_bits - bits, degree=2)
    if x.fraction_bits > bits:
        x.memo.setdefault(("rescale", bits), await start(opened.truncated()))
    return await opened.polynomial([0.0, 0.0, 1.0], 2 * bits)


@_rule
async def _power(p: Protocol, node: Node, x: Secret, n: int) -> Secret:
    while n > 1:
        x = await _square(p, node, x)
        n //= 2
    return x


async def _product(p: Protocol, op: Bilinear, x: Any, y: Any) -> Secret:
    if isinstance(x, Secret) and isinstance(y, Secret):
        return await p.bilinear(op, *await _fit(p, x, y))
    if isinstance(x, Secret):
        x = await p.rescale(x)
        clear = ring.encode(y, p.fraction_bits)
        return x.map(lambda s: op(s, clear), x.fraction_bits + p.fraction_bits)
    y = await p.rescale(y)
    clear = ring.encode(x, p.fraction_bits)
    return y.map(lambda s: op(clear, s), y.fraction_bits + p.fraction_bits)


@_rule
async def _matmul(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    return await _product(p, MATMUL, x, y)


@_rule
async def _linear(p: Protocol, node: Node, x: Secret, weight: Any, bias: Any) -> Secret:
    x = await p.rescale(x)
    result = await _product(p, LINEAR, x, weight)
    if bias is None:
        return result
    return p.add(result, bias) if isinstance(bias, Secret) else await _plus_clear(p, result, bias)


@_rule
async def _relu(p: Protocol, node: Node, x: Secret) -> Secret:
    positive = p.invert(await p.less_than(x, [0.0]))[0]
    return await p.select(positive, x)


@_rule
async def _gelu(p: Protocol, node: Node, x: Secret, approximate: str) -> Secret:
    return await gelu(p, x, approximate)


@_rule
async def _tanh(p: Protocol, node: Node, x: Secret) -> Secret:
    return await tanh(p, x)


@_rule
async def _reciprocal(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await reciprocal(p, x, low, high)


@_rule
async def _rsqrt(p: Protocol, node: Node, x: Secret, low: float, high: float) -> Secret:
    return await rsqrt(p, x, low, high)


@_rule
async def _softmax_numerator(p: Protocol, node: Node, x: Secret, mask: Tensor | None, dim: int) -> Secret:
    if mask is None:
        return await softmax_numerator(p, x, None, dim)
    if mask.dtype == torch.bool:
        return await softmax_numerator(p, x, mask, dim)
    keep = mask > MASK_BELOW
    x = await _plus_clear(p, x, torch.where(keep, mask, torch.zeros_like(mask)))
    return await softmax_numerator(p, x, keep, dim)


@_rule
async def _layer_norm(
    p: Protocol, node: Node, x: Secret, dims: int, weight: Any, bias: Any, eps: float
) -> Secret:
    secret_weight, secret_bias = (
        v
        if v is None or isinstance(v, Secret)
        else p.public(ring.encode(v, p.fraction_bits), p.fraction_bits)
        for v in (weight, bias)
    )
    return await layer_norm(p, x, dims, secret_weight, secret_bias, eps)


@_rule
async def _amax(p: Protocol, node: Node, x: Secret, dim: int, keepdim: bool) -> Secret:
    return await amax(p, x, dim, keepdim)


@_rule
async def _less(p: Protocol, node: Node, x: Any, y: Any) -> Secret:
    if isinstance(x, Secret) and not isinstance(y, (Secret, Tensor)):
        return await p.bits_to_ring((await p.less_than(x, [float(y)]))[0])
    difference: Secret = await _sub(p, node, x, y)
    return await p.bits_to_ring((await p.less_than(difference, [0.0]))[0])


@_rule
async def _where(p: Protocol, node: Node, c: Any, x: Any, y: Any) -> Secret:
    if isinstance(c, Secret):
        d = await _sub(p, node, x, y) if isinstance(x, Secret) or isinstance(y, Secret) else None
        if d is None:
            return await _add(p, node, await _mul(p, node, c, x - y), y)
        return await _add(p, node, await p.bilinear(MUL, c, d), y)
    keep = c.to(ring.DTYPE)
    total: Secret | None = None
    for value, mask in ((x, keep), (y, 1 - keep)):
        if isinstance(value, Secret):
            part = p.scale(value, mask)
            total = part if total is None else p.add(*await _sum_operands(p, total, part))
    assert total is not None
    for value, mask in ((x, keep), (y, 1 - keep)):
        if not isinstance(value, Secret):
            value = value if isinstance(value, Tensor) else torch.full((), float(value), device=mask.device)
            total = p.add_public(total, ring.encode(value, total.fraction_bits) * mask)
    return total
