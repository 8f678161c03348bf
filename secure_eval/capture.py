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

from secure_eval.experts import all_computed
from secure_eval.lowering import CLEAR_ONLY_KEYWORDS, IGNORED, Builder, Unsupported, lower
from secure_eval.model_tensors import ModelTensors, site_of
from secure_eval.passes import PASSES, Pass, run_passes
from secure_eval.program import Program, Ref
from secure_eval.spec import check

PUBLIC_INPUTS = ("attention_mask", "token_type_ids", "position_ids")
EMBEDDINGS = ("client", "onehot")


class UnsupportedOperations(ValueError):
    """The model uses operations on secret values for which there is no rule. `operations` lists (operation, module) pairs."""

    def __init__(self, operations: Sequence[Unsupported], secret: Sequence[str] = ()):
        self.operations = list(operations)
        lines = "\n".join(
            f"  {u.operation}  in {u.site or 'the model itself'}{': ' + u.reason if u.reason else ''}"
            for u in operations
        )
        hint = (
            f"\nThese tensors are taken for secrets, because they may be trained; public_tensors= says which are not: {', '.join(secret)}"
            if secret
            else ""
        )
        super().__init__(
            f"{len(operations)} operation(s) on secret values have no secure rule:\n{lines}{hint}"
        )


def capture(
    model: nn.Module,
    example_inputs: Sequence[Tensor] | Mapping[str, Tensor],
    *,
    public: Sequence[str] = PUBLIC_INPUTS,
    embedding: str = "client",
    public_tensors: Sequence[str] = (),
    passes: Sequence[Pass] = PASSES,
) -> Program:
    """The secure program of `model` for inputs of exactly the shapes of `example_inputs`.

    A Hugging Face model is captured as if its configuration said use_cache=False, and stays as it is.

    Args:
        model: any module that torch.export takes, in eval mode; may be on the meta device.
        example_inputs: positional tensors, or keyword tensors by name.
        public: names of inputs that every party may see; the others are secret.
        embedding: "client" looks embeddings up at the client, which gets the table; "onehot" keeps the table secret and multiplies it with
            a shared one-hot matrix.
        public_tensors: paths in the model (with * for any text) of tensors that every party may see. All others are the model owner's
            secrets, however they are registered, but those that `Program.public_constants` lists (see model_tensors.py).
        passes: rewrites to run, in this order; () for the program as the model says it.

    Raises:
        UnsupportedOperations: lists every operation on secrets that has no rule, with its module.
        ValueError: the model is in training mode, `embedding` is unknown, or a pattern of `public_tensors` names no tensor.
    """
    if embedding not in EMBEDDINGS:
        raise ValueError(f"embedding={embedding!r}; allowed: {', '.join(EMBEDDINGS)}")
    if model.training:
        raise ValueError("the model is in training mode; call .eval() first, dropout cannot run securely")
    args, kwargs = (
        ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (tuple(example_inputs), {})
    )
    with torch.no_grad(), _without_caches(model), all_computed(model):
        exported = torch.export.export(model, args, kwargs, strict=False)
        if any(_writes(node) for node in exported.graph.nodes):
            # Assignments, also those through a view of a tensor, as operations that return what is assigned to.
            exported = exported.run_decompositions({})
    tensors = ModelTensors(model, exported, public_tensors)
    while True:
        builder = Builder(embedding, lower)
        inputs, outputs = _lowered(builder, exported, public, tensors)
        if not tensors.publish(builder.needed) and not (
            not builder.unsupported and tensors.publish(tensors.masks(builder))
        ):
            break
    if builder.unsupported:
        raise UnsupportedOperations(builder.unsupported, tensors.secret_paths(builder))
    spec = exported.call_spec.out_spec
    outputs = tuple(
        builder.secret(o) if isinstance(o, Ref) and builder.level(o) in ("client", "owner") else o
        for o in outputs
    )
    program = Program(
        tuple(builder.nodes),
        inputs,
        outputs,
        constants=builder.constants,
        parameters=builder.parameters,
        restore=lambda flat: torch.utils._pytree.tree_unflatten(flat, spec),
        public_constants=tensors.public_constants(),
        passes=(),
    )
    return run_passes(check(program), passes)


def _lowered(
    builder: Builder, exported: Any, public: Sequence[str], tensors: ModelTensors
) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Lowers every operation of an exported program; returns the names of its inputs and the values of its outputs."""
    environment: dict[str, Any] = {}
    inputs: list[str] = []
    signature = exported.graph_signature
    user_inputs = set(signature.user_inputs)
    outputs: tuple[Any, ...] = ()
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            if node.name in user_inputs:
                level = "public" if node.name in public else "client"
                value = node.meta["val"]
                if not isinstance(value, Tensor):
                    environment[node.name] = value
                    continue
                inputs.append(node.name)
                whole = not value.is_floating_point()
                reference = builder.add("input", (node.name,), level, value, name=node.name, integral=whole)
                environment[node.name] = builder.shared_if_real(reference)
            else:
                environment[node.name] = tensors.add(builder, node.name)
        elif node.op == "call_function":
            target = str(node.target)
            if target in IGNORED:
                environment[node.name] = None
                continue
            arguments = [_resolve(a, environment) for a in node.args]
            keywords = {
                k: _resolve(v, environment) for k, v in node.kwargs.items() if k not in CLEAR_ONLY_KEYWORDS
            }
            value = node.meta.get("val")
            environment[node.name] = lower(builder, target, arguments, keywords, value, site_of(node))
        elif node.op == "output":
            returned = zip(signature.output_specs, node.args[0], strict=True)
            wanted = [v for spec, v in returned if spec.kind == OutputKind.USER_OUTPUT]
            outputs = tuple(_resolve(wanted, environment))
    return tuple(inputs), outputs


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


def _resolve(value: Any, environment: Mapping[str, Any]) -> Any:
    if isinstance(value, torch.fx.Node):
        return environment[value.name]
    if isinstance(value, (list, tuple)):
        return [_resolve(v, environment) for v in value]
    return value
