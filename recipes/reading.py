"""Reading a recipe: every fault is found at once and said with its place.

Syntax errors have the line, unknown keys the path with what was probably meant and what is allowed; then come wrong
types, and names of protocols, networks, devices and variants that nothing has registered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml
from pydantic import BaseModel

from recipes.errors import RecipeError, suggestion
from recipes.schema import Recipe


def parse(text: str, origin: str) -> Recipe:
    """A recipe from YAML text; `origin` is its file, which messages name and to which its paths are relative.

    Raises RecipeError with every fault.
    """
    data = _load(text, origin)
    if isinstance(data, dict):
        _resolve_profiles(data, Path(origin).resolve().parent)
    return validate(data, origin)


def validate(data: Any, origin: str) -> Recipe:
    """A recipe from nested dicts. Raises RecipeError with every fault."""
    if not isinstance(data, dict):
        raise RecipeError(f"{origin}: a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}")
    try:
        return Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{origin}: not a valid recipe", _problems(error)) from None


_PROFILES = (("secure", "network"), ("secure", "device"), ("secure", "networks"), ("verify", "emulate"))
"""Section and key of each place where a recipe names profiles: one, or a list of them."""


def _resolve_profiles(data: dict[str, Any], base: Path) -> None:
    """Make relative paths of profile files absolute."""

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(one) for one in value]
        is_file = isinstance(value, str) and value.endswith((".yaml", ".yml"))
        return str(base / value) if is_file else value

    for section, key in _PROFILES:
        if isinstance(data.get(section), dict) and key in data[section]:
            data[section][key] = resolved(data[section][key])


class _Loader(yaml.SafeLoader):
    """YAML with two traps taken out: a key given twice is an error, and 5e-5 is a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is no text", key_node.start_mark
            )
        if key in seen:
            message = f"the key {key!r} is given twice, first in line {seen[key]}"
            raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
        seen[key] = line
    return loader.construct_mapping(node, deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9_]+(?:[eE][-+]?[0-9]+)?)$"),
    list("-+0123456789."),
)


def _load(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        lines = text.splitlines()
        shown = (
            f"\n  {lines[mark.line].rstrip()}\n  {' ' * mark.column}^"
            if mark and mark.line < len(lines)
            else ""
        )
        begun = error.context_mark
        context = f" ({error.context} that began in line {begun.line + 1})" if error.context and begun else ""
        raise RecipeError(f"{origin}, {where}: {error.problem or error}{context}{shown}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}: not YAML: {error}") from None


def _problems(error: pydantic.ValidationError) -> list[str]:
    """One line for each fault, in the order of the recipe."""
    lines = []
    for fault in error.errors():
        path = [part for part in fault["loc"] if not _is_union_tag(part)]
        place = "$" + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
        value = fault.get("input")
        kind = fault["type"]
        if kind == "extra_forbidden":
            keys = _keys(path[:-1])
            lines.append(f"at {place}: unknown key {str(path[-1])!r}{suggestion(path[-1], keys)}")
        elif kind == "missing":
            lines.append(f"at {place}: required, and not given")
        elif kind == "literal_error":
            expected = [
                e.strip("'") for e in re.findall(r"'[^']*'", str(fault.get("ctx", {}).get("expected", "")))
            ]
            lines.append(f"at {place}: {value!r} is not known{suggestion(value, expected)}")
        elif kind == "value_error":
            lines.extend(f"at {place}: {text}" for text in str(fault["ctx"]["error"]).split("\n"))
        elif kind == "model_type":
            lines.append(
                f"at {place}: a mapping with the keys {', '.join(_keys(path))} is needed, not {value!r}"
            )
        else:
            lines.append(f"at {place}: {fault['msg'][0].lower()}{fault['msg'][1:]}, not {_short(value)}")
    return lines


def _is_union_tag(part: int | str) -> bool:
    """Pydantic puts the tried type of a union into the path; it is no key of the recipe."""
    return isinstance(part, str) and bool(
        re.fullmatch(r"(nullable|function-.*|constrained-.*|literal\[.*)", part)
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _keys(path: Sequence[int | str]) -> list[str]:
    """Allowed keys of the mapping at `path`."""
    model: type[BaseModel] = Recipe
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field and next(
            (t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)), None
        )
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
