"""Two parties with additive shares, and a dealer that hands out correlated randomness ahead of the query.
Semi-honest.

Everything rests on one step: a secret x is opened as c = x + r, r uniform on the whole ring, and from that
one opening come

    products        x * y = c_x * y - r_x * c_y + r_x * r_y                (Beaver, CRYPTO 1991)
    truncation      x / 2^s = (c >> s) - (r >> s) + [wrapped] * 2^(64-s)   (Escudero et al., ia.cr/2020/338)
    polynomials     of the truncated value, from the powers of its mask
    comparisons     x < t: is the public c - t below the dealt bits of r?  (Damgard et al., TCC 2006)
    selections      b * x for secret bits b, each opened as one bit

so an operation that needs several of them pays one opening of 8 bytes. The dealer knows r and deals shares of
what each reading needs. No opened value depends on a secret: every mask is uniform on the modulus it is
opened in, and used for one value.

Comparison. r is dealt as sixteen groups of four bits, each as the XOR-shared indicator vector of its value. A
party looks up its share of [c_j = r_j] at the public c_j, and of [c_j < r_j] in the vector's suffix sums:
that costs no message. Two levels of four-input AND gates (ABY2.0, USENIX Security 2021, section 3.1.4) then
join the sixteen groups to one borrow bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, prod

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.correlations import Correlation, Field, Fields, Source
from secure_eval.kernels import kernel
from secure_eval.protocols import bitwords
from secure_eval.protocols.base import (
    LINEAR,
    MUL,
    Bilinear,
    Bits,
    Masked,
    Protocol,
    Secret,
    integer_coefficients,
)
from secure_eval.scheduler import Exchange, Task, once, start
from secure_eval.transport import TensorSpec

_WEIGHT = "weight"
_OFFSET_BITS = ring.BITS - ring.HEADROOM_BITS


def _by_columns(x: Tensor) -> Tensor:
    """The same matrix, stored column by column."""
    return x.mT.contiguous().mT


# -- local steps ---------------------------------------------------------------------------------------------


@kernel
def mask_readings(r: Tensor, *, shift: int, degree: int) -> tuple[Tensor, ...]:
    """The derived fields of a Mask but for its groups, in their order: power j unless it is r itself, and
    wrap j where shift > 0."""
    top = ring.shift_right_logical(r, ring.BITS - 1)
    truncated = ring.shift_right_logical(r, shift)
    unwrapped = truncated - (1 << (ring.BITS - shift)) if shift else truncated
    power, unwrapped_power = truncated, unwrapped
    values = []
    for j in range(1, degree + 1):
        if j > 1 or shift:
            values.append(power)
        if shift:
            excess = ring.shift_right_logical(top * (power - unwrapped_power), ring.BITS - shift)
            values.append(excess.to(ring.smallest_dtype(shift)))
        power, unwrapped_power = power * truncated, unwrapped_power * unwrapped
    return tuple(values)


@kernel
def polynomial_share(
    c: Tensor, *fields: Tensor, coefficients: tuple[int, ...], shift: int, add_public: bool
) -> Tensor:
    """Share of sum_j coefficients[j] y^j, y = x / 2^shift, from an opened c = x + r.

    Taylor's formula around y's public part: sum_k P^(k)(public)/k! * (-mask)^k. `fields` are the shares of
    the powers 1 to the degree of r / 2^shift, then where shift > 0 as many wraps. The term without a mask is
    added by one party.
    """
    degree = len(coefficients) - 1
    public = c
    if shift:
        c = c + (1 << _OFFSET_BITS)
        public = ring.shift_right_logical(c, shift) - (1 << (_OFFSET_BITS - shift))
        # x + r wrapped exactly when r's top bit is 1 and the opened one is 0.
        not_wrapped = (c >= 0).to(ring.DTYPE) << (ring.BITS - shift)
    share = _horner(coefficients, public) if add_public else torch.zeros_like(public)
    for k in range(1, degree + 1):
        power = fields[k - 1]
        if shift:
            power = power - not_wrapped * fields[degree + k - 1]
        derivative = _horner([comb(j, k) * coefficients[j] for j in range(k, degree + 1)], public)
        share = share - derivative * power if k % 2 else share + derivative * power
    return share


def _horner(coefficients: Sequence[int], x: Tensor) -> Tensor:
    total = torch.full_like(x, ring.wrap(coefficients[-1]))
    for c in reversed(coefficients[:-1]):
        total = total * x + ring.wrap(c)
    return total


@kernel
def product_share(c_x: Tensor, r_x: Tensor, y: Tensor, c_y: Tensor, product: Tensor) -> Tensor:
    """Share of x * y elementwise, broadcasting: c_x [y] - [r_x] c_y + [r_x r_y]."""
    return torch.addcmul(torch.addcmul(product, c_x, y), r_x, c_y, value=-1)


@kernel
def bits_as_ring(packed: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Packed bits as ring elements 0 and 1 of a shape."""
    return bitwords.unpack_bits(packed, prod(shape)).view(shape).to(ring.DTYPE)


