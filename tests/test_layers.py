"""Who may import whom: read from the source, so that an import inside a function counts as well."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

OURS_ALLOWED: dict[str, set[str]] = {
    "secure_eval": set(),
    "cost_models": {"secure_eval"},
    "distill": set(),
    "nas": {"distill", "cost_models", "secure_eval"},
    "results": set(),
    "recipes": {"secure_eval", "cost_models", "distill", "nas", "results"},
}
"""Package -> packages of ours that it may import."""

THIRD_PARTY_ALLOWED: dict[str, set[str]] = {
    "secure_eval": {"torch", "numpy", "cryptography", "numba"},
    "distill": {"torch", "numpy", "transformers", "datasets", "safetensors", "accelerate"},
}
"""Packages whose third-party imports are limited: what they need is part of what they promise."""

LEAN: dict[str, tuple[str, ...]] = {
    "secure_eval": ("transformers", "datasets", "optuna", "pydantic", "sklearn", "plotly"),
    "cost_models": ("transformers", "datasets", "optuna", "sklearn", "plotly"),
    "distill": ("optuna", "plotly", "secure_eval"),
    "nas": ("plotly",),
    "results": ("torch", "transformers", "datasets", "optuna"),
    "recipes": (),
    "recipes.cli": ("torch", "transformers", "datasets", "optuna", "plotly"),
}
"""Module -> modules that importing it must not load: `sordino --help` is quick, an engine has no trainer."""

IMPORT_PROBE = """
import builtins, importlib, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError(f"an import opened a connection: {args}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
importlib.import_module(sys.argv[1])
loaded = [name for name in sys.argv[2:] if name in sys.modules]
assert not loaded, f"importing {sys.argv[1]} loads {loaded}"
torch = sys.modules.get("torch")
assert torch is None or not torch.cuda.is_initialized(), "an import initialised CUDA"
"""


def statements(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of everything that a file imports absolutely, inside functions as well; a module as such has no name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, node.module, alias.name) for alias in node.names)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level module of every absolute import in a file, those inside functions included."""
    return ((line, module.split(".")[0]) for line, module, _ in statements(path))


def sources(package: str) -> list[Path]:
    """A package's own modules; a run directory below results/ holds files that a run has written."""
    roots = {ROOT / package, *(path.parent for path in (ROOT / package).rglob("__init__.py"))}
    return sorted(path for root in roots for path in root.glob("*.py"))


@pytest.mark.parametrize("package", OURS_ALLOWED)
def test_imports_follow_the_layers(package: str) -> None:
    files = sources(package)
    assert files, f"no module found in {package}/"
    standard = set(sys.stdlib_module_names)
    wrong = []
    for path in files:
        for line, name in imports(path):
            if name == package or name in standard:
                continue
            if name in OURS_ALLOWED:
                allowed = name in OURS_ALLOWED[package]
            else:
                allowed = package not in THIRD_PARTY_ALLOWED or name in THIRD_PARTY_ALLOWED[package]
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_reader_sees_every_form_of_import(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "import os.path, torch\nfrom distill.data import load\nfrom . import sibling\n"
        "def f():\n    import secure_eval as s\n"
    )
    assert [name for _, name in imports(source)] == ["os", "torch", "distill", "secure_eval"]


def modules() -> dict[str, Path]:
    """Our modules by their dotted name."""
    found = {}
    for package in OURS_ALLOWED:
        for path in sources(package):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: Collection[str]) -> set[str]:
    """The modules of ours that a file imports, wherever in it; `from a import b` is a.b where that is a module."""
    found = set()
    for _, module, name in statements(path):
        found.add(f"{module}.{name}" if f"{module}.{name}" in known else module)
    return found & set(known)


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = modules()
    graph = {name: imported(path, known) - {name} for name, path in known.items()}
    assert sum(map(len, graph.values())) > 500, "the reader found hardly any import"
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", LEAN)
def test_importing_is_lean(module: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)  # the promise holds without being told to stay offline
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_PROBE, module, *LEAN[module]],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
