"""From a torch module to a secure program, by torch.export: no model code is copied and no model family is known here.

Each exported ATen operation whose operands are all clear to somebody stays a clear operation of theirs; one that touches a secret is
lowered by a rule of `lowering`. Operations without a rule are collected and reported together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind

from secure_eval.lowering import CLEAR_ONLY_KEYWORDS, IGNORED, Builder, Unsupported, lower
from secure_eval.passes import run_passes
from secure_eval.program import Program, Ref
from secure_eval.spec import check

PUBLIC_INPUTS = ("attention_mask", "token_type_ids", "position_ids")
EMBEDDINGS = ("client", "onehot")


class UnsupportedOperations(ValueError):
    """The model uses operations on secret values for which there is no rule. `operations` lists (operation, module) pairs."""

    def __init__(self, operations: Sequence[Unsupported]):
        self.operations = list(operations)
        lines = "\n".join(
            f"  {u.operation}  in {u.site or 'the model itself'}{': ' + u.reason if u.reason else ''}"
            for u in operations
        )
        super().__init__(f"{len(operations)} operation(s) on secret values have no secure rule:\n{lines}")


def capture(
    model: nn.Module,
    example_inputs: Sequence[Tensor] | Mapping[str, Tensor],
    *,
    public: Sequence[str] = PUBLIC_INPUTS,
    embedding: str = "client",
) -> Program:
    """The secure program of `model` for inputs of exactly the shapes of `example_inputs`.

    A Hugging Face model is captured as if its configuration said use_cache=False, and stays as it is.

    Args:
        model: any module that torch.export takes, in eval mode; may be on the meta device.
        example_inputs: positional tensors, or keyword tensors by name.
        public: names of inputs that every party may see; the others are secret.
        embedding: "client" looks embeddings up at the client, which gets the table; "onehot" keeps the table secret and multiplies it with
            a shared one-hot matrix.

    Raises:
        UnsupportedOperations: lists every operation on secrets that has no rule, with its module.
        ValueError: the model is in training mode, or `embedding` is unknown.
    """
    if embedding not in EMBEDDINGS:
        raise ValueError(f"embedding={embedding!r}; allowed: {', '.join(EMBEDDINGS)}")
    if model.training:
        raise ValueError("the model is in training mode; call .eval() first, dropout cannot run securely")
    args, kwargs = (
        ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (tuple(example_inputs), {})
    )
    with torch.no_grad(), _without_caches(model):
        exported = torch.export.export(model, args, kwargs, strict=False)
        if any(_writes(node) for node in exported.graph.nodes):
            # Assignments, also those through a view of a tensor, as operations that return what is assigned to.
            exported = exported.run_decompositions({})
    builder = Builder(embedding)
    environment: dict[str, Any] = {}
    inputs: list[str] = []
    signature = exported.graph_signature
    public_buffers = {
        f"{name}.{b}".lstrip(".")
        for name, m in model.named_modules()
        for b in getattr(m, "public_buffers", ())
    }
    tensors = {
        **dict(exported.named_parameters()),
        **dict(exported.named_buffers()),
        **exported.tensor_constants,
        **exported.constants,
    }
    user_inputs = set(signature.user_inputs)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            if node.name in user_inputs:
                level = "public" if node.name in public else "client"
                value = node.meta["val"]
                if not isinstance(value, Tensor):
                    environment[node.name] = value
                    continue
                inputs.append(node.name)
                reference = builder.add("input", (node.name,), level, value, name=node.name)
                environment[node.name] = builder.shared_if_real(reference)
            else:
                environment[node.name] = _lifted(builder, node, signature, tensors, public_buffers)
        elif node.op == "call_function":
            target = str(node.target)
            site = _site(node)
            if target in IGNORED:
                environment[node.name] = None
                continue
            arguments = [_resolve(a, environment) for a in node.args]
            keywords = {
                k: _resolve(v, environment) for k, v in node.kwargs.items() if k not in CLEAR_ONLY_KEYWORDS
            }
            environment[node.name] = lower(builder, target, arguments, keywords, node.meta.get("val"), site)
        elif node.op == "output":
            returned = zip(signature.output_specs, node.args[0], strict=True)
            wanted = [v for spec, v in returned if spec.kind == OutputKind.USER_OUTPUT]
            outputs = tuple(_resolve(wanted, environment))
    if builder.unsupported:
        raise UnsupportedOperations(builder.unsupported)
    spec = exported.call_spec.out_spec
    outputs = tuple(
        builder.secret(o) if isinstance(o, Ref) and builder.level(o) in ("client", "owner") else o
        for o in outputs
    )
    program = Program(
        tuple(builder.nodes),
        tuple(inputs),
        outputs,
        constants=builder.constants,
        parameters=builder.parameters,
        restore=lambda flat: torch.utils._pytree.tree_unflatten(flat, spec),
    )
    return check(run_passes(check(program)))


@contextmanager
def _without_caches(model: nn.Module) -> Iterator[None]:
    """Tells a Hugging Face model to return no cache of keys and values: a program runs once, for the shapes that it was captured for, so
    nothing could continue from one."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    asked = [c for c in configs.values() if getattr(c, "use_cache", False)]
    for config in asked:
        config.use_cache = False
    try:
        yield
    finally:
        for config in asked:
            config.use_cache = True


def _writes(node: Any) -> bool:
    """Whether an exported operation changes one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and str(node.target) != "aten.detach_.default"


def _lifted(
    builder: Builder, node: Any, signature: Any, tensors: Mapping[str, Any], public_buffers: set[str]
) -> Ref:
    """A parameter, buffer or constant tensor of the model."""
    name = node.name
    if name in signature.inputs_to_parameters:
        return builder.parameter(name, tensors[signature.inputs_to_parameters[name]].detach())
    if name in signature.inputs_to_buffers:
        target = signature.inputs_to_buffers[name]
        tensor = tensors[target] if target in tensors else node.meta["val"]
        persistent = target not in getattr(signature, "non_persistent_buffers", ())
        if tensor.is_floating_point() and persistent and target not in public_buffers:
            return builder.parameter(name, tensor.detach())
        return builder.constant(name, tensor.detach())
    target = signature.inputs_to_lifted_tensor_constants[name]
    return builder.constant(name, tensors[target].detach())


def _resolve(value: Any, environment: Mapping[str, Any]) -> Any:
    if isinstance(value, torch.fx.Node):
        return environment[value.name]
    if isinstance(value, (list, tuple)):
        return [_resolve(v, environment) for v in value]
    return value


def _site(node: Any) -> str:
    """Path of the innermost module that the operation belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""
