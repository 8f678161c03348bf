"""The rules by the name of the secret operation that they run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

Rule = Callable[..., Coroutine[Any, Any, Any]]
RULES: dict[str, Rule] = {}
"""Operation -> coroutine function of (protocol, node, *arguments): Secrets, or clear values."""


def rule(function: Rule) -> Rule:
    """Registers a coroutine function for the operation of its name, without underscores around it."""
    RULES[function.__name__.strip("_")] = function
    return function
