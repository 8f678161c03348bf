"""The contract that every protocol fulfils.

Parties and shares. A secret ring element x (mod 2^64, fixed point with `fraction_bits` fraction bits) is a sum of `parts` ring
elements; party p holds the parts `parts_of(p)`. Two additive parties hold one part each, three replicated ones two of three. A
secret bit is an XOR of as many parts. Data owners split and join values by these rules alone, so roles know no protocol.

A protocol object is one party's view of one query. Linear steps are local and come for free here. What a protocol must define:

    bilinear(op, x, y)      op(x, y) for a bilinear map op (product, matrix product); fraction bits add up
    truncate(x, bits)       x / 2^bits, at most one unit in the last place off, for abs(x) < 2^62
    msb(x)                  the sign bit
    bits_to_ring(b)         a secret bit as the ring element 0 or 1

and what it may define where it has something better: `open_masked` (several readings of one opening), `select`, `square`,
`weight`. Everything that sends is a coroutine over `scheduler.Exchange`. Nothing in a protocol reveals a secret: outputs leave
through the parties' role, and only those that the program declares. Protocol code runs unchanged on meta tensors, where only
shapes exist: a step that looked at a share's value could not be priced, and raises there.

A third party registers a protocol class under the entry point group `sordino.protocols`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from secure_eval import ring
from secure_eval.correlations.correlation import Correlation, Fields, Source
from secure_eval.scheduler import gather, once


class Secret:
    """One party's parts of a secret tensor.

    `fraction_bits` is the position of the binary point of this tensor; truncation happens where a consumer needs fewer bits, not
    where a product is made. `memo` remembers what was already done to this very tensor (its truncation, its masked opening), so
    that consumers share it.
    """

    __slots__ = ("shares", "fraction_bits", "memo")

    def __init__(self, shares: Sequence[Tensor], fraction_bits: int):
        self.shares = tuple(shares)
        self.fraction_bits = fraction_bits
        self.memo: dict[Any, Any] = {}

    @property
    def shape(self) -> torch.Size:
        return self.shares[0].shape

    def map(self, linear: Callable[[Tensor], Tensor], fraction_bits: int | None = None) -> Secret:
        """Applies a Z-linear map (a view, a sum, a product with public integers) to each part."""
        return Secret(
            [linear(s) for s in self.shares], self.fraction_bits if fraction_bits is None else fraction_bits
        )

    def __repr__(self) -> str:
        return f"Secret(shape={tuple(self.shape)}, fraction_bits={self.fraction_bits})"


class Bits:
    """One party's parts of a tensor of secret bits: uint8 tensors of 0 and 1 whose XOR over the parts is the bit."""

    __slots__ = ("shares",)

    def __init__(self, shares: Sequence[Tensor]):
        self.shares = tuple(shares)

    @property
    def shape(self) -> torch.Size:
        return self.shares[0].shape

    def map(self, linear: Callable[[Tensor], Tensor]) -> Bits:
        return Bits([linear(s) for s in self.shares])

    def __xor__(self, other: Bits) -> Bits:
        return Bits([a ^ b for a, b in zip(self.shares, other.shares, strict=True)])

    def __getitem__(self, index: Any) -> Bits:
        return self.map(lambda s: s[index])


