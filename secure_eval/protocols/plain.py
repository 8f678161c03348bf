"""Fixed-point arithmetic in the ring without any sharing: one party that sees everything.

It is the living definition of every operation, and the line between the error of fixed point and the error of a protocol. It
protects nothing.
"""

from __future__ import annotations

import torch

from secure_eval import ring
from secure_eval.protocols.base import Bilinear, Bits, Protocol, Secret


class Plain(Protocol):
    name = "plain"
    parties = 1
    parts = 1
    adversary = "none: the one party sees all data in the clear; for development only"
    disclosure = ("everything",)

    @classmethod
    def parts_of(cls, party: int) -> tuple[int, ...]:
        return (0,)

    async def bilinear(self, op: Bilinear, x: Secret, y: Secret) -> Secret:
        # Nothing is hidden here, so that a product may be as quick as its values allow.
        result = op.with_product(ring.matmul_by_size, x.shares[0], y.shares[0])
        return Secret([result], x.fraction_bits + y.fraction_bits)

    async def truncate(self, x: Secret, bits: int) -> Secret:
        return x.map(lambda s: (s + (1 << (bits - 1))) >> bits, x.fraction_bits - bits)

    async def msb(self, x: Secret) -> Bits:
        return Bits([(x.shares[0] < 0).to(torch.uint8)])

    async def bits_to_ring(self, b: Bits) -> Secret:
        return Secret([b.shares[0].to(torch.int64)], 0)
