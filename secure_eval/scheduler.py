"""Runs independent steps of a protocol together, so that their messages share rounds.

Protocol code is written as coroutines. A coroutine that needs a message awaits an `Exchange`; the scheduler runs every other
coroutine until each waits for a message or for another coroutine, and only then makes one round of all the waiting exchanges.
Every step thus goes out in the earliest round that its inputs allow, and the number of rounds is the length of the longest chain
of dependent messages. The order is a function of the program alone: all parties pack the same tensors into the same messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from secure_eval.network.transport import TensorSpec, Transport

T = TypeVar("T")


class Exchange(Awaitable[dict[str, list[Tensor]]]):
    """Tensors to send to peers and specs of those to receive from them, in one round."""

    def __init__(self, sends: Mapping[str, Sequence[Tensor]], receives: Mapping[str, Sequence[TensorSpec]]):
        self.sends, self.receives = sends, receives

    def __await__(self) -> Generator[Any, Any, dict[str, list[Tensor]]]:
        return (yield self)


class Task(Awaitable[T]):
    """A coroutine that the scheduler runs; awaiting it gives its result, as often as wanted."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], tag: str):
        self.coroutine, self.tag = coroutine, tag
        self.done = False
        self.result: T | None = None
        self.waiters: list[Task[Any]] = []

    def __await__(self) -> Generator[Any, Any, T]:
        if not self.done:
            yield self
        return self.result  # type: ignore[return-value]


class _Start:
    def __init__(self, coroutine: Coroutine[Any, Any, Any], tag: str | None):
        self.coroutine, self.tag = coroutine, tag

    def __await__(self) -> Generator[Any, Any, Task[Any]]:
        return (yield self)


async def start(coroutine: Coroutine[Any, Any, T], tag: str | None = None) -> Task[T]:
    """Begins a coroutine beside the current one; await the returned task for its result. Messages count under `tag`."""
    task: Task[T] = await _Start(coroutine, tag)
    return task


async def gather(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Runs coroutines side by side and returns their results in order."""
    tasks = [await start(c) for c in coroutines]
    return [await t for t in tasks]


async def once(memo: dict[Any, Any], key: Any, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `make()`, computed once per key however many coroutines ask, also at the same time."""
    if key not in memo:
        memo[key] = await start(make())
    result: T = await memo[key]
    return result


class Scheduler:
    """Runs a coroutine and everything it starts over one transport."""

    def __init__(self, transport: Transport):
        self._transport = transport

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs to the end and returns the coroutine's result. An exception in any coroutine ends the run with it."""
        root: Task[T] = Task(coroutine, "")
        ready: deque[tuple[Task[Any], Any]] = deque([(root, None)])
        pending: list[tuple[Task[Any], Exchange]] = []
        while not root.done:
            while ready:
                task, value = ready.popleft()
                self._step(task, value, ready, pending)
            if root.done:
                break
            if not pending:
                raise RuntimeError("the protocol waits for a result that nothing computes")
            waiting, pending = pending, []
            for task, received in self._round(waiting):
                ready.append((task, received))
        if pending:
            raise RuntimeError("the protocol ended with messages that nobody waits for")
        return root.result  # type: ignore[return-value]

    def _step(
        self,
        task: Task[Any],
        value: Any,
        ready: deque[tuple[Task[Any], Any]],
        pending: list[tuple[Task[Any], Exchange]],
    ) -> None:
        self._transport.ledger.tagged = task.tag
        while True:
            try:
                request = task.coroutine.send(value)
            except StopIteration as stop:
                task.done, task.result = True, stop.value
                ready.extend((waiter, None) for waiter in task.waiters)
                task.waiters.clear()
                return
            if isinstance(request, _Start):
                child: Task[Any] = Task(request.coroutine, task.tag if request.tag is None else request.tag)
                ready.append((child, None))
                value = child
            elif isinstance(request, Task):
                if not request.done:
                    request.waiters.append(task)
                    return
                value = None
            elif isinstance(request, Exchange):
                pending.append((task, request))
                return
            else:
                raise TypeError(f"protocol code awaited {request!r}, which is neither a message nor a task")

    def _round(
        self, waiting: list[tuple[Task[Any], Exchange]]
    ) -> list[tuple[Task[Any], dict[str, list[Tensor]]]]:
        sends: dict[str, list[Tensor]] = {}
        receives: dict[str, list[TensorSpec]] = {}
        tags: set[str] = set()
        for task, exchange in waiting:
            lengths = [0]
            for peer, tensors in exchange.sends.items():
                sends.setdefault(peer, []).extend(tensors)
                lengths.append(sum([t.numel() * t.element_size() for t in tensors]))
            counts = self._transport.ledger.tag(task.tag)
            counts.bytes += sum(lengths)
            counts.path_bytes += max(lengths)
            counts.handled_bytes += sum(lengths) + sum(
                [s.nbytes for specs in exchange.receives.values() for s in specs]
            )
            for peer, specs in exchange.receives.items():
                receives.setdefault(peer, []).extend(specs)
            tags.add(task.tag)
        for tag in tags:
            self._transport.ledger.tag(tag).rounds += 1
        received = {
            peer: deque(tensors) for peer, tensors in self._transport.exchange(sends, receives).items()
        }
        return [
            (
                task,
                {
                    peer: [received[peer].popleft() for _ in specs]
                    for peer, specs in exchange.receives.items()
                },
            )
            for task, exchange in waiting
        ]
