"""The rules by the name of the ATen operation that they lower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secure_eval.lowering.builder import Builder

Rule = Callable[[Builder, list[Any], dict[str, Any], Any], Any]


RULES: dict[str, Rule] = {}


def rule(*targets: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for target in targets:
            assert f"aten.{target}" not in RULES, f"two rules for aten.{target}"
            RULES[f"aten.{target}"] = function
        return function

    return register
