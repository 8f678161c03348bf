"""Stock Hugging Face families, straight from transformers: every common task, both ways of attention, padded batches.

Small configurations with random weights, larger than initialised ones; the error is relative to the spread of the float model's outputs,
so that an operation that is wrong, or a mask that is not applied, is seen.
"""

from __future__ import annotations

from importlib.metadata import distribution
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

import secure_eval
from secure_eval import capture

LENGTH, VOCABULARY, PAD = 6, 40, 1
BOUND = 2.0**-7
ATTENTION = ("eager", "sdpa")

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "pad_token_id": PAD,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 20,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_DISTILBERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 24,
    "max_position_embeddings": 20,
    "pad_token_id": PAD,
}
_LLAMA: dict[str, Any] = _SIZES | {"num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}
_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 12,
    "patch_size": 4,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("Bert", _SIZES),
    "Roberta": ("Roberta", _SIZES),
    "DistilBert": ("DistilBert", _DISTILBERT),
    "Albert": ("Albert", _SIZES | {"embedding_size": 8}),
    "GPT2": ("GPT2", _GPT2),
    "Llama": ("Llama", _LLAMA),
    "ViT": ("ViT", _VIT),
}
"""Family -> its name in transformers' classes, and the sizes of a small configuration."""

ENCODERS, DECODERS = ("Bert", "Roberta", "DistilBert", "Albert"), ("GPT2", "Llama")

TASKS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "sequence classification": ("ForSequenceClassification", {"num_labels": 3}, ENCODERS + DECODERS),
    "regression": (
        "ForSequenceClassification",
        {"num_labels": 1, "problem_type": "regression"},
        ENCODERS[:1] + DECODERS[1:],
    ),
    "token classification": ("ForTokenClassification", {"num_labels": 5}, ENCODERS + DECODERS),
    "embeddings": ("Model", {}, ENCODERS + DECODERS + ("ViT",)),
    "masked tokens": ("ForMaskedLM", {}, ENCODERS),
    "next token": ("ForCausalLM", {}, DECODERS),
    "image classification": ("ForImageClassification", {"num_labels": 3}, ("ViT",)),
}
"""Task -> end of the class's name, what the configuration adds, and the families that have it."""

WHOLE = ("sequence classification", "image classification")
"""Tasks whose models have two layers and are run with both ways of attention; of the others what differs is the end, so one layer does."""

CASES = [(family, task) for task, (_, _, families) in TASKS.items() for family in families]
ENDS = [
    (*case, attention)
    for i, case in enumerate(CASES)
    for attention in (ATTENTION if case[1] in WHOLE else (ATTENTION[i % 2],))
]
ONE_ROW = ("sequence classification", "embeddings", "image classification")


