"""Experts behind a router, all of them computed: which ones a token goes to is secret.

transformers' modules of experts share one interface: stacked weights, and a forward of (hidden states, indices of the chosen experts,
their weights). In float they sort tokens by expert, so that which rows meet which weights depends on the data; a secure program may not
show that. For a capture such a module computes every expert for every token, [experts, tokens, width], and takes the sum of the chosen
ones by secret weights that are zero for the others. So a layer of E experts of which k are chosen costs the products of E experts, k
searches for the largest of E router scores, and E (n - 1) comparisons for the places; docs/engine.md has figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from types import MethodType

import torch
from torch import Tensor, nn

_SAID = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "num_experts")


def is_experts(module: nn.Module) -> bool:
    """Whether a module has the interface of stacked experts."""
    own = getattr(type(module).forward, "__wrapped__", type(module).forward)
    return all(hasattr(module, name) for name in _SAID) and len(signature(own).parameters) == 4


def every_expert(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What the module's own forward returns, [tokens, width], from all experts.

    Args:
        hidden_states: [tokens, width].
        top_k_index: [tokens, k], experts by number.
        top_k_weights: [tokens, k].
    """
    count: int = self.num_experts  # type: ignore[assignment]
    chosen = nn.functional.one_hot(top_k_index, count).to(top_k_weights.dtype)  # [tokens, k, experts]
    shares = (chosen * top_k_weights.unsqueeze(-1)).sum(-2)
    inner = _product(self, hidden_states.unsqueeze(0), "gate_up_proj" if self.has_gate else "up_proj")
    outer = _product(self, self._apply_gate(inner) if self.has_gate else self.act_fn(inner), "down_proj")  # type: ignore[operator]
    if getattr(self, "has_post_expert_norm", False):
        outer = self.post_expert_norm(outer)  # type: ignore[operator]
    total: Tensor = (outer * shares.T.unsqueeze(-1)).sum(0)
    return total.to(hidden_states.dtype)


def _product(module: nn.Module, x: Tensor, name: str) -> Tensor:
    """[1 or experts, tokens, in] by the stacked weights of this name -> [experts, tokens, out]."""
    weight = getattr(module, name)
    product = torch.matmul(x, weight if module.is_transposed else weight.transpose(-1, -2))
    return product + getattr(module, f"{name}_bias").unsqueeze(1) if module.has_bias else product


@contextmanager
def all_computed(model: nn.Module) -> Iterator[None]:
    """Within, modules of experts compute every expert. The model stays as it is."""
    found = [m for m in model.modules() if is_experts(m) and "forward" not in vars(m)]
    for module in found:
        module.forward = MethodType(every_expert, module)
    try:
        yield
    finally:
        for module in found:
            del module.forward
