"""Named rewrites of a program. Each keeps its meaning in real arithmetic and is checked by spec.py afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from secure_eval.passes.activations import recognise_activations
from secure_eval.passes.channels import fold_channel_affine
from secure_eval.passes.divisions import divide_after_matmul
from secure_eval.passes.scales import push_scales_into_weights
from secure_eval.passes.squares import recognise_squares
from secure_eval.passes.unused import remove_unused
from secure_eval.passes.windows import fold_channels_into_windows
from secure_eval.program import Program
from secure_eval.spec import check

Pass = Callable[[Program], Program]

PASSES: tuple[Pass, ...] = (
    recognise_activations,
    remove_unused,
    recognise_squares,
    push_scales_into_weights,
    fold_channels_into_windows,
    fold_channel_affine,
    divide_after_matmul,
    remove_unused,
)
"""In the order in which they run; the name of each is its function's."""


def run_passes(program: Program, passes: Sequence[Pass] = PASSES) -> Program:
    """The program after these passes, checked after each. Raises InvalidProgram where one has broken it."""
    for rewrite in passes:
        program = check(rewrite(program))
        program = replace(program, passes=(*(program.passes or ()), rewrite.__name__))
    return program


def up_to(name: str) -> tuple[Pass, ...]:
    """The passes up to and with the first of that name. Raises ValueError for a name that none has."""
    names = [one.__name__ for one in PASSES]
    if name not in names:
        raise ValueError(f"there is no pass {name!r}; allowed: {', '.join(dict.fromkeys(names))}")
    return PASSES[: names.index(name) + 1]


__all__ = [
    "PASSES",
    "Pass",
    "divide_after_matmul",
    "fold_channel_affine",
    "fold_channels_into_windows",
    "push_scales_into_weights",
    "recognise_activations",
    "recognise_squares",
    "remove_unused",
    "run_passes",
    "up_to",
]