class Pooled(nn.Module):
    """Sentence embeddings: the mean of the last hidden states over the tokens that are no padding."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        total: Tensor = (hidden * kept).sum(1) / kept.sum(1)
        return total


def model(family: str, task: str, attention: str) -> nn.Module:
    """A random model whose scores and activations leave their linear parts."""
    name, sizes = FAMILIES[family]
    ending, added, _ = TASKS[task]
    ending = "LMHeadModel" if (family, ending) == ("GPT2", "ForCausalLM") else ending
    config: PretrainedConfig = getattr(transformers, f"{name}Config")(**sizes, **added)
    if task not in WHOLE:
        config.num_hidden_layers = 1
    torch.manual_seed(7)
    built = getattr(transformers, name + ending)._from_config(config, attn_implementation=attention)
    assert built.config._attn_implementation == attention
    for parameter in built.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.8 / parameter.shape[-1] ** 0.5)
        elif parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.2)
    pooled = task == "embeddings" and family != "ViT"
    found: nn.Module = (Pooled(built) if pooled else built).eval().requires_grad_(False)
    return found


def inputs(family: str, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Pixels, or tokens with one row unpadded: padding is on the left for decoders, and of a length of its own in each other row."""
    generator = torch.Generator().manual_seed(seed)
    if family == "ViT":
        return {"pixel_values": torch.randn(batch, 3, 12, 12, generator=generator)}
    ids = torch.randint(2, VOCABULARY, (batch, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(batch):
        padding = (row + seed) % 3 * 2
        mask[row, : padding if family in DECODERS else 0] = 0
        mask[row, LENGTH if family in DECODERS else LENGTH - padding :] = 0
    return {"input_ids": torch.where(mask == 1, ids, PAD), "attention_mask": mask}


def result(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    found: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def error(got: Tensor, wanted: Tensor, mask: Tensor | None) -> float:
    """Largest error of what is no padding, in standard deviations of the wanted values."""
    assert got.shape == wanted.shape
    if mask is not None and wanted.shape[:2] == mask.shape:
        got, wanted = got[mask == 1], wanted[mask == 1]
    spread = wanted.std() if wanted.numel() > 3 else wanted.abs().max()
    return float((got - wanted).abs().max() / spread)


def check(family: str, task: str, attention: str, batch: int, seeds: tuple[int, ...]) -> None:
    """Captured for one padding, run with others; measured and predicted cost are equal."""
    float_model = model(family, task, attention)
    with secure_eval.compile(float_model, inputs(family, batch), "dealer2pc") as secure:
        predicted = secure.predicted().communication()
        for seed in seeds:
            query = inputs(family, batch, seed)
            got, wanted = secure(**query), float_model(**query)
            assert type(got) is type(wanted)
            assert error(result(got), result(wanted), query.get("attention_mask")) < BOUND
            assert secure.measurement.communication() == predicted


@pytest.mark.parametrize(("family", "task", "attention"), ENDS)
def test_family(family: str, task: str, attention: str) -> None:
    """Three rows of different lengths, in another order than in the captured batch."""
    check(family, task, attention, 3, (1,))


@pytest.mark.parametrize(("family", "task"), [case for case in CASES if case[1] in ONE_ROW])
def test_one_row(family: str, task: str) -> None:
    """First without padding, as captured, then with it."""
    check(family, task, "sdpa", 1, (0, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_model_is_outside_the_bound(family: str) -> None:
    """The bound is one that a mistake breaks: here the attention of one head, and a position too far."""
    task = "image classification" if family == "ViT" else "sequence classification"
    float_model, query = model(family, task, "eager"), inputs(family, 3)
    wanted = result(float_model(**query))
    names = [
        n for n, p in float_model.named_parameters() if p.dim() == 2 and "mbed" not in n and "wpe" not in n
    ]
    changed = dict(float_model.named_parameters())[names[0]]
    changed.data[:4] = 0
    assert error(result(float_model(**query)), wanted, None) > 4 * BOUND


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_is_captured_without_its_cache(family: str) -> None:
    """A user does not know of it: the model keeps its configuration, and its outputs have no cache."""
    float_model = model(family, "next token", "sdpa")
    query = inputs(family, 1)
    with secure_eval.compile(float_model, query, "plain") as secure:
        got = secure(**query)
    assert float_model.config.use_cache and "past_key_values" in float_model(**query)  # type: ignore[union-attr,operator]
    assert "past_key_values" not in got


def test_a_patch_embedding_is_one_linear_layer() -> None:
    program = capture(model("ViT", "image classification", "sdpa"), inputs("ViT", 1))
    operations = [n.op for n in program.nodes]
    assert "conv" not in operations and operations.count("linear") == 2 + 2 * 6


@pytest.mark.needs_data("rxnmapper")
def test_a_trained_albert() -> None:
    """Twelve layers that share their weights, trained on chemical reactions: the same tokens come out, close in their logits."""
    folder = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
    path = str(distribution("rxnmapper").locate_file(folder))
    float_model = transformers.AlbertForMaskedLM.from_pretrained(path).eval().requires_grad_(False)
    ids = torch.randint(
        20, float_model.config.vocab_size, (1, 10), generator=torch.Generator().manual_seed(0)
    )
    query = {"input_ids": ids, "attention_mask": torch.ones_like(ids).index_fill(1, torch.tensor([8, 9]), 0)}
    wanted = float_model(**query).logits
    with secure_eval.compile(float_model, query, "dealer2pc") as secure:
        got = secure(**query).logits
        assert error(got, wanted, query["attention_mask"]) < 2 * BOUND
        assert torch.equal(got.argmax(-1)[:, :8], wanted.argmax(-1)[:, :8])
        assert secure.measurement.communication() == secure.predicted().communication()
