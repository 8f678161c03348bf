"""Whether roles that work together still get on: told by what they do, not by how long it takes.

A role gets on while its process runs and either computes, for however long, or has messages moving. It does not once its process gives no
sign of life (it was stopped, say), and neither does anybody once all wait for messages and none moves. A role that computes gives signs of
life from a thread of its own, so that a slow one is not taken for a stopped one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from secure_eval.network.transport import Progress, TransportError

TIMEOUT_S = 30.0
"""Seconds without progress after which a phase is given up."""

_GRACE_S = 2.0
"""Seconds in which roles that a failed one has left alone may still say what they saw of it."""


class NoProgress(TransportError):
    """Roles did nothing for longer than they may. The message names them and the phase."""


class RoleEnded(TransportError):
    """A role's process ended in the middle of a phase."""


def checked_timeout(seconds: float) -> float:
    """The number itself. Raises ValueError where it is no finite number of seconds above 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise ValueError(f"timeout={seconds!r}; allowed: seconds without progress, more than 0")
    return float(seconds)


@dataclass(frozen=True)
class Sign:
    """What is known of a role at one moment: `life` differs whenever its process has run since."""

    life: int
    progress: Progress = field(default_factory=Progress)


class _Watched:
    """One role, and for how many seconds it has given no sign of life (`silent`)."""

    def __init__(self, look: Callable[[], Sign]):
        self._look, self.sign = look, look()
        self.silent = 0.0

    def step(self, seconds: float) -> bool:
        """Looks again, `seconds` after the last time; whether the role has got on since."""
        before, self.sign = self.sign, self._look()
        alive = self.sign.life != before.life
        moved = self.sign.progress.moved != before.progress.moved
        self.silent = 0.0 if alive else self.silent + seconds
        return moved or alive and not self.sign.progress.waits_for


def wait_for(
    futures: Mapping[str, Future[Any]],
    looks: Mapping[str, Callable[[], Sign]],
    phase: str,
    timeout: float,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Waits until the roles' futures are done, or one of them has failed and the others had a moment to do so too.

    Args:
        looks: for each role, what is known of it now.
        phase: for the message.
        timeout: seconds without progress. Seconds in which this process itself did not run (it was stopped, the machine slept) do not
            count.

    Raises NoProgress when roles have stopped; the futures are then still under way.
    """
    tick = min(0.25, timeout / 10)
    watched = {name: _Watched(look) for name, look in looks.items()}
    before, failed_for, standstill = now(), 0.0, 0.0
    while pending := [name for name, future in futures.items() if not future.done()]:
        failed = any(f.done() and f.exception() is not None for f in futures.values())
        if failed and failed_for >= min(_GRACE_S, timeout):
            return
        wait([futures[name] for name in pending], timeout=tick, return_when=FIRST_COMPLETED)
        seconds = min(now() - before, 2 * tick)
        before = now()
        failed_for += seconds if failed else 0.0
        got_on = [watched[name].step(seconds) for name in pending]
        late = {name: watched[name] for name in pending if not futures[name].done()}
        # A role that has just finished may be what the others waited for.
        standstill = 0.0 if any(got_on) or len(late) < len(pending) else standstill + seconds
        if late and not failed:
            _judge(late, standstill, phase, timeout)


def _judge(late: Mapping[str, _Watched], standstill: float, phase: str, timeout: float) -> None:
    """Raises NoProgress where a role is silent, or nobody has got on, for too long."""
    if max(w.silent for w in late.values()) >= timeout:
        # Others that stopped at the same moment may lack a fraction of a second.
        silent = [name for name, w in late.items() if w.silent >= timeout / 2]
        raise NoProgress(f"{_names(silent)} made no progress for {timeout:g} s in the {phase} phase")
    if standstill >= timeout:
        waiting = "; ".join(
            f"{name} waits for {_names(w.sign.progress.waits_for)}" for name, w in late.items()
        )
        raise NoProgress(
            f"{_names(list(late))} made no progress for {timeout:g} s in the {phase} phase: {waiting}"
        )


def _names(roles: Any) -> str:
    return " and ".join(filter(None, [", ".join(roles[:-1]), *roles[-1:]]))


def root_cause(futures: Mapping[str, Future[Any]]) -> BaseException | None:
    """The failure that tells most: a role's own error before a process that ended, before a link that broke."""
    errors = [e for f in futures.values() if f.done() and (e := f.exception()) is not None]
    return min(
        errors,
        key=lambda e: 0 if not isinstance(e, TransportError) else 1 if isinstance(e, RoleEnded) else 2,
        default=None,
    )
