"""What travels: whole tensors of the stated shapes, both ways at once, and nothing else."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from secure_eval.network.transport import Counting, Hub, InProcess, Tcp, TensorSpec, TransportError


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Runs calls in threads; returns results, or the exceptions they ended with."""
    results: list[Any] = [None] * len(calls)

    def run(i: int) -> None:
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a transport hangs"
    return results


_OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    while _OPEN:
        _OPEN.pop().close()


def sockets() -> tuple[socket.socket, socket.socket]:
    a, b = socket.socketpair()
    _OPEN.extend((a, b))
    return a, b


def pair(timeout: float = 20) -> tuple[Tcp, Tcp]:
    a, b = sockets()
    return Tcp("party0", {"party1": a}, timeout=timeout), Tcp("party1", {"party0": b}, timeout=timeout)


def swap(
    a: Any, b: Any, x: list[Tensor], y: list[Tensor], expect_x: list[TensorSpec] | None = None
) -> list[Any]:
    """Party 0 sends x, party 1 sends y; each expects what the other sends unless said."""
    at_b = [TensorSpec.of(t) for t in x] if expect_x is None else expect_x
    return together(
        lambda: a.exchange({"party1": x}, {"party1": [TensorSpec.of(t) for t in y]})["party1"],
        lambda: b.exchange({"party0": y}, {"party0": at_b})["party0"],
    )


TENSORS = [
    torch.arange(-5, 7).view(3, 4),
    torch.tensor([True, False, True]),
    torch.arange(9, dtype=torch.uint8).view(3, 3).T,
    torch.empty(0, 4, dtype=torch.int64),
    torch.tensor(2.5, dtype=torch.float64),
    torch.arange(100_000, dtype=torch.int16)[::2],
]


def test_tcp_carries_shapes_dtypes_and_views() -> None:
    a, b = pair()
    for _ in range(3):
        at_a, at_b = swap(a, b, TENSORS, TENSORS[::-1])
        assert all(
            torch.equal(got, sent) and got.dtype == sent.dtype
            for got, sent in zip(at_b, TENSORS, strict=True)
        )
        assert all(torch.equal(got, sent) for got, sent in zip(at_a, TENSORS[::-1], strict=True))
    a.close()
    b.close()


def test_tcp_counts_payload_messages_and_rounds() -> None:
    a, b = pair()
    swap(a, b, [torch.zeros(3), torch.zeros(2, dtype=torch.uint8)], [torch.zeros(5)])
    together(
        lambda: a.exchange({"party1": [torch.zeros(1)]}, {}, rounds=0),
        lambda: b.exchange({}, {"party0": [TensorSpec((1,), torch.float32)]}),
    )
    counts = a.ledger.counts
    assert (counts.bytes, counts.messages, counts.rounds) == (3 * 4 + 2 + 4, 2, 1)
    counts = b.ledger.counts
    assert (counts.bytes, counts.messages, counts.rounds) == (5 * 4, 1, 2)


def test_two_large_messages_do_not_block_each_other() -> None:
    """Each is far larger than what a socket buffers: writing first and reading then would wait for ever."""
    a, b = pair()
    x, y = torch.arange(3 << 20), torch.arange(4 << 20)
    at_a, at_b = swap(a, b, [x, torch.ones(3)], [y])
    assert torch.equal(at_a[0], y) and torch.equal(at_b[0], x) and torch.equal(at_b[1], torch.ones(3))


def test_several_rounds_may_be_under_way() -> None:
    """One side sends two messages before the other reads the first."""
    a, b = pair()
    a.exchange({"party1": [torch.tensor([1])]}, {})
    a.exchange({"party1": [torch.tensor([2, 3])]}, {})
    assert b.exchange({}, {"party0": [TensorSpec((1,))]})["party0"][0].tolist() == [1]
    assert b.exchange({}, {"party0": [TensorSpec((2,))]})["party0"][0].tolist() == [2, 3]


@pytest.mark.parametrize("shape", [(2,), (4,), ()])
def test_tcp_refuses_another_length(shape: tuple[int, ...]) -> None:
    a, b = pair()
    a.exchange({"party1": [torch.zeros(3, dtype=torch.int64)]}, {})
    with pytest.raises(TransportError, match="party0 sent message 0 of 24 bytes, expected message 0"):
        b.exchange({}, {"party0": [TensorSpec(shape)]})


def header(magic: bytes, number: int, length: int) -> bytes:
    return struct.pack("!4sIQ", magic, number, length)


