"""What each role of a run knows: the seeds that it draws and is sent, what it expands from them, and every message.

A message may look uniform by itself and be none to a receiver that can take away what it knows: its own streams, its shares, what it
sent, other messages. `Knowledge` records all of it while a computation runs in threads, role by role, and `openings` are the sums and
XORs of what two parties send each other at one place of a round. For tests only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from secure_eval import randomness, ring
from secure_eval.parties import roles
from secure_eval.testing.statistics import MIN_SAMPLES, samples, surprises

FLIP = {torch.int64: 0x1E3779B97F4A7C15, torch.uint8: 0xFF}
"""What a test adds to a uniform ring element, and XORs to uniform bytes, to see where they go."""


@dataclass(frozen=True)
class Traffic:
    """One tensor that a role sent to or received from a peer, in exchange number `round` of this role in this
    phase.
    """

    phase: str
    role: str
    peer: str
    sent: bool
    round: int
    position: int
    tensor: Tensor


@dataclass(frozen=True)
class Expansion:
    """Tensor number `index` that a role expanded from the stream with this key, in a phase."""

    role: str
    key: bytes
    index: int
    tensor: Tensor


class Knowledge:
    """Records seeds and expansions of the roles whose calls are `labelled`, inside `watching`.

    Args:
        replay: the record of an earlier run, whose seeds are drawn again in place of fresh ones.
        flipped: key and index of a tensor that is changed by FLIP wherever it is expanded.
    """

    def __init__(self, replay: Knowledge | None = None, flipped: tuple[bytes, int] | None = None):
        self.seeds: dict[str, list[bytes]] = {}
        self.expansions: list[Expansion] = []
        self.traffic: list[Traffic] = []
        self._replay, self._flipped = replay, flipped
        self._local, self._lock = threading.local(), threading.Lock()

    def labelled(self, role: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, with what happens in it put down to a role."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            self._local.role = role
            try:
                return call(*args, **kwargs)
            finally:
                self._local.role = ""

        return inside

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records what labelled calls do inside."""
        tensor = randomness.Stream.tensor

        def expanded(stream: randomness.Stream, index: int, *args: Any, **kwargs: Any) -> Tensor:
            result = tensor(stream, index, *args, **kwargs)
            role = getattr(self._local, "role", "")
            if not role or result.device.type == "meta":
                return result
            if self._flipped == (stream._key, index) and result.dtype in FLIP:
                change = FLIP[result.dtype]
                result = result + change if result.dtype == ring.DTYPE else result ^ change
            with self._lock:  # a copy: callers compute in place
                self.expansions.append(Expansion(role, stream._key, index, result.clone()))
            return result

        with patch.object(randomness.Stream, "tensor", expanded), patch.object(roles, "new_seed", self._seed):
            yield

    def _seed(self) -> bytes:
        role = getattr(self._local, "role", "")
        drawn = self.seeds.setdefault(role, [])
        seed = randomness.new_seed() if self._replay is None else self._replay.seeds[role][len(drawn)]
        drawn.append(seed)
        return seed

    def holders(self) -> dict[bytes, set[str]]:
        """For each seed that was drawn, the roles that know it: who drew it and who was sent it."""
        found = {seed: {role} for role, seeds in self.seeds.items() for seed in seeds}
        for t in self.traffic:
            if not t.sent and _is_seed(t.tensor):
                found.setdefault(bytes(t.tensor.tolist()), {t.peer}).add(t.role)
        return found

    def sent_seeds(self, role: str, peer: str) -> list[bytes]:
        """The seeds that a role was sent by a peer."""
        messages = [t for t in self.traffic if t.role == role and t.peer == peer and not t.sent]
        return [bytes(t.tensor.tolist()) for t in messages if _is_seed(t.tensor)]

    def telling(self, role: str) -> Iterator[tuple[str, float]]:
        """Every message that a role receives, alone and with everything else that it knows: a name, and how far from uniform it is.

        With M the message, S what it sent at the same place to that peer, and K anything else of as many elements of the type: M, M + S
        and M ^ S, each alone, less K, plus K and XOR K. Messages too short for a test are left out. What only has the values 0 and 1 is
        taken for bits, and held to be uniform as such.
        """
        mine = [(_place(t), t) for t in self.traffic if t.role == role]
        known = [(f"expanded {e.index:#x}", e.tensor) for e in self.expansions if e.role == role]
        known += [(name, t.tensor) for name, t in mine]
        alike: dict[tuple[int, torch.dtype], list[tuple[str, Tensor]]] = {}
        for name, k in known:
            if k.numel() >= MIN_SAMPLES:
                alike.setdefault((k.numel(), k.dtype), []).append((name, samples(k)))
        at = dict(mine)
        for name, t in mine:
            if t.sent or t.tensor.numel() < MIN_SAMPLES:
                continue
            others = alike[t.tensor.numel(), t.tensor.dtype]
            message, answer = samples(t.tensor), at.get(_place(replace(t, sent=True)))
            yield from _with_others(name, message, [o for o in others if o[0] != name])
            if answer is None or (answer.tensor.numel(), answer.tensor.dtype) != (
                t.tensor.numel(),
                t.tensor.dtype,
            ):
                continue
            mine_too, own = samples(answer.tensor), (name, _place(answer))
            rest = [o for o in others if o[0] not in own]
            yield from _with_others(f"{name} ^ what was sent", message ^ mine_too, rest)
            if not _are_bits(message):
                yield from _with_others(f"{name} + what was sent", message + mine_too, rest)


