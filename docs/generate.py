"""Writes the pages that are made from the code: cli.md from the commands, recipe_schema.md from the schema.

`make docs` runs it; `--check` writes nothing and fails when a page differs from what would be written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by `make docs` from the code. Change it there. -->\n\n"


def cli() -> str:
    """The reference of every command, as Typer writes it."""
    command = [sys.executable, "-m", "typer", "recipes.cli", "utils", "docs", "--name", "sordino"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=DOCS.parent)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr}")
    return NOTE + run.stdout.strip() + "\n"


def recipe_schema() -> str:
    """One section for each mapping of a recipe: its keys, what they take, their defaults and meaning."""
    from recipes.schema import Recipe

    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema.pop("$defs", {})
    lines = [
        "# Keys of a recipe",
        "",
        "How recipes work: [recipes.md](recipes.md). An unknown key is an error that says what was meant.",
        "",
        *section("A recipe", schema, definitions),
    ]
    for name in reachable(schema, definitions):
        if "properties" in definitions[name]:
            lines += section(name, definitions[name], definitions)
    return NOTE + "\n".join(lines).strip() + "\n"


def reachable(node: Any, definitions: dict[str, Any]) -> list[str]:
    """Names of the definitions that a schema refers to, in the order in which a reader meets them."""
    found: dict[str, None] = {}

    def visit(value: Any) -> None:
        for name in references(value):
            if name not in found:
                found[name] = None
                visit(definitions[name])

    visit(node)
    return list(found)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rsplit("/", 1)[1]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def section(title: str, schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    lines = [f"## {title}", ""]
    if schema.get("description"):
        lines += [schema["description"].strip(), ""]
    lines += ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for key, field in schema.get("properties", {}).items():
        accepted = takes(field, definitions)
        if key in required:
            default = "required"
        elif accepted.startswith("["):
            default = "see there" if field.get("default") is not None else ""
        else:
            default = literal(field.get("default"))
        meaning = field.get("description") or summary(field, definitions)
        cells = [f"`{key}`", accepted, default, " ".join(meaning.split())]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def summary(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """The description of the mapping that a key takes, where the key has none of its own."""
    return " ".join(definitions[name].get("description", "") for name in references(field))


def literal(value: Any) -> str:
    """A default as it would be written in YAML; nothing for null and for an empty value."""
    if value is None or value in ("", [], {}):
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()
    return f"`{text.removesuffix('...').strip()}`"


def takes(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a key accepts, in words: a link where it is a mapping with a section of its own."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        target = definitions[name]
        return f"[{name}](#{name.lower()})" if "properties" in target else takes(target, definitions)
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    for union in ("anyOf", "oneOf", "allOf"):
        if union in field:
            parts = [takes(part, definitions) for part in field[union] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(parts))
    kind = field.get("type", "anything")
    if kind == "array":
        return f"list of {takes(field.get('items', {}), definitions)}"
    if kind == "object":
        values = field.get("additionalProperties")
        return f"mapping to {takes(values, definitions)}" if isinstance(values, dict) else "mapping"
    words = {"string": "text", "boolean": "true or false", "integer": "whole number"}
    return words.get(kind, kind) + bounds(field)


def bounds(field: dict[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]}" for key, sign in words.items() if key in field]
    return f" ({', '.join(limits)})" if limits else ""


PAGES = {"cli.md": cli, "recipe_schema.md": recipe_schema}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        page, text = DOCS / name, make()
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                page.write_text(text, encoding="utf-8")
                print(f"wrote docs/{name}")
    if check and stale:
        print(f"out of date, run `make docs`: {', '.join(stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    sys.exit(main())
