"""A run small enough for a test: a BERT of one layer with random weights, and questions whose first word tells
the label."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

LABELS = {"who": "HUM", "where": "LOC", "when": "NUM"}
WORDS = (
    "is was the a city king year of in river war song capital born died built made first last old new".split()
)


def make_checkpoint(folder: Path) -> Path:
    """A BertModel of 1 layer, 2 heads and width 16 with its tokenizer; no head."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LABELS, *WORDS]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def make_data(path: Path, rows: int = 400) -> Path:
    """A csv file with the columns question and kind."""
    generator = random.Random(0)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "kind"])
        for _ in range(rows):
            first = generator.choice(list(LABELS))
            writer.writerow(
                [" ".join([first, *generator.choices(WORDS, k=generator.randint(3, 6))]), LABELS[first]]
            )
    return path


def tiny_recipe(folder: Path, **changes: Any) -> Path:
    """Checkpoint, data and recipe.yaml in `folder`. `changes` name nested keys with __: search__trials=5."""
    if not (folder / "checkpoint").exists():
        make_checkpoint(folder / "checkpoint")
        make_data(folder / "data.csv")
    recipe: dict[str, Any] = {
        "name": "tiny",
        "teacher": {
            "checkpoint": "checkpoint",
            "task": {
                "data": {
                    "source": "data.csv",
                    "text": "question",
                    "label": "kind",
                    "validation": 0.2,
                    "test": 0.2,
                }
            },
            "train": {"epochs": 12, "lr": 1.0e-2, "batch_size": 16, "freeze_embeddings": False},
        },
        "secure": {"sequence_length": 12},
        "search": {
            "trials": 12,
            "sites": {
                "softmax": ["exact", "2quad", "power4"],
                "activation": ["exact", "quad", "quad_channel"],
            },
            "limits": {"baseline": "mpcformer"},
            "calibration_samples": 64,
            "validation_samples": 32,
            "candidates": 2,
        },
        "distill": {"layerwise_epochs": 1, "prediction_epochs": 1, "lr": 1.0e-3, "prediction_lr": 1.0e-3},
        "verify": {"samples": 2, "parties": "threads", "max_drop": 0.2},
    }
    for name, value in changes.items():
        *parents, key = name.split("__")
        place = recipe
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            del place[key]
        else:
            place[key] = value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny recipe, its checkpoint and data into the test's folder; keywords change keys of the
    recipe."""

    def write(**changes: Any) -> Path:
        return tiny_recipe(tmp_path, **changes)

    return write


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Path]:
    """`tiny_recipe`, for fixtures that share a run."""
    return tiny_recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of `sordino cost` that other tests, or the user, were given are not this test's."""
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path_factory.mktemp("cache")))
    from cost_models import machine

    machine.keep(machine.load(machine.BASE), machine.path())
