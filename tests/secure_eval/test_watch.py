"""What counts as progress: a slow role is waited for, a stopped one and a standstill are not."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch

import secure_eval
from secure_eval.network.transport import Progress, TransportError
from secure_eval.parties.watch import NoProgress, RoleEnded, Sign, checked_timeout, root_cause, wait_for

TIMEOUT = 0.5


def looking(life: Callable[[], int], waits_for: tuple[str, ...] = (), moved: Any = lambda: 0) -> Any:
    return lambda: Sign(life(), Progress((moved(),), waits_for))


def ticks(every: float = 0.02) -> Callable[[], int]:
    return lambda: int(time.monotonic() / every)


def still() -> int:
    return 0


def finishing(after: float, result: Any = None) -> Future[Any]:
    future: Future[Any] = Future()

    def finish() -> None:
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    timer = threading.Timer(after, finish)
    timer.daemon = True
    timer.start()
    return future


def test_a_role_that_computes_for_longer_than_the_timeout_is_waited_for() -> None:
    futures = {"party0": finishing(4 * TIMEOUT), "party1": finishing(4 * TIMEOUT)}
    looks = {"party0": looking(ticks()), "party1": looking(ticks(), ("party0",))}
    wait_for(futures, looks, "online", TIMEOUT)
    assert all(f.done() for f in futures.values())


def test_messages_that_move_are_progress_while_everybody_waits() -> None:
    futures = {"party0": finishing(4 * TIMEOUT)}
    wait_for(futures, {"party0": looking(ticks(), ("party1",), ticks(0.1))}, "online", TIMEOUT)


def test_a_role_without_a_sign_of_life_is_named_with_its_phase() -> None:
    futures: dict[str, Future[Any]] = {"party0": Future(), "party1": Future()}
    looks = {"party0": looking(ticks(), ("party1",)), "party1": looking(still)}
    started = time.monotonic()
    with pytest.raises(NoProgress, match=r"^party1 made no progress for 0.5 s in the online phase$"):
        wait_for(futures, looks, "online", TIMEOUT)
    assert time.monotonic() - started < 8 * TIMEOUT


def test_a_standstill_is_told_by_who_waits_for_whom() -> None:
    futures: dict[str, Future[Any]] = {"party0": Future(), "client": Future()}
    looks = {"party0": looking(ticks(), ("party1",)), "client": looking(ticks(), ("party0", "party1"))}
    started = time.monotonic()
    with pytest.raises(
        NoProgress, match="offline phase: party0 waits for party1; client waits for party0 and party1"
    ):
        wait_for(futures, looks, "offline", TIMEOUT)
    assert time.monotonic() - started < 8 * TIMEOUT


def test_time_in_which_the_watcher_itself_stood_still_does_not_count() -> None:
    """A caller that was stopped (Ctrl-Z, a laptop that slept) finds its roles where they were."""
    clock = iter([0.0, 3600.0, 7200.0, *(7200.0 + 0.01 * i for i in range(10_000))])
    futures = {"party0": finishing(TIMEOUT)}
    wait_for(futures, {"party0": looking(still)}, "online", 10.0, now=lambda: next(clock))


def test_after_a_failure_the_others_are_waited_for_only_briefly() -> None:
    futures: dict[str, Future[Any]] = {"party0": finishing(0.05, ValueError("mine")), "party1": Future()}
    started = time.monotonic()
    wait_for(futures, {name: looking(ticks()) for name in futures}, "online", TIMEOUT)
    assert time.monotonic() - started < 4 * TIMEOUT and isinstance(root_cause(futures), ValueError)


def test_the_error_that_tells_most_comes_first() -> None:
    errors = [TransportError("a link"), RoleEnded("party1 ended"), ValueError("the cause")]
    for count, expected in ((1, TransportError), (2, RoleEnded), (3, ValueError)):
        futures = {str(i): finishing(0, e) for i, e in enumerate(errors[:count])}
        while not all(f.done() for f in futures.values()):
            time.sleep(0.001)
        assert type(root_cause(futures)) is expected
    assert root_cause({}) is None


@pytest.mark.parametrize("timeout", [0, -1.0, math.inf, math.nan, True, "30", None])
def test_a_timeout_is_seconds(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout=.*allowed: seconds without progress, more than 0"):
        checked_timeout(timeout)
    with pytest.raises(ValueError, match="timeout="):
        secure_eval.compile(torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), timeout=timeout)
