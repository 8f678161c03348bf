"""Deliberate mistakes, each of which a named test has to notice: `python tests/mutants.py` makes them one after the other.

tests/mutations/*.yaml lists them: a piece of text that occurs once in a file, what replaces it, and the tests of which one has to
fail. Each mistake is made in a copy of the working tree, never in the tree itself. A mutant is killed when one of its tests fails;
one whose tests all pass has survived, and means that the tests would not notice the mistake. A mutant that does not even let its
tests be collected has proved nothing and counts as broken.

Exit status: 0 when all were killed, 1 otherwise, 2 for a list that is not right.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LISTS = "tests/mutations"
LEFT_OUT = (
    ".git",
    ".venv",
    "build",
    "*.egg-info",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
)
"""What a copy of the tree goes without. Compiled loops in __pycache__ are taken along: making them again takes longer than most tests."""

TIMEOUT = 300
"""Seconds that the tests of one mutant may take: one that makes a test hang is noticed as well."""

ALL_TIMEOUT = 3600
"""Seconds that all tests together may take where no mistake was made."""


class BadList(ValueError):
    """A list of mutants that is not right: the message names file, mutant and what is allowed."""


@dataclass(frozen=True)
class Mutant:
    """One mistake. `find` occurs once in `file`; `tests` are what pytest is given; `quick`: they take some ten seconds at most."""

    name: str
    what: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    quick: bool = False

    def mutated(self, text: str) -> str:
        """The file's text with the mistake in it."""
        count = text.count(self.find)
        if count != 1:
            raise BadList(f"{self.name}: `find` occurs {count} times in {self.file}; allowed: once")
        return text.replace(self.find, self.replace)


@dataclass(frozen=True)
class Outcome:
    """`result`: "killed", "survived" or "broken"; `by`: the test that noticed, or what broke."""

    name: str
    file: str
    what: str
    result: str
    by: str
    seconds: float


def load(root: Path = ROOT) -> list[Mutant]:
    """All mutants of the lists under `root`, checked. Raises BadList."""
    found: dict[str, Mutant] = {}
    known = {f.name for f in fields(Mutant)}
    for path in sorted((root / LISTS).glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text()) or []:
            name = entry.get("name", "?")
            where = f"{path.name}: {name}"
            if set(entry) - known or known - set(entry) - {"quick"}:
                raise BadList(
                    f"{where}: keys are {sorted(entry)}; allowed: {sorted(known)}, all but quick needed"
                )
            mutant = Mutant(**{**entry, "tests": tuple(entry["tests"])})
            if name in found:
                raise BadList(f"{where}: a mutant of this name is there already")
            if not mutant.tests or mutant.find == mutant.replace:
                raise BadList(f"{where}: needs tests, and a replacement that differs")
            if not (root / mutant.file).is_file():
                raise BadList(f"{where}: there is no file {mutant.file}")
            for test in mutant.tests:
                if not (root / test.split("::")[0]).is_file():
                    raise BadList(f"{where}: there is no file {test.split('::')[0]}")
            mutant.mutated((root / mutant.file).read_text())
            found[name] = mutant
    return list(found.values())