@kernel
def bit_share(packed: Tensor, rho: Tensor, *, add_public: bool) -> Tensor:
    """Share of a bit as a ring element from the packed opened e = b ^ rho: e + (1 - 2e) rho, shape of rho."""
    e = bitwords.unpack_bits(packed, rho.numel()).view(rho.shape).to(ring.DTYPE)
    share = (1 - 2 * e) * rho
    return share + e if add_public else share


@kernel
def select_share(packed: Tensor, rho: Tensor, x: Tensor, c: Tensor, product: Tensor) -> Tensor:
    """Share of b * x from the packed opened e = b ^ rho and c = x + r.

    e [x] + (1 - 2e)([rho] c - [rho r]).
    """
    e = bitwords.unpack_bits(packed, rho.numel()).view(rho.shape).to(ring.DTYPE)
    return e * x + (1 - 2 * e) * (rho * c - product)


# -- what the dealer deals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mask(Correlation):
    """A mask r of one opening, with what its readings need.

    With T = r >> shift and m the top bit of r: the powers T^j, and what to subtract from them when x + r
    wrapped, which is m * (T^j - (T - 2^(64-shift))^j), a multiple of 2^(64-shift) (j up to degree). The
    indicator vectors of r's 4-bit groups when it serves comparisons.
    """

    shape: tuple[int, ...]
    shift: int = 0
    degree: int = 1
    compare: bool = False

    def random(self) -> Sequence[Field]:
        return (Field("r", TensorSpec(self.shape)),)

    def derived(self) -> Sequence[Field]:
        fields = []
        for j in range(1, self.degree + 1):
            if j > 1 or self.shift:
                fields.append(Field(f"power{j}", TensorSpec(self.shape)))
            if self.shift:
                fields.append(Field(f"wrap{j}", TensorSpec(self.shape, ring.smallest_dtype(self.shift))))
        if self.compare:
            fields.append(Field("groups", TensorSpec((bitwords.GROUPS, *self.shape), torch.int16), xor=True))
        return fields

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        r = own["r"]
        names = [f.name for f in self.derived() if not f.xor]
        values = (
            dict(zip(names, mask_readings(r, shift=self.shift, degree=self.degree), strict=True))
            if names
            else {}
        )
        if self.compare:
            values["groups"] = bitwords.indicators(r)
        return values


@dataclass(frozen=True)
class Product(Correlation):
    """op(r_x, r_y) of two masks; a mask is named by its number in the plan, or by the weight that it masks
    for good."""

    op: Bilinear
    x: int | str
    y: int | str
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]

    def random(self) -> Sequence[Field]:
        return ()

    def derived(self) -> Sequence[Field]:
        return (Field("product", TensorSpec(self.op.shape(self.x_shape, self.y_shape))),)

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        return {"product": self.op(others(self.x)["r"], others(self.y)["r"])}

    def references(self) -> Sequence[object]:
        return (self.x, self.y)


