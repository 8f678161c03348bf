"""Measures the link between two hosts over the engine's own transport: round trip of small messages, payload bandwidth each way.

One end serves, the other leads: it sends a request (what, how many messages, of how many bytes) and both do it.

    echo    the leader sends a small message and times its return                   -> round trip (median)
    pull    the server streams messages; the leader times those after the first     -> bandwidth towards the leader
    push    the leader streams; the server times, and tells the seconds             -> bandwidth towards the server
    both    exchanges of large messages, each way at once, as a protocol's rounds   -> bandwidth of either while both are used

Streams grow until one lasts long enough to be past TCP's slow start. No clock is compared between hosts. Payloads are random bytes, so
that a link that compresses gains nothing.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from statistics import median, quantiles
from time import perf_counter

import torch
from torch import Tensor

from cost_models.profile_files import Network
from secure_eval.network.links import Credentials, connect_all
from secure_eval.network.transport import Tcp, TensorSpec, Transport, TransportError

Progress = Callable[[int, int, str], None]

LEADER, SERVER = "leader", "server"
_PAIR = [(LEADER, SERVER)]
_END, _ECHO, _PULL, _PUSH, _BOTH = range(5)
_GREETING = TensorSpec((96,), torch.uint8)
_MAGIC = b"sordino link 1;"
_REQUEST = TensorSpec((3,), torch.int64)
_SECONDS = TensorSpec((1,), torch.float64)
_SMALL, _LARGE = 64, 1 << 18
_MOST_MESSAGES, _MOST_BYTES = 1 << 14, 1 << 26
_REPEATS = 3


@dataclass(frozen=True)
class LinkMeasurement:
    """What was found, from the leader's point of view.

    `round_trips_s`: each small message's; `to_server`, `to_leader`: payload bytes a second with the other direction idle; `at_once`: of
    one direction while both are used; `encrypted`: whether TLS carried it; `versions`: of both ends.
    """

    round_trips_s: tuple[float, ...]
    to_server: float
    to_leader: float
    at_once: float
    encrypted: bool
    versions: str

    @property
    def round_trip_s(self) -> float:
        return median(self.round_trips_s)

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """What a round can count on: both ends send at the same time, and the slower direction is waited for."""
        return min(self.to_server, self.to_leader, self.at_once)

    def network(self, name: str) -> Network:
        """The profile of this link. Neither host is named in it."""
        low, *_, high = quantiles(self.round_trips_s, n=10)
        rates = ", ".join(f"{rate / 1e6:.3g}" for rate in (self.to_server, self.to_leader, self.at_once))
        carried = "mutual TLS 1.3" if self.encrypted else "a connection without encryption"
        return Network(
            name=name,
            round_trip_s=self.round_trip_s,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            versions=self.versions,
            date=date.today().isoformat(),
            note=(
                f"measured over {carried}: median of {len(self.round_trips_s)} round trips, nine of ten between "
                f"{low * 1e3:.3g} and {high * 1e3:.3g} ms, handling at both ends included; {rates} MB/s of payload "
                "one way, the other way, and each way at once, the least of which stands here"
            ),
        )


def lead(transport: Transport, seconds: float = 0.5, progress: Progress | None = None) -> LinkMeasurement:
    """Measures the link to the end that runs `serve`. Takes some fifteen times `seconds`, which is how long a stream should last.

    Raises TransportError when the other end goes away or is no `serve`.
    """
    steps = ("round trips", "one way", "the other way", "both ways at once")

    def tell(done: int) -> None:
        if progress:
            progress(done, len(steps), steps[done] if done < len(steps) else "done")

    tell(0)
    versions = _greet(transport, SERVER)
    trips = _round_trips(transport, seconds)
    tell(1)
    to_server = _stream(transport, _PUSH, seconds)
    tell(2)
    to_leader = _stream(transport, _PULL, seconds)
    tell(3)
    at_once = _at_once(transport, median(trips), max(to_server, to_leader), seconds)
    _ask(transport, _END, 0, 0)
    tell(4)
    mine = _versions()
    both = mine if mine == versions else f"{mine}; other end {versions}"
    encrypted = getattr(transport, "encrypted", False)
    return LinkMeasurement(trips, to_server, to_leader, at_once, encrypted, both)


def serve(transport: Transport) -> None:
    """The other end of `lead`: does what is asked until the leader is done.

    Raises TransportError when the leader goes away, is no `lead`, or asks for more than a measurement needs.
    """
    _greet(transport, LEADER)
    while True:
        what, count, size = transport.exchange({}, {LEADER: [_REQUEST]})[LEADER][0].tolist()
        if what == _END:
            return
        if not (_END < what <= _BOTH and 0 < count <= _MOST_MESSAGES and 0 < size <= _MOST_BYTES):
            raise TransportError(f"the other end asks for {count} messages of {size} bytes (request {what})")
        if what == _ECHO:
            for _ in range(count):
                transport.exchange({LEADER: transport.exchange({}, {LEADER: [_payload(size)]})[LEADER]}, {})
        elif what == _PULL:
            _send(transport, LEADER, count, size)
        elif what == _PUSH:
            _tell_seconds(transport, _received(transport, LEADER, count, size))
        else:
            _tell_seconds(transport, _exchanged(transport, LEADER, count, size))


class _Link(Tcp):
    """A transport with one peer that knows whether TLS carries it."""

    def __init__(self, role: str, peer: str, sock: socket.socket, encrypted: bool):
        super().__init__(role, {peer: sock}, timeout=120.0)
        self.encrypted = encrypted


def connect(host: str, port: int, credentials: Credentials | None = None, timeout: float = 30.0) -> Transport:
    """The leader's end of a link to the host that listens. Without credentials it is a plain socket: then nothing but measurements of
    random bytes is sent, and nobody's identity is proven.

    Raises TransportError if nobody listens there, or is not who it should be.
    """
    if credentials is None:
        try:
            raw = socket.create_connection((host, port), timeout=timeout)
        except OSError as error:
            raise TransportError(f"nobody answers: {error}") from error
        return _Link(LEADER, SERVER, raw, encrypted=False)
    unused = socket.socket()  # the leader accepts nobody
    try:
        sockets = connect_all(LEADER, unused, _PAIR, {SERVER: (host, port)}, credentials, timeout)
    finally:
        unused.close()
    return _Link(LEADER, SERVER, sockets[SERVER], encrypted=True)


def accept(
    listener: socket.socket, credentials: Credentials | None = None, timeout: float = 3600.0
) -> Transport:
    """The server's end: waits for one leader on a listening socket. Raises TransportError when none comes within `timeout` seconds."""
    if credentials is None:
        listener.settimeout(timeout)
        try:
            raw, _ = listener.accept()
        except OSError as error:
            raise TransportError(f"nobody connected: {error}") from error
        return _Link(SERVER, LEADER, raw, encrypted=False)
    sockets = connect_all(SERVER, listener, _PAIR, {}, credentials, timeout)
    return _Link(SERVER, LEADER, sockets[LEADER], encrypted=True)


