"""One run at a time in a directory: a lock file that names its holder and is taken over when the holder is
dead.

The run itself holds no `flock`: worker processes would inherit it, outlive a killed run for a moment and keep it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from recipes.errors import Locked
from recipes.files import write_text


class Lock:
    """Context manager that holds `path` for this process. Raises Locked, naming the holder, if it is
    alive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = uuid.uuid4().hex

    def __enter__(self) -> Lock:
        with self._alone():
            holder = _read(self.path)
            if holder:
                self._respect(holder)
            content = {
                "pid": os.getpid(),
                "started": start_of(os.getpid()),
                "host": socket.gethostname(),
                "token": self._token,
            }
            write_text(self.path, json.dumps(content))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._alone():
            holder = _read(self.path)
            if holder is not None and holder.get("token") == self._token:
                self.path.unlink()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The moment of looking and writing belongs to one process: a kernel lock on the directory, which ends with
        the process and is never held while others are started."""
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)

    def _respect(self, holder: dict[str, Any]) -> None:
        """Raises Locked unless the holder is known to be dead."""
        if holder.get("host") != socket.gethostname():
            raise Locked(
                f"{self.path.parent} is in use by process {holder['pid']} on {holder.get('host')}. "
                f"If that run is dead, delete {self.path}"
            )
        if alive(int(holder["pid"]), holder.get("started")):
            raise Locked(
                f"{self.path.parent} is in use by process {holder['pid']}; wait for it, or choose another --out"
            )


def start_of(process: int) -> str | None:
    """When a process started, in the kernel's ticks: tells a number used again from the same process. None if
    unknown."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return stat.rsplit(")", 1)[-1].split()[19]


def alive(process: int, started: str | None) -> bool:
    """Whether that very process still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, under another user
    try:
        stat = (
            Path(f"/proc/{process}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rsplit(")", 1)[-1]
            .split()
        )
    except OSError:
        return True  # no /proc to ask
    return stat[0] != "Z" and (started is None or stat[19] == started)


def _read(path: Path) -> dict[str, Any] | None:
    """The holder; {} for a file that says nothing; None for no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) and "pid" in found else {}
