"""A secure program: a closed set of operations in execution order, each value with the level of who may know it.

Levels: `constant` (part of the architecture, known to all), `public` (a public input and what follows from it), `client` (known to the
data owner alone, in the clear), `owner` (known to the model owner alone), `secret` (known to nobody: shared between the parties).
Values below `secret` are computed in the clear, by torch, by whoever knows them: so weights are transposed or scaled by the model
owner, once, before they are shared, and a client looks up embeddings itself where the table is public to it.

Grammar of a node:   name: level dtype[shape] = op(arguments)      @ site
    input                     an input of the model (client or public)
    parameter                 a tensor of the model owner's
    constant                  a tensor stored with the program
    aten::...                 any torch operation, in the clear
    share_input, share_weight from client, owner to secret
    the secret operations     those of operations/, checked by spec.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

LEVELS = ("constant", "public", "client", "owner", "secret")


class MalformedProgram(ValueError):
    """A text is no program. The message says where."""


@dataclass(frozen=True)
class Ref:
    """A node's value, as an argument."""

    name: str

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Node:
    """One operation.

    integral: a clear value that only takes integer values (masks), so that scaling by it is exact.
    bound: a secret value is certified to stay below 2^bound in magnitude (ranges.certify); None where nobody certified one. What its
        making proves besides is worked out where it is needed (magnitudes.py).
    spread: how many more fraction bits the second of two factors needs than the first, halved; the engine's own (magnitudes.py).
    """

    name: str
    op: str
    args: tuple[Any, ...]
    level: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    site: str = ""
    integral: bool = False
    kwargs: tuple[tuple[str, Any], ...] = ()
    bound: int | None = None
    spread: int = field(default=0, compare=False)

    def __repr__(self) -> str:
        arguments = ", ".join([*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.kwargs)])
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.name}: {self.level} {kind}{list(self.shape)} = {self.op}({arguments})"
            + (f"    < 2^{self.bound}" if self.bound is not None else "")
            + (f"    @ {self.site}" if self.site else "")
        )

    def references(self) -> Iterator[str]:
        """Names of the values that the node takes, in order, repeated where it takes one twice."""
        return iter(self._references)

    @cached_property
    def _references(self) -> tuple[str, ...]:
        return tuple([*_references(self.args), *_references([v for _, v in self.kwargs])])


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _references(v)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _numbers(v)


