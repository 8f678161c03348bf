"""What the stages of one run share: the recipe, the run directory, and what earlier stages left there, read
once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

_MPCFORMER = {"softmax": "2quad", "activation": "quad"}
BASELINE_VARIANTS: Mapping[str, Mapping[str, str]] = {"mpcformer": _MPCFORMER, "mpcformer_form": _MPCFORMER}
"""Named baselines that are trained: the variant at every site of a kind (MPCFormer, ICLR 2023, section 4)."""

TITLES = {
    "teacher": "teacher",
    "mpcformer": "MPCFormer as published",
    "mpcformer_form": "MPCFormer's form, our training",
}


class Context:
    """One run. Properties read files of finished stages; asking for one too early is a fault of ours.

    origin: the recipe's file, to which its relative paths are relative. text: the recipe as written.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunDirectory,
        origin: Path,
        text: str,
        command: str,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """say: shows the user a line that stays: what was decided, what is stored, what is left out."""
        self.say = say
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
    def config(self) -> Any:
        """The checkpoint's configuration."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.checkpoint)

    @property
    def given(self) -> bool:
        """Whether the checkpoint is the teacher as it is: by `teacher.train`, and without that if it has a head."""
        train = self.recipe.teacher.train
        return has_head(self.config) if train is None else train.epochs == 0

    @cached_property
    def read(self) -> Splits:
        """The data as its source has it now."""
        import distill

        return distill.load(self.task)

    @cached_property
    def loaded(self) -> Splits:
        """The data as its source has it now, classes numbered as a given teacher numbers them."""
        from distill.data import align

        return align(self.read, class_names(self.config)) if self.given else self.read

    @cached_property
    def splits(self) -> Splits:
        """The splits as the data stage wrote them."""
        from datasets import Dataset

        from distill import Splits

        info = read_json(self.run / "data/info.json")
        parts = {}
        for name in ("train", "validation", "test", "unlabelled"):
            path = self.run / f"data/{name}.jsonl"
            if name == "unlabelled" and not info["examples"].get(name):
                continue
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            parts[name] = Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]})
        names, notes = tuple(info["label_names"]), tuple(info["notes"])
        return Splits(label_names=names, kind=info["kind"], notes=notes, **parts)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, with a padding token in any case."""
        import copy

        from transformers import AutoTokenizer

        from distill.padding import settle_padding

        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        done = settle_padding(tokenizer, copy.deepcopy(self.config))
        if done is not None:
            self.say(done)
        return tokenizer

    @property
    def sequence_length(self) -> int:
        return self.recipe.secure.sequence_length

    def tokens(self, split: str) -> Tokens:
        """A split as tokens, cut to the recipe's sequence length."""
        import distill

        return distill.tokenize(getattr(self.splits, split), self.tokenizer, self.sequence_length)

    def training_texts(self) -> Tokens:
        """All training texts as tokens, those without a label too, for what needs no labels: distillation."""
        from distill.batching import joined

        names = ["train"] if self.splits.unlabelled is None else ["train", "unlabelled"]
        return joined([self.tokens(name) for name in names])

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """The teacher in eval mode."""
        import distill

        return distill.restore(self.run / "teacher/model")

    def trained(self, identifier: str) -> PreTrainedModel:
        """A trained model by its id: "teacher", a baseline or a student."""
        if identifier == "teacher":
            return self.teacher
        import distill

        return distill.restore(self.run / f"distill/{identifier}/model")

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


def has_head(config: Any) -> bool:
    """Whether a checkpoint of this configuration classifies sequences already."""
    return any("ForSequenceClassification" in name for name in config.architectures or [])


def class_names(config: Any) -> list[str]:
    """What a classifier's outputs are called, in their order."""
    return [str(name) for _, name in sorted(config.id2label.items())]


def _absolute(path: str, origin: Path) -> Path:
    given = Path(path).expanduser()
    return given if given.is_absolute() else origin.parent / given