def _place(t: Traffic) -> str:
    return f"{'sent to' if t.sent else 'from'} {t.peer} in {t.phase} {t.round}.{t.position}"


def _is_seed(x: Tensor) -> bool:
    return x.dtype == torch.uint8 and tuple(x.shape) == (randomness.SEED_BYTES,)


def _are_bits(x: Tensor) -> bool:
    return x.dtype == torch.uint8 and int(x.max()) <= 1


def _with_others(
    name: str, message: Tensor, others: Sequence[tuple[str, Tensor]]
) -> Iterator[tuple[str, float]]:
    """The message alone, and with each of the others by difference, sum and XOR."""
    rows, names = [message[None]], [name]
    if others:
        k = torch.stack([other for _, other in others])
        for sign, both in (("-", message - k), ("+", message + k), ("^", message ^ k)):
            rows.append(both & 1 if _are_bits(message) else both)
            names += [f"{name} {sign} {other}" for other, _ in others]
    yield from zip(names, surprises(torch.cat(rows)).tolist(), strict=True)


def openings(traffic: Sequence[Traffic]) -> dict[tuple[Any, ...], Tensor]:
    """What pairs of parties open online: the sum (of ring elements) or XOR of two tensors of one shape that they send each other at
    one place of a round, by who they are and where."""
    sent = {
        (t.role, t.peer, t.round, t.position): t.tensor
        for t in traffic
        if t.phase == "online" and t.sent and t.role.startswith("party") and t.peer.startswith("party")
    }
    found = {}
    for (a, b, number, position), one in sent.items():
        other = sent.get((b, a, number, position))
        if a < b and other is not None and (one.shape, one.dtype) == (other.shape, other.dtype):
            found[a, b, number, position] = one + other if one.dtype == ring.DTYPE else one ^ other
    return found


def moved(before: Mapping[Any, Tensor], after: Mapping[Any, Tensor]) -> list[Any]:
    """The openings that a flipped tensor masks: every ring element changed by FLIP, every bit inverted."""
    found = []
    for place, old in before.items():
        new = after[place]
        if old.dtype == ring.DTYPE:
            masked = any(torch.equal(new - old, torch.full_like(old, c * FLIP[ring.DTYPE])) for c in (1, -1))
        else:
            ones = 1 if _are_bits(old) and _are_bits(new) else FLIP[torch.uint8]
            masked = torch.equal(new ^ old, torch.full_like(old, ones))
        if masked:
            found.append(place)
    return found
