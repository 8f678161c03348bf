"""What the rules build: nodes with levels, and the list of what could not be lowered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secure_eval.intervals import Intervals
from secure_eval.program import Node, Ref, substitute

Lower = Callable[["Builder", str, list[Any], dict[str, Any], Any, str], Any]

CLEAR_ONLY_KEYWORDS = {"device", "pin_memory", "layout", "memory_format", "non_blocking", "copy"}
"""Keywords of operations that shares have no use for."""


@dataclass(frozen=True)
class Unsupported:
    """An operation without a rule, and the module that it comes from."""

    operation: str
    site: str
    reason: str = ""


class Builder:
    """Collects nodes; `unsupported` collects what could not be lowered, so that all of it is reported at once.

    lower: what lowers one operation (dispatch.lower), for rules that are made of others.
    """

    def __init__(self, embedding: str, lower: Lower):
        self.embedding = embedding
        self.lower = lower
        self.nodes: list[Node] = []
        self.by_name: dict[str, Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        self.unsupported: list[Unsupported] = []
        self.intervals = Intervals(self.by_name, self.constants)
        self.withheld: set[str] = set()
        """Parameters that are tensors of the model by another name: buffers, attributes. They can be made public where need be."""
        self.needed: dict[str, str] = {}
        """Those of them that operations need in the clear, and what for."""
        self.splits: dict[str, Any] = {}
        """Of values that a mask was looked for in, what masks.py found, by name."""
        self.masks: dict[Any, Any] = {}
        """Masks that are ready for a softmax, by public summand and dimension."""
        self.hot: dict[tuple[str, int], Ref] = {}
        """One-hot rows that exist already, by index and number of rows: each costs comparisons."""
        self.pairs: set[str] = set()
        """Secrets that stand for complex numbers (rotations.py)."""
        self._shared: dict[str, Ref] = {}
        self._of_tokens: dict[str, bool] = {}
        self.site = ""

    def add(
        self,
        op: str,
        args: tuple[Any, ...],
        level: str,
        value: Any,
        *,
        name: str | None = None,
        kwargs: dict[str, Any] | None = None,
        integral: bool = False,
    ) -> Ref:
        """Appends a node whose value has the shape and dtype of `value` (a tensor or a shape)."""
        shape, dtype = (
            (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else (tuple(value), torch.float32)
        )
        name = name or f"{op.rsplit('::', 1)[-1].split('.')[-2 if '.' in op else -1]}_{len(self.nodes)}"
        node = Node(name, op, args, level, shape, dtype, self.site, integral, tuple((kwargs or {}).items()))
        self.nodes.append(node)
        self.by_name[name] = node
        return Ref(name)

    def parameter(self, name: str, tensor: Tensor) -> Ref:
        self.parameters[name] = tensor
        return self.add("parameter", (), "owner", tensor, name=name)

    def constant(self, name: str, tensor: Tensor) -> Ref:
        self.constants[name] = tensor
        return self.add(
            "constant", (), "constant", tensor, name=name, integral=not tensor.is_floating_point()
        )

    def need(self, ref: Ref, why: str) -> None:
        """Notes that a value of the owner's is needed in the clear, unless it is made of parameters."""
        sources, seen, stack = set(), set(), [ref.name]
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                if self.by_name[name].op == "parameter":
                    sources.add(name)
                stack += self.by_name[name].references()
        if sources <= self.withheld:
            for name in sources:
                self.needed.setdefault(name, why)

    def level(self, ref: Ref) -> str:
        return self.by_name[ref.name].level

    def shape(self, ref: Ref) -> tuple[int, ...]:
        return self.by_name[ref.name].shape

    def is_secret(self, value: Any) -> bool:
        return isinstance(value, Ref) and self.level(value) == "secret"

    def secret(self, ref: Ref) -> Ref:
        """The value as a secret: shared by its owner, once."""
        if self.level(ref) not in ("client", "owner"):
            return ref
        if ref.name not in self._shared:
            op = "share_input" if self.level(ref) == "client" else "share_weight"
            node = self.by_name[ref.name]
            value = torch.empty(node.shape, dtype=node.dtype, device="meta")
            self._shared[ref.name] = self.add(op, (ref,), "secret", value, integral=node.integral)
        return self._shared[ref.name]

    def shared_if_real(self, ref: Ref) -> Ref:
        """A client's real number is shared at once: clients work on indices, masks made of them, and tables; they do not run the model."""
        node = self.by_name[ref.name]
        real = node.level == "client" and node.dtype.is_floating_point and not self.of_tokens(node)
        return self.secret(ref) if real else ref

    def of_tokens(self, node: Node) -> bool:
        """Whether a clear value is made of the client's integers and of what all know alone: a mask or a position, not an embedding."""
        if node.name not in self._of_tokens:
            plain = node.op != "table" and not (node.op == "input" and node.dtype.is_floating_point)
            self._of_tokens[node.name] = plain and all(
                self.of_tokens(self.by_name[r]) for r in node.references()
            )
        return self._of_tokens[node.name]

    def operand(self, value: Any) -> Any:
        """An operand of a secret operation: clear to all parties, or secret."""
        return substitute(value, self.secret) if not isinstance(value, Ref) else self.secret(value)

    def op(self, name: str, args: Sequence[Any], value: Any) -> Ref:
        """A secret operation; operands that only their owners know are shared first."""
        return self.add(
            name,
            tuple(self.operand(a) if isinstance(a, (Ref, list, tuple)) else a for a in args),
            "secret",
            value,
        )

    def fail(self, operation: str, reason: str = "") -> None:
        self.unsupported.append(Unsupported(operation.removesuffix(".default"), self.site, reason))
