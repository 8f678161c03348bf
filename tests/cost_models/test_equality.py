"""Predicted equals counted, difference 0: each family, protocol and phase, each party's own, from the configuration alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import secure_eval
from cost_models import Cost, predict

_SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
    "num_labels": 2,
}
_SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": _SIZES,
    "RobertaForSequenceClassification": _SIZES,
    "DistilBertForSequenceClassification": _SIZES | {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12},
    "AlbertForSequenceClassification": _SIZES | {"embedding_size": 6},
    "GPT2LMHeadModel": _SIZES | _SPECIAL | {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16},
    "LlamaForCausalLM": _SIZES | _SPECIAL | {"num_key_value_heads": 1},
    "ViTForImageClassification": _SIZES | {"image_size": 8, "patch_size": 4},
}
TOKENS = 5


def model(family: str, device: str) -> nn.Module:
    """A random model of the family, or on meta its shapes alone."""
    cls = getattr(transformers, family)
    with torch.device(device):
        built: nn.Module = cls._from_config(cls.config_class(**FAMILIES[family]), attn_implementation="eager")
    return built.eval().requires_grad_(False)


def inputs(family: str, batch: int, padded: bool, device: str = "cpu") -> dict[str, Tensor]:
    """Pixels, or tokens whose rows are all full, or all padded but the first."""
    if family.startswith("ViT"):
        return {"pixel_values": torch.zeros(batch, 3, 8, 8, device=device)}
    mask = torch.ones(batch, TOKENS, dtype=torch.long)
    if padded:
        mask[-1, TOKENS - 2 :] = 0
    return {
        "input_ids": torch.full((batch, TOKENS), 3, device=device),
        "attention_mask": mask.to(device),
    }


@pytest.mark.parametrize(
    ("family", "protocol", "batch"),
    [(family, protocol, 3) for family in FAMILIES for protocol in ("dealer2pc", "replicated3pc")]
    + [("BertForSequenceClassification", "dealer2pc", 1), ("GPT2LMHeadModel", "replicated3pc", 1)],
)
def test_predicted_equals_counted(family: str, protocol: str, batch: int) -> None:
    """The prediction is made on meta: it knows neither weights nor which tokens are padding."""
    predicted = predict(model(family, "meta"), inputs(family, batch, False, "meta"), protocol)
    with secure_eval.compile(model(family, "cpu"), inputs(family, batch, False), protocol) as secure:
        for padded in (False, True):
            secure(**inputs(family, batch, padded))
            counted = Cost.of(secure.measurement)
            assert counted.communication == predicted.communication
            for phase in ("setup", "offline", "online"):
                mine, own = getattr(predicted, phase), getattr(counted, phase)
                assert (mine.bytes, mine.rounds) == (own.bytes, own.rounds)
                assert (mine.path_bytes, mine.handled_bytes) == (own.path_bytes, own.handled_bytes)
                for ours, theirs in (
                    (predicted.sites_of[phase], counted.sites_of[phase]),
                    (predicted.operations_of[phase], counted.operations_of[phase]),
                ):
                    assert _exchanged(ours) == _exchanged(theirs)


def _exchanged(table: Any) -> dict[str, tuple[float, float]]:
    """What each place exchanges; places that only work are known to the prediction alone."""
    return {name: (c.bytes, c.rounds) for name, c in table.items() if c.bytes or c.rounds}
