"""What the stages of one run share: the recipe, the run directory, and what earlier stages left there, read
once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.checkpoints import locate_checkpoint
from recipes.files import read_json
from recipes.rundir import RunDirectory
from recipes.schema import Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    import cost_models
    from distill import Architecture, Calibration, Site, Splits, TaskConfig, Tokens
    from nas import Front

BASELINE_VARIANTS: Mapping[str, Mapping[str, str]] = {"mpcformer": {"softmax": "2quad", "activation": "quad"}}
"""Named baselines that are trained: the variant at every site of a kind (MPCFormer, ICLR 2023, section 4)."""

TITLES = {"teacher": "teacher", "mpcformer": "MPCFormer (Quad + 2Quad)"}


class Context:
    """One run. Properties read files of finished stages; asking for one too early is a fault of ours.

    origin: the recipe's file, to which its relative paths are relative. text: the recipe as written.
    """

    def __init__(self, recipe: Recipe, run: RunDirectory, origin: Path, text: str, command: str) -> None:
        self.recipe = recipe
        self.run = run
        self.origin = origin
        self.text = text
        self.command = command

    @property
    def name(self) -> str:
        return self.recipe.name or self.origin.stem

    @cached_property
    def task(self) -> TaskConfig:
        """The task as distill reads it, relative paths made absolute."""
        from distill import TaskConfig

        data = self.recipe.teacher.task.data
        given = data.model_dump() | {"kind": self.recipe.teacher.task.kind, "seed": self.recipe.seed}
        if not data.source.startswith(("package:", "hub:")):
            given["source"] = str(_absolute(data.source, self.origin))
        return TaskConfig.from_dict(given)

    @cached_property
    def checkpoint(self) -> str:
        """A directory, or a hub id, that from_pretrained takes."""
        return locate_checkpoint(self.recipe.teacher.checkpoint, self.origin.parent)

    @cached_property
    def splits(self) -> Splits:
        """The three splits, as the data stage wrote them."""
        from datasets import Dataset

        from distill import Splits

        info = read_json(self.run / "data/info.json")
        parts = {}
        for name in ("train", "validation", "test"):
            text = (self.run / f"data/{name}.jsonl").read_text(encoding="utf-8")
            rows = [json.loads(line) for line in text.split("\n") if line]
            columns = {key: [row[key] for row in rows] for key in ("text", "label")}
            parts[name] = Dataset.from_dict(columns)
        return Splits(label_names=tuple(info["label_names"]), kind=info["kind"], **parts)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.checkpoint)

    @property
    def sequence_length(self) -> int:
        return self.recipe.secure.sequence_length

    def tokens(self, split: str) -> Tokens:
        """A split as tokens, cut to the recipe's sequence length."""
        import distill

        return distill.tokenize(getattr(self.splits, split), self.tokenizer, self.sequence_length)

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The fine-tuned teacher in eval mode."""
        import distill

        return distill.restore(self.run / "teacher/model")

    @cached_property
    def sites(self) -> list[Site]:
        import distill

        return distill.find_sites(self.teacher)

    @cached_property
    def calibration(self) -> Calibration:
        from distill import Calibration

        return Calibration.load(self.run / "calibrate/calibration.safetensors")

    @cached_property
    def front(self) -> Front:
        from nas import Front

        return Front.from_dict(read_json(self.run / "search/front.json"))

    def example_inputs(self) -> dict[str, torch.Tensor]:
        """One query of the recipe's shape, of padding only: for shapes, not for values."""
        return example_inputs(self.tokenizer, self.recipe.secure.batch, self.sequence_length)

    def baseline(self, name: str) -> Architecture:
        """The architecture of a named baseline."""
        from distill import Architecture

        return Architecture.uniform(self.sites, BASELINE_VARIANTS[name])

    def predict(self, model: Any) -> cost_models.Cost:
        """Predicted cost of one query of the recipe's shape."""
        import cost_models

        return cost_models.predict(model, self.example_inputs(), protocol=self.recipe.secure.protocol)


def example_inputs(tokenizer: Any, batch: int, sequence_length: int) -> dict[str, torch.Tensor]:
    """Inputs [batch, sequence_length] of the names that the tokenizer makes: ids of its padding, a mask of
    ones."""
    import torch

    names = [n for n in tokenizer.model_input_names if n in ("input_ids", "token_type_ids", "attention_mask")]
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    values = {"input_ids": pad, "token_type_ids": 0, "attention_mask": 1}
    return {
        n: torch.full((batch, sequence_length), values[n], dtype=torch.long)
        for n in sorted({*names, "attention_mask"})
    }


def _absolute(path: str, origin: Path) -> Path:
    given = Path(path).expanduser()
    return given if given.is_absolute() else origin.parent / given
