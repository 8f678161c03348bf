"""The lists of mutants fit the code as it is, and the script that runs them tells killed from survived from broken."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutants.py")
spec = importlib.util.spec_from_file_location("mutants", SCRIPT)
assert spec is not None and spec.loader is not None
mutants = importlib.util.module_from_spec(spec)
sys.modules["mutants"] = mutants  # its dataclasses look their module up
spec.loader.exec_module(mutants)


def test_each_mutant_still_finds_its_text_and_its_tests() -> None:
    suite = [
        path.read_text() for path in (mutants.ROOT / "secure_eval/testing").glob("*.py")
    ]  # inherited tests
    for mutant in mutants.load():
        for test in mutant.tests:
            file, *names = test.split("::")
            name = names[-1].split("[")[0] if names else ""
            places = [(mutants.ROOT / file).read_text(), *suite]
            assert any(name in text for text in places), f"{mutant.name}: no {test}"


ENTRY = {
    "name": "one",
    "what": "a sum that is a difference",
    "file": "code.py",
    "find": "a + b",
    "replace": "a - b",
    "tests": ["test_code.py::test_sum"],
    "quick": True,
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text(
        "def total(a, b):\n    return a + b\n\n\ndef unseen(a):\n    return a * 2\n"
    )
    (tmp_path / "test_code.py").write_text(
        "import code_ as code\n\n\ndef test_sum():\n    assert code.total(1, 2) == 3\n"
    )
    (tmp_path / "code.py").rename(tmp_path / "code_.py")
    (tmp_path / "tests/mutations").mkdir(parents=True)
    return tmp_path


def write(project: Path, *entries: dict[str, object]) -> None:
    (project / "tests/mutations/list.yaml").write_text(
        json.dumps([{**ENTRY, "file": "code_.py", **e} for e in entries])
    )


def test_killed_survived_and_broken_are_told_apart(project: Path) -> None:
    write(
        project,
        {},
        {"name": "two", "find": "a * 2", "replace": "a * 3"},
        {"name": "three", "find": "return a + b", "replace": "return (", "tests": ["test_code.py"]},
    )
    outcomes = {o.name: o for o in mutants.run(mutants.load(project), project, workers=1)}
    assert outcomes["one"].result == "killed" and outcomes["one"].by == "test_code.py::test_sum"
    assert outcomes["two"].result == "survived"
    assert outcomes["three"].result == "broken"
    assert "a + b" in (project / "code_.py").read_text()
    assert mutants.main(["--only", "one", "--workers", "1"], project) == 0
    assert mutants.main(["--only", "two", "--workers", "1"], project) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"find": "a"}, "occurs 5 times in code_.py"),
        ({"find": "absent"}, "occurs 0 times"),
        ({"file": "other.py"}, "no file other.py"),
        ({"tests": []}, "needs tests"),
        ({"tests": ["test_none.py::test"]}, "no file test_none.py"),
        ({"speed": 1}, "allowed: "),
    ],
)
def test_a_list_that_is_not_right_says_what_is(
    project: Path, change: dict[str, object], message: str
) -> None:
    write(project, change)
    with pytest.raises(mutants.BadList, match=message):
        mutants.load(project)


def test_tests_that_fail_without_a_mistake_are_an_error(project: Path) -> None:
    write(project, {})
    (project / "test_code.py").write_text("def test_sum():\n    assert False\n")
    with pytest.raises(mutants.BadList, match="do not pass as they are"):
        mutants.run(mutants.load(project), project, workers=1)
