"""Files that survive a kill, and names that change when what they stand for changes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that a reader, or a restart after a kill, sees the old file or the new one, never
    a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any | None:
    """The file's content, or None if there is no such file. A file that is no JSON raises ValueError
    naming it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not readable as JSON ({error}); delete it to have it made again"
        ) from error


def digest(*parts: Any) -> str:
    """A content hash (16 hex digits) of JSON-like values and of mappings or sequences that hold tensors."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        state.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        if not value.is_meta:
            flat = value.detach().cpu().contiguous().reshape(-1)
            state.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        state.update(b"{")
        for key in sorted(value, key=str):
            state.update(f"{key}:".encode())
            _feed(state, value[key])
        state.update(b"}")
    elif isinstance(value, (list, tuple)):
        state.update(b"[")
        for item in value:
            _feed(state, item)
        state.update(b"]")
    else:
        state.update(json.dumps(value, sort_keys=True, default=str).encode() + b";")


def source_digest(modules: Iterable[str]) -> str:
    """A content hash of the Python sources of the named modules or packages.

    A cached number is only as good as the code that made it: with the sources in its key, an edited variant
    or protocol makes new numbers without anyone having to remember to raise a version.
    """
    files: list[Path] = []
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"no module named {name!r}", name=name)
        if spec.submodule_search_locations:
            for folder in spec.submodule_search_locations:
                files.extend(Path(folder).rglob("*.py"))
        elif spec.origin:
            files.append(Path(spec.origin))
    state = hashlib.blake2b(digest_size=8)
    for file in sorted(files, key=lambda path: (path.parent.name, path.name)):
        state.update(f"{file.parent.name}/{file.name}".encode())
        state.update(file.read_bytes())
    return state.hexdigest()
