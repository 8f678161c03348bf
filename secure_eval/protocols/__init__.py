"""The protocols, by name; third parties add theirs under the entry point group `sordino.protocols`."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

from secure_eval.protocols.base import Protocol
from secure_eval.protocols.dealer2pc import Dealer2PC
from secure_eval.protocols.plain import Plain
from secure_eval.protocols.replicated3pc import Replicated3PC

_BUILT_IN: dict[str, type[Protocol]] = {p.name: p for p in (Plain, Dealer2PC, Replicated3PC)}


class UnknownProtocol(ValueError):
    """No protocol has that name."""


def names() -> list[str]:
    """All protocols that can be named, the built-in ones first."""
    return [*_BUILT_IN, *(e.name for e in entry_points(group="sordino.protocols") if e.name not in _BUILT_IN)]


def get(name: str) -> type[Protocol]:
    """The protocol class of that name. Raises UnknownProtocol with the names there are."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    for entry in entry_points(group="sordino.protocols"):
        if entry.name == name:
            protocol: type[Protocol] = entry.load()
            return protocol
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownProtocol(f"unknown protocol {name!r}{hint} Allowed: {', '.join(names())}")
