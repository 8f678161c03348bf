"""Models without a padding token."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from distill import tokenize
from distill.data import Splits
from distill.errors import DistillError
from distill.metrics import evaluate
from distill.padding import settle_padding


def without_padding(tokenizer: PreTrainedTokenizerFast, eos: str | None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", eos_token=eos
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_end_of_text_pads(
    family: str, build: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, splits: Splits
) -> None:
    """Answers are those without padding, and the model alone cannot batch before."""
    model, bare = build(family), without_padding(tokenizer, "[SEP]")
    model.config.pad_token_id = None
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 3, 3]])
    with pytest.raises(ValueError, match="batch sizes > 1"):
        model(input_ids=ids)
    assert settle_padding(bare, model.config) == "no padding token: '[SEP]' (3) pads"
    assert bare.pad_token_id == model.config.pad_token_id == 3
    assert settle_padding(bare, model.config) is None
    # Without special tokens: none is at the end that also pads.
    tokens = tokenize(splits.validation, bare, 16)
    rows = [row[1:-1] for row in tokens.columns["input_ids"]]
    cut = type(tokens)({"input_ids": rows}, tokens.labels, tokens.padding, 16)
    together = evaluate(model, cut)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_tokenizer_with_padding_decides(
    build: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build("gpt2")
    model.config.pad_token_id = 7
    assert settle_padding(tokenizer, model.config) == "pad_token_id of the model is set to the tokenizer's, 0"
    assert model.config.pad_token_id == 0


def test_without_any_end_it_is_refused(
    build: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build("gpt2")
    model.config.pad_token_id = None
    with pytest.raises(DistillError, match="neither a padding nor an end-of-text token; set `pad_token`"):
        settle_padding(without_padding(tokenizer, None), model.config)
