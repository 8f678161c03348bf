"""Answers of `sordino cost` that were given before, kept on disk by the content of everything that they depend on.

Looking one up imports neither torch nor transformers: that alone takes longer than a second.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recipes.checkpoints import config_file
from recipes.errors import RecipeError
from recipes.files import digest, fingerprint, read_json, write_json

KEPT = 500
"""Answers on disk; the ones that were not asked for the longest are removed."""
_PACKAGES = ("secure_eval", "cost_models", "distill", "recipes")
_LIBRARIES = ("torch", "transformers")
_PROTOCOLS = ("plain", "dealer2pc", "replicated3pc")


def folder() -> Path:
    """Where answers are kept: `sordino/costs` in the user's cache directory, or SORDINO_CACHE."""
    own = os.environ.get("SORDINO_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(own) if own else cache / "sordino") / "costs"


def key(question: Mapping[str, Any], models: Iterable[str], profiles: Mapping[str, str | None]) -> str | None:
    """A name for a question: options, models' configurations, profiles by kind, our own code and the libraries'. None where a model's
    configuration is not on this machine, or a name is none: then it has to be asked in earnest. Protocols may be among the models."""
    plugins = {entry.name: str(entry) for entry in importlib.metadata.entry_points(group="sordino.protocols")}
    found = [_configuration(name) for name in models if name not in (*_PROTOCOLS, *plugins)]
    files = [_profile(kind, name) for kind, name in profiles.items() if name is not None]
    if None in found or None in files:
        return None
    code = [fingerprint(place) for place in map(_package, _PACKAGES)]
    versions = [importlib.metadata.version(name) for name in _LIBRARIES]
    return digest([question, found, files, code, versions, plugins])


def read(name: str | None) -> Any:
    """The answer of that name, None if there is none, or if this machine was measured anew since."""
    if name is None:
        return None
    path = folder() / f"{name}.json"
    found = read_json(path)
    if found is None or found["profile"] != _content(found["answer"]["device_profile"]["file"]):
        return None
    path.touch()
    return found["answer"]


def write(name: str | None, answer: Any) -> None:
    """Keeps an answer. A cache that cannot be written to is no reason to fail."""
    if name is None:
        return
    try:
        profile = _content(answer["device_profile"]["file"])
        write_json(folder() / f"{name}.json", {"profile": profile, "answer": answer})
        by_age = sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in by_age[:-KEPT]:
            path.unlink(missing_ok=True)
    except OSError:
        pass


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _configuration(name: str) -> str | None:
    """The content of a local model's config.json."""
    try:
        path = config_file(name)
    except RecipeError:
        return None
    return fingerprint(path) if path is not None and path.is_file() else None


def _content(path: str) -> str | None:
    """What a file says; None where there is none."""
    return fingerprint(Path(path)) if path and Path(path).is_file() else None


def _profile(kind: str, name: str) -> str | None:
    if name == "auto":
        return name  # the answer says which file it was made with
    given = Path(name)
    shipped = _package("cost_models") / "profiles" / kind / f"{name}.yaml"
    path = given if given.suffix in (".yaml", ".yml") else shipped
    return fingerprint(path) if path.is_file() else None
