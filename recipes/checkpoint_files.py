"""Whether a checkpoint's files are what they have to be: weights that can be opened, and a tokenizer that knows the texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.checkpoints import is_local
from recipes.errors import RecipeError

LOOKED_AT = 100
"""Texts on which a tokenizer is tried."""

MOST_UNKNOWN = 0.5
"""Share of unknown tokens beyond which a tokenizer is taken for another model's, or for none."""


def check_weights(located: str) -> None:
    """Raises RecipeError unless a directory has weights in files that are whole; what is on the hub is not looked at.

    Only headers of safetensors are read.
    """
    from safetensors import SafetensorError, safe_open
    from transformers.utils import (
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
        WEIGHTS_INDEX_NAME,
        WEIGHTS_NAME,
    )

    if not is_local(located):
        return
    root = Path(located)
    order = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    found = next((root / name for name in order if (root / name).is_file()), None)
    if found is None:
        raise RecipeError(f"no weights in {root}: none of {', '.join(order)}")
    files = [found]
    if found.suffix == ".json":
        named = set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values())
        files = [root / name for name in sorted(named)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise RecipeError(
                f"weights are missing in {root}: {', '.join(missing)}, which {found.name} names"
            )
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
        except SafetensorError as error:
            raise RecipeError(f"the weights {file} cannot be read: {error}") from None


def check_vocabulary(tokenizer: Any, config: Any, texts: Sequence[str]) -> None:
    """Raises RecipeError for a tokenizer that does not know the texts, or makes tokens that the model has no embedding for.

    A directory without a tokenizer's files does not fail to load: its tokenizer knows nothing.
    """
    ids = [
        token
        for row in tokenizer(list(texts[:LOOKED_AT]), add_special_tokens=False)["input_ids"]
        for token in row
    ]
    unknown = sum(token == tokenizer.unk_token_id for token in ids)
    if not ids or unknown > MOST_UNKNOWN * len(ids):
        raise RecipeError(
            f"the tokenizer ({type(tokenizer).__name__}, {len(tokenizer):,} tokens) knows {len(ids) - unknown:,} of the {len(ids):,} "
            f"tokens of the first {min(LOOKED_AT, len(texts))} training texts; are its files in the "
            "checkpoint's directory, and are they this model's?"
        )
    size = getattr(config, "vocab_size", None)
    if size is not None and max(ids) >= size:
        raise RecipeError(
            f"the tokenizer ({type(tokenizer).__name__}) makes the token {max(ids):,}, and the model has embeddings for {size:,}; is it "
            "this model's?"
        )