class Tree:
    """A copy of the tree, and a process that has imported the libraries which take seconds: each run of pytest is a fork of it."""

    def __init__(self, root: Path, path: Path):
        self.path = path
        shutil.copytree(root, path, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        environment = {
            **os.environ,
            "PYTHONPATH": str(path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _FORKING],
            cwd=path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pytest(self, tests: Sequence[str], *options: str, timeout: float = TIMEOUT) -> tuple[int, str]:
        """Exit status and output of pytest; status -1 where it took longer than `timeout`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        output = self.path / "pytest-output"
        arguments = ["-q", "-p", "no:cacheprovider", "--tb=no", *options, *tests]
        self._process.stdin.write(json.dumps([arguments, str(output), timeout]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), output.read_text(errors="replace")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


_FORKING = """
import importlib.util, json, os, signal, sys, time
sys.path.insert(0, os.getcwd())  # as `python -m pytest` does
for name in ("pytest", "hypothesis", "numpy", "torch", "transformers", "optuna", "numba", "datasets"):
    if importlib.util.find_spec(name):
        __import__(name)
for line in sys.stdin:
    arguments, output, timeout = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(file, 1), os.dup2(file, 2)
        import pytest
        try:
            status = int(pytest.main(arguments))
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 3
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    until, found = time.monotonic() + timeout, (0, 0)
    while found[0] == 0 and time.monotonic() < until:
        found = os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    try:
        os.killpg(child, signal.SIGKILL)  # what it may have left running, and itself where it took too long
    except ProcessLookupError:
        pass
    if found[0] == 0:
        os.waitpid(child, 0)
    print(-1 if found[0] == 0 else os.waitstatus_to_exitcode(found[1]), flush=True)
"""


def _judge(mutant: Mutant, tree: Tree) -> Outcome:
    """Makes the mistake in `tree`, runs its tests, and takes the mistake back."""
    path = tree.path / mutant.file
    before, stat = path.read_text(), path.stat()
    start = time.monotonic()
    try:
        path.write_text(mutant.mutated(before))
        status, output = tree.pytest(mutant.tests, "-x")
    finally:
        path.write_text(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    failed = re.findall(r"^FAILED (\S+)", output, re.MULTILINE)
    if status == -1:
        result, by = "killed", f"no end within {TIMEOUT} s"
    elif status == 1 and failed:
        result, by = "killed", failed[0]
    elif status == 0:
        result, by = "survived", ""
    else:
        last = [line for line in output.splitlines() if line.strip()][-1:]
        result, by = "broken", f"pytest ended with {status}: {last[0] if last else 'no output'}"
    return Outcome(mutant.name, mutant.file, mutant.what, result, by, round(time.monotonic() - start, 1))


def run(mutants: Sequence[Mutant], root: Path = ROOT, workers: int = 2) -> list[Outcome]:
    """Judges every mutant in copies of the tree under `root`. Raises BadList where a named test fails without any mistake."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ExitStack() as stack:
        trees: queue.Queue[Tree] = queue.Queue()
        for i in range(workers):
            tree = Tree(root, Path(folder) / f"tree{i}")
            stack.callback(tree.close)
            trees.put(tree)
        tests = list(dict.fromkeys(t for m in mutants for t in m.tests))
        tree = trees.get()
        parallel = ("-n", str(workers)) if workers > 1 else ()
        status, output = tree.pytest(tests, *parallel, timeout=ALL_TIMEOUT)
        trees.put(tree)
        if status != 0:
            raise BadList(
                f"the tests do not pass as they are (pytest ended with {status}):\n{output[-3000:]}"
            )

        def judge(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                return _judge(mutant, tree)
            finally:
                trees.put(tree)

        outcomes = []
        with ThreadPoolExecutor(workers) as pool:
            for future in as_completed([pool.submit(judge, m) for m in mutants]):
                outcome = future.result()
                outcomes.append(outcome)
                print(
                    f"{len(outcomes):4d}/{len(mutants)} {outcome.result:9s} {outcome.seconds:6.1f} s  "
                    f"{outcome.name}: {outcome.what}" + (f"\n{'':24s}{outcome.by}" if outcome.by else ""),
                    flush=True,
                )
    order = {m.name: i for i, m in enumerate(mutants)}
    return sorted(outcomes, key=lambda o: order[o.name])


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only those whose tests are quick, as CI does")
    parser.add_argument(
        "--only", metavar="PATTERN", help="only those whose name matches the regular expression"
    )
    parser.add_argument("--list", action="store_true", help="list them and end")
    parser.add_argument(
        "--workers", type=int, default=2, help="copies of the tree that are worked in side by side"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there as well")
    given = parser.parse_args(arguments)
    try:
        mutants = [
            m
            for m in load(root)
            if (m.quick or not given.quick) and (given.only is None or re.search(given.only, m.name))
        ]
        if not mutants:
            raise BadList("no mutant is left: see --list")
        if given.list:
            for m in mutants:
                print(f"{m.name} ({m.file}{', quick' if m.quick else ''}): {m.what}")
            return 0
        outcomes = run(mutants, root, given.workers)
    except BadList as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    if given.json:
        given.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    count = {r: sum(o.result == r for o in outcomes) for r in ("killed", "survived", "broken")}
    for outcome in outcomes:
        if outcome.result != "killed":
            print(f"{outcome.result}: {outcome.name} ({outcome.file}): {outcome.what} {outcome.by}")
    print(f"mutants: {count['killed']} killed, {count['survived']} survived, {count['broken']} broken")
    return 0 if count["killed"] == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