def _versions() -> str:
    return f"torch {torch.__version__}, Python {platform.python_version()}"


def _greet(transport: Transport, peer: str) -> str:
    """Both ends say who they are; the other's versions."""
    text = (_MAGIC + _versions().encode())[: _GREETING.nbytes].ljust(_GREETING.nbytes)
    mine = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    theirs = bytes(transport.exchange({peer: [mine]}, {peer: [_GREETING]})[peer][0].tolist())
    if not theirs.startswith(_MAGIC):
        raise TransportError("the other end does not measure links, or does so in another version of Sordino")
    return theirs.removeprefix(_MAGIC).decode("ascii", "replace").strip()


def _ask(transport: Transport, what: int, count: int, size: int) -> None:
    transport.exchange({SERVER: [torch.tensor([what, count, size])]}, {})


def _payload(size: int) -> TensorSpec:
    return TensorSpec((size,), torch.uint8)


def _random(size: int) -> Tensor:
    return torch.frombuffer(bytearray(os.urandom(size)), dtype=torch.uint8)


def _round_trips(transport: Transport, seconds: float) -> tuple[float, ...]:
    """Seconds of each of 20 to 1000 round trips, after a few that are not kept."""
    small, reply = _random(_SMALL), {SERVER: [_payload(_SMALL)]}

    def trips(count: int) -> list[float]:
        _ask(transport, _ECHO, count, _SMALL)
        taken = []
        for _ in range(count):
            started = perf_counter()
            transport.exchange({SERVER: [small]}, {})
            transport.exchange({}, reply)
            taken.append(perf_counter() - started)
        return taken

    first = median(trips(10))
    return tuple(trips(min(1000, max(20, int(seconds / first)))))


def _send(transport: Transport, peer: str, count: int, size: int) -> None:
    payload = _random(size)
    for _ in range(count):
        transport.exchange({peer: [payload]}, {})


def _received(transport: Transport, peer: str, count: int, size: int) -> float:
    """Seconds from the first message's arrival to the last one's."""
    expected = {peer: [_payload(size)]}
    transport.exchange({}, expected)
    started = perf_counter()
    for _ in range(count - 1):
        transport.exchange({}, expected)
    return perf_counter() - started


def _exchanged(transport: Transport, peer: str, count: int, size: int) -> float:
    """Seconds of `count` - 1 exchanges of large messages; the first brings both ends into step."""
    payload, expected = _random(size), {peer: [_payload(size)]}
    transport.exchange({peer: [payload]}, expected)
    started = perf_counter()
    for _ in range(count - 1):
        transport.exchange({peer: [payload]}, expected)
    return perf_counter() - started


def _tell_seconds(transport: Transport, taken: float) -> None:
    transport.exchange({LEADER: [torch.tensor([taken], dtype=torch.float64)]}, {})


def _asked_seconds(transport: Transport) -> float:
    return float(transport.exchange({}, {SERVER: [_SECONDS]})[SERVER][0])


def _stream(transport: Transport, what: int, seconds: float) -> float:
    """Payload bytes a second of one direction: the median of some streams, once they last `seconds`."""

    def once(count: int) -> float:
        _ask(transport, what, count, _LARGE)
        if what == _PULL:
            return _received(transport, SERVER, count, _LARGE)
        _send(transport, SERVER, count, _LARGE)
        return _asked_seconds(transport)

    count = 9
    taken = once(count)
    while taken < seconds and count < _MOST_MESSAGES:
        growth = min(8.0, max(2.0, 1.2 * seconds / taken)) if taken > 0 else 8.0
        count = min(_MOST_MESSAGES, int(count * growth))
        taken = once(count)
    taken = median([taken, *(once(count) for _ in range(_REPEATS - 1))])
    return (count - 1) * _LARGE / taken


def _at_once(transport: Transport, round_trip: float, rate: float, seconds: float) -> float:
    """Payload bytes a second of each direction while both are used: what makes `rounds · round trip / 2 + bytes / bandwidth` true."""
    size = int(min(_MOST_BYTES, max(_LARGE, rate * seconds / 4)))
    count = 4
    found = []
    for _ in range(_REPEATS):
        _ask(transport, _BOTH, count, size)
        mine = _exchanged(transport, SERVER, count, size)
        taken = max(mine, _asked_seconds(transport)) / (count - 1)
        found.append(size / max(taken - round_trip / 2, taken / 2))
    return median(found)
