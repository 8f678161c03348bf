"""Which tensors of a model are secret: all, whatever they are registered as, but those that are listed here with the reason.

Parameters and persistent real buffers are the model owner's. So are other tensors (buffers that no checkpoint holds, whole numbers, plain
attributes, tables written in the code), unless

    somebody says so           `public_tensors=` of capture, or `public_buffers` of the module
    it is architecture         class and configuration alone give the same numbers (architecture.py)
    it is one number           written in the model's code, as a Python number is
    it is needed in the clear  an index, a condition, a mask: what parties compute on shares cannot depend on it otherwise

Numbers that the owner alone computes with stay with the owner: a table of positions that its own index reads is never needed by others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from secure_eval.architecture import Architecture
from secure_eval.engine import evaluate_clear
from secure_eval.lowering import Builder
from secure_eval.program import PublicConstant, Ref

DECLARED, NAMED = "declared public by the module", "declared public by the caller"
ARCHITECTURE = "given by class and configuration alone"
LITERAL = "one number, written in the code"
MASK = "a mask: zeros and values far below zero"
ATTRIBUTE = "a Python number that the configuration does not give: it is in the program's text"

_FAR_BELOW = -5e3
_TOO_LARGE = 2.0**30


@dataclass(frozen=True)
class _Lifted:
    """A tensor of the model as an exported program names it."""

    path: str
    tensor: Tensor
    parameter: bool
    attribute: bool


class ModelTensors:
    """The tensors of an exported program, and which of them are public."""

    def __init__(self, model: nn.Module, exported: Any, public_tensors: Sequence[str]):
        self._architecture = Architecture(model)
        self._model, self._graph = model, exported.graph
        self._lifted = _lifted_tensors(exported)
        self._public: dict[str, str] = {}
        self._declare(model, public_tensors)
        for name, one in self._lifted.items():
            if name in self._public or one.parameter:
                continue
            if not one.attribute and one.tensor.numel() == 1:
                self._public[name] = LITERAL
            elif (
                one.tensor.is_floating_point()
                and one.attribute
                and self._architecture.gives(one.path, one.tensor)
            ):
                self._public[name] = ARCHITECTURE

    def _declare(self, model: nn.Module, patterns: Sequence[str]) -> None:
        declared = {
            f"{path}.{buffer}".lstrip(".")
            for path, module in model.named_modules()
            for buffer in getattr(module, "public_buffers", ())
        }
        unused = set(patterns)
        for name, one in self._lifted.items():
            matching = {p for p in patterns if fnmatchcase(one.path, p)}
            unused -= matching
            if matching:
                self._public[name] = NAMED
            elif one.path in declared:
                self._public[name] = DECLARED
        if unused:
            paths = ", ".join(sorted({one.path for one in self._lifted.values()}))
            raise ValueError(
                f"public_tensors: {', '.join(map(repr, sorted(unused)))} name no tensor; there are {paths}"
            )

    def add(self, builder: Builder, name: str) -> Ref:
        """The tensor as a node of the owner's, or of everybody's."""
        one = self._lifted[name]
        if name in self._public:
            return builder.constant(name, one.tensor)
        if not one.parameter:
            builder.withheld.add(name)
        return builder.parameter(name, one.tensor)

    def publish(self, needed: Mapping[str, str]) -> bool:
        """Makes tensors public for the reasons given; whether any was not."""
        more = {name: why for name, why in needed.items() if name not in self._public}
        self._public |= more
        return bool(more)

    def secret_paths(self, builder: Builder) -> list[str]:
        """Paths of the tensors that are secret though they are no parameters."""
        return sorted(self._lifted[name].path for name in builder.withheld)

    def masks(self, builder: Builder) -> dict[str, str]:
        """Tensors from which the owner computes masks, which no ring element can stand for: public if they are nothing else."""
        found: dict[str, str] = {}
        for node in builder.nodes:
            if node.op != "share_weight":
                continue
            sources = _sources(builder, next(node.references()))
            if not sources or not sources <= builder.withheld:
                continue
            value = _value(builder, next(node.references()))
            if value is None or not value.is_floating_point():
                continue
            far = value < _FAR_BELOW
            if bool(far.any()) and bool((far | (value == 0)).all()):
                found |= dict.fromkeys(sources, MASK)
            elif not bool((value.abs() < _TOO_LARGE).all()):
                paths = ", ".join(sorted(self._lifted[name].path for name in sources))
                raise ValueError(
                    f"{paths}: values to {float(value.abs().max()):.3g} among others are no weights and no mask; a secret is below 2^30 "
                    "in magnitude. public_tensors= lets every party see them"
                )
        return found

    def public_constants(self) -> tuple[PublicConstant, ...]:
        """What is public, in the order of the program: tensors that it uses, then Python numbers of modules."""
        found = []
        for node in self._graph.nodes:
            if node.op == "placeholder" and node.name in self._public and node.users:
                one = self._lifted[node.name]
                path = (
                    one.path
                    if one.attribute
                    else f"{site_of(next(iter(node.users))) or 'the model'}, in its code"
                )
                found.append(
                    PublicConstant(node.name, path, tuple(one.tensor.shape), self._public[node.name])
                )
        return (*found, *(PublicConstant("", path, (), ATTRIBUTE) for path in self._numbers()))

    def _numbers(self) -> Iterator[str]:
        """Real attributes of modules that are in the program's text as they are, and that class and configuration do not give."""
        text: dict[str, set[float]] = {}
        for node in self._graph.nodes:
            values = [*node.args, *node.kwargs.values()]
            text.setdefault(site_of(node), set()).update(v for v in values if isinstance(v, float))
        for path, module in self._model.named_modules():
            if type(module).__module__.startswith("torch.nn"):
                continue
            for name, value in vars(module).items():
                full = f"{path}.{name}".lstrip(".")
                if (
                    isinstance(value, float)
                    and value in text.get(path, ())
                    and not self._architecture.gives_number(full, value)
                ):
                    yield full


