"""Whom `sordino cost` asks about: a model under a protocol, or two of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.errors import RecipeError, suggestion


@dataclass(frozen=True)
class Subject:
    """What is priced: a model under a protocol."""

    model: str
    protocol: str


def subjects(
    model: str | None, protocol: str, pair: tuple[str, str] | None, allowed: Sequence[str]
) -> list[Subject]:
    """Whom `sordino cost [MODEL] [--compare A B]` asks about: A and B are each a protocol or a model; what one does not say is taken
    from MODEL and --protocol. Raises RecipeError."""
    known_protocol(protocol, "--protocol", allowed)
    if pair is None:
        if model is None:
            raise RecipeError(
                "MODEL is missing: a hub id, a directory, package:<name>/<path>, or a config.json"
            )
        return [Subject(model, protocol)]
    found = []
    for word in pair:
        if word in allowed:
            if model is None:
                raise RecipeError(f"--compare {word}: a protocol needs a MODEL before the options")
            found.append(Subject(model, word))
        else:
            _refuse_misspelt(word, allowed)
            found.append(Subject(word, protocol))
    if model is not None and all(subject.model != model for subject in found):
        raise RecipeError(
            f"MODEL {model!r} is not asked about: --compare {' '.join(pair)} names two models; leave one of the three out"
        )
    if found[0] == found[1]:
        raise RecipeError(f"--compare {' '.join(pair)}: both are the same")
    return found


def known_protocol(name: str, place: str, allowed: Sequence[str]) -> None:
    """Raises RecipeError unless `name` is a protocol."""
    if name not in allowed:
        raise RecipeError(f"{place}: protocol {name!r} is not known{suggestion(name, allowed)}")


def _refuse_misspelt(word: str, allowed: Sequence[str]) -> None:
    """A word that is nearly a protocol's and no file is no model: a look for it on the hub would only hide the mistake."""
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.75)
    if near and "/" not in word and not Path(word).exists():
        raise RecipeError(f"--compare: {word!r} is neither a protocol nor a model{suggestion(word, allowed)}")
