"""One run at a time in a directory: a lock file that names its holder and is taken over when the holder is
dead.

Not `flock`: that is inherited by worker processes, which may outlive a killed run for a moment and would keep
it.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from recipes.errors import Locked


class Lock:
    """Context manager that holds `path` for this process. Raises Locked, naming the holder, if it is
    alive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = uuid.uuid4().hex

    def __enter__(self) -> Lock:
        content = {
            "pid": os.getpid(),
            "started": start_of(os.getpid()),
            "host": socket.gethostname(),
            "token": self._token,
        }
        mine = self.path.with_name(f"{self.path.name}.{self._token}")
        mine.write_text(json.dumps(content), encoding="utf-8")
        try:
            for _ in range(100):
                try:
                    os.link(mine, self.path)  # appears with its content, or not at all
                    return self
                except FileExistsError:
                    self._clear_stale()
        finally:
            mine.unlink()
        raise Locked(f"{self.path} is taken again and again; is another run starting?")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        holder = _read(self.path)
        if holder is not None and holder.get("token") == self._token:
            self.path.unlink(missing_ok=True)

    def _clear_stale(self) -> None:
        holder = _read(self.path)
        if holder is None:
            return  # gone in the meantime
        if holder and holder.get("host") != socket.gethostname():
            raise Locked(
                f"{self.path.parent} is in use by process {holder.get('pid')} on {holder.get('host')}. "
                f"If that run is dead, delete {self.path}"
            )
        if holder and alive(int(holder["pid"]), holder.get("started")):
            raise Locked(
                f"{self.path.parent} is in use by process {holder['pid']}; wait for it, or choose another "
                "--out"
            )
        # Move before deleting, and look again: another starter may have replaced the file since it was read.
        aside = self.path.with_name(f"{self.path.name}.{self._token}.stale")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        moved = _read(aside)
        if moved != holder and moved is not None:
            try:
                os.link(aside, self.path)  # not the file that was judged dead: put it back
            except FileExistsError:
                pass  # a third starter was quicker, and its lock is as good
        aside.unlink(missing_ok=True)


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
