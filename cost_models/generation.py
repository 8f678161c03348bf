"""What generating text costs: the prompt once, then token by token with a key/value cache that stays shared between the parties.

The model is captured as it is for one further token, its cache an input. Parties are taken to hold the cache's shares already: nobody
sends them, and nothing is expanded for them. Keys and values are opened under fresh masks with every token, as the engine does with any
product of two shared values; a deployment that kept their masks fixed, like a weight's, would send less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import secure_eval
from cost_models.cost import Cost

_CACHE = "cache"


@dataclass(frozen=True)
class Generation:
    """Costs of a generation.

    prefill: the prompt's tokens to the logits of the next one. first, last: one further token, with `prompt` and with
    `prompt + new_tokens - 2` tokens in the cache. The set-up of `prefill` serves all.
    """

    prompt: int
    new_tokens: int
    prefill: Cost
    first: Cost
    last: Cost

    @property
    def token(self) -> Cost:
        """One further token, on average."""
        return (self.first + self.last) / 2

    @property
    def total(self) -> Cost:
        """All new tokens: the first comes from the prompt, each other takes a step. Steps between the first and the last are taken to
        grow evenly: products and comparisons do, with the cache's length; rounds grow by a step where its logarithm does."""
        steps = self.token * (self.new_tokens - 1)
        return Cost(
            self.prefill.setup, self.prefill.offline + steps.offline, self.prefill.online + steps.online
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        costs = {name: getattr(self, name).to_dict() for name in ("prefill", "first", "last", "total")}
        return {"prompt": self.prompt, "new_tokens": self.new_tokens, **costs}


def predict_generation(
    model: nn.Module,
    prompt: int,
    new_tokens: int,
    protocol: str = "dealer2pc",
    *,
    batch: int = 1,
    fraction_bits: int = 16,
) -> Generation:
    """What a causal language model of transformers costs for `new_tokens` after `prompt` tokens, from its configuration alone.

    Args:
        model: in eval mode, on any device, meta too; the weights' values are not used.
        prompt, new_tokens: tokens, one or more each; batch: texts at a time.

    Raises:
        ValueError: a number below 1, more tokens than the model takes, or a model that keeps no keys and values.
        secure_eval.UnsupportedOperations, secure_eval.protocols.UnknownProtocol.
    """
    check_generation(model, prompt, new_tokens, batch)
    protocol_class = secure_eval.protocols.get(protocol)

    def step(cached: int, tokens: int) -> Cost:
        device = next(model.parameters()).device
        inputs = {
            "input_ids": torch.zeros(batch, tokens, dtype=torch.long, device=device),
            "attention_mask": torch.ones(batch, cached + tokens, dtype=torch.long, device=device),
        }
        shapes = _cache_shapes(model, batch, cached) if cached else []
        cache = {f"{_CACHE}_{i}": torch.zeros(shape, device=device) for i, shape in enumerate(shapes)}
        program = secure_eval.capture(_Step(model).eval(), {**inputs, **cache})
        return Cost.of(secure_eval.count(program, protocol_class, fraction_bits, held=frozenset(cache)))

    prefill = step(0, prompt)
    first = step(prompt, 1)
    last = first if new_tokens <= 2 else step(prompt + new_tokens - 2, 1)
    return Generation(prompt, new_tokens, prefill, first, last)


def check_generation(model: nn.Module, prompt: int, new_tokens: int, batch: int = 1) -> None:
    """Raises ValueError for what `predict_generation` would refuse, without counting anything."""
    for name, value in (("prompt", prompt), ("new_tokens", new_tokens), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}={value}; allowed: whole numbers from 1")
    most = getattr(model.config, "max_position_embeddings", None)
    if isinstance(most, int) and prompt + new_tokens > most:
        raise ValueError(
            f"prompt={prompt} and new_tokens={new_tokens}: this model takes at most {most} tokens"
        )
    _cache_shapes(model, batch, 1)


class _Step(nn.Module):
    """A model's logits of the last token alone, its cache given as keys and values of the layers in turn."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **cache: Tensor) -> Tensor:
        from transformers import DynamicCache

        given: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1}
        if cache:
            given["past_key_values"] = past = DynamicCache()
            tensors = list(cache.values())
            for layer, (keys, values) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
                past.update(keys, values, layer)
        found: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **given).logits
        return found


def _cache_shapes(model: nn.Module, batch: int, cached: int) -> list[tuple[int, ...]]:
    """Shapes of every layer's keys and values, as the model itself makes them for so many tokens."""
    from transformers.cache_utils import DynamicCache

    device = next(model.parameters()).device
    ids = torch.zeros(batch, cached, dtype=torch.long, device=device)
    with torch.no_grad():
        past = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    layers: list[Any] = list(past.layers) if isinstance(past, DynamicCache) else []
    if not all(isinstance(getattr(at, "keys", None), Tensor) for at in layers) or not layers:
        raise ValueError(
            f"{type(model).__name__} keeps no keys and values: a causal language model is needed"
        )
    return [tuple(t.shape) for at in layers for t in (at.keys, at.values)]
