"""A protocol as a third party would write one: textbook Beaver triples and bits, nothing but the contract.

Two additive parties and a dealer, semi-honest. It defines the four required primitives and takes every
default of the base class; slow
and simple, a reference for the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.correlations.correlation import Correlation, Field, Fields
from secure_eval.network.transport import TensorSpec
from secure_eval.protocols.base import Bilinear, Bits, Protocol, Secret
from secure_eval.scheduler import Exchange

Clear = Mapping[str, Tensor]
Others = Callable[[object], Clear]


@dataclass(frozen=True)
class Triple(Correlation):
    """a, b and op(a, b)."""

    op: Bilinear
    x: tuple[int, ...]
    y: tuple[int, ...]

    def random(self) -> Sequence[Field]:
        return Field("a", TensorSpec(self.x)), Field("b", TensorSpec(self.y))

    def derived(self) -> Sequence[Field]:
        return (Field("c", TensorSpec(self.op.shape(self.x, self.y))),)

    def derive(self, own: Clear, others: Others) -> Clear:
        return {"c": self.op(own["a"], own["b"])}


@dataclass(frozen=True)
class Shifted(Correlation):
    """r, its top bit and r >> shift."""

    shape: tuple[int, ...]
    shift: int

    def random(self) -> Sequence[Field]:
        return (Field("r", TensorSpec(self.shape)),)

    def derived(self) -> Sequence[Field]:
        return Field("top", TensorSpec(self.shape)), Field("shifted", TensorSpec(self.shape))

    def derive(self, own: Clear, others: Others) -> Clear:
        return {
            "top": ring.shift_right_logical(own["r"], 63),
            "shifted": ring.shift_right_logical(own["r"], self.shift),
        }


@dataclass(frozen=True)
class Decomposed(Correlation):
    """r and its 64 bits."""

    shape: tuple[int, ...]

    def random(self) -> Sequence[Field]:
        return (Field("r", TensorSpec(self.shape)),)

    def derived(self) -> Sequence[Field]:
        return (Field("bits", TensorSpec((64, *self.shape), torch.uint8), xor=True),)

    def derive(self, own: Clear, others: Others) -> Clear:
        return {"bits": torch.stack([(own["r"] >> i) & 1 for i in range(64)]).to(torch.uint8)}


@dataclass(frozen=True)
class And(Correlation):
    """u, v and u & v; used bit by bit in the lowest one."""

    shape: tuple[int, ...]

    def random(self) -> Sequence[Field]:
        return tuple(Field(n, TensorSpec(self.shape, torch.uint8), xor=True) for n in "uv")

    def derived(self) -> Sequence[Field]:
        return (Field("w", TensorSpec(self.shape, torch.uint8), xor=True),)

    def derive(self, own: Clear, others: Others) -> Clear:
        return {"w": own["u"] & own["v"]}


@dataclass(frozen=True)
class DoubleBit(Correlation):
    """A bit as XOR shares (the lowest of `bit`) and as ring shares."""

    shape: tuple[int, ...]

    def random(self) -> Sequence[Field]:
        return (Field("bit", TensorSpec(self.shape, torch.uint8), xor=True),)

    def derived(self) -> Sequence[Field]:
        return (Field("ring", TensorSpec(self.shape)),)

    def derive(self, own: Clear, others: Others) -> Clear:
        return {"ring": (own["bit"] & 1).to(ring.DTYPE)}


class Toy(Protocol):
    name = "toy"
    parties = 2
    parts = 2
    has_dealer = True
    adversary = "semi-honest, one of two parties or the dealer"
    disclosure = ("to both parties and the dealer: architecture and shapes",)

    @classmethod
    def parts_of(cls, party: int) -> tuple[int, ...]:
        return (party,)

    def _deal(self, correlation: Correlation) -> Fields:
        return self.source.next(correlation)[1]

    async def _open(self, *mine: Tensor) -> list[Tensor]:
        peer = f"party{1 - self.party}"
        theirs = (await Exchange({peer: list(mine)}, {peer: [TensorSpec.of(m) for m in mine]}))[peer]
        return [a + b if a.dtype == ring.DTYPE else a ^ b for a, b in zip(mine, theirs, strict=True)]

    async def bilinear(self, op: Bilinear, x: Secret, y: Secret) -> Secret:
        """Opens d = x - a and e = y - b: x y = c + d b + a e + d e (Beaver, CRYPTO 1991)."""
        t = self._deal(Triple(op, tuple(x.shape), tuple(y.shape)))
        d, e = await self._open(x.shares[0] - t["a"], y.shares[0] - t["b"])
        share = t["c"] + op(d, t["b"]) + op(t["a"], e)
        return Secret([share + op(d, e) if self.party == 0 else share], x.fraction_bits + y.fraction_bits)

    async def truncate(self, x: Secret, bits: int) -> Secret:
        """Opens c = x + 2^62 + r, which wrapped where r's top bit is 1 and c's is 0."""
        t = self._deal(Shifted(tuple(x.shape), bits))
        (c,) = await self._open(self.add_public(x, 1 << 62).shares[0] + t["r"])
        share = t["top"] * (c >= 0).to(ring.DTYPE) * (1 << (64 - bits)) - t["shifted"]
        if self.party == 0:
            share = share + ring.shift_right_logical(c, bits) - (1 << (62 - bits))
        return Secret([share], x.fraction_bits - bits)

    async def msb(self, x: Secret) -> Bits:
        """Opens c = x + r; the borrow of c - r into bit 63 comes from a tree over (c_i < r_i, c_i = r_i)."""
        t = self._deal(Decomposed(tuple(x.shape)))
        (c,) = await self._open(x.shares[0] + t["r"])
        bits = t["bits"] & 1
        r, ones = bits[:63], torch.stack([(c >> i) & 1 for i in range(63)]).to(torch.uint8)
        less, equal = r * (1 - ones), r ^ (1 - ones) if self.party == 0 else r
        less = torch.cat([torch.zeros_like(less[:1]), less])  # a lowest pair of bits that are equal makes 64
        equal = torch.cat([torch.full_like(equal[:1], 1 - self.party), equal])
        while len(less) > 1:
            high = equal[1::2]
            products = await self._and(torch.stack([high, high]), torch.stack([less[0::2], equal[0::2]]))
            less, equal = less[1::2] ^ products[0], products[1]
        top = bits[63] ^ less[0]
        return Bits([top ^ (c < 0).to(torch.uint8) if self.party == 0 else top])

    async def _and(self, x: Tensor, y: Tensor) -> Tensor:
        t = {k: v & 1 for k, v in self._deal(And(tuple(x.shape))).items()}
        d, e = await self._open(x ^ t["u"], y ^ t["v"])
        share = t["w"] ^ (d & t["v"]) ^ (e & t["u"])
        return share ^ (d & e) if self.party == 0 else share

    async def bits_to_ring(self, b: Bits) -> Secret:
        t = self._deal(DoubleBit(tuple(b.shape)))
        (e,) = await self._open(b.shares[0] ^ (t["bit"] & 1))
        e = e.to(ring.DTYPE)
        share = (1 - 2 * e) * t["ring"]
        return Secret([share + e if self.party == 0 else share], 0)
