"""The rules that turn one exported ATen operation on secrets into secure operations.

builder.py collects the nodes, dispatch.py decides who computes an operation, registry.py holds the rules; the other files are the rules,
one subject a file.
"""

from secure_eval.lowering import (  # noqa: F401 (they register rules)
    activations,
    arithmetic,
    attention,
    comparisons,
    extrema,
    indexing,
    normalisation,
    powers,
    rotations,
    scattering,
    shapes,
    windows,
)
from secure_eval.lowering.builder import CLEAR_ONLY_KEYWORDS, Builder, Unsupported
from secure_eval.lowering.dispatch import IGNORED, lower

__all__ = ["CLEAR_ONLY_KEYWORDS", "IGNORED", "Builder", "Unsupported", "lower"]
