"""The study's storage: Optuna's journal file, made to survive SIGKILL.

Two things can be left behind by a killed process. A last line may be torn, after which nothing that is
appended can be
read back: it is cut off before the file is opened. And Optuna's own file locks outlive their holder (the
    next process waits half a minute for them): here the lock is the kernel's, which goes with the process.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

#: User attribute of a trial: who evaluates it, so that what a dead process left running can be told apart.
WORKER = "worker"


class KernelLock(JournalFileOpenLock):
    """An exclusive `flock` on a file beside the journal; released by the kernel when its holder dies.

    Stands in for Optuna's lock, both of whose methods it replaces.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), grace_period=None)
        self._path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(file, fcntl.LOCK_EX)
        self._file = file
        return True

    def release(self) -> None:
        if self._file is None:
            raise RuntimeError("the journal's lock is not held")
        file, self._file = self._file, None
        os.close(file)


def open_journal(path: Path) -> JournalStorage:
    """The journal at `path`, repaired if a kill tore its last line. Other processes may have it open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = KernelLock(path.with_name(path.name + ".lock"))
    lock.acquire()
    try:
        _cut_torn_line(path)
    finally:
        lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        at = end
        while at > 0:
            file.seek(at - 1)
            if file.read(1) == b"\n":
                break
            at -= 1
        if at < end:
            file.truncate(at)


def worker_name() -> str:
    """Host and process number of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def fail_abandoned(study: optuna.Study) -> int:
    """Close the trials that a dead process of this host left running; how many there were."""
    host, abandoned = socket.gethostname(), 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name, _, process = str(trial.user_attrs.get(WORKER, f"{host}:0")).rpartition(":")
        if name == host and not _alive(int(process)):
            study.tell(trial.number, state=TrialState.FAIL)
            abandoned += 1
    return abandoned


def _alive(process: int) -> bool:
    if process in (0, os.getpid()):
        # This process is only just opening the study, so its number on an old trial is a number used again.
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
