"""Operations that torch itself defines by others: lowered through torch's own definition.

An operation without a rule that torch calls composite (einsum, tile, expand_as, outer, ...) *is* the sequence of operations that torch runs
for it; of the others, TORCHS_OWN names those whose decomposition by torch is an identity and good in fixed point (rearrangements, and sums
of products). Each resulting operation is lowered like an exported one. Where a part has no rule, the error names the whole and says
which part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx

from secure_eval.lowering.builder import CLEAR_ONLY_KEYWORDS, Builder, Unsupported
from secure_eval.program import Ref, substitute

TORCHS_OWN = {
    "aten.addmm.default",
    "aten.baddbmm.default",
    "aten.addmv.default",
    "aten.addcmul.default",
    "aten.addcdiv.default",
    "aten.lerp.Scalar",
    "aten.lerp.Tensor",
    "aten.glu.default",
    "aten.diag_embed.default",
    "aten.unsafe_split.Tensor",
    "aten.im2col.default",
    "aten.index_fill.int_Scalar",
    "aten.reflection_pad1d.default",
    "aten.reflection_pad2d.default",
    "aten.replication_pad1d.default",
    "aten.replication_pad2d.default",
    "aten.upsample_nearest1d.default",
    "aten.upsample_nearest2d.default",
    "aten.upsample_nearest3d.default",
}

_COMPOSITE = "CompositeImplicitAutograd"


def operation(target: str) -> Any:
    """The torch operation of a name such as "aten.sum.dim_IntList"; None where there is none of that name."""
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace, None), name, None)
    return getattr(packet, overload, None)


def decomposes(target: str) -> bool:
    """Whether torch defines the operation by others."""
    op = operation(target)
    if op is None:
        return False
    return target in TORCHS_OWN or torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), _COMPOSITE)


def lower_decomposed(b: Builder, target: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Lowers the operations that `target` consists of; the value is a Ref or a list of them."""
    names = list(dict.fromkeys(_names([args, list(kwargs.values())])))
    examples = [torch.empty(b.shape(Ref(n)), dtype=b.by_name[n].dtype, device="meta") for n in names]
    op = operation(target)
    schema = {a.name for a in op._schema.arguments}
    meta = {"device": torch.device("meta")} if "device" in schema else {}

    def run(*tensors: Tensor) -> Any:
        values = dict(zip(names, tensors, strict=True))
        given = {k: substitute(v, lambda r: values[r.name]) for k, v in kwargs.items()}
        return op(*[substitute(a, lambda r: values[r.name]) for a in args], **given, **meta)

    table = {op: decomposition_table[op]} if target in TORCHS_OWN else {}
    try:
        with torch.no_grad():
            traced = make_fx(torch.func.functionalize(run), decomposition_table=table)(*examples)
            if any(
                getattr(n.target, "_schema", None) and n.target._schema.is_mutable for n in traced.graph.nodes
            ):
                traced = make_fx(torch.func.functionalize(traced))(*examples)
    except RuntimeError:  # there are only shapes here
        b.fail(target, "a value read from a tensor decides shapes")
        return None
    site, before = b.site, len(b.unsupported)
    environment: dict[str, Any] = {}

    def resolve(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return environment[value.name]
        return [resolve(v) for v in value] if isinstance(value, (list, tuple)) else value

    given = iter(names)
    result: Any = None
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            environment[node.name] = Ref(next(given))
        elif node.op == "get_attr":
            constant = getattr(traced, node.target)
            environment[node.name] = b.constant(f"{node.name}_{len(b.nodes)}", constant)
        elif node.op == "call_function":
            inner = str(node.target)
            keywords = {k: resolve(v) for k, v in node.kwargs.items() if k not in CLEAR_ONLY_KEYWORDS}
            arguments = [resolve(a) for a in node.args]
            if inner == target:
                b.fail(target)
                break
            environment[node.name] = b.lower(b, inner, arguments, keywords, node.meta.get("val"), site)
        elif node.op == "output":
            result = resolve(node.args[0])
    missing = list(dict.fromkeys(u.operation for u in b.unsupported[before:]))
    if missing:
        del b.unsupported[before:]
        own = target.removesuffix(".default")
        reason = "" if missing == [own] else f"is made of {', '.join(missing)}"
        b.unsupported.append(Unsupported(own, site, reason))
    return result


def _names(value: Any) -> list[str]:
    if isinstance(value, Ref):
        return [value.name]
    return [n for v in value for n in _names(v)] if isinstance(value, (list, tuple)) else []
