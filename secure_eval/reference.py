"""What a program means: a float64 interpreter of secure operations, without shares, fixed point or approximation.

What each operation means is in its row (operations/); clear operations run as everywhere else (engine.evaluate_clear), in float64. The
difference between a secure run and this one is the error of fixed point and of the functions, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secure_eval.engine import evaluate_clear
from secure_eval.operations import OPERATIONS
from secure_eval.operations.arithmetic import real
from secure_eval.program import Node, Program, Ref, substitute

_CPU = torch.device("cpu")


def inputs_by_name(program: Program, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of a call, positional or by name, as the program names them. ValueError names those missing and unknown."""
    found = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(program.inputs, inputs, strict=False))
    if not isinstance(inputs, Mapping) and len(inputs) > len(program.inputs):
        raise ValueError(f"{len(inputs)} inputs; the program has {len(program.inputs)}")
    missing, unknown = sorted(set(program.inputs) - set(found)), sorted(set(found) - set(program.inputs))
    if missing or unknown:
        raise ValueError(
            f"inputs missing: {missing or 'none'}; unknown: {unknown or 'none'}; "
            f"the program takes {', '.join(program.inputs)}"
        )
    return found


def _double(value: Any) -> Any:
    """Floating-point tensors and dtypes, also inside lists, as float64; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(_CPU, torch.float64) if value.is_floating_point() else value.to(_CPU)
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if isinstance(value, (list, tuple)):
        return type(value)(_double(v) for v in value)
    return value


def values(
    program: Program,
    inputs: Sequence[Tensor] | Mapping[str, Tensor],
    kept: dict[str, Any] | None = None,
) -> Iterator[tuple[Node, list[Any], Any]]:
    """Every node in order, with the values of its arguments and its own.

    Args:
        inputs: the program's inputs, by name or in order; floating-point ones are taken to float64.
        kept: where given, values that no input changes (weights in float64) are put there, and taken from there in later calls; those of
            them that only lead to other such values are then left out.

    A value is dropped after its last use, so that a large model needs little more memory than a forward pass. Raises ValueError for inputs
    that do not fit, and NotImplementedError where an operation has no meaning here.
    """
    environment: dict[str, Any] = {k: _double(v) for k, v in inputs_by_name(program, inputs).items()}
    constants = {name: _double(t) for name, t in program.constants.items()}
    uses = {name: len(users) for name, users in program.users().items()}
    for node in program.nodes:
        if node.op == "table":
            uses[node.args[0]] = uses.get(node.args[0], 0) + 1
    fixed = {n.name for n in program.nodes if kept is not None and _fixed(n)}
    wanted = {r for n in program.nodes if n.name not in fixed for r in n.references()} & fixed
    known = bool(kept)
    environment.update(kept or {})
    with torch.no_grad():
        for node in program.nodes:
            if known and node.name in fixed:
                continue
            args = [substitute(a, lambda r: environment[r.name]) for a in node.args]
            environment[node.name] = _value(program, node, args, environment, constants)
            yield node, args, environment[node.name]
            if kept is not None and node.name in wanted:
                kept[node.name] = environment[node.name]
            for name in {*node.references(), *([node.args[0]] if node.op == "table" else [])}:
                uses[name] -= 1
                if not uses[name]:
                    environment.pop(name, None)


def _fixed(node: Node) -> bool:
    """Whether a value is the same for all inputs."""
    return node.level in ("constant", "owner") or node.op in ("share_weight", "table")


def _value(
    program: Program,
    node: Node,
    args: list[Any],
    environment: Mapping[str, Any],
    constants: Mapping[str, Tensor],
) -> Any:
    if node.op == "input":
        return environment[node.name]
    if node.op == "parameter":
        return _double(program.parameters[node.name].detach())
    if node.op == "table":  # passes drop the parameter's node where nothing else uses it
        name = node.args[0]
        return environment[name] if name in environment else _double(program.parameters[name].detach())
    if node.level != "secret":
        clear = replace(node, args=_double(node.args), kwargs=_double(node.kwargs))
        return _double(evaluate_clear(clear, environment, constants, _CPU))
    if node.op not in OPERATIONS:
        raise NotImplementedError(f"{node.op!r} is no operation: {node!r}")
    return real(OPERATIONS[node.op].meaning(*args))


def reference(program: Program, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> Any:
    """The program's outputs, as a secure run returns them but in float64. See `values` for arguments and errors."""
    wanted = {o.name for o in program.outputs if isinstance(o, Ref)}
    found = {}
    for node, _, value in values(program, inputs):
        if node.name in wanted:
            found[node.name] = value if node.dtype.is_floating_point else value.to(node.dtype)
    outputs = [found[o.name] if isinstance(o, Ref) else o for o in program.outputs]
    return program.restore(outputs) if program.restore else outputs
