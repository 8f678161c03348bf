"""The only place that sends. Bytes, messages and rounds are counted here and nowhere else.

A role (party0, party1, dealer, client, owner) has one Transport. `exchange` is one round: everything that the role has for its
peers at that moment goes out as one message a peer, and one message a peer comes in. What comes in is read into tensors whose
shapes and types the receiver states beforehand; nothing is unpickled, and a message of any other length is refused.

    Counting    nothing moves: the receiver gets tensors of the stated shapes on the meta device (predictions)
    InProcess   queues between threads of one process (tests, simulations)
    Tcp         sockets, with mutual TLS 1.3 when given a context
"""

from __future__ import annotations

import math
import queue
import select
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secure_eval.kernels import meta
from secure_eval.measurement import Ledger


class TransportError(RuntimeError):
    """A peer went away, or sent something that the protocol does not allow at this point."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor that is to arrive."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.int64

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, x: Tensor) -> TensorSpec:
        return cls(tuple(x.shape), x.dtype)


Outgoing = Mapping[str, Sequence[Tensor]]
Incoming = Mapping[str, Sequence[TensorSpec]]


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class Transport(ABC):
    """One role's end of all its links. `device` is where received tensors are put."""

    def __init__(self, role: str, device: torch.device | str = "cpu"):
        self.role = role
        self.device = torch.device(device)
        self.ledger = Ledger()

    def exchange(self, sends: Outgoing, receives: Incoming, rounds: int = 1) -> dict[str, list[Tensor]]:
        """One round. Sends `sends[peer]` to each peer, returns what each peer in `receives` sent, in the order stated.

        `rounds` is 0 for messages that nobody waits for on the critical path (a stream of dealer's messages after the first).
        """
        counts = self.ledger.counts
        for tensors in sends.values():
            counts.bytes += _nbytes(tensors)
            counts.messages += 1
        counts.rounds += rounds
        return self._move(sends, receives)

    @abstractmethod
    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]: ...

    def close(self) -> None:  # noqa: B027 (most transports hold nothing)
        """Frees the links. Safe to call twice."""


class Counting(Transport):
    """Counts, and lets meta tensors of the stated shapes arrive."""

    def __init__(self, role: str):
        super().__init__(role, "meta")

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        return {peer: [meta(s.shape, s.dtype) for s in specs] for peer, specs in receives.items()}


class Hub:
    """The queues that InProcess transports of one computation share, and the flag that stops all of them when one fails."""

    def __init__(self, timeout: float = 600.0):
        self.timeout = timeout
        self._queues: dict[tuple[str, str], queue.SimpleQueue[list[Tensor] | None]] = {}

    def queue(self, source: str, target: str) -> queue.SimpleQueue[list[Tensor] | None]:
        return self._queues.setdefault((source, target), queue.SimpleQueue())

    def abort(self) -> None:
        """Wakes every receiver with a TransportError."""
        for q in list(self._queues.values()):
            q.put(None)


class InProcess(Transport):
    """Threads of one process. Tensors are handed over as they are: a sender must not write to one that it has sent."""

    def __init__(self, role: str, hub: Hub, device: torch.device | str = "cpu"):
        super().__init__(role, device)
        self._hub = hub

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        for peer, tensors in sends.items():
            self._hub.queue(self.role, peer).put(list(tensors))
        received = {}
        for peer, specs in receives.items():
            try:
                arrived = self._hub.queue(peer, self.role).get(timeout=self._hub.timeout)
            except queue.Empty:
                raise TransportError(
                    f"{self.role}: nothing from {peer} for {self._hub.timeout:.0f} s"
                ) from None
            if arrived is None:
                raise TransportError(f"{self.role}: {peer} or another role failed")
            got = [TensorSpec.of(t) for t in arrived]
            if got != list(specs):
                raise TransportError(f"{self.role}: {peer} sent {got}, expected {list(specs)}")
            received[peer] = [t.to(self.device) for t in arrived]
        return received


_HEADER = struct.Struct("!4sIQ")
_MAGIC = b"SRD1"
_JOIN_BELOW = 1 << 16


def _bytes_view(x: Tensor) -> memoryview:
    return x.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


