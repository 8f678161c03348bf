"""Files that are there whole or not at all, and names for contents."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SAMPLE = 8 << 20
"""Bytes read from each end of a file that is too large to be read whole."""


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file and a rename, flushed to disk: a kill leaves the old content or the
    new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's value; None if there is no such file or it is no JSON (then it is not ours, and made
    again)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def replace_directory(new: Path, target: Path) -> None:
    """Put directory `new` in the place of `target`, which may exist. The old one is moved aside before it is
    deleted."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def digest(value: Any) -> str:
    """Sixteen hex digits that name a JSON-like value by its content."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def fingerprint(path: Path) -> str:
    """A name for a file's or directory's content: all of it up to 16 MiB a file, both ends and the size
    beyond that."""
    state = hashlib.blake2b(digest_size=8)
    for file in _files(path):
        size = file.stat().st_size
        state.update(f"{file.relative_to(path) if file != path else file.name}\0{size}\0".encode())
        with open(file, "rb") as content:
            if size <= 2 * SAMPLE:
                state.update(content.read())
            else:
                state.update(content.read(SAMPLE))
                content.seek(size - SAMPLE)
                state.update(content.read(SAMPLE))
    return state.hexdigest()


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