@dataclass(frozen=True)
class Bilinear:
    """A bilinear map of two integer tensors: "mul" (elementwise, broadcasting), "matmul" or "linear" (x @ y^T).

    `windows` are views of x that come first, each a torch operation and its arguments after the tensor: so a convolution is "linear" on the
    windows of x, and it is x that a protocol masks, not each of its windows.
    """

    kind: str
    windows: tuple[tuple[Any, ...], ...] = ()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.with_product(ring.matmul, x, y)

    def with_product(self, matmul: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The map with another function for its matrix product."""
        for target, *rest in self.windows:
            _, name, overload = target.split(".")
            x = getattr(getattr(torch.ops.aten, name), overload)(x, *rest)
        if self.kind == "mul":
            return x * y
        if self.kind == "matmul":
            return matmul(x, y)
        if self.kind == "linear":
            return matmul(x, y.transpose(-1, -2))
        raise ValueError(f"unknown bilinear map {self.kind!r}; allowed: mul, matmul, linear")

    def shape(self, x: Sequence[int], y: Sequence[int]) -> tuple[int, ...]:
        """Shape of the result for operands of shapes x and y."""
        return _result_shape(self, tuple(x), tuple(y))


@lru_cache(maxsize=1 << 12)
def _result_shape(op: Bilinear, x: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, ...]:
    # Asking for a shape is no work of the computation: nobody who counts work may see it.
    with _disable_current_modes():
        return tuple(op(*(torch.empty(shape, dtype=ring.DTYPE, device="meta") for shape in (x, y))).shape)


MUL, MATMUL, LINEAR = Bilinear("mul"), Bilinear("matmul"), Bilinear("linear")


def by_columns(x: Tensor) -> Tensor:
    """The same matrix, stored column by column: integer products with its transpose read it faster."""
    return x.mT.contiguous().mT


def integer_coefficients(coefficients: Sequence[float], x_bits: int, out_bits: int) -> list[int]:
    """Coefficients (constant first) of a polynomial in x with x_bits fraction bits, as integers for a result with out_bits.

    Raises ValueError when out_bits leaves the leading coefficient no bits.
    """
    degree = len(coefficients) - 1
    if out_bits < degree * x_bits:
        raise ValueError(
            f"a polynomial of degree {degree} in {x_bits} fraction bits has at least {degree * x_bits}, not {out_bits}"
        )
    return [ring.wrap(round(c * 2 ** (out_bits - j * x_bits))) for j, c in enumerate(coefficients)]


class Protocol(ABC):
    """One party's view of one query. See the module for the contract.

    Args:
        party: number of this party, 0 to parties - 1.
        source: hands out correlated randomness (nothing, in protocols that use none).
        device: where shares live.
        fraction_bits: fraction bits of inputs and weights, and of values after truncation.
    """

    name: ClassVar[str]
    parties: ClassVar[int]
    parts: ClassVar[int]
    has_dealer: ClassVar[bool] = False
    seed_groups: ClassVar[tuple[tuple[int, ...], ...]] = ()
    """Groups of parties (ascending) that agree on a seed at set-up, for the common fields of correlations."""
    adversary: ClassVar[str]
    """The adversary against which it is private, as published: said in every report."""
    disclosure: ClassVar[tuple[str, ...]]
    """What the parties see by design."""

    def __init__(
        self, party: int, source: Source, device: torch.device | str = "cpu", fraction_bits: int = 16
    ):
        self.party = party
        self.source = source
        self.device = torch.device(device)
        self.fraction_bits = fraction_bits

    @classmethod
    @abstractmethod
    def parts_of(cls, party: int) -> tuple[int, ...]:
        """Numbers of the parts that a party holds, in the order of its shares."""

    @classmethod
    def truncation_failure(cls, magnitude_bits: float, shift: int) -> float:
        """Probability that `truncate` by `shift` bits is more than a unit off for a ring element of magnitude 2^magnitude_bits.

        0 below 2^62 is the contract; a protocol whose truncation may fail states how likely that is, and reports add it up.
        """
        return 0.0 if magnitude_bits < ring.VALUE_BITS else 1.0

    # -- what a protocol must define -------------------------------------------------------------------------------------------

    @abstractmethod
    async def bilinear(self, op: Bilinear, x: Secret, y: Secret) -> Secret: ...

    @abstractmethod
    async def truncate(self, x: Secret, bits: int) -> Secret: ...

    @abstractmethod
    async def msb(self, x: Secret) -> Bits: ...

    @abstractmethod
    async def bits_to_ring(self, b: Bits) -> Secret: ...

    # -- what it may define better ---------------------------------------------------------------------------------------------

    async def weight(self, name: str, x: Secret) -> Secret:
        """Called once a model for each weight that an operation multiplies with; what it opens counts as set-up."""
        return x

    def prepare(
        self,
        correlation: Correlation,
        fields: Fields,
        masks: Callable[[int], Fields],
        weights: Mapping[str, Secret],
    ) -> Fields:
        """Offline work on a dealt correlation. `masks(n)` gives the fields of correlation n of the plan."""
        return fields

    async def square(self, x: Secret) -> Secret:
        return await self.bilinear(MUL, x, x)

    async def select(self, b: Bits, x: Secret) -> Secret:
        """x where the bit is 1, zero where it is 0; b broadcasts against x."""
        return (await self.select_with_bits(b, x))[0]

    async def select_with_bits(self, b: Bits, x: Secret) -> tuple[Secret, Secret]:
        """b * x, and b itself as a ring element."""
        bit = await self.bits_to_ring(b)
        return await self.bilinear(MUL, bit, x), bit

    async def both(self, b: Bits, gate: Bits) -> Secret:
        """b AND gate as ring elements 0 and 1; `gate` has b's shape but for the first dimension."""
        bits, gates = await gather(self.bits_to_ring(b), self.bits_to_ring(gate))
        return await self.bilinear(MUL, bits, gates)

    async def open_masked(
        self, x: Secret, *, shift: int = 0, degree: int = 1, compare: bool = False
    ) -> Masked:
        """Readies x for several readings at once: its truncation by `shift` bits, polynomials of it up to `degree`, comparisons.

        A protocol that opens x under a mask can serve all of them from that one opening; this default makes each by itself.
        """
        y = await self.truncate(x, shift) if shift else x
        return Masked(self, x, y, degree, compare)

    async def polynomial_product(
        self, x: Secret, shift: int, coefficients: Sequence[float], out_bits: int, factor: Secret
    ) -> Secret:
        """P(x / 2^shift) * factor elementwise, the polynomial at out_bits fraction bits; exact in the ring, so it has to fit there.

        `factor` broadcasts to x's shape.
        """
        opened = await self.open_masked(x, shift=shift, degree=len(coefficients) - 1)
        return await self.bilinear(MUL, await opened.polynomial(coefficients, out_bits), factor)

    # -- local -----------------------------------------------------------------------------------------------------------------

    def public(self, value: Tensor, fraction_bits: int) -> Secret:
        """A public ring element as a (trivial) secret."""
        mine = self.parts_of(self.party)
        return Secret([value if part == 0 else torch.zeros_like(value) for part in mine], fraction_bits)

    def add_public(self, x: Secret, value: Tensor | int) -> Secret:
        """x + value for public ring elements at x's own fraction bits."""
        mine = self.parts_of(self.party)
        return Secret(
            [s + value if part == 0 else _like(s, value) for part, s in zip(mine, x.shares, strict=True)],
            x.fraction_bits,
        )

    def add_real(self, x: Secret, value: float) -> Secret:
        """x + value for a public real number."""
        return self.add_public(x, ring.wrap(round(value * 2.0**x.fraction_bits)))

    def add(self, x: Secret, y: Secret) -> Secret:
        x, y = self._aligned(x, y)
        return Secret([a + b for a, b in zip(x.shares, y.shares, strict=True)], x.fraction_bits)

    def sub(self, x: Secret, y: Secret) -> Secret:
        x, y = self._aligned(x, y)
        return Secret([a - b for a, b in zip(x.shares, y.shares, strict=True)], x.fraction_bits)

    def scale(self, x: Secret, factor: int | Tensor, fraction_bits: int = 0) -> Secret:
        """x * factor / 2^fraction_bits for public integers, exactly: the fraction bits move, nothing is cut off."""
        return x.map(lambda s: s * factor, x.fraction_bits + fraction_bits)

    def lift(self, x: Secret, fraction_bits: int) -> Secret:
        """The same value with more fraction bits."""
        more = fraction_bits - x.fraction_bits
        assert more >= 0, (x, fraction_bits)
        return x if more == 0 else x.map(lambda s: s << more, fraction_bits)

    def _aligned(self, x: Secret, y: Secret) -> tuple[Secret, Secret]:
        bits = max(x.fraction_bits, y.fraction_bits)
        return self.lift(x, bits), self.lift(y, bits)

    def invert(self, b: Bits) -> Bits:
        mine = self.parts_of(self.party)
        return Bits([s ^ 1 if part == 0 else s for part, s in zip(mine, b.shares, strict=True)])

    # -- composed --------------------------------------------------------------------------------------------------------------

    async def rescale(self, x: Secret, fraction_bits: int | None = None) -> Secret:
        """x with `fraction_bits` (the protocol's own unless said): lifted locally, or truncated once however many ask."""
        bits = self.fraction_bits if fraction_bits is None else fraction_bits
        if x.fraction_bits <= bits:
            return self.lift(x, bits)
        return await once(x.memo, ("rescale", bits), lambda: self._truncated(x, x.fraction_bits - bits))

    async def _truncated(self, x: Secret, shift: int) -> Secret:
        masked = await self.open_masked(x, shift=shift)
        return await masked.truncated()

    async def less_than(self, x: Secret, thresholds: Sequence[float]) -> Bits:
        """[x < t] for each public threshold t, stacked in front: shape [len(thresholds), *x.shape]."""
        masked = await self.open_masked(x, compare=True)
        return await masked.less_than(thresholds)


def _like(s: Tensor, value: Tensor | int) -> Tensor:
    """The part that does not take a public summand, broadcast as the sum would be."""
    return s if isinstance(value, int) else s.expand(torch.broadcast_shapes(s.shape, value.shape))


class Masked:
    """Several readings of one secret x; the default makes each with the protocol's primitives (see Protocol.open_masked)."""

    def __init__(self, protocol: Protocol, x: Secret, y: Secret, degree: int, compare: bool):
        self.protocol, self.x, self._y = protocol, x, y
        self._degree, self._compare = degree, compare

    async def truncated(self) -> Secret:
        """x / 2^shift."""
        return self._y

    async def polynomial(self, coefficients: Sequence[float], out_bits: int) -> Secret:
        """sum_j coefficients[j] y^j of the truncated y, with out_bits >= degree * fraction bits of y; exact in the ring."""
        if len(coefficients) - 1 > self._degree:
            raise ValueError(f"opened for degree {self._degree}, asked for degree {len(coefficients) - 1}")
        p, y = self.protocol, self._y
        integers = integer_coefficients(coefficients, y.fraction_bits, out_bits)
        powers = {1: y}
        for j in range(2, len(integers)):
            powers[j] = await (p.square(powers[j // 2]) if j % 2 == 0 else p.bilinear(MUL, powers[j - 1], y))
        total = p.public(torch.full_like(y.shares[0], integers[0]), out_bits)
        for j in range(1, len(integers)):
            term = powers[j].map(lambda s, c=integers[j]: s * c, out_bits)  # type: ignore[misc]
            total = p.add(total, term)
        return total

    async def less_than(self, thresholds: Sequence[float]) -> Bits:
        """[x < t] of the untruncated x, for each threshold, stacked in front."""
        if not self._compare:
            raise ValueError("opened without compare=True")
        p = self.protocol
        signs = await gather(*(p.msb(p.add_real(self.x, -t)) for t in thresholds))
        return Bits([torch.stack(parts) for parts in zip(*(b.shares for b in signs), strict=True)])
