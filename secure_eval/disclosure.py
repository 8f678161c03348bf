"""What of a model all parties see in the clear, beside its architecture: tensors, and numbers in the program's text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from secure_eval.program import Program, PublicConstant


def public_lines(program: Program) -> list[str]:
    """One line for each kind of public constant, in words; those of repeated layers together."""
    lines = [f"Visible to all parties: {line}" for line in constant_lines(program.public_constants)]
    count, sites = sum(program.public_numbers.values()), len(program.public_numbers)
    if count:
        lines.append(
            f"Visible to all parties and the dealer: {count} numbers in the program's text (scales, epsilons, bounds), in {sites} "
            "modules; an exported program does not say which of them were trained"
        )
    return lines


def constant_lines(constants: Iterable[PublicConstant]) -> list[str]:
    """`path shape: why`, layers that differ by their number alone as one line."""
    groups: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
    for c in constants:
        groups.setdefault((re.sub(r"\d+", "*", c.path), c.shape, c.why), []).append(c.path)
    lines = []
    for (pattern, shape, why), paths in groups.items():
        name = paths[0] if len(paths) == 1 else f"{pattern} ({len(paths)} of them)"
        lines.append(f"{name} {list(shape)}: {why}" if shape else f"{name}: {why}")
    return lines
