"""A role's process as the one that started it sees it: commands go in, answers and signs of life come out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from secure_eval.network.transport import Progress, TransportError
from secure_eval.parties import frames
from secure_eval.parties.watch import RoleEnded, Sign

_BOOT = (
    "import ctypes, sys\n"
    "if sys.platform == 'linux':\n"
    "    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: stopped or not, it goes with its parent\n"
    "from secure_eval.parties.worker import main\n"
    "main()\n"
)


class Child:
    """A started process and the frames to and from it.

    The process ends with the thread that started it (Linux) and with its input (everywhere), whichever comes first: so start it from a
    thread that lives as long as it is needed.
    """

    def __init__(self, role: str):
        self.role = role
        self._signs, self._progress = 0, Progress()
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        package_parent = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [package_parent, environment.get("PYTHONPATH")])
        )
        self.process = subprocess.Popen(
            # -P: a folder of the same name where the caller stands is not this package.
            [sys.executable, "-P", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def sign(self) -> Sign:
        """The newest sign of life: what it said, and (Linux) that it has used a processor, which it does before it can say anything."""
        return Sign(self._signs + _used(self.process.pid), self._progress)

    def ask(
        self, command: str, phase: str, tensors: Mapping[str, Tensor] | None = None, **message: Any
    ) -> dict[str, Any]:
        """Sends a command and waits for its answer, for as long as it takes: whoever needs a bound looks at `sign()`, and kills.

        Raises RoleEnded when the process is gone, TransportError or RuntimeError with the process's own error.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            frames.write(self.process.stdin, {"command": command, **message}, tensors)
            while (frame := frames.read(self.process.stdout)) is not None and "beat" in frame[0]:
                moved, waits_for = frame[0]["beat"]
                self._progress = Progress(tuple(moved), tuple(waits_for))
                self._signs += 1
        except (BrokenPipeError, EOFError, ValueError):  # ValueError: closed by another thread
            frame = None
        if frame is None:
            raise RoleEnded(f"{self.role} ended in the {phase} phase ({_how(self.process.wait())})")
        answer = frame[0]
        if "error" in answer:
            kind = TransportError if answer["error"].startswith("TransportError") else RuntimeError
            raise kind(
                f"{self.role} failed in the {phase} phase: {answer['error']}\n{answer.get('traceback', '')}"
            )
        return answer

    def kill(self) -> None:
        """Ends the process, a stopped one too: it keeps nothing that would have to be put in order. Safe to call twice."""
        self.process.kill()

    def close(self) -> None:
        """Reaps a process that was killed and frees its pipes, once nobody waits for its answer."""
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except BrokenPipeError:  # something was still to be written
                pass


def _used(pid: int) -> int:
    """A number that grows while a process computes or loads: clock ticks and page faults. 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    minor_faults, major_faults, user, system = (int(fields[i]) for i in (7, 9, 11, 12))
    return minor_faults + major_faults + user + system


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
