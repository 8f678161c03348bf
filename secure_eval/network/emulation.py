"""A network that this machine does not have: messages are held back at the receiver until a link of a given delay and bandwidth would
have delivered them.

What is emulated is a link with a queue of its own in each direction (full duplex). A message of b payload bytes whose sender began to
send it at time t, over a link of bandwidth B and round trip R, is there in full at

    max(t, when the link was free) + b / B + R / 2

and the link is free again after max(t, when it was free) + b / B. Headers are not counted, as in the ledgers. Senders never wait for the
link: what they have sent stands in its queue. What a message really takes on this machine passes within that time and is not added.

The sender's clock is read by the receiver, so both must be processes or threads of one machine, whose monotonic clock is shared
(Linux: CLOCK_MONOTONIC). Bytes, messages and rounds are counted as without emulation.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from secure_eval.network.transport import Incoming, Outgoing, Progress, TensorSpec, Transport, TransportError

_STAMP = TensorSpec((1,), torch.float64)
_SPIN_S = 150e-6


@dataclass(frozen=True)
class Link:
    """What lies between any two roles.

    `round_trip_s`: seconds from one to the other and back; `bandwidth_bytes_per_s`: payload bytes a second in each direction.
    Raises ValueError for a negative or infinite delay and for a bandwidth that is not above 0 (infinity is allowed).
    """

    round_trip_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.round_trip_s < math.inf:
            raise ValueError(f"round_trip_s={self.round_trip_s!r}; allowed: seconds, 0 or more")
        if not self.bandwidth_bytes_per_s > 0:
            raise ValueError(f"bandwidth_bytes_per_s={self.bandwidth_bytes_per_s!r}; allowed: more than 0")


class Clock:
    """Seconds of this machine's monotonic clock, the same in all its processes."""

    def now(self) -> float:
        return time.monotonic()

    def wait_until(self, due: float) -> None:
        """Returns at `due`, or at once if that has passed. Sleeps end late, long ones by more: so it sleeps in shorter and shorter
        parts, and the last of them is spun."""
        while (left := due - time.monotonic()) > 0:
            if left > _SPIN_S:
                time.sleep(left - max(_SPIN_S, left / 16))


class Direction:
    """One direction of one link: when each message is there, and when the link is free again. Times are seconds of any one clock."""

    def __init__(self, link: Link):
        self._link = link
        self._free = -math.inf

    def arrival(self, sent_at: float, nbytes: int) -> float:
        """When a message of `nbytes`, begun at `sent_at`, is there in full. To be asked once a message, in the order of sending."""
        self._free = max(sent_at, self._free) + nbytes / self._link.bandwidth_bytes_per_s
        return self._free + self._link.round_trip_s / 2


class Emulated(Transport):
    """A transport of the same role over emulated links: `inner` carries the messages, each with its sender's time before it.

    All roles of a computation are emulated with one link and clock, or none is. `exchange` raises TransportError where a sender's
    time lies in the future: its clock is another machine's.
    """

    def __init__(self, inner: Transport, link: Link, clock: Clock | None = None):
        super().__init__(inner.role, inner.device)
        self._inner, self._link, self._clock = inner, link, clock or Clock()
        self._directions: dict[str, Direction] = {}

    def _move(self, sends: Outgoing, receives: Incoming) -> dict[str, list[Tensor]]:
        now = torch.tensor([self._clock.now()], dtype=_STAMP.dtype)
        arrived = self._inner._move(
            {peer: [now, *tensors] for peer, tensors in sends.items()},
            {peer: [_STAMP, *specs] for peer, specs in receives.items()},
        )
        due = -math.inf
        for peer, (stamp, *_) in arrived.items():
            sent_at, read_at = float(stamp), self._clock.now()
            if not sent_at <= read_at:
                raise TransportError(
                    f"{self.role}: {peer} sent a message at {sent_at:.3f} s, and it is {read_at:.3f} s: "
                    "only roles of one machine can be put on an emulated network"
                )
            direction = self._directions.setdefault(peer, Direction(self._link))
            due = max(due, direction.arrival(sent_at, sum(spec.nbytes for spec in receives[peer])))
        self._clock.wait_until(due)
        return {peer: tensors[1:] for peer, tensors in arrived.items()}

    def progress(self) -> Progress:
        return self._inner.progress()

    def abort(self) -> None:
        self._inner.abort()

    def close(self) -> None:
        self._inner.close()


def over(link: Link | None, transport: Transport) -> Transport:
    """The transport over an emulated link, or as it is where none is given."""
    return transport if link is None else Emulated(transport, link)