@pytest.mark.parametrize(
    "wrong", [header(b"SRD1", 1, 8), header(b"SRD1", 0, 9), header(b"HTTP", 0, 8), header(b"SRD1", 0, 2**60)]
)
def test_tcp_refuses_wrong_headers(wrong: bytes) -> None:
    mine, theirs = sockets()
    transport = Tcp("party1", {"party0": mine}, timeout=5)
    theirs.sendall(wrong + bytes(8))
    with pytest.raises(TransportError, match="expected message 0 of 8 bytes"):
        transport.exchange({}, {"party0": [TensorSpec((1,))]})


def test_tcp_refuses_a_repeated_message() -> None:
    mine, theirs = sockets()
    transport = Tcp("party1", {"party0": mine}, timeout=5)
    theirs.sendall((header(b"SRD1", 0, 8) + bytes(8)) * 2)
    transport.exchange({}, {"party0": [TensorSpec((1,))]})
    with pytest.raises(TransportError, match="sent message 0 of 8 bytes, expected message 1"):
        transport.exchange({}, {"party0": [TensorSpec((1,))]})


def test_tcp_reports_a_peer_that_goes_away() -> None:
    mine, theirs = sockets()
    transport = Tcp("party1", {"party0": mine}, timeout=5)
    theirs.sendall(header(b"SRD1", 0, 8) + bytes(3))
    theirs.close()
    with pytest.raises(TransportError, match="party0"):
        transport.exchange({}, {"party0": [TensorSpec((1,))]})


def test_tcp_names_the_peer_that_is_silent() -> None:
    a, _b = pair(timeout=0.05)
    with pytest.raises(TransportError, match="no progress with party1"):
        a.exchange({}, {"party1": [TensorSpec((1,))]})


def in_process(timeout: float = 20) -> tuple[InProcess, InProcess, Hub]:
    hub = Hub(timeout)
    return InProcess("party0", hub), InProcess("party1", hub), hub


def test_in_process_carries_and_counts() -> None:
    a, b, _ = in_process()
    at_a, at_b = swap(a, b, TENSORS, [torch.ones(2)])
    assert all(torch.equal(got, sent) for got, sent in zip(at_b, TENSORS, strict=True)) and torch.equal(
        at_a[0], torch.ones(2)
    )
    assert (
        a.ledger.counts.bytes == sum(t.numel() * t.element_size() for t in TENSORS)
        and b.ledger.counts.bytes == 8
    )
    assert a.ledger.counts.rounds == b.ledger.counts.rounds == a.ledger.counts.messages == 1


@pytest.mark.parametrize(
    "expected",
    [
        [TensorSpec((4,))],
        [TensorSpec((2, 1))],
        [TensorSpec((2,), torch.int32)],
        [],
        [TensorSpec((2,)), TensorSpec((1,))],
    ],
)
def test_in_process_refuses_other_shapes_types_and_numbers(expected: list[TensorSpec]) -> None:
    a, b, _ = in_process()
    a.exchange({"party1": [torch.tensor([1, 2])]}, {})
    with pytest.raises(TransportError, match="expected"):
        b.exchange({}, {"party0": expected})


def test_in_process_silence_and_abort() -> None:
    a, _, _ = in_process(timeout=0.05)
    with pytest.raises(TransportError, match="nothing from party1"):
        a.exchange({}, {"party1": [TensorSpec((1,))]})
    b, _, hub = in_process()
    waiting = threading.Timer(0.05, hub.abort)
    waiting.start()
    with pytest.raises(TransportError, match="failed"):
        b.exchange({}, {"party1": [TensorSpec((1,))]})


def test_counting_counts_the_same_without_values() -> None:
    counting = Counting("party0")
    received = counting.exchange(
        {"party1": [torch.empty(3, 4, device="meta")]}, {"party1": [TensorSpec((5,), torch.uint8)]}
    )
    assert received["party1"][0].shape == (5,) and received["party1"][0].device.type == "meta"
    assert (counting.ledger.counts.bytes, counting.ledger.counts.rounds, counting.ledger.counts.messages) == (
        48,
        1,
        1,
    )


def test_a_failure_stops_those_too_who_ask_for_a_queue_after_it() -> None:
    hub = Hub(timeout=60)
    hub.abort()
    with pytest.raises(TransportError, match="party1 or another role failed"):
        InProcess("party0", hub).exchange({}, {"party1": [TensorSpec((1,))]})
