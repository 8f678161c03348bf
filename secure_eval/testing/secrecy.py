"""What every protocol has to keep from whom, as tests that conformance.py hands on to any project's protocol.

The tests of distributions take their randomness from the operating system; secrets are fixed. A right protocol fails one of them with
probability below 1e-9 a run of all (see `statistics.surprises`). Protocols of one party keep nothing from anybody, and pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from secure_eval import protocols, ring
from secure_eval.functions.gelu import gelu
from secure_eval.protocols.base import LINEAR, MATMUL, MUL, Bits, Protocol, Secret
from secure_eval.scheduler import gather
from secure_eval.testing.harness import evaluate
from secure_eval.testing.knowledge import Knowledge, moved, openings
from secure_eval.testing.statistics import SURPRISE_LIMIT

Step = tuple[Callable[..., Any], tuple[int, ...]]


async def _products(p: Protocol, x: Secret, y: Secret) -> list[Secret]:
    return [await p.bilinear(MUL, x, y), await p.bilinear(MUL, p.add_public(x, 5), y)]


async def _matrices(p: Protocol, x: Secret, y: Secret) -> Secret:
    return await p.bilinear(MATMUL, x, y)


async def _square(p: Protocol, x: Secret, y: Secret) -> Secret:
    return await p.square(x)


async def _truncations(p: Protocol, x: Secret, y: Secret) -> list[Secret]:
    return [await p.truncate(x, 13), await p.truncate(y, 13)]


async def _comparisons(p: Protocol, x: Secret, y: Secret) -> list[Bits]:
    """Two of one shape, one after the other."""
    return [await p.less_than(x, [0.0]), await p.less_than(y, [0.5])]


async def _comparisons_together(p: Protocol, x: Secret, y: Secret) -> list[Bits]:
    return await gather(p.less_than(x, [0.0]), p.less_than(y, [0.5]))


async def _conversions(p: Protocol, x: Secret, y: Secret) -> list[Secret]:
    a, b = await p.msb(x), await p.msb(y)
    return [await p.bits_to_ring(a), await p.bits_to_ring(b)]


async def _selections(p: Protocol, x: Secret, y: Secret) -> list[Secret]:
    """By different bits, of the same value and of another one."""
    a, b = await p.msb(x), await p.msb(y)
    return [await p.select(a, x), await p.select(b, x), *(await p.select_with_bits(b, y))]


async def _polynomial(p: Protocol, x: Secret, y: Secret) -> list[Secret]:
    opened = await p.open_masked(x, shift=4, degree=3, compare=True)
    other = await p.polynomial_product(y, 4, [0.5, 1.0, 0.25], 28, x)
    return [await opened.truncated(), await opened.polynomial([0.0, 1.0, 0.5, 0.25], 60), other]


async def _gelu(p: Protocol, x: Secret, y: Secret) -> Secret:
    return await gelu(p, x)


VIEWED: dict[str, Step] = {
    "mul": (_products, (4096,)),
    "matmul": (_matrices, (40, 40)),
    "square": (_square, (1400,)),
    "truncate": (_truncations, (11264,)),
    "compare": (_comparisons, (11264,)),
    "compare few": (_comparisons_together, (1400,)),
    "convert": (_conversions, (11264,)),
    "select": (_selections, (11264,)),
    "polynomial": (_polynomial, (1400,)),
    "gelu": (_gelu, (1400,)),
}
"""Functions of two secrets of one shape, large enough for tests of what is sent."""

MASKED: dict[str, Step] = {name: VIEWED[name] for name in tuple(VIEWED)[:9]}
"""What the others are made of: few enough tensors for a run with each of them changed."""

_SECRETS = 27.3, -3.7


async def _weighted(p: Protocol, x: Secret, w: Secret) -> Secret:
    return await p.truncate(await p.bilinear(LINEAR, x, w), 16)


class SecrecyConformance:
    """The part of ProtocolConformance that is about who learns what."""

    protocol: ClassVar[str]
    device: ClassVar[str] = "cpu"

    @property
    def cls(self) -> type[Protocol]:
        return protocols.get(self.protocol)

    def known(self, function: Callable[..., Any], *values: Tensor, **options: Any) -> Knowledge:
        """What every role knows after a run."""
        knowledge = options.pop("knowledge", None) or Knowledge()
        evaluate(self.cls, function, *values, device=self.device, knowledge=knowledge, **options)
        return knowledge

    def _uniform(self, knowledge: Knowledge) -> list[tuple[bytes, int]]:
        """Key and index of each uniform tensor of a correlation. Where there is a dealer, party 1's, which expands no others: with its
        share, what is shared changes."""
        inputs = {e.key for e in knowledge.expansions if e.role in ("client", "owner")}
        mine = [e for e in knowledge.expansions if e.role == "party1" or not self.cls.has_dealer]
        return list(dict.fromkeys((e.key, e.index) for e in mine if e.key not in inputs))

    def _roles(self) -> list[str]:
        return [f"party{i}" for i in range(self.cls.parties)] + ["dealer"] * self.cls.has_dealer

    def _unsurprising(self, knowledge: Knowledge) -> None:
        for role in self._roles():
            told = dict(knowledge.telling(role))
            assert told or role == "dealer", f"{role} receives nothing that is large enough for a test"
            telling = {name: round(s, 1) for name, s in told.items() if s > SURPRISE_LIMIT}
            assert not telling, (
                f"{role} learns from {len(telling)} of {len(told)}: {dict(list(telling.items())[:5])}"
            )

    def test_nothing_that_a_party_knows_unmasks_what_it_receives(self, viewed: str) -> None:
        """One secret in thousands of places. Every message to a party is uniform given what it has besides: its own streams and shares,
        what it sent, and each other message, by difference, sum and XOR."""
        if self.cls.parties == 1:
            return
        function, shape = VIEWED[viewed]
        values = [ring.encode(torch.full(shape, v, dtype=torch.float64), 16) for v in _SECRETS]
        self._unsurprising(self.known(function, *values))

    def test_nothing_unmasks_weights_or_a_second_query(self) -> None:
        """The same with weights, which are opened at set-up, and over two queries of the same input."""
        if self.cls.parties == 1:
            return
        x = ring.encode(torch.full((40, 40), _SECRETS[0], dtype=torch.float64), 16)
        self._unsurprising(self.known(_weighted, x, weights=[torch.full((40, 40), 0.25)], queries=2))

    def test_seeds_differ_by_who_may_know_them(self) -> None:
        """A seed is known to whoever drew it and to those who hold what is expanded from it, and no two are equal: a purpose in the
        expansion does not separate those who hold one seed."""
        knowledge = self.known(_weighted, torch.ones(2, 3, dtype=torch.int64), weights=[torch.ones(4, 3)])
        drawn = [seed for seeds in knowledge.seeds.values() for seed in seeds]
        assert len(set(drawn)) == len(drawn), "a seed was drawn twice"
        parts = [set(self.cls.parts_of(i)) for i in range(self.cls.parties)]
        holders = [
            {f"party{i}" for i, held in enumerate(parts) if part in held} for part in range(self.cls.parts)
        ]
        allowed = [{owner} | some for owner in ("client", "owner") for some in holders[:-1]]
        allowed += [{"dealer", f"party{i}"} for i in range(self.cls.parties) if self.cls.has_dealer]
        allowed += [{f"party{i}" for i in group} for group in self.cls.seed_groups]
        found = list(knowledge.holders().values())
        assert sorted(map(sorted, found)) == sorted(map(sorted, allowed))
        for role in self._roles():
            for peer in {t.peer for t in knowledge.traffic if t.role == role}:
                seeds = knowledge.sent_seeds(role, peer)
                assert len(set(seeds)) == len(seeds), f"{peer} sent {role} one seed twice"

    def test_the_dealer_receives_nothing(self) -> None:
        knowledge = self.known(_weighted, torch.ones(2, 3, dtype=torch.int64), weights=[torch.ones(4, 3)])
        assert not [t for t in knowledge.traffic if t.role == "dealer" and not t.sent]
        assert not [t for t in knowledge.traffic if t.role == "dealer" and t.phase == "online"]

    def test_no_random_block_serves_twice(self, masked: str) -> None:
        """Over two queries: the 16-byte blocks that are expanded from all seeds are distinct, but for the ends that share a stream."""
        function, shape = MASKED[masked]
        shape = (96,) if len(shape) == 1 else (8, 8)
        x = torch.arange(64 if len(shape) > 1 else 96).view(shape)
        knowledge = self.known(function, x, x + 3, queries=2)
        tensors: dict[tuple[bytes, int], Tensor] = {}
        for e in knowledge.expansions:
            one = tensors.setdefault((e.key, e.index), e.tensor)
            assert torch.equal(one, e.tensor), f"{e.role} expands another tensor {e.index:#x} than its peer"
        assert tensors or self.cls.parties == 1
        blocks: list[bytes] = []
        for tensor in tensors.values():
            data = tensor.contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes()
            blocks += [data[i : i + 16] for i in range(0, len(data) - 15, 16)]
        assert len(set(blocks)) == len(blocks), f"{len(blocks) - len(set(blocks))} blocks are used again"

    def test_each_mask_covers_one_opening_and_each_opening_has_a_mask(self, masked: str) -> None:
        """A ledger of masks: the query is run again with the same seeds and one expanded tensor changed, for each tensor in turn. What two
        parties open changes by just that where it is the mask; that has to be one place at most, and every opening needs such a tensor."""
        if self.cls.parties == 1:
            return
        function, shape = MASKED[masked]
        generator = torch.Generator().manual_seed(8)
        few = 4104 if masked == "compare" else 72  # protocols may compare many values otherwise than few
        shape = (few,) if len(shape) == 1 else (9, 9)
        values = [torch.randint(-(1 << 20), 1 << 20, shape, generator=generator) for _ in range(2)]
        first = self.known(function, *values)
        before = openings(first.traffic)
        masks: dict[Any, list[Any]] = {}
        for key, index in self._uniform(first):
            again = self.known(function, *values, knowledge=Knowledge(first, (key, index)))
            for place in moved(before, openings(again.traffic)):
                masks.setdefault((key, index), []).append(place)
        several = [places for places in masks.values() if len(places) > 1]
        assert not several, f"one mask for several openings: {several}"
        bare = set(before) - {place for places in masks.values() for place in places}
        assert not bare, f"no mask of its own at {sorted(bare)}"
