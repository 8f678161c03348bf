"""Openings of a value under a mask, and what is computed from them: what the protocols that have such an opening share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from secure_eval import ring
from secure_eval.correlations.kinds import Mask
from secure_eval.protocols.base import Bits, Masked, Protocol, Secret, integer_coefficients
from secure_eval.scheduler import once


class MaskedOpening(Masked):
    """A secret x, its opening described by a Mask. `number` tells the openings of one value apart."""

    protocol: OpensUnderMask
    mask: Mask
    number: int | str

    @abstractmethod
    async def arrived(self) -> None:
        """Waits for the round after which readings can begin."""

    @abstractmethod
    async def ring_polynomial(self, integers: tuple[int, ...], out_bits: int) -> Secret:
        """sum_j integers[j] y^j of the truncated y, in the ring, with out_bits fraction bits."""

    async def truncated(self) -> Secret:
        """x / 2^shift, off by less than one unit in the last place, for abs(x) < 2^62."""
        if not self.mask.shift:
            return self.x
        bits = self.x.fraction_bits - self.mask.shift
        key = ("truncated", self.number, self.mask.shift)
        return await once(self.x.memo, key, lambda: self.ring_polynomial((0, 1), bits))

    async def polynomial(self, coefficients: Sequence[float], out_bits: int) -> Secret:
        """sum_j coefficients[j] y^j of the truncated y, exact in the ring."""
        degree = len(coefficients) - 1
        if degree > self.mask.degree:
            raise ValueError(f"opened for degree {self.mask.degree}, asked for degree {degree}")
        integers = integer_coefficients(coefficients, self.x.fraction_bits - self.mask.shift, out_bits)
        return await self.ring_polynomial(tuple(integers), out_bits)

    async def less_than(self, thresholds: Sequence[float]) -> Bits:
        """[x < t] for each threshold, stacked in front."""
        if not self.mask.compare:
            raise ValueError("opened without compare=True")
        integers = [ring.wrap(round(t * 2.0**self.x.fraction_bits)) for t in thresholds]
        return await self.protocol.below(self, integers)


class OpensUnderMask(Protocol):
    """A protocol whose `open_masked` keeps its readings in the value's memo, by their Mask."""

    @abstractmethod
    async def below(self, opened: MaskedOpening, thresholds: Sequence[int]) -> Bits:
        """[x < t] for thresholds with x's fraction bits, stacked in front."""

    async def _truncated(self, x: Secret, shift: int) -> Secret:
        """From an opening that is there already, or by itself."""
        for key, value in x.memo.items():
            if isinstance(key, Mask) and key.shift == shift:
                opened: MaskedOpening = value
                await opened.arrived()
                return await opened.truncated()
        return await self.truncate(x, shift)

    async def msb(self, x: Secret) -> Bits:
        return (await self.less_than(x, [0.0]))[0]
