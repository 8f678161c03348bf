"""How each secret operation of a program is run over a protocol: one rule an operation, one subject a file."""

from secure_eval.rules import activations, arithmetic, comparisons, nonlinear, powers, shapes, windows  # noqa: F401 (they register rules)
from secure_eval.rules.registry import RULES

__all__ = ["RULES"]
