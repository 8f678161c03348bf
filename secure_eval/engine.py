"""The one interpreter: runs a program's secret operations over a protocol, each as soon as its operands are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.clear_operations import UNFILLED, operation
from secure_eval.magnitudes import with_bounds
from secure_eval.operations import OPERATIONS
from secure_eval.operations.scaling import fitted, least_bits, room
from secure_eval.program import Node, Program, Ref, substitute
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.scheduler import Task, gather, start
from secure_eval.spec import InvalidProgram

SUMS, PRODUCTS = ("add", "sub"), ("mul", "matmul")
"""Operations of two values that may have to truncate one before they have the other."""


def evaluate_clear(
    node: Node, environment: Mapping[str, Any], constants: Mapping[str, Tensor], device: torch.device
) -> Any:
    """A clear operation in torch, from operands in `environment`. Raises ForbiddenOperation for one that a program may not name."""
    if node.op == "constant":
        value = constants[node.name]
        return value.to(device) if device.type != "meta" else torch.empty_like(value, device=device)
    args = [substitute(a, lambda r: environment[r.name]) for a in node.args]
    if node.op == "getitem":
        return args[0][args[1]]
    if node.op == "aten::aten.one_hot.default":
        rows = torch.arange(args[1], device=device)
        return (args[0].unsqueeze(-1) == rows).to(torch.int64)
    target = node.op.removeprefix("aten::")
    function = operation(target)
    kwargs = {k: substitute(v, lambda r: environment[r.name]) for k, v in node.kwargs}
    if any(a.name == "device" for a in function._schema.arguments):  # type: ignore[attr-defined]
        kwargs["device"] = device
    result = function(*args, **kwargs)
    return result.zero_() if target.split(".")[1] in UNFILLED else result


def multiplied_weights(program: Program) -> list[str]:
    """Names of the shared weights that some operation multiplies with."""
    found: dict[str, None] = {}
    for node in program.nodes:
        for position in OPERATIONS[node.op].multiplied if node.op in OPERATIONS else ():
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
        for node in with_bounds(self._program, p.fraction_bits).nodes:
            if node.level == "public" and node.op != "input":
                clear[node.name] = evaluate_clear(node, clear, self._program.constants, self._device)
            elif node.level == "secret" and node.op not in ("share_input", "share_weight"):
                tasks[node.name] = await start(self._node(p, node, clear, inputs, tasks, uses), node.name)
        outputs = [
            await start(self._output(p, o, clear, inputs, tasks), o.name if isinstance(o, Ref) else "")
            for o in self._program.outputs
        ]
        return [await output for output in outputs]

    async def _output(
        self,
        p: Protocol,
        value: Any,
        clear: Mapping[str, Any],
        inputs: Mapping[str, Secret],
        tasks: Mapping[str, Task[Any]],
    ) -> Any:
        """An output with the working precision at most: the low bits of a product would tell the client more of its factors."""
        found = await self._value(value, clear, inputs, tasks)
        if isinstance(found, Secret) and found.fraction_bits > p.fraction_bits:
            return await p.rescale(found)
        return found

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

    async def _truncate_early(
        self, p: Protocol, node: Node, position: int, tasks: Mapping[str, Task[Any]]
    ) -> None:
        """Truncates an operand that will have to be, while the other one is still being computed: that costs no round later."""
        mine, other = (
            tasks.get(a.name) if isinstance(a, Ref) else None
            for a in (node.args[position], node.args[1 - position])
        )
        if mine is None or other is None or mine is other:
            return
        value = await mine
        if other.done or not isinstance(value, Secret):
            return
        if node.op in SUMS:
            if value.fraction_bits > 2 * p.fraction_bits:
                await p.rescale(value, 2 * p.fraction_bits)
        elif not OPERATIONS[self._program.by_name[node.args[1 - position].name].op].whole:
            least = least_bits(p, node, position)
            if value.fraction_bits > least and value.fraction_bits + p.fraction_bits > room(p, node):
                await p.rescale(value, least)

    async def _node(
        self,
        p: Protocol,
        node: Node,
        clear: Mapping[str, Any],
        inputs: Mapping[str, Secret],
        tasks: Mapping[str, Task[Any]],
        uses: dict[str, int],
    ) -> Any:
        if node.op in SUMS + PRODUCTS:
            await gather(*(self._truncate_early(p, node, i, tasks) for i in (0, 1)))
        args = [await self._value(a, clear, inputs, tasks) for a in node.args]
        result = await self._settled(p, node, await OPERATIONS[node.op].run(p, node, *args))
        if isinstance(result, Secret) and tuple(result.shape) != node.shape:
            raise InvalidProgram(f"{node!r} has the shape {tuple(result.shape)}")
        for name in dict.fromkeys(node.references()):
            uses[name] -= 1
            if not uses[name] and name in tasks:
                tasks[name].result = None  # the last user is done: its memory is free for the next
        return result

    async def _settled(self, p: Protocol, node: Node, result: Any) -> Any:
        """A result as its users get it: with no more fraction bits than it has room for, else their sums and comparisons leave the ring."""
        return await fitted(p, result, room(p, node)) if isinstance(result, Secret) else result
