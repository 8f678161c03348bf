"""Emulated links: the arithmetic in times of a clock that stands still, and real runs whose results and counts stay what they are."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import secure_eval
from secure_eval.network.emulation import Clock, Direction, Emulated, Link, over
from secure_eval.network.transport import (
    Hub,
    Incoming,
    InProcess,
    Outgoing,
    Tcp,
    TensorSpec,
    Transport,
    TransportError,
)

LINK = Link(round_trip_s=4.0, bandwidth_bytes_per_s=8.0)


class Still(Clock):
    """A clock that passes only when somebody waits, and says until when they did."""

    def __init__(self, now: float = 0.0):
        self.time = now
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    def wait_until(self, due: float) -> None:
        self.waits.append(due)
        self.time = max(self.time, due)


class Scripted(Transport):
    """Keeps what is sent; lets the messages that a test wrote arrive."""

    def __init__(self, *arriving: Mapping[str, Sequence[Tensor]]):
        super().__init__("party0")
        self.sent: list[dict[str, list[Tensor]]] = []
        self.expected: list[dict[str, list[TensorSpec]]] = []
        self._arriving = list(arriving)

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        self.sent.append({peer: list(tensors) for peer, tensors in sends.items()})
        self.expected.append({peer: list(specs) for peer, specs in receives.items()})
        return {peer: list(tensors) for peer, tensors in self._arriving.pop(0).items()} if receives else {}


def message(sent_at: float, nbytes: int) -> list[Tensor]:
    return [torch.tensor([sent_at], dtype=torch.float64), torch.zeros(nbytes, dtype=torch.uint8)]


def spec(nbytes: int) -> list[TensorSpec]:
    return [TensorSpec((nbytes,), torch.uint8)]


def test_a_message_takes_its_bytes_and_half_a_round_trip() -> None:
    assert Direction(LINK).arrival(10.0, 16) == 10.0 + 16 / 8 + 2.0
    assert Direction(LINK).arrival(10.0, 0) == 12.0
    assert Direction(Link(0.0, 8.0)).arrival(10.0, 16) == 12.0
    assert Direction(Link(4.0, math.inf)).arrival(10.0, 1 << 40) == 12.0


def test_messages_of_one_direction_stand_in_a_queue() -> None:
    """The link is busy from 0 to 2, so the message begun at 1 waits for it; the one begun at 100 finds it free."""
    direction = Direction(LINK)
    assert [direction.arrival(t, n) for t, n in ((0.0, 16), (1.0, 8), (1.0, 8), (100.0, 8))] == [
        2 + 2.0,
        3 + 2.0,
        4 + 2.0,
        101 + 2.0,
    ]


def test_a_chunked_stream_takes_the_time_of_its_bytes_and_one_delay() -> None:
    direction = Direction(LINK)
    arrivals = [direction.arrival(0.0, 8) for _ in range(10)]
    assert arrivals == [i + 1 + 2.0 for i in range(10)]


@pytest.mark.parametrize(
    ("delay", "bandwidth", "message"),
    [
        (-1.0, 1.0, "round_trip_s=-1.0; allowed"),
        (math.nan, 1.0, "round_trip_s=nan"),
        (math.inf, 1.0, "round_trip_s=inf"),
        (0.0, 0.0, "bandwidth_bytes_per_s=0.0; allowed: more than 0"),
        (0.0, math.nan, "bandwidth_bytes_per_s=nan"),
    ],
)
def test_a_link_that_cannot_be_is_refused(delay: float, bandwidth: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Link(delay, bandwidth)


def test_the_receiver_waits_until_the_last_of_its_messages_is_there() -> None:
    """Each peer's link has a queue of its own: the dealer's long message does not delay the party's, and the other way round."""
    inner = Scripted({"party1": message(0.0, 8), "dealer": message(0.0, 80)}, {"party1": message(1.0, 8)})
    clock = Still(1.0)
    transport = Emulated(inner, LINK, clock)
    got = transport.exchange({}, {"party1": spec(8), "dealer": spec(80)})
    assert [t.numel() for t in (*got["party1"], *got["dealer"])] == [8, 80]
    assert clock.time == 80 / 8 + 2.0
    transport.exchange({}, {"party1": spec(8)})
    assert clock.waits == [12.0, 1.0 + 1.0 + 2.0] and clock.time == 12.0, "that one has been there for long"


def test_sending_does_not_wait_and_carries_the_senders_time() -> None:
    inner, clock = Scripted(), Still(7.5)
    transport = Emulated(inner, LINK, clock)
    transport.exchange({"party1": [torch.ones(3)], "client": [torch.zeros(5, dtype=torch.uint8)]}, {})
    assert clock.time == 7.5
    for tensors in inner.sent[0].values():
        assert tensors[0].dtype == torch.float64 and tensors[0].tolist() == [7.5]
    assert torch.equal(inner.sent[0]["party1"][1], torch.ones(3))


