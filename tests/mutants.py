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


def _pytest(tree: Path, tests: Sequence[str], *options: str, timeout: float = TIMEOUT) -> tuple[int, str]:
    """Exit status and output of pytest in a tree; status -1 where it took longer than `timeout`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, ""
    return done.returncode, done.stdout + done.stderr


def _judge(mutant: Mutant, tree: Path) -> Outcome:
    """Makes the mistake in `tree`, runs its tests, and takes the mistake back."""
    path = tree / mutant.file
    before, stat = path.read_text(), path.stat()
    start = time.monotonic()
    try:
        path.write_text(mutant.mutated(before))
        status, output = _pytest(tree, mutant.tests, "-x")
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
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for i in range(workers):
            tree = Path(folder) / f"tree{i}"
            shutil.copytree(root, tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
            trees.put(tree)
        tests = list(dict.fromkeys(t for m in mutants for t in m.tests))
        tree = trees.get()
        parallel = ("-n", str(workers)) if workers > 1 else ()
        status, output = _pytest(tree, tests, *parallel, timeout=ALL_TIMEOUT)
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
