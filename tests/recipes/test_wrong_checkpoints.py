"""Checkpoints whose files are missing, broken or another model's, and contracts that few examples cannot show: said before any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DistillError
from recipes.errors import RecipeError
from recipes.progress import Reporter
from recipes.run import run

Write = Callable[..., Path]


def refused(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        run(path, path.parent / "out", until="data", reporter=Reporter(quiet=True))
    return str(caught.value)


def test_weights_that_are_not_there_or_cut_short_are_refused(write_recipe: Write) -> None:
    path = write_recipe()
    weights = path.parent / "checkpoint" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert f"at $.teacher.checkpoint: the weights {weights} cannot be read" in refused(path)
    weights.unlink()
    assert f"no weights in {weights.parent}: none of model.safetensors" in refused(path)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (weights.parent / "model.safetensors.index.json").write_text(json.dumps(index))
    (weights.parent / "model-1.safetensors").write_bytes(whole)
    assert "model-2.safetensors, which model.safetensors.index.json names" in refused(path)


def test_a_checkpoint_without_its_tokenizer_is_refused(write_recipe: Write) -> None:
    """It would load: as a tokenizer that knows no word."""
    path = write_recipe()
    for file in (path.parent / "checkpoint").glob("tokenizer*"):
        file.unlink()
    message = refused(path)
    assert "at $.teacher.checkpoint: the tokenizer (BertTokenizer, 5 tokens) knows 0 of the" in message


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(write_recipe: Write) -> None:
    from transformers import BertConfig, BertModel

    path = write_recipe()
    folder = path.parent / "checkpoint"
    config = BertConfig.from_pretrained(folder)
    config.vocab_size = 10
    BertModel(config).save_pretrained(folder)
    assert "makes the token" in (message := refused(path)) and "the model has embeddings for 10" in message


def test_weights_of_another_model_are_refused_before_training(write_recipe: Write) -> None:
    """A second layer that the files do not have would start at random."""
    path = write_recipe()
    described = path.parent / "checkpoint" / "config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"num_hidden_layers": 2}))
    with pytest.raises(DistillError, match="no weights that fit 16 of the tensors .*encoder.layer.1"):
        run(path, path.parent / "out", until="teacher", reporter=Reporter(quiet=True))


def test_a_given_classifier_has_its_head(write_recipe: Write) -> None:
    """config.json promises a head; the weights are an encoder's."""
    path = write_recipe(teacher__train=...)
    described = path.parent / "checkpoint" / "config.json"
    head: dict[str, Any] = {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "HUM", "1": "LOC", "2": "NUM"},
        "label2id": {"HUM": 0, "LOC": 1, "NUM": 2},
    }
    described.write_text(json.dumps(json.loads(described.read_text()) | head))
    with pytest.raises(DistillError, match="classifier.bias, classifier.weight"):
        run(path, path.parent / "out", until="teacher", reporter=Reporter(quiet=True))


@pytest.mark.parametrize(("allowed", "warned"), [(0.02, True), (0.2, False)])
def test_a_contract_that_the_examples_cannot_show_is_said_at_once(
    write_recipe: Write, allowed: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(verify__max_drop=allowed)
    run(path, path.parent / "out", until="data", reporter=Reporter())
    said = "this run will end with a missed contract" in capsys.readouterr().out
    assert said == warned


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_without_an_end_are_refused(write_recipe: Write, value: float) -> None:
    path = write_recipe(distill__lr=value, teacher__train__epochs=value)
    message = refused(path)
    assert "at $.distill.lr" in message and "at $.teacher.train.epochs" in message
