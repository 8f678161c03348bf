"""Documentation that can't rot quietly: links lead somewhere, generated pages are current, snippets hold."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "tests" / "README.md"])
OURS = ("secure_eval", "cost_models", "distill", "nas", "recipes", "results")

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return FENCE.sub("", COMMENT.sub("", page.read_text(encoding="utf-8")))


def blocks(page: Path, language: str) -> list[str]:
    text = COMMENT.sub("", page.read_text(encoding="utf-8"))
    return [body for name, body in FENCE.findall(text) if name == language]


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings get."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def identify(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, fragment = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (fragment and fragment not in anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_snippets_use_what_exists(page: Path) -> None:
    """Every `package.name` of ours in a page's Python exists, and the Python parses."""
    missing = []
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OURS:
                if not hasattr(importlib.import_module(node.value.id), node.attr):
                    missing.append(f"{node.value.id}.{node.attr}")
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                missing += [f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_recipes_shown_are_valid(page: Path) -> None:
    from recipes.reading import parse

    for block in blocks(page, "yaml"):
        if block.startswith("teacher:"):
            parse(block, identify(page))  # raises with every fault


def commands() -> set[str]:
    """The commands that docs/cli.md documents; that page is compared with the code below."""
    page = ROOT / "docs" / "cli.md"
    return set(re.findall(r"^## `sordino ([\w-]+)`$", page.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_shell_lines_name_commands_that_exist(page: Path) -> None:
    known = commands()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for block in blocks(page, "sh"):
        wrong += [name for name in re.findall(r"\bsordino ([a-z][\w-]*)", block) if name not in known]
        made = re.findall(r"^make ([a-z][\w-]*)", block, re.MULTILINE)
        wrong += [f"make {name}" for name in made if name not in targets]
    assert not wrong, f"unknown: {wrong}; commands are {sorted(known)}"


def test_the_examples_of_additions_run() -> None:
    """In one process of their own, since they register what they add."""
    code = "\n".join(blocks(ROOT / "docs" / "extending.md", "python"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr


def test_generated_pages_are_current() -> None:
    command = [sys.executable, ROOT / "docs" / "generate.py", "--check"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


def test_readme_maps_every_folder() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    built = re.compile(r"\..*|build|dist|__pycache__|.*\.egg-info")
    folders = [path.name for path in ROOT.iterdir() if path.is_dir() and not built.fullmatch(path.name)]
    missing = [name for name in folders if f"[{name}/]" not in readme]
    assert not missing


def test_readme_installs_the_demo_packages_that_are_declared() -> None:
    """The command for an installation by hand names the packages and versions of the extra `demo`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(requirement in readme for requirement in project["optional-dependencies"]["demo"])


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    missing = [name for name in pages if f"({name})" not in index]
    assert not missing


def test_every_promise_names_tests_that_exist() -> None:
    """Each promise in docs/security.md names at least one `file.py::test_…`, and all of them exist."""
    page = prose(ROOT / "docs" / "security.md")
    rows = [line for line in page.splitlines() if line.startswith("| **")]
    assert len(rows) >= 8
    unheld = []
    for row in rows:
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        found = [
            (ROOT / file).exists() and f"def {name}(" in (ROOT / file).read_text() for file, name in tests
        ]
        if not tests or not all(found):
            unheld.append(row.split("|")[1].strip()[:60])
    assert not unheld
