"""The workloads behind published figures: transformers' own models, captured on the meta device.

Imports transformers when called, not before. All encoder (decoder) layers of a model are alike, so that one is captured and repeated;
a test compares that with a model captured whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import secure_eval
from cost_models.squares import Quad, TwoQuad
from cost_models.workload import Work, within, works


def _two_quad_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return (TwoQuad()(scores) @ value).transpose(1, 2), None


@dataclass(frozen=True)
class Reference:
    """A model whose costs were published.

    Args:
        build: layers -> the model, on the meta device.
        layers: as many as the published one has.
        prefix: of the sites of its layers, the first of which is prefix0.
    """

    build: Callable[[int], nn.Module]
    layers: int
    prefix: str


def _bert(
    layers: int, hidden: int = 768, heads: int = 12, *, quad: bool = False, classifier: bool = False
) -> nn.Module:
    from transformers import AttentionInterface, BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    if quad:
        AttentionInterface.register("two_quad", _two_quad_attention)
        config._attn_implementation = "two_quad"
    with torch.device("meta"):
        model = (BertForSequenceClassification if classifier else BertModel)(config).eval()
        if quad:
            for layer in model.encoder.layer:
                layer.intermediate.intermediate_act_fn = Quad()
    return model


def _gpt2(layers: int) -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    with torch.device("meta"):
        return GPT2Model(GPT2Config(n_layer=layers)).eval()


def _llama(layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    with torch.device("meta"):
        return LlamaModel(LlamaConfig(num_hidden_layers=layers)).eval()


REFERENCES: dict[str, Reference] = {
    "bert-tiny": Reference(lambda layers: _bert(layers, 128, 2), 2, "encoder.layer."),
    "bert-base": Reference(_bert, 12, "encoder.layer."),
    "bert-base quad": Reference(lambda layers: _bert(layers, quad=True), 12, "encoder.layer."),
    "bert-large": Reference(lambda layers: _bert(layers, 1024, 16), 24, "encoder.layer."),
    "gpt2": Reference(_gpt2, 12, "h."),
    "llama2-7b": Reference(_llama, 32, "layers."),
    "bert-base classifier": Reference(
        lambda layers: _bert(layers, classifier=True), 12, "bert.encoder.layer."
    ),
    "bert-large classifier": Reference(
        lambda layers: _bert(layers, 1024, 16, classifier=True), 24, "bert.encoder.layer."
    ),
}


def captured(model: nn.Module, tokens: int, embedding: str = "client") -> tuple[Work, ...]:
    """The works of a model for one sequence of so many tokens."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    return works(secure_eval.capture(model, {"input_ids": ids}, embedding=embedding, passes=()))


@cache
def whole(name: str, tokens: int = 128, embedding: str = "client") -> tuple[Work, ...]:
    """All works of a model of REFERENCES, its layers repeated."""
    reference = REFERENCES[name]
    found = captured(reference.build(1), tokens, embedding)
    first = f"{reference.prefix}0"
    result: list[Work] = []
    for i, work in enumerate(found):
        if not work.site.startswith(first):
            result.append(work)
        elif i == 0 or not found[i - 1].site.startswith(first):
            for layer in range(reference.layers):
                result += [_moved(w, reference.prefix, layer) for w in within(found, first)]
    return tuple(result)


def layers_only(name: str, tokens: int = 128) -> tuple[Work, ...]:
    """The works of a model's layers: what benchmarks run that start from hidden states and end with them."""
    return within(whole(name, tokens), REFERENCES[name].prefix)


def one_layer(name: str, tokens: int = 128) -> tuple[Work, ...]:
    """The works of one of a model's layers."""
    return within(whole(name, tokens), f"{REFERENCES[name].prefix}0")


def _moved(work: Work, prefix: str, layer: int) -> Work:
    """A work of layer 0 as one of another layer, its operand told apart from that of layer 0."""
    site = re.sub(f"^{re.escape(prefix)}0", f"{prefix}{layer}", work.site)
    return replace(work, site=site, operand=work.operand and f"{work.operand} of {prefix}{layer}")
