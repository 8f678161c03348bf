"""Tiny random models, a word-level tokenizer and a synthetic task, shared by the tests of `distill`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from distill.data import Splits

WORDS = [f"w{index}" for index in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_data: needs the packages with MiniLM and TREC")
    config.addinivalue_line("markers", "long: takes more than a few seconds")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _common(**names: Any) -> dict[str, Any]:
    return {
        "vocab_size": 64,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "num_labels": 3,
        **names,
    }


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(
        BertConfig(
            **_common(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
        )
    ),
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(
            **_common(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
        )
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(**_common(dim=16, n_layers=2, n_heads=4, hidden_dim=32))
    ),
    "albert": lambda: AlbertForSequenceClassification(
        AlbertConfig(
            **_common(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=32,
                embedding_size=8,
            )
        )
    ),
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**_common(n_embd=16, n_layer=2, n_head=4))),
    "llama": lambda: LlamaForSequenceClassification(
        LlamaConfig(
            **_common(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=32,
            )
        )
    ),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
            num_labels=3,
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(**_common(d_model=16, num_layers=2, num_heads=4, d_kv=4, d_ff=32, decoder_start_token_id=0))
    ),
}


@pytest.fixture
def build() -> Callable[[str], PreTrainedModel]:
    """build(family) -> a small random model in eval mode with eager attention, the same at every call."""

    def make(family: str) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = BUILDERS[family]()
            for (
                parameter
            ) in model.parameters():  # larger than the initialisation, so that variants make a difference
                if parameter.dim() > 1:
                    parameter.data.mul_(8.0)
        model.set_attn_implementation("eager")
        return model.eval()

    return make


@pytest.fixture
def teacher(build: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return build("bert")


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Two sequences of 9 tokens, the second with 4 of padding."""
    ids = torch.randint(4, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture
def splits() -> Splits:
    """A learnable task: the label is which third of the vocabulary the first word comes from."""
    from datasets import Dataset

    generator = torch.Generator().manual_seed(2)

    def part(size: int) -> Dataset:
        rows = []
        for _ in range(size):
            count = int(torch.randint(3, 9, (1,), generator=generator))
            rows.append(torch.randint(0, 39, (count,), generator=generator).tolist())
        return Dataset.from_dict(
            {
                "text": [" ".join(WORDS[word] for word in row) for row in rows],
                "label": [row[0] // 13 for row in rows],
            }
        )

    return Splits(part(96), part(32), part(32), ("low", "middle", "high"), "classification")