def substitute(value: Any, change: Callable[[Ref], Any]) -> Any:
    """`value` with every Ref in it replaced by change(ref)."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(substitute(v, change) for v in value)
    return value


@dataclass(frozen=True)
class PublicConstant:
    """A tensor (or one number, of shape ()) of the model that all parties see in the clear: its node, its path in the model, and why."""

    name: str
    path: str
    shape: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Program:
    """Nodes in an order in which each follows its arguments, and the names of what goes in and comes out.

    `parameters` maps parameter nodes to tensors: the model owner's part, which is not serialised with the program.
    `public_constants` and `public_numbers` (how many numbers the text holds, by module) are what parties see of the model's own numbers.
    `restore` rebuilds the model's own output type from the flat outputs, and `passes` names the rewrites that have run (both only where the
    model was captured in this process; None elsewhere).
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[Any, ...]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    restore: Callable[[list[Any]], Any] | None = field(default=None, compare=False)
    public_constants: tuple[PublicConstant, ...] = field(default=(), compare=False)
    passes: tuple[str, ...] | None = field(default=None, compare=False)

    def __getitem__(self, name: str) -> Node:
        return self.by_name[name]

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {n.name: n for n in self.nodes}

    @cached_property
    def public_numbers(self) -> dict[str, int]:
        """How many real numbers stand in the arguments of each module's operations: scales, epsilons, bounds."""
        found: dict[str, int] = {}
        for node in self.nodes:
            count = sum(1 for _ in _numbers((node.args, [v for _, v in node.kwargs])))
            if count:
                found[node.site] = found.get(node.site, 0) + count
        return found

    def users(self) -> dict[str, list[Node]]:
        """For each value the nodes that use it."""
        result: dict[str, list[Node]] = {n.name: [] for n in self.nodes}
        for n in self.nodes:
            for r in dict.fromkeys(n.references()):
                result[r].append(n)
        return result

    def with_nodes(self, nodes: list[Node]) -> Program:
        return replace(self, nodes=tuple(nodes))

    def __str__(self) -> str:
        return "\n".join(repr(n) for n in self.nodes) + f"\nreturn {', '.join(map(repr, self.outputs))}"

    def to_json(self) -> str:
        """The program without tensors: what parties and dealer need besides the constants."""
        return json.dumps(
            {
                "nodes": [
                    [
                        n.name,
                        n.op,
                        _pack(n.args),
                        n.level,
                        list(n.shape),
                        _dtype_name(n.dtype),
                        n.site,
                        n.integral,
                        _pack(n.kwargs),
                        n.bound,
                    ]
                    for n in self.nodes
                ],
                "inputs": list(self.inputs),
                "outputs": _pack(self.outputs),
            }
        )

    @classmethod
    def from_json(cls, text: str, constants: Mapping[str, Tensor] | None = None) -> Program:
        """Inverse of to_json, for a text from anybody. Raises MalformedProgram; what a well-formed program may do, spec.py says.
        Without `constants` theirs are shapes on the meta device: all that a plan is made from."""
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or set(data) != {"nodes", "inputs", "outputs"}:
                raise MalformedProgram("a program has nodes, inputs and outputs")
            nodes = tuple(_node(number, entry) for number, entry in enumerate(_list(data["nodes"], "nodes")))
            inputs = tuple(_string(name, "inputs") for name in _list(data["inputs"], "inputs"))
            outputs = tuple(_unpack(v, "outputs") for v in _list(data["outputs"], "outputs"))
        except MalformedProgram:
            raise
        except (ValueError, RecursionError) as error:  # no JSON, or nested too deeply
            raise MalformedProgram(f"{type(error).__name__}: {error}") from None
        if constants is None:
            constants = {
                n.name: torch.empty(n.shape, dtype=n.dtype, device="meta")
                for n in nodes
                if n.op == "constant"
            }
        return cls(nodes, inputs, outputs, constants)

    def key(self) -> str:
        """A hash of everything that determines the program's cost: structure, shapes and bounds, not the values of constants."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _pack(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, torch.dtype):
        return {"dtype": _dtype_name(value)}
    if isinstance(value, (list, tuple)):
        return [_pack(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a program cannot hold {value!r}")


_DTYPES = {
    _dtype_name(d): d
    for d in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}


_MAX_BOUND = 1100
"""Powers of two that a bound may be: those of float64, and a few."""


def _dtype(name: Any, where: str) -> torch.dtype:
    if not isinstance(name, str) or name not in _DTYPES:
        raise MalformedProgram(f"{where}: dtype {name!r}; allowed: {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise MalformedProgram(f"{where}: {value!r} is no list")
    return value


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise MalformedProgram(f"{where}: {value!r} is no string")
    return value


def _node(number: int, entry: Any) -> Node:
    where = f"node {number}"
    if len(_list(entry, where)) != 10:
        raise MalformedProgram(f"{where} has {len(entry)} parts, not 10")
    name, op, args, level, shape, dtype, site, integral, kwargs, bound = entry
    for text in (name, op, level, site):
        _string(text, where)
    if not all(type(size) is int and size >= 0 for size in _list(shape, where)):
        raise MalformedProgram(f"{where}: {shape!r} is no shape")
    if type(integral) is not bool:
        raise MalformedProgram(f"{where}: integral={integral!r}; allowed: true and false")
    if bound is not None and (type(bound) is not int or abs(bound) > _MAX_BOUND):
        raise MalformedProgram(
            f"{where}: bound={bound!r}; allowed: null, and a power of two up to {_MAX_BOUND}"
        )
    keywords = []
    for pair in _list(kwargs, where):
        if len(_list(pair, where)) != 2:
            raise MalformedProgram(f"{where}: {pair!r} is no keyword and value")
        keywords.append((_string(pair[0], where), _unpack(pair[1], where)))
    values = tuple(_unpack(v, where) for v in _list(args, where))
    kind = _dtype(dtype, where)
    return Node(name, op, values, level, tuple(shape), kind, site, integral, tuple(keywords), bound)


def _unpack(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        if set(value) == {"ref"}:
            return Ref(_string(value["ref"], where))
        if set(value) == {"dtype"}:
            return _dtype(value["dtype"], where)
        raise MalformedProgram(f"{where}: {value!r} is neither a reference nor a dtype")
    if isinstance(value, list):
        return [_unpack(v, where) for v in value]
    return value
