"""Content hashes, by which a resumed run knows that it continues the same work."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy
import torch
import transformers
from torch import Tensor, nn

from distill.batching import Tokens


def of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


UNNUMBERED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id")
"""Entries of a configuration that no output depends on."""


def of_model(model: nn.Module) -> str:
    """Hash of a model's tensors and, of a transformers model, of its configuration: activations, epsilons and
    variants are named there."""
    config = getattr(model, "config", None)
    described = {} if config is None else config.to_dict()
    kept = {name: value for name, value in described.items() if name not in UNNUMBERED}
    text = json.dumps(kept, sort_keys=True, default=str)
    return of_json([of_tensors(model.state_dict().items()), text])


def versions() -> dict[str, str]:
    """Versions of the libraries that the numbers of a training depend on."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": numpy.__version__}


def of_json(value: Any) -> str:
    """Hash of a JSON-compatible value or dataclass."""
    plain = (
        dataclasses.asdict(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
        else value
    )
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def of_tokens(tokens: Tokens) -> str:
    """Hash of token lists and labels."""
    return of_json([{name: list(rows) for name, rows in tokens.columns.items()}, list(tokens.labels or [])])
