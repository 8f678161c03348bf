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
import os
import queue
import select
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secure_eval.kernels.meta_tensors import allocated, nbytes
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


@dataclass(frozen=True)
class Progress:
    """A role's exchange of messages at one moment: `moved` differs whenever anything has moved since, `waits_for` names the peers of the
    exchange that is under way; none while the role computes."""

    moved: tuple[int, ...] = ()
    waits_for: tuple[str, ...] = ()


Outgoing = Mapping[str, Sequence[Tensor]]
Incoming = Mapping[str, Sequence[TensorSpec]]


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
        self.ledger.exchanged(
            [nbytes(tensors) for tensors in sends.values()],
            [sum([s.nbytes for s in specs]) for specs in receives.values()],
            rounds,
        )
        with self.ledger.exchanging():
            return self._move(sends, receives)

    def unite(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        """An exchange that is part of making the links, as the handshakes are: it carries nothing of the computation and is not counted."""
        return self._move(sends, receives)

    @abstractmethod
    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]: ...

    def progress(self) -> Progress:
        """How far this transport has come, for whoever watches it from another thread."""
        return Progress()

    def abort(self) -> None:  # noqa: B027
        """Ends a wait of another thread in `exchange`, with a TransportError there."""

    def close(self) -> None:  # noqa: B027 (most transports hold nothing)
        """Frees the links. Safe to call twice."""


class Counting(Transport):
    """Counts, and lets meta tensors of the stated shapes arrive."""

    def __init__(self, role: str):
        super().__init__(role, "meta")

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        return {peer: [allocated(s.shape, s.dtype) for s in specs] for peer, specs in receives.items()}


class Hub:
    """The queues that InProcess transports of one computation share, and the flag that stops all of them when one fails."""

    def __init__(self, timeout: float | None = 600.0):
        self.timeout = timeout
        self._queues: dict[tuple[str, str], queue.SimpleQueue[list[Tensor] | None]] = {}
        self.aborted = False

    def queue(self, source: str, target: str) -> queue.SimpleQueue[list[Tensor] | None]:
        q = self._queues.setdefault((source, target), queue.SimpleQueue())
        if self.aborted:
            q.put(None)
        return q

    def abort(self) -> None:
        """Wakes every receiver with a TransportError, those too that come later."""
        self.aborted = True
        for q in list(self._queues.values()):
            q.put(None)


class InProcess(Transport):
    """Threads of one process. Tensors are handed over as they are: a sender must not write to one that it has sent."""

    def __init__(self, role: str, hub: Hub, device: torch.device | str = "cpu"):
        super().__init__(role, device)
        self._hub = hub
        self._messages = 0
        self._awaited: tuple[str, ...] = ()

    def progress(self) -> Progress:
        return Progress((self._messages,), self._awaited)

    def abort(self) -> None:
        self._hub.abort()

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        if self._hub.aborted:
            raise TransportError(
                f"{self.role}: {next(iter({**receives, **sends}), 'a peer')} or another role failed"
            )
        for peer, tensors in sends.items():
            self._hub.queue(self.role, peer).put(list(tensors))
        received = {}
        for peer, specs in receives.items():
            self._messages += 1
            self._awaited = (peer,)
            try:
                arrived = self._hub.queue(peer, self.role).get(timeout=self._hub.timeout)
            except queue.Empty:
                raise TransportError(
                    f"{self.role}: nothing from {peer} for {self._hub.timeout:.0f} s"
                ) from None
            finally:
                self._awaited = ()
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
_AT_ONCE = 1 << 20
_TRIES = 30


def _bytes_view(x: Tensor) -> memoryview:
    """The tensor's bytes; of one on another device, a copy."""
    if x.device.type != "cpu":
        x = x.cpu()
    return x.contiguous().view(-1).view(torch.uint8).numpy().data


