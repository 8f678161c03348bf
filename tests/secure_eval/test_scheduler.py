"""Rounds are the longest chain of dependent messages, whatever the order in which coroutines were started."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from secure_eval.network.transport import Counting, Hub, InProcess, TensorSpec
from secure_eval.scheduler import Exchange, Scheduler, gather, once, start

SPEC = TensorSpec((2,))


async def message(size: int = 2) -> Any:
    received = await Exchange(
        {"party1": [torch.empty(size, dtype=torch.int64, device="meta")]}, {"party1": [TensorSpec((size,))]}
    )
    return received["party1"][0]


async def chain(length: int) -> int:
    for _ in range(length):
        await message()
    return length


def count(coroutine: Any) -> tuple[Any, Counting]:
    transport = Counting("party0")
    return Scheduler(transport).run(coroutine), transport


def test_rounds_are_the_longest_chain() -> None:
    result, transport = count(gather(chain(3), chain(5), chain(1)))
    assert result == [3, 5, 1]
    assert transport.ledger.counts.rounds == 5
    assert transport.ledger.counts.bytes == 9 * 16
    assert transport.ledger.counts.messages == 5  # one a peer and round


def test_nested_tasks_start_in_the_earliest_round() -> None:
    async def late() -> int:
        first = await start(chain(2))
        second = await start(chain(4))
        await first
        await chain(2)
        return await second

    assert count(late())[1].ledger.counts.rounds == 4


def test_a_wait_for_another_task_joins_its_chain() -> None:
    async def run() -> None:
        slow = await start(chain(3))

        async def after() -> None:
            await slow
            await chain(2)

        await gather(after(), after(), chain(4))

    assert count(run())[1].ledger.counts.rounds == 5


def test_no_messages_no_rounds() -> None:
    async def nothing() -> str:
        return (await gather(*(chain(0) for _ in range(3)))) and "done"

    result, transport = count(nothing())
    assert result == "done" and transport.ledger.counts.rounds == 0


def test_once_computes_once_for_callers_before_during_and_after() -> None:
    memo: dict[Any, Any] = {}
    made = []

    async def make() -> int:
        made.append(1)
        await message()
        return 7

    async def run() -> list[int]:
        values = await gather(once(memo, "k", make), once(memo, "k", make))
        return [*values, await once(memo, "k", make)]

    result, transport = count(run())
    assert result == [7, 7, 7] and made == [1] and transport.ledger.counts.rounds == 1


def test_messages_count_under_the_tag_of_their_task() -> None:
    async def run() -> None:
        a, b = await start(chain(2), "a"), await start(gather(chain(1), chain(3)), "b")
        await a
        await b

    tags = count(run())[1].ledger.tags["setup"]
    assert (tags["a"].bytes, tags["a"].rounds) == (2 * 16, 2)
    assert (tags["b"].bytes, tags["b"].rounds) == (4 * 16, 3)


def test_an_exception_ends_the_run() -> None:
    async def failing() -> None:
        await message()
        raise KeyError("from a coroutine")

    with pytest.raises(KeyError, match="from a coroutine"):
        count(gather(chain(5), failing()))


def test_waiting_for_nothing_is_an_error() -> None:
    async def run() -> None:
        holder: list[Any] = []

        async def waits() -> None:
            await holder[0]

        holder.append(await start(waits()))
        await holder[0]

    with pytest.raises(RuntimeError, match="nothing computes"):
        count(run())


def test_messages_that_nobody_waits_for_are_an_error() -> None:
    async def run() -> None:
        await start(chain(2))
        await start(chain(1))

    async def forgets() -> None:
        await start(chain(1))
        await chain(1)
        await start(chain(3))
        await chain(1)

    with pytest.raises(RuntimeError, match="nobody waits"):
        count(forgets())
    with pytest.raises(RuntimeError, match="nobody waits"):
        count(run())


def test_awaiting_anything_else_is_an_error() -> None:
    class Other:
        def __await__(self) -> Any:
            yield "something"

    async def run() -> None:
        await Other()

    with pytest.raises(TypeError, match="neither a message nor a task"):
        count(run())


def test_two_parties_pack_the_same_order() -> None:
    """Values arrive at the coroutine that asked for them, although all of a round travel in one message."""
    hub = Hub(timeout=20)
    results: dict[int, Any] = {}

    def party(number: int) -> None:
        peer = f"party{1 - number}"

        async def swap(value: int, rounds: int) -> list[int]:
            got = []
            for i in range(rounds):
                sent = torch.tensor([10 * value + i + 1000 * number])
                got.append(int((await Exchange({peer: [sent]}, {peer: [TensorSpec((1,))]}))[peer][0]))
            return got

        results[number] = Scheduler(InProcess(f"party{number}", hub)).run(
            gather(*(swap(v, 1 + v % 3) for v in range(7)))
        )

    threads = [threading.Thread(target=party, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        assert results[number] == [
            [10 * v + i + 1000 * (1 - number) for i in range(1 + v % 3)] for v in range(7)
        ]
