"""Who is told of local work: observers count it on meta tensors, a stopwatch times it on real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from torch.utils._python_dispatch import _disable_current_modes

R = TypeVar("R")


class Observer(Protocol):
    """Who is told of local work."""

    def work(self, kind: str, nbytes: int) -> None:
        """One fused step or one expansion of a seed that would read and write so many bytes."""

    def hold(self, result: Any) -> Any:
        """Takes the tensors of a result, which are shared between calls, and returns the ones to hand out."""


_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


def observer() -> Observer | None:
    """The one in charge, if any."""
    return _observer.get()


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Inside, every kernel on meta tensors reports to `observer`, and so does every tensor that arrives or is expanded from a seed."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


Stopwatch = Callable[[str, Callable[[], Any]], Any]

_stopwatch: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def timing(stopwatch: Stopwatch) -> Iterator[None]:
    """Inside, kernels and expansions of seeds on real tensors run as `stopwatch(kind, run)`, which returns what `run()` does."""
    token = _stopwatch.set(stopwatch)
    try:
        yield
    finally:
        _stopwatch.reset(token)


def timed(kind: str, run: Callable[[], R]) -> R:
    """Runs one piece of work, under the stopwatch if there is one."""
    stopwatch = _stopwatch.get()
    if stopwatch is None:
        return run()
    with _disable_current_modes():
        found: R = stopwatch(kind, run)
    return found