class _Link:
    """A socket to one peer, with what is still to be written to it and read from it."""

    def __init__(self, peer: str, sock: socket.socket):
        self.peer, self.sock = peer, sock
        self.sent = self.got = 0
        self.outgoing: list[memoryview] = []
        self.incoming: list[memoryview] = []
        self.header: bytearray | None = None
        self.expected = 0
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def queue_send(self, tensors: Sequence[Tensor]) -> None:
        views = [_bytes_view(t) for t in tensors if t.numel()]
        total = sum(len(v) for v in views)
        header = _HEADER.pack(_MAGIC, self.sent & 0xFFFFFFFF, total)
        self.sent += 1
        if total <= _JOIN_BELOW:
            views = [memoryview(b"".join([header, *views]))]
        else:
            views.insert(0, memoryview(header))
        self.outgoing.extend(views)

    def queue_receive(self, buffers: Sequence[memoryview]) -> None:
        self.header = bytearray(_HEADER.size)
        self.expected = sum(len(b) for b in buffers)
        self.incoming = [memoryview(self.header), *(b for b in buffers if len(b))]

    def write(self) -> bool:
        """Writes what the socket takes now; whether it took anything."""
        progressed = False
        while self.outgoing:
            try:
                count = self.sock.send(self.outgoing[0][: 1 << 20])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
            progressed = True
            self.outgoing[0] = self.outgoing[0][count:]
            if not self.outgoing[0]:
                self.outgoing.pop(0)
        return progressed

    def read(self) -> bool:
        """Reads what has arrived; whether anything had."""
        progressed = False
        while self.incoming:
            try:
                count = self.sock.recv_into(self.incoming[0])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if count == 0:
                raise TransportError(f"{self.peer} closed the connection")
            progressed = True
            self.incoming[0] = self.incoming[0][count:]
            if not self.incoming[0]:
                self.incoming.pop(0)
                self._check_header()
        return progressed

    def _check_header(self) -> None:
        if self.header is None:
            return
        magic, number, length = _HEADER.unpack(self.header)
        self.header = None
        if (magic, number, length) != (_MAGIC, self.got & 0xFFFFFFFF, self.expected):
            raise TransportError(
                f"{self.peer} sent message {number} of {length} bytes, expected message {self.got} of {self.expected} bytes"
            )
        self.got += 1


class Tcp(Transport):
    """Sockets to the peers; both directions of all links progress together, so that two large messages cannot block each other.

    Args:
        sockets: connected sockets by peer, already through their TLS handshake where TLS is used (see `links.py`).
        timeout: seconds without any progress after which a TransportError names the peers that are waited for.
    """

    def __init__(
        self,
        role: str,
        sockets: Mapping[str, socket.socket],
        device: torch.device | str = "cpu",
        timeout: float = 600.0,
    ):
        super().__init__(role, device)
        self._links = {peer: _Link(peer, sock) for peer, sock in sockets.items()}
        self._timeout = timeout

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        buffers = {
            peer: [torch.empty(s.shape, dtype=s.dtype) for s in specs] for peer, specs in receives.items()
        }
        for peer, tensors in sends.items():
            self._links[peer].queue_send(tensors)
        for peer, tensors in buffers.items():
            self._links[peer].queue_receive([_bytes_view(t) for t in tensors if t.numel()])
        active = [self._links[peer] for peer in {*sends, *receives}]
        try:
            self._drain(active)
        except (ConnectionError, ssl.SSLError, OSError) as error:
            raise TransportError(
                f"{self.role}: link to {', '.join(link.peer for link in active)} failed: {error}"
            ) from error
        return {peer: [t.to(self.device) for t in tensors] for peer, tensors in buffers.items()}

    def _drain(self, active: list[_Link]) -> None:
        while True:
            progressed = False
            for link in active:
                progressed |= link.write() if link.outgoing else False
                progressed |= link.read() if link.incoming else False
            active = [link for link in active if link.outgoing or link.incoming]
            if not active:
                return
            if not progressed:
                poll = select.poll()
                for link in active:
                    poll.register(
                        link.sock,
                        (select.POLLOUT if link.outgoing else 0) | (select.POLLIN if link.incoming else 0),
                    )
                if not poll.poll(self._timeout * 1000):
                    raise TransportError(
                        f"{self.role}: no progress with {', '.join(k.peer for k in active)} for {self._timeout:.0f} s"
                    )

    def close(self) -> None:
        for link in self._links.values():
            link.sock.close()