class _Link:
    """A socket to one peer, with what is still to be written to it and read from it.

    A short message is sent, and read, as one piece with its header: a narrow round costs one system call each way. A long one goes
    from and to the tensors' own memory.
    """

    def __init__(self, peer: str, sock: socket.socket):
        self.peer, self.sock = peer, sock
        self.sent = self.got = 0
        self.outgoing: deque[memoryview] = deque()
        self.incoming: deque[memoryview] = deque()
        self.specs: Sequence[TensorSpec] = ()
        self.tensors: list[Tensor] = []
        self.expected = 0
        self._header_left = 0
        self._buffer = memoryview(bytearray(_HEADER.size + _JOIN_BELOW))
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decrypted = getattr(sock, "pending", None)
        self.poll = select.poll()
        self.poll.register(sock, select.POLLIN)

    def queue_send(self, tensors: Sequence[Tensor]) -> None:
        total = nbytes(tensors)
        header = _HEADER.pack(_MAGIC, self.sent & 0xFFFFFFFF, total)
        self.sent += 1
        if total <= _JOIN_BELOW:
            message = b"".join([header, *[t.cpu().numpy().tobytes() for t in tensors]])
            self.outgoing.append(memoryview(message))
        else:
            self.outgoing.append(memoryview(header))
            self.outgoing.extend(_bytes_view(t) for t in tensors if t.numel())

    def queue_receive(self, specs: Sequence[TensorSpec]) -> None:
        """What arrives is in `tensors` once `incoming` is empty."""
        self.specs, self.expected, self._header_left = specs, sum([s.nbytes for s in specs]), _HEADER.size
        if self.expected <= _JOIN_BELOW:
            self.incoming.append(self._buffer[: _HEADER.size + self.expected])
        else:
            self.tensors = [torch.empty(s.shape, dtype=s.dtype) for s in specs]
            self.incoming.append(self._buffer[: _HEADER.size])
            self.incoming.extend(_bytes_view(t) for t in self.tensors if t.numel())

    def write(self) -> None:
        """Writes what the socket takes now."""
        while self.outgoing:
            first = self.outgoing[0]
            try:
                count = self.sock.send(first if len(first) <= _AT_ONCE else first[:_AT_ONCE])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            if count == len(first):
                self.outgoing.popleft()
            else:
                self.outgoing[0] = first[count:]

    def read(self) -> None:
        """Reads what has arrived."""
        if not self.incoming:
            return
        while self.incoming:
            first = self.incoming[0]
            try:
                count = self.sock.recv_into(first)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if count == 0:
                raise TransportError(f"{self.peer} closed the connection")
            if count < len(first):
                self.incoming[0] = first[count:]
            else:
                self.incoming.popleft()
            if self._header_left > 0:
                self._header_left -= count
                if self._header_left <= 0:
                    self._check()
        if self.expected <= _JOIN_BELOW:
            self._unpack()

    def _unpack(self) -> None:
        """The tensors of a short message, with memory of their own."""
        at, self.tensors = _HEADER.size, []
        for spec in self.specs:
            end = at + spec.nbytes
            if end > at:
                own = bytearray(self._buffer[at:end])
                self.tensors.append(torch.frombuffer(own, dtype=spec.dtype).view(spec.shape))
            else:
                self.tensors.append(torch.empty(spec.shape, dtype=spec.dtype))
            at = end

    def progress(self) -> tuple[int, int, int]:
        """Numbers of which one changes with every byte that is written or read: asked by another thread, and no work for this one."""
        return self.sent, self.got, sum(map(len, [*self.outgoing, *self.incoming]))

    def arrives(self, milliseconds: float | None) -> bool:
        """Waits until there is something to read. Parties in step answer within microseconds: going to sleep at once would cost more."""
        for _ in range(_TRIES):
            if self.poll.poll(0):
                return True
            os.sched_yield()
        return bool(self.poll.poll(milliseconds))

    def decrypted(self) -> bool:
        """Whether bytes wait that the socket has given up already: a poll would not see them."""
        return self._decrypted is not None and self._decrypted() > 0

    def _check(self) -> None:
        magic, number, length = _HEADER.unpack_from(self._buffer)
        if (magic, number, length) != (_MAGIC, self.got & 0xFFFFFFFF, self.expected):
            raise TransportError(
                f"{self.peer} sent message {number} of {length} bytes, expected message {self.got} of {self.expected} bytes"
            )
        self.got += 1


class Tcp(Transport):
    """Sockets to the peers; both directions of all links progress together, so that two large messages cannot block each other.

    Args:
        sockets: connected sockets by peer, already through their TLS handshake where TLS is used (see `links.py`).
        timeout: seconds without any progress after which a TransportError names the peers that are waited for; None leaves that to
            whoever watches `progress()`, and can tell a peer that is slow from one that has stopped.
    """

    def __init__(
        self,
        role: str,
        sockets: Mapping[str, socket.socket],
        device: torch.device | str = "cpu",
        timeout: float | None = 600.0,
    ):
        super().__init__(role, device)
        self._links = {peer: _Link(peer, sock) for peer, sock in sockets.items()}
        self._timeout = timeout

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        links = self._links
        for peer, tensors in sends.items():
            links[peer].queue_send(tensors)
        for peer, specs in receives.items():
            links[peer].queue_receive(specs)
        active = [links[peer] for peer in {*sends, *receives}]
        try:
            self._drain(active)
        except (ConnectionError, ssl.SSLError, OSError) as error:
            raise TransportError(
                f"{self.role}: link to {', '.join(link.peer for link in active)} failed: {error}"
            ) from error
        if self.device.type == "cpu":
            return {peer: links[peer].tensors for peer in receives}
        return {peer: [t.to(self.device) for t in links[peer].tensors] for peer in receives}

    def _drain(self, active: list[_Link]) -> None:
        """Writes, then waits for what is to come: a read that finds nothing costs more than the poll that says so."""
        for link in active:
            link.write()
        while True:
            active = [link for link in active if link.outgoing or link.incoming]
            if not active:
                return
            for link in self._ready(active):
                link.write()
                link.read()

    def _ready(self, active: list[_Link]) -> list[_Link]:
        """The links that have something to read, or room to write to; waits until one has."""
        ready = [link for link in active if link.incoming and link.decrypted()]
        if ready:
            return ready
        milliseconds = None if self._timeout is None else self._timeout * 1000
        if len(active) == 1 and not active[0].outgoing:
            ready = active if active[0].arrives(milliseconds) else []
        else:
            poll, by_number = select.poll(), {link.sock.fileno(): link for link in active}
            for number, link in by_number.items():
                poll.register(
                    number,
                    (select.POLLOUT if link.outgoing else 0) | (select.POLLIN if link.incoming else 0),
                )
            ready = [by_number[number] for number, _ in poll.poll(milliseconds)]
        if not ready:
            raise TransportError(
                f"{self.role}: no progress with {', '.join(k.peer for k in active)} for {self._timeout:.0f} s"
            )
        return ready

    def progress(self) -> Progress:
        moved: list[int] = []
        waits_for = []
        for peer, link in self._links.items():
            try:
                moved.extend(link.progress())
            except RuntimeError:  # the queue of messages changed while it was read
                moved.append(-1)
            if link.outgoing or link.incoming:
                waits_for.append(peer)
        return Progress(tuple(moved), tuple(waits_for))

    def abort(self) -> None:
        for link in self._links.values():
            try:  # the plain socket's own shutdown: TLS would want to say goodbye, while another thread reads
                socket.socket.shutdown(link.sock, socket.SHUT_RDWR)
            except OSError:
                pass  # gone already

    def close(self) -> None:
        for link in self._links.values():
            link.sock.close()