def test_the_ledger_does_not_count_the_senders_time() -> None:
    transport = Emulated(Scripted({"party1": message(0.0, 8)}), LINK, Still())
    transport.exchange({"party1": [torch.zeros(3, dtype=torch.int64)]}, {"party1": spec(8)})
    counts = transport.ledger.counts
    assert (counts.bytes, counts.messages, counts.rounds) == (24, 1, 1)


@pytest.mark.parametrize("sent_at", [5.1, math.inf, math.nan])
def test_another_machines_clock_is_refused(sent_at: float) -> None:
    transport = Emulated(Scripted({"party1": message(sent_at, 8)}), LINK, Still(5.0))
    with pytest.raises(TransportError, match="party1 sent a message at .*only roles of one machine"):
        transport.exchange({}, {"party1": spec(8)})


def test_the_machines_clock_waits_at_least_until_then() -> None:
    clock = Clock()
    for wait in (-1.0, 0.0, 5e-5, 3e-4, 3e-3):
        due = clock.now() + wait
        clock.wait_until(due)
        assert clock.now() >= due


TENSORS = [torch.arange(-5, 7).view(3, 4).T, torch.tensor([True, False]), torch.zeros(0, 2), torch.ones(9001)]


@pytest.fixture(params=["tcp", "in_process"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Transport, Transport]]:
    """Two plain transports that are linked."""
    if request.param == "in_process":
        hub = Hub(20)
        yield InProcess("party0", hub), InProcess("party1", hub)
        return
    a, b = socket.socketpair()
    with a, b:
        yield Tcp("party0", {"party1": a}, timeout=20), Tcp("party1", {"party0": b}, timeout=20)


def test_without_a_link_the_transport_is_the_plain_one(ends: tuple[Transport, Transport]) -> None:
    assert over(None, ends[0]) is ends[0]


def test_the_plain_wire_format_has_no_time_in_it() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        over(None, Tcp("party0", {"party1": mine})).exchange({"party1": [torch.arange(3)]}, {})
        theirs.settimeout(5)
        assert theirs.recv(1 << 12)[16:] == torch.arange(3).numpy().tobytes()


def test_emulated_transports_carry_the_same_tensors(ends: tuple[Transport, Transport]) -> None:
    a, b = (Emulated(end, Link(2e-3, 1e9)) for end in ends)
    for _ in range(2):
        started = Clock().now()
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(
                a.exchange, {"party1": TENSORS}, {"party1": [*map(TensorSpec.of, TENSORS[::-1])]}
            )
            other = pool.submit(
                b.exchange, {"party0": TENSORS[::-1]}, {"party0": [*map(TensorSpec.of, TENSORS)]}
            )
            pairs = [(one.result(30)["party1"], TENSORS[::-1]), (other.result(30)["party0"], TENSORS)]
        assert Clock().now() - started >= 1e-3 + sum(t.nbytes for t in TENSORS) / 1e9
        for got, sent in pairs:
            assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(got, sent, strict=True))
    for end in (a, b):
        counts = end.ledger.counts
        assert (counts.bytes, counts.messages, counts.rounds) == (2 * sum(t.nbytes for t in TENSORS), 2, 2)


def test_a_wrong_shape_is_still_refused(ends: tuple[Transport, Transport]) -> None:
    a, b = (Emulated(end, Link(0.0, math.inf)) for end in ends)
    a.exchange({"party1": [torch.zeros(3, dtype=torch.int64)]}, {})
    with pytest.raises(TransportError, match="expected"):
        b.exchange({}, {"party0": [TensorSpec((4,))]})


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


@pytest.mark.usefixtures("forked_roles")
@pytest.mark.parametrize("parties", ["threads", "processes"])
@pytest.mark.parametrize("protocol", ["plain", "dealer2pc", "replicated3pc"])
def test_a_model_on_an_emulated_network(protocol: str, parties: str) -> None:
    """Same answers and counts; neither phase is over before its messages can have arrived one after the other."""
    link = Link(round_trip_s=0.02, bandwidth_bytes_per_s=2e5)
    model, x = Small().eval(), torch.linspace(-4, 4, 40).view(5, 8)
    with secure_eval.compile(model, (x,), protocol, parties, network=link) as secure:
        for sign in (1, -1):
            before = Clock().now()
            secure.offline()
            between = Clock().now()
            answer = secure(sign * x)
            after = Clock().now()
            assert (answer - model(sign * x)).abs().max() < 2**-10
            assert secure.measurement.communication() == secure.predicted().communication()
            offline, online = secure.measurement.offline, secure.measurement.online
            dealt = offline.bytes / link.bandwidth_bytes_per_s + offline.rounds * link.round_trip_s / 2
            assert between - before >= dealt
            assert after - between >= online.rounds * link.round_trip_s / 2
        assert online.rounds >= 2 and (protocol != "dealer2pc" or offline.bytes > 0)
