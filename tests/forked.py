"""Processes that begin as a copy of one that has everything imported: to start one takes milliseconds, not the seconds that torch takes.

They are processes like any other, with an id, pipes, memory and an end of their own, to be stopped and killed. What is left out is only
the import; tests/README.md says which tests start processes as a user's program does.
"""

from __future__ import annotations

import ctypes
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = ("torch", "transformers", "datasets", "optuna", "distill", "nas", "recipes.run", "recipes.cli")


def roles(patch: pytest.MonkeyPatch) -> None:
    """Lets processes of parties and dealers begin as copies of this one, where torch has no threads of its own: those do not survive."""
    if torch.get_num_threads() == 1:
        patch.setattr(
            "secure_eval.parties.child.subprocess", SimpleNamespace(Popen=Role, PIPE=subprocess.PIPE)
        )


class Role:
    """What secure_eval/parties/child.py takes for the Popen of a role's process."""

    def __init__(self, command: list[str], stdin: int, stdout: int, env: Mapping[str, str]):
        asked, answers = os.pipe(), os.pipe()
        self.returncode: int | None = None
        self._waiting = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            _role(asked[0], answers[1])
        os.close(asked[0])
        os.close(answers[1])
        self.stdin, self.stdout = os.fdopen(asked[1], "wb"), os.fdopen(answers[0], "rb")

    def poll(self) -> int | None:
        with self._waiting:
            if self.returncode is None:
                found, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if found else None
            return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("a role's process", timeout)
            time.sleep(0.002)
        return status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, 9)


def _role(source: int, sink: int) -> NoReturn:
    """The new process: nothing of the old one's files but standard error, and an end with the thread that started it."""
    try:
        ctypes.CDLL(None).prctl(1, 9)
        os.dup2(source, 0)
        os.dup2(sink, 1)
        os.closerange(3, 1 << 16)
        sys.stdin, sys.stdout = io.TextIOWrapper(os.fdopen(0, "rb")), io.TextIOWrapper(os.fdopen(1, "wb"))
        from secure_eval.parties.worker import main

        main()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


COMMAND = "from recipes.cli import main; main()"
"""`sordino`, with what follows as its arguments."""


def run(
    code: str, *arguments: str, env: Mapping[str, str], cwd: Path | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """What `python -c code arguments` prints and ends with, in a process of its own that has torch and Sordino imported."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        asked = [code, arguments, dict(env), str(cwd or Path.cwd()), str(out), str(err), timeout]
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        status = json.loads(server.stdout.readline())
        done = subprocess.CompletedProcess([code, *arguments], status, out.read_text(), err.read_text())
    if status is None:
        raise subprocess.TimeoutExpired([code, *arguments], timeout, done.stdout, done.stderr)
    return done


@functools.cache
def _server() -> subprocess.Popen[str]:
    """One process that has imported everything and done nothing; it ends with its input, so with this process."""
    command = [sys.executable, "-c", _SERVER]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


_SERVER = f"""
import importlib, json, os, signal, sys, time
for name in {PRELOADED!r}:
    importlib.import_module(name)
for line in sys.stdin:
    code, arguments, environment, folder, out, err, timeout = json.loads(line)
    files = [os.open(os.devnull, os.O_RDONLY), *(os.open(f, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for f in (out, err))]
    child = os.fork()
    if child == 0:
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = ["-c", *arguments]
        status = 1
        try:
            exec(compile(code, "<the command>", "exec"), {{"__name__": "__main__"}})
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    for file in files:
        os.close(file)
    until, found = time.monotonic() + timeout, (0, 0)
    while found[0] == 0 and time.monotonic() < until:
        found = os.waitpid(child, os.WNOHANG)
        time.sleep(0.005)
    if found[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(json.dumps(os.waitstatus_to_exitcode(found[1]) if found[0] else None), flush=True)
"""
