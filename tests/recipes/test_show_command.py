"""`sordino show`: the program of a model, before and after passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recipes.cli import app


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A small BERT's configuration."""
    config = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def show(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["show", *arguments, "--sequence-length", "4"])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_a_program_says(model: str) -> None:
    text = show(model, "--site", "*attention.self*")
    assert " = matmul(" in text and " = softmax_numerator(" in text
    line = next(line for line in text.splitlines() if " = softmax_numerator(" in line)
    assert ": secret float32[1, 2, 4, 4]" in line and " bits" in line
    assert line.endswith("@ bert.encoder.layer.0.attention.self")


def test_passes_one_by_one(model: str) -> None:
    """Scores are scaled as the model says it, until the pass that moves the scale into a weight."""
    site = ("--site", "*attention.self")
    said, moved = (show(model, "--after", name, *site) for name in ("capture", "push_scales_into_weights"))
    scaled = [
        line for line in said.splitlines() if " = mul(" in line and "secret float32[1, 2, 4, 4]" in line
    ]
    left = [line for line in moved.splitlines() if " = mul(" in line and "secret float32[1, 2, 4, 4]" in line]
    assert len(scaled) == len(left) + 1
    assert said.startswith("# ") and "passes: none" in said
    assert (
        "passes: recognise_activations, remove_unused, recognise_squares, push_scales_into_weights\n" in moved
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--after", "nothing"), "there is no pass 'nothing'; allowed: recognise_activations"),
        (("--site", "elsewhere"), "--site elsewhere: matches no module; allowed, among others: bert"),
    ],
)
def test_what_is_not_there_is_named(model: str, arguments: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["show", model, *arguments, "--sequence-length", "4"])
    assert result.exit_code == 2 and said in " ".join(result.output.split())
