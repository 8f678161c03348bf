"""Generation with a key/value cache: a step is the model's own, and costs what the parties exchange in a real run of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import secure_eval
from cost_models import predict_generation
from cost_models.generation import _Step

_SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 30}
_LLAMA = LlamaConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=20,
    **_SPECIAL,
)
_GPT2 = GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=20, **_SPECIAL)
MODELS = {"llama": (LlamaForCausalLM, _LLAMA), "gpt2": (GPT2LMHeadModel, _GPT2)}


def _model(name: str, device: str = "cpu") -> nn.Module:
    cls, config = MODELS[name]
    torch.manual_seed(0)
    with torch.device(device):
        built: nn.Module = cls._from_config(config, attn_implementation="eager")  # type: ignore[attr-defined]
    for parameter in built.parameters():
        if parameter.dim() > 1:  # transformers' own are so small that fixed point hardly sees them
            nn.init.normal_(parameter, std=0.8 / parameter.shape[-1] ** 0.5)
    return built.eval().requires_grad_(False)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_priced_as_the_parties_run_it(name: str) -> None:
    """In the run the client brings the cache: its messages are the only difference."""
    model, ids = _model(name), torch.randint(0, 30, (1, 6), generator=torch.Generator().manual_seed(1))
    past = model(input_ids=ids[:, :5], use_cache=True).past_key_values
    cache = {f"cache_{i}": t for i, t in enumerate(t for at in past.layers for t in (at.keys, at.values))}
    inputs = {"input_ids": ids[:, 5:], "attention_mask": torch.ones(1, 6, dtype=torch.long), **cache}
    with secure_eval.compile(_Step(model).eval(), inputs, "dealer2pc") as secure:
        got = secure(**inputs)
        counted = secure.measurement.communication()
    assert torch.allclose(got, model(input_ids=ids).logits[:, -1:], atol=2**-7)
    first = predict_generation(_model(name, "meta"), 5, 2).first
    for phase in ("offline", "online"):
        for role in ("party0", "party1", "dealer"):
            assert first.communication[phase][role] == counted[phase][role]
    sent = counted["online"]["client"]["bytes"] - first.communication["online"]["client"]["bytes"]
    assert sent == 8 * sum(t.numel() for t in cache.values())


def test_longer_caches_cost_more_and_steps_add_up() -> None:
    found = predict_generation(_model("llama", "meta"), 4, 6)
    assert found.prefill.online.bytes > found.last.online.bytes > found.first.online.bytes
    steps = 5 * (found.first.online.bytes + found.last.online.bytes) / 2
    assert found.total.online.bytes == found.prefill.online.bytes + steps
    assert found.total.setup.bytes == found.prefill.setup.bytes > 0
    halfway = predict_generation(_model("llama", "meta"), 6, 2).first
    assert abs(halfway.online.bytes / found.token.online.bytes - 1) < 0.02  # steps grow evenly
    alone = predict_generation(_model("llama", "meta"), 4, 1)
    assert alone.total.online.bytes == found.prefill.online.bytes


def test_wrong_numbers_and_models_are_refused() -> None:
    model = _model("llama", "meta")
    for prompt, new, message in (
        (0, 1, "prompt=0; allowed: whole numbers from 1"),
        (1, 0, "new_tokens=0; allowed"),
        (15, 6, "prompt=15 and new_tokens=6: this model takes at most 20 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_generation(model, prompt, new)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(ValueError, match="keeps no keys and values"):
        predict_generation(BertForSequenceClassification(config).eval(), 4, 2)
