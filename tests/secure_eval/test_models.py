"""Small random Hugging Face models: right within a bound, and exactly as expensive as predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import secure_eval
from secure_eval import Program, capture, protocols
from secure_eval.testing.harness import observe

LENGTH = 7
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 3,
    "max_position_embeddings": 24,
}


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**SMALL, attn_implementation="eager"))


def bert_by_scaled_dot_product() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**SMALL, attn_implementation="sdpa"))


def roberta() -> PreTrainedModel:
    return RobertaForSequenceClassification(RobertaConfig(**SMALL, attn_implementation="eager"))


def distilbert() -> PreTrainedModel:
    config = DistilBertConfig(
        vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3, max_position_embeddings=24
    )
    config._attn_implementation = "eager"
    return DistilBertForSequenceClassification(config)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=50,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=24,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config)


TEXT: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": bert,
    "bert sdpa": bert_by_scaled_dot_product,
    "roberta": roberta,
    "distilbert": distilbert,
    "gpt2": gpt2,
}


def ready(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Random weights, larger than initialised ones, so that attention and activations leave their linear
    parts.
    """
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6
    return model.requires_grad_(False)


def inputs(batch: int, padded: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(2, 50, (batch, LENGTH), generator=generator)
    mask = torch.ones(batch, LENGTH, dtype=torch.int64)
    if padded:
        for row in range(batch):
            mask[row, LENGTH - 1 - 2 * row :] = 0
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}


def check(
    model: PreTrainedModel,
    example: dict[str, Tensor],
    queries: list[dict[str, Tensor]],
    protocol: str,
    bound: float,
) -> None:
    with secure_eval.compile(model, example, protocol) as secure:
        for query in queries:
            got, wanted = secure(**query), model(**query)
            assert type(got) is type(wanted) and set(got) == set(wanted)
            assert float((got.logits - wanted.logits).abs().max()) < bound * max(
                1.0, float(wanted.logits.abs().max())
            )
            assert secure.measurement.communication() == secure.predicted().communication()


@pytest.mark.parametrize("name", TEXT)
def test_text_models_in_two_parties(name: str) -> None:
    """One program serves padded and full masks of its shape."""
    check(ready(TEXT[name]), inputs(1, False), [inputs(1, False), inputs(1, True)], "dealer2pc", 2.0**-7)


@pytest.mark.parametrize("name", TEXT)
def test_text_models_in_plain_fixed_point(name: str) -> None:
    check(ready(TEXT[name]), inputs(3, True), [inputs(3, False), inputs(3, True)], "plain", 2.0**-7)


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_of_three(padded: bool) -> None:
    check(ready(bert), inputs(3, padded), [inputs(3, padded)], "dealer2pc", 2.0**-7)


def test_masked_tokens_do_not_matter() -> None:
    model = ready(bert)
    query = inputs(1, True)
    other = {**query, "input_ids": torch.where(query["attention_mask"] == 1, query["input_ids"], 42)}
    with secure_eval.compile(model, query, "plain") as secure:
        assert torch.equal(secure(**query).logits, secure(**other).logits)


def program() -> Program:
    return capture(ready(bert), inputs(1, False))


def test_sites_are_module_paths() -> None:
    modules = dict(ready(bert).named_modules())
    sites = {n.site for n in program().nodes if n.level == "secret" and n.site}
    assert sites <= set(modules)
    assert {
        "bert.encoder.layer.0.intermediate.intermediate_act_fn",
        "bert.encoder.layer.1.output.LayerNorm",
        "classifier",
    } <= sites


def test_embeddings_and_masks_are_not_computed_by_the_parties() -> None:
    """Word embeddings are the client's look-up; the additive mask is public and only selects."""
    p = program()
    assert not [n for n in p.nodes if n.op == "take" and "word" in n.site]
    numerators = [n for n in p.nodes if n.op == "softmax_numerator"]
    assert len(numerators) == 2 and all(p[n.args[1].name].level == "public" for n in numerators)


def test_every_linear_layer_has_one_fixed_mask() -> None:
    from secure_eval.engine import multiplied_weights

    p = program()
    linears = [n for n in p.nodes if n.op == "linear"]
    assert len(linears) == 2 * 6 + 2
    assert len(multiplied_weights(p)) == len(linears) + 5  # and the weights of five layer norms


def test_predictions_need_no_weights() -> None:
    torch.manual_seed(0)
    real = secure_eval.count(program(), protocols.get("dealer2pc"))
    with torch.device("meta"):
        model = bert().eval()
        example = {k: v.to("meta") for k, v in inputs(1, False).items()}
    meta = secure_eval.count(capture(model, example), protocols.get("dealer2pc"))
    assert meta.communication() == real.communication() and meta.online.macs == real.online.macs > 0


def test_measurement_splits_by_site_and_operation() -> None:
    query = inputs(1, False)
    with secure_eval.compile(ready(bert), query) as secure:
        record = observe(secure._launcher._transports)  # type: ignore[attr-defined]
        secure(**query)
        measured = secure.measurement
    party = measured.roles["online"]["party0"]
    outputs = sum(t.tensor.nbytes for t in record if t.role == "party0" and t.sent and t.peer == "client")
    assert (
        sum(c.bytes for c in measured.sites.values())
        == sum(c.bytes for c in measured.operations.values())
        == party.bytes - outputs
    )
    assert (
        measured.sites["bert.encoder.layer.0.intermediate.intermediate_act_fn"].bytes > 0
        and measured.operations["gelu"].bytes > 0
    )
    assert (
        measured.online.seconds and measured.online.seconds > 0 and secure.predicted().online.seconds is None
    )
    # What the ledgers say is what moved.
    for phase, roles in measured.communication().items():
        if phase != "setup":
            for role, counts in roles.items():
                assert counts["bytes"] == sum(
                    t.tensor.nbytes for t in record if t.sent and (t.phase, t.role) == (phase, role)
                )
