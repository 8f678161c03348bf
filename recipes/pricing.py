"""Models and their inputs without weights, from a configuration alone: what `sordino cost` prices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.checkpoints import config_file, locate_checkpoint
from recipes.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def skeleton(name: str) -> PreTrainedModel:
    """The model of a directory, a config.json, a package or a hub id, without weights: on the meta device."""
    import transformers

    text, config = described(name)
    carried = text.get("sordino")
    names = [carried["base_class"]] if carried else text.get("architectures") or []
    classes = [getattr(transformers, n) for n in names if hasattr(transformers, n)]
    import torch

    try:
        with torch.device("meta"):
            if classes:
                model = classes[0]._from_config(config, attn_implementation="eager")
            else:
                model = transformers.AutoModel.from_config(config, attn_implementation="eager")
            if carried:
                from distill.surgery import install

                install(model)
    except (ValueError, KeyError) as error:
        raise RecipeError(f"model {name!r}: transformers cannot build it: {error}") from None
    return model.eval()


def meta_inputs(model: PreTrainedModel, batch: int, sequence_length: int) -> dict[str, torch.Tensor]:
    """One query's inputs on the meta device: ids and a mask [batch, sequence_length], or pixels."""
    import torch

    from distill.sites import probe_inputs

    given = probe_inputs(model, sequence_length)
    inputs = {name: value.expand(batch, *value.shape[1:]).contiguous() for name, value in given.items()}
    if "input_ids" in inputs:
        most = getattr(model.config, "max_position_embeddings", None)
        if most is not None and sequence_length > most:
            raise RecipeError(f"--sequence-length {sequence_length}: this model takes at most {most} tokens")
        inputs["attention_mask"] = torch.ones(batch, sequence_length, dtype=torch.long, device="meta")
    return inputs


def described(name: str) -> tuple[dict[str, Any], Any]:
    """The model's config.json as it is, and as transformers' own configuration."""
    from transformers import AutoConfig

    path = config_file(name)
    try:
        if path is not None:
            text = json.loads(path.read_text(encoding="utf-8"))
            carried = text.get("sordino")
            if carried:  # an exported model has a type of its own; its family's is noted beside it
                own = ("model_type", "auto_map", "architectures")
                kept = {k: v for k, v in text.items() if k not in own}
                return text, AutoConfig.for_model(carried["base_model_type"], **kept)
            kind = text.get("model_type")
            if not isinstance(kind, str):
                raise RecipeError(f"model {name!r}: its config.json names no model_type")
            kept = {k: v for k, v in text.items() if k != "model_type"}
            return text, AutoConfig.for_model(kind, **kept)
        config = AutoConfig.from_pretrained(locate_checkpoint(name, Path.cwd()))
        return config.to_dict(), config
    except RecipeError:
        raise
    except FileNotFoundError:
        raise RecipeError(f"model {name!r}: no config.json there") from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RecipeError(f"model {name!r} does not load: {reason}") from None
