"""The command `sordino show`: a model's secure program, as text."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from secure_eval import Program


def show_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A hub id, a model directory, package:<name>/<path>, or a config.json."
        ),
    ],
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            metavar="PASS",
            help="Stop after this pass; `capture` for the program as the model says it.",
            show_default="the last pass",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option("--site", metavar="PATTERN", help="Modules to show, with * and ?.", show_default="all"),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Examples in one query.")] = 1,
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", min=1, help="Tokens of a query.")
    ] = 128,
) -> None:
    """Print the secure program of a model, one value a line: operation, who knows it, shape, fraction bits, module.

    Needs its configuration only, no weights. Fraction bits are those that the engine makes a secret value with at 16 of them.

    Example: `sordino show bert-base-uncased --after capture --site '*.layer.0.attention.*'`
    """
    from recipes.costing import Models
    from recipes.errors import RecipeError
    from secure_eval.passes import PASSES, run_passes, up_to

    passes = PASSES if after is None else () if after == "capture" else up_to(after)
    program = run_passes(Models().shaped(model, batch, sequence_length).captured, passes)
    found = lines(program, site)
    if not found:
        sites = sorted({node.site for node in program.nodes if node.site})
        raise RecipeError(f"--site {site}: matches no module; allowed, among others: {', '.join(sites[:8])}")
    ran = ", ".join(program.passes or ()) or "none"
    typer.echo("\n".join([f"# {len(program.nodes)} values; passes: {ran}", *found]))


def lines(program: Program, pattern: str | None = None) -> list[str]:
    """Of every node (of modules that match): the text of the node, with the fraction bits of a secret value."""
    from secure_eval.ranges.placement import place

    bits = place(program, 16).fraction_bits
    found = []
    for node in program.nodes:
        if pattern is not None and not fnmatch.fnmatchcase(node.site, pattern):
            continue
        text, at, where = repr(node).partition("    @ ")
        fraction = f"    {bits[node.name]} bits" if node.name in bits else ""
        found.append(f"{text}{fraction}{at}{where}")
    return found
