"""The wheel holds every module and every data file of the packages, and nothing that a run has written."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("secure_eval", "cost_models", "distill", "nas", "recipes", "results")


def package_files() -> set[str]:
    """Every file that belongs into the wheel."""
    files = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            # Run directories, results/<name>/, lie among the package's folders but are no packages.
            if package == "results" and not (path.parent / "__init__.py").exists():
                continue
            files.add(path.relative_to(ROOT).as_posix())
    return files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """A wheel built from a copy of the sources, so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for file in package_files():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, source / file)
    stray = source / "results" / "some_run"  # what a run leaves behind must stay out
    stray.mkdir(parents=True)
    (stray / "record.json").write_text("{}")
    (stray / "modeling.py").write_text("")
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('out')"],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = (source / "out").glob("sordino-*.whl")
    return zipfile.Path(built)


def test_wheel_holds_every_file_of_the_packages(wheel: zipfile.Path) -> None:
    names = set(wheel.root.namelist())
    held = {name for name in names if ".dist-info/" not in name and not name.endswith("/")}
    assert held == package_files()
    assert {f"{package}/py.typed" for package in PACKAGES} <= held
    assert {"recipes/quickstart.yaml"} <= held


def test_wheel_declares_the_command_and_the_licence(wheel: zipfile.Path) -> None:
    metadata = next(name for name in wheel.root.namelist() if name.endswith(".dist-info/METADATA"))
    folder = metadata.rsplit("/", 1)[0]
    assert "sordino = recipes.cli:main" in wheel.root.read(f"{folder}/entry_points.txt").decode()
    assert "Apache License" in wheel.root.read(f"{folder}/licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in wheel.root.read(metadata).decode()


def test_constraints_pin_what_is_declared() -> None:
    """Every dependency, the development extra's included, has its tested version in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_name(line) for line in lines if line and not line.startswith("#")}
    assert {_name(requirement) for requirement in declared} <= pinned
    assert all("==" in line for line in lines if line and not line.startswith("#"))


def _name(requirement: str) -> str:
    """`types-PyYAML>=6` -> `types-pyyaml`."""
    end = next((i for i, letter in enumerate(requirement) if letter in "<>=!~;[ "), len(requirement))
    return requirement[:end].lower().replace("_", "-")
