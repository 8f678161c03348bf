"""Recording what distillation compares: the scores that enter each softmax, and the keys that count."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.attention import attach, is_attention
from distill.sites import copy_model


def instrumented(model: PreTrainedModel) -> PreTrainedModel:
    """A view of `model` (sharing its weights) whose every softmax is a module, in eval mode."""
    view = copy_model(model, share_weights=True).eval()
    attach(view)
    return view


@contextmanager
def record_scores(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, Tensor | None]]]:
    """Collect (scores [batch, heads, queries, keys], keep or None) of every softmax call, in order, while
    inside.

    The list is cleared by the caller between forward passes. `model` must be a student or `instrumented`.
    """
    calls: list[tuple[Tensor, Tensor | None]] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls.append((args[0], args[1]))

    handles = [
        module.get_submodule("softmax").register_forward_pre_hook(hook)
        for module in model.modules()
        if is_attention(module)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