def site_of(node: Any) -> str:
    """Path of the innermost module that an exported operation belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""


def _lifted_tensors(exported: Any) -> dict[str, _Lifted]:
    signature = exported.graph_signature
    tensors = {
        **dict(exported.named_parameters()),
        **dict(exported.named_buffers()),
        **exported.tensor_constants,
        **exported.constants,
    }
    passing = set(getattr(signature, "non_persistent_buffers", ()))
    found = {}
    for node in exported.graph.nodes:
        if node.op != "placeholder" or node.name in set(signature.user_inputs):
            continue
        if node.name in signature.inputs_to_parameters:
            path = signature.inputs_to_parameters[node.name]
            found[node.name] = _Lifted(path, tensors[path].detach(), True, True)
        elif node.name in signature.inputs_to_buffers:
            path = signature.inputs_to_buffers[node.name]
            tensor = (tensors[path] if path in tensors else node.meta["val"]).detach()
            found[node.name] = _Lifted(path, tensor, tensor.is_floating_point() and path not in passing, True)
        else:
            path = signature.inputs_to_lifted_tensor_constants[node.name]
            found[node.name] = _Lifted(
                path, tensors[path].detach(), False, not path.rpartition(".")[2].startswith("lifted_tensor_")
            )
    return found


def _sources(builder: Builder, name: str) -> set[str]:
    """The parameters that a clear value is made of."""
    node = builder.by_name[name]
    return {name} if node.op == "parameter" else {s for r in node.references() for s in _sources(builder, r)}


def _value(builder: Builder, name: str) -> Tensor | None:
    """A value of the owner's, None where only its shape is known."""
    environment: dict[str, Any] = {}

    def evaluate(name: str) -> Any:
        if name not in environment:
            node = builder.by_name[name]
            if node.op == "parameter":
                environment[name] = builder.parameters[name]
            else:
                for reference in node.references():
                    evaluate(reference)
                environment[name] = evaluate_clear(node, environment, builder.constants, torch.device("cpu"))
        return environment[name]

    if any(builder.parameters[s].is_meta for s in _sources(builder, name)):
        return None
    value: Tensor = evaluate(name)
    return value