@dataclass(frozen=True)
class And4(Correlation):
    """Masks of one level of four-input carry nodes, and all products of them that the carry formula
    contains."""

    words: int
    need_p: bool

    def random(self) -> Sequence[Field]:
        return (
            Field("masks", TensorSpec((bitwords.inputs(self.need_p), self.words), torch.uint8), xor=True),
        )

    def derived(self) -> Sequence[Field]:
        return (
            Field(
                "products",
                TensorSpec((len(bitwords.monomials(self.need_p)), self.words), torch.uint8),
                xor=True,
            ),
        )

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        return {"products": bitwords.mask_products(own["masks"], need_p=self.need_p)}


@dataclass(frozen=True)
class BitMask(Correlation):
    """Masks of secret bits, as XOR shares and as ring shares, and their products with the mask of an opened
    value.

    `value` names the mask of that value (None: conversion only). Bits and value broadcast against each other.
    """

    shape: tuple[int, ...]
    value: int | str | None = None
    value_shape: tuple[int, ...] = ()

    def random(self) -> Sequence[Field]:
        return (Field("packed", TensorSpec((-(-prod(self.shape) // 8),), torch.uint8), xor=True),)

    def derived(self) -> Sequence[Field]:
        fields = [Field("ring", TensorSpec(self.shape))]
        if self.value is not None:
            fields.append(
                Field("product", TensorSpec(tuple(torch.broadcast_shapes(self.shape, self.value_shape))))
            )
        return fields

    def derive(
        self, own: Mapping[str, Tensor], others: Callable[[object], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        bits = bits_as_ring(own["packed"], shape=self.shape)
        values = {"ring": bits}
        if self.value is not None:
            values["product"] = bits * others(self.value)["r"]
        return values

    def references(self) -> Sequence[object]:
        return () if self.value is None else (self.value,)


# -- the protocol --------------------------------------------------------------------------------------------


class Opened(Masked):
    """A secret x opened as c = x + r."""

    def __init__(
        self,
        protocol: Dealer2PC,
        x: Secret,
        pending: Task[Tensor],
        mask: Mask,
        number: int | str,
        fields: Fields,
    ):
        self.protocol: Dealer2PC = protocol
        self.x, self._pending, self.mask, self.number, self.fields = x, pending, mask, number, fields

    async def arrived(self) -> None:
        """Waits for the round in which c is opened."""
        await self._pending

    @property
    def c(self) -> Tensor:
        assert self._pending.result is not None, "read before the round in which it is opened"
        return self._pending.result

    def lay_out_by_columns(self) -> None:
        """Moves c in memory, once: integer matrix products read y^T by rows faster."""
        self._pending.result = _by_columns(self.c)

    async def truncated(self) -> Secret:
        """x / 2^shift, off by less than one unit in the last place, for abs(x) < 2^62. No message."""
        if not self.mask.shift:
            return self.x
        return await once(self.x.memo, ("truncated", self.number), self._truncated)

    async def _truncated(self) -> Secret:
        return Secret([self._polynomial((0, 1))], self.x.fraction_bits - self.mask.shift)

    async def polynomial(self, coefficients: Sequence[float], out_bits: int) -> Secret:
        """sum_j coefficients[j] y^j of the truncated y, exact in the ring. No message."""
        degree = len(coefficients) - 1
        if degree > self.mask.degree:
            raise ValueError(f"opened for degree {self.mask.degree}, asked for degree {degree}")
        integers = integer_coefficients(coefficients, self.x.fraction_bits - self.mask.shift, out_bits)
        return Secret([self._polynomial(tuple(integers))], out_bits)

    def _polynomial(self, integers: tuple[int, ...]) -> Tensor:
        powers = range(1, len(integers))
        fields = [self.fields["r" if j == 1 and not self.mask.shift else f"power{j}"] for j in powers]
        if self.mask.shift:
            fields += [self.fields[f"wrap{j}"] for j in powers]
        first = self.protocol.party == 0
        return polynomial_share(
            self.c, *fields, coefficients=integers, shift=self.mask.shift, add_public=first
        )

    async def less_than(self, thresholds: Sequence[float]) -> Bits:
        """[x < t] for each threshold, stacked in front: 4.25 bytes and two rounds after the opening."""
        if not self.mask.compare:
            raise ValueError("opened without compare=True")
        integers = [ring.wrap(round(t * 2.0**self.x.fraction_bits)) for t in thresholds]
        return await self.protocol.below(self, integers)


class Dealer2PC(Protocol):
    """Two parties, a dealer; see the module. `source` provides the dealt shares in the order in which they
    are used."""

    name = "dealer2pc"
    parties = 2
    parts = 2
    has_dealer = True
    adversary = "semi-honest, one of the two parties or the dealer, none of them colluding"
    disclosure = (
        "to both parties and the dealer: the architecture, tensor shapes, sequence length and batch size, "
        "and timing",
        "to both parties: the public inputs (attention mask, token types, positions) and constants of the "
        "architecture",
        "to the client alone: the declared outputs; with client-side embedding also the embedding table",
        "to the model owner: nothing of the queries; to the dealer: nothing of queries, weights or results",
    )

    def __init__(
        self, party: int, source: Source, device: torch.device | str = "cpu", fraction_bits: int = 16
    ):
        super().__init__(party, source, device, fraction_bits)
        self._peer = f"party{1 - party}"

    @classmethod
    def parts_of(cls, party: int) -> tuple[int, ...]:
        return (party,)

    # -- openings --------------------------------------------------------------------------------------------

    async def _open(self, mine: Tensor) -> Tensor:
        """The sum of both parties' tensors."""
        received = await Exchange({self._peer: [mine]}, {self._peer: [TensorSpec.of(mine)]})
        return mine + received[self._peer][0]

    async def _open_bits(self, mine: Tensor) -> Tensor:
        received = await Exchange({self._peer: [mine]}, {self._peer: [TensorSpec.of(mine)]})
        return mine ^ received[self._peer][0]

    async def _begin(self, x: Secret, mask: Mask, name: str | None = None) -> Opened:
        """Starts to open x under a fresh mask, once for the same mask description; the mask is known at once,
        c after the round."""
        key = mask if name is None else _WEIGHT
        if key not in x.memo:
            number, fields = self.source.next(mask)
            pending = await start(self._open(x.shares[0] + fields["r"]))
            x.memo[key] = Opened(self, x, pending, mask, number if name is None else name, fields)
        opened: Opened = x.memo[key]
        return opened

    async def _begin_any(self, x: Secret) -> Opened:
        """Any opening of x serves a product; a fresh one is started only where there is none yet."""
        for key, value in x.memo.items():
            if isinstance(key, Mask) or key == _WEIGHT:
                opened: Opened = value
                return opened
        return await self._begin(x, Mask(tuple(x.shape)))

    async def open_masked(
        self, x: Secret, *, shift: int = 0, degree: int = 1, compare: bool = False
    ) -> Opened:
        """x + r, opened once for the same readings however many operations ask: 8 bytes an element, one
        round."""
        opened = await self._begin(x, Mask(tuple(x.shape), shift, degree, compare))
        await opened.arrived()
        return opened

    async def weight(self, name: str, x: Secret) -> Secret:
        """Opens a weight once under a mask that stays: each later product opens only the other operand."""
        opened = await self._begin(x, Mask(tuple(x.shape)), name)
        await opened.arrived()
        return x

    def prepare(
        self,
        correlation: Correlation,
        fields: Fields,
        masks: Callable[[int], Fields],
        weights: Mapping[str, Secret],
    ) -> Fields:
        """Offline work on a dealt correlation: the half of a product with a fixed weight that needs no
        query."""
        if (
            not isinstance(correlation, Product)
            or not isinstance(correlation.x, int)
            or not isinstance(correlation.y, str)
        ):
            return fields
        weight = weights[correlation.y]
        opened: Opened = weight.memo[_WEIGHT]
        if correlation.op == LINEAR and not weight.shares[0].mT.is_contiguous():
            weight.shares = tuple(_by_columns(s) for s in weight.shares)
            opened.lay_out_by_columns()
        return {"prepared": fields["product"] - correlation.op(masks(correlation.x)["r"], opened.c)}

    # -- arithmetic ------------------------------------------------------------------------------------------

    async def bilinear(self, op: Bilinear, x: Secret, y: Secret) -> Secret:
        """One round for those operands that no earlier operation opened. [xy] = c_x [y] - [r_x] c_y + [r_x
        r_y]."""
        a, b = await self._begin_any(x), await self._begin_any(y)
        _, fields = self.source.next(Product(op, a.number, b.number, tuple(x.shape), tuple(y.shape)))
        await a.arrived()
        await b.arrived()
        if "prepared" in fields:
            share = op(a.c, y.shares[0])
            share += fields["prepared"]
        elif op == MUL:
            share = product_share(a.c, a.fields["r"], y.shares[0], b.c, fields["product"])
        else:
            share = op(a.c, y.shares[0])
            share -= op(a.fields["r"], b.c)
            share += fields["product"]
        return Secret([share], x.fraction_bits + y.fraction_bits)

    async def square(self, x: Secret) -> Secret:
        opened = await self.open_masked(x, degree=2)
        return await opened.polynomial([0.0, 0.0, 1.0], 2 * x.fraction_bits)

    async def truncate(self, x: Secret, bits: int) -> Secret:
        return await self._truncated(x, bits)

    # -- bits ------------------------------------------------------------------------------------------------

    async def msb(self, x: Secret) -> Bits:
        return (await self.less_than(x, [0.0]))[0]

    async def below(self, opened: Opened, thresholds: Sequence[int]) -> Bits:
        """[x < t], x = c - r: the top bit of (c - t) - r, from the borrow of its lower 63 bits."""
        first = self.party == 0
        words = bitwords.words(len(thresholds) * prod(opened.x.shape))
        _, level = self.source.next(And4(words, True))
        message, g3, top = bitwords.compare_first(
            opened.c, opened.fields["groups"], level["masks"], thresholds=tuple(thresholds), add_public=first
        )
        e = await self._open_bits(message)
        _, last = self.source.next(And4(words // 4, False))
        message, g3 = bitwords.compare_second(
            e, level["masks"], level["products"], g3, last["masks"], add_public=first
        )
        e = await self._open_bits(message)
        return Bits([bitwords.compare_last(e, last["masks"], last["products"], g3, top, add_public=first)])

    async def _open_bitmask(self, b: Bits, correlation: BitMask) -> tuple[Tensor, Fields]:
        """The packed bits of e = b ^ rho."""
        _, fields = self.source.next(correlation)
        return await self._open_bits(bitwords.pack_masked(b.shares[0], fields["packed"])), fields

    async def bits_to_ring(self, b: Bits) -> Secret:
        """b = e + (1 - 2e) rho from the opened e = b ^ rho: one bit, one round."""
        e, fields = await self._open_bitmask(b, BitMask(tuple(b.shape)))
        return Secret([bit_share(e, fields["ring"], add_public=self.party == 0)], 0)

    async def select(self, b: Bits, x: Secret) -> Secret:
        """b * x: one round, one bit and x's opening unless it is open already."""
        return (await self._select(b, x))[0]

    async def select_with_bits(self, b: Bits, x: Secret) -> tuple[Secret, Secret]:
        """b * x, and b as a ring element, from the same opened bits."""
        selected, e, fields = await self._select(b, x)
        return selected, Secret([bit_share(e, fields["ring"], add_public=self.party == 0)], 0)

    async def _select(self, b: Bits, x: Secret) -> tuple[Secret, Tensor, Fields]:
        opened = await self._begin_any(x)
        e, fields = await self._open_bitmask(b, BitMask(tuple(b.shape), opened.number, tuple(x.shape)))
        await opened.arrived()
        share = select_share(e, fields["ring"], x.shares[0], opened.c, fields["product"])
        return Secret([share], x.fraction_bits), e, fields
