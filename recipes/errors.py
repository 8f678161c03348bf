"""Errors that a user can act on. The command line prints them as they are, without a traceback, and exits
with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class RecipeError(ValueError):
    """Wrong input: the message names the place, the value and what is allowed. `problems` holds one line for
    each fault."""

    def __init__(self, heading: str, problems: Iterable[str] = ()) -> None:
        self.problems = list(problems)
        super().__init__("\n".join([heading, *(f"  {_indented(line)}" for line in self.problems)]))


class ContractMissed(Exception):
    """The run is complete, but what it measured breaks a contract. Results are kept in `path`; the exit code
    is 1."""

    def __init__(self, message: str, path: Path) -> None:
        self.path = path
        super().__init__(message)


class Locked(RecipeError):
    """Another live run works in the same directory."""


def complain(message: str) -> None:
    """Say on standard error that something is wrong."""
    import typer

    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)


def suggestion(word: object, allowed: Iterable[str]) -> str:
    """ ", did you mean 'epochs'? allowed: …": the nearest allowed word, if one is near, and the list."""
    names = list(allowed)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else ";"
    return f"{hint} allowed: {', '.join(names)}"


def _indented(line: str) -> str:
    return line.replace("\n", "\n    ")
