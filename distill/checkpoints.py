"""Saving and reading models of a run: plain Hugging Face directories, with variants rebuilt from the config.

Everything is written beside its place and moved there in one step, so a kill leaves the old state or the new
one.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from distill.errors import DistillError
from distill.surgery import install


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


def replace_directory(temporary: Path, target: Path) -> None:
    """Put a finished directory in `target`'s place; an older one there is removed."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    shutil.rmtree(old, ignore_errors=True)


def save(model: PreTrainedModel, directory: str | os.PathLike[str], tokenizer: Any = None) -> None:
    """Write a teacher or student, and its tokenizer, as safetensors and JSON to `directory`; replaces what is
    there."""
    replace_directory(saved_beside(model, Path(directory), tokenizer), Path(directory))


def saved_beside(model: PreTrainedModel, target: Path, tokenizer: Any = None) -> Path:
    """Write a model, and its tokenizer, to a new directory beside `target` that is to replace it; returns that
    directory."""
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    if tokenizer is not None:
        tokenizer.save_pretrained(temporary)
    return temporary


def restore(directory: str | os.PathLike[str]) -> PreTrainedModel:
    """Read what `save` (or `export`) wrote: the transformers class named by its config, variants installed,
    in eval mode.

    Raises DistillError if there is no model there, or its class is not one of transformers'.
    """
    root = Path(directory)
    if not (root / "config.json").exists():
        raise DistillError(f"{root}: no config.json, so no model, there")
    described = json.loads((root / "config.json").read_text())
    carried = described.get("sordino")
    name = carried["base_class"] if carried else (described.get("architectures") or ["?"])[0]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise DistillError(f"{root}: transformers has no class {name!r}")
    if not carried:
        model: PreTrainedModel = model_class.from_pretrained(root, attn_implementation="eager")
        return model.eval()
    # An exported model has a model type of its own; here its variants are rebuilt on the family's own config.
    for key in ("model_type", "auto_map", "architectures"):
        described.pop(key, None)
    model = model_class(AutoConfig.for_model(carried["base_model_type"], **described))
    install(model)
    if (root / "model.safetensors.index.json").exists():
        index = json.loads((root / "model.safetensors.index.json").read_text())
        files = sorted(set(index["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    state = {name: tensor for file in files for name, tensor in load_file(root / file).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Tied weights are stored once; anything else that is missing would leave random values in the model.
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    if unexpected or set(missing) - tied:
        raise DistillError(
            f"{root}: weights do not fit: missing {sorted(set(missing) - tied)}, unexpected {unexpected}"
        )
    model.tie_weights()
    return model.eval()
