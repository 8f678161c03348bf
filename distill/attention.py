"""The one attention function of students, plugged into transformers' attention interface.

transformers 5 models look their attention up by `config._attn_implementation` in `ALL_ATTENTION_FUNCTIONS`,
and build the mask by the same key. Registering a function under the key "sordino" therefore replaces the
softmax of any such model without
touching its code: the function forms scaled scores and hands them, with a boolean mask of keys to keep, to
    the module
`softmax` attached to the attention module. The functions here are also written, by their source, into
exported models.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    bidirectional_mask_function,
    prepare_padding_mask,
    sdpa_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distill.errors import UnsupportedModel
from distill.variants.softmax_exact import ExactSoftmax

ATTENTION_KEY = "sordino"


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention whose probabilities come from `module.softmax`; called by transformers' models.

    Args:
        query: [batch, heads, queries, width]; key, value: [batch, key heads, keys, width], key heads dividing
            heads.
        attention_mask: None or bool, broadcastable to [batch, heads, queries, keys]; True where a key is
            attended to.

    Returns:
        ([batch, queries, heads, width], probabilities [batch, heads, queries, keys]).
    """
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__}: attention with {name!r} cannot be replaced by a softmax variant"
            )
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        raise ValueError(
            f"{type(module).__name__}: a boolean attention mask is needed, got {attention_mask.dtype}"
        )
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if kwargs.get("position_bias") is not None:
        scores = scores + kwargs["position_bias"]
    # Powers and row sums lose too much in half precision (torch's autocast does the same for softmax).
    # Decided by type alone.
    half = scores.dtype in (torch.bfloat16, torch.float16)
    probabilities: Tensor = module.get_submodule("softmax")(
        scores.float() if half else scores, attention_mask
    )
    if half:
        probabilities = probabilities.to(value.dtype)
    if dropout > 0.0:
        probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    output = torch.matmul(probabilities, value)
    return output.transpose(1, 2).contiguous(), probabilities


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """Boolean mask of keys to keep; called by transformers' mask factories. Never depends on values, only on
    shapes.

    Without padding mask, bidirectional attention needs none. A bidirectional padding mask stays [batch, 1, 1,
    keys]. A query that may attend to nothing (left padding under a causal mask) attends to everything, as an
    additive mask makes it do: its output is not used, but it must be a number.
    """
    if mask_function is bidirectional_mask_function:
        padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
        return None if padding is None else padding.to(torch.bool)[:, None, None, :]
    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    keep = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **kwargs,
    )
    if attention_mask is None or keep is None:
        return keep
    return keep | ~keep.any(dim=-1, keepdim=True)


def is_attention(module: nn.Module) -> bool:
    """Whether the module's forward dispatches through the attention interface (it names the interface's
    table)."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def attach(model: PreTrainedModel) -> None:
    """Give every attention module of `model` an exact `softmax` submodule and switch the model to
    `attention_forward`.

    In place. Raises UnsupportedModel if the model does not use transformers' attention interface.
    """
    found = False
    for name, module in list(model.named_modules()):
        if not is_attention(module):
            continue
        found = True
        if not hasattr(module, "softmax"):
            module.softmax = ExactSoftmax()
        elif not isinstance(module.softmax, nn.Module):
            raise UnsupportedModel(
                f"{name} already has an attribute 'softmax' of type {type(module.softmax).__name__}"
            )
    if not found:
        raise UnsupportedModel(
            f"{type(model).__name__} has no module that uses transformers' attention interface"
        )
    model.set_attn_implementation(ATTENTION_KEY)


def install_modules(model: PreTrainedModel, classes: Mapping[str, type[nn.Module]]) -> None:
    """Install, in place, the modules that `model.config.sordino` lists by class name, with their initial
    tensors."""
    reference = next(model.parameters())
    attach(model)
    for name, entry in model.config.sordino["modules"].items():
        model.set_submodule(name, classes[entry["class"]](**entry["arguments"]).to(reference), strict=True)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_KEY, attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_KEY, attention_mask)
