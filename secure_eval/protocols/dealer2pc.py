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

Truncation of a value that needs no other reading opens one bit an element, not x: each party shifts its share, and what that
gets wrong is 2^(64-s) where both shares' top bits are set (their signs are compared as in SIRNN, S&P 2021, section III-C, for a
value whose own sign is known). The product of the two private bits comes from one dealt product of two private mask bits.

Comparison. r is dealt as sixteen groups of four bits, each as the XOR-shared indicator vector of its value. A party looks up its share of
[c_j = r_j] at the public c_j, and of [c_j < r_j] in the vector's suffix sums: that costs no message. Two levels of four-input AND gates
(ABY2.0, USENIX Security 2021, section 3.1.4) then join the sixteen groups to one borrow bit (kernels/compare_radix16.py). Where few
elements are compared, the groups are bytes and one level joins them (kernels/compare_radix256.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from secure_eval.correlations.correlation import Correlation, Fields, Source
from secure_eval.correlations.kinds import (
    And4,
    And14,
    BitMask,
    BothMask,
    Mask,
    MaskPowers,
    PolynomialProduct,
    Product,
    Truncation,
)
from secure_eval.kernels import compare_radix16, compare_radix256
from secure_eval.kernels.masked_opening import (
    bit_share,
    both_share,
    polynomial_share,
    product_share,
    public_polynomial,
    select_share,
    truncation_share,
    wrap_message,
)
from secure_eval.network.transport import TensorSpec
from secure_eval.protocols.base import (
    LINEAR,
    MUL,
    Bilinear,
    Bits,
    Secret,
    by_columns,
    integer_coefficients,
)
from secure_eval.protocols.masked_opening import MaskedOpening, OpensUnderMask
from secure_eval.scheduler import Exchange, Task, start

_WEIGHT = "weight"

_FEW = 4096
"""Elements up to which a comparison takes one level of gates: a round less, more bytes dealt."""


class Opened(MaskedOpening):
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
        self._pending.result = by_columns(self.c)

    async def ring_polynomial(self, integers: tuple[int, ...], out_bits: int) -> Secret:
        """No message."""
        powers = range(1, len(integers))
        fields = [self.fields["r" if j == 1 and not self.mask.shift else f"power{j}"] for j in powers]
        if self.mask.shift:
            fields += [self.fields[f"wrap{j}"] for j in powers]
        first = self.protocol.party == 0
        share = polynomial_share(
            self.c, *fields, coefficients=integers, shift=self.mask.shift, add_public=first
        )
        return Secret([share], out_bits)


class Dealer2PC(OpensUnderMask):
    """Two parties, a dealer; see the module. `source` provides the dealt shares in the order in which they
    are used."""

    name = "dealer2pc"
    parties = 2
    parts = 2
    has_dealer = True
    adversary = "semi-honest, one of the two parties or the dealer, none of them colluding"
    disclosure = (
        "to both parties and the dealer: the architecture, the numbers in the program's text, tensor shapes, sequence length and "
        "batch size, and timing",
        "to both parties: the public inputs (attention mask, token types, positions) and the tensors listed as public",
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
        c after the round. What compares nothing is read from an opening that is there already."""
        key = mask if name is None else _WEIGHT
        earlier = None if mask.compare or key in x.memo else self._opening(x)
        if earlier is not None:
            more = MaskPowers(mask.shape, mask.shift, mask.degree, earlier.number)
            fields = self.source.next(more)[1] if more.derived() else {}
            fields = {"r": earlier.fields["r"], **fields}
            x.memo[key] = Opened(self, x, earlier._pending, mask, earlier.number, fields)
        if key not in x.memo:
            number, fields = self.source.next(mask)
            pending = await start(self._open(x.shares[0] + fields["r"]))
            x.memo[key] = Opened(self, x, pending, mask, number if name is None else name, fields)
        opened: Opened = x.memo[key]
        return opened

    async def _begin_any(self, x: Secret) -> Opened:
        """Any opening of x serves a product; a fresh one is started only where there is none yet."""
        return self._opening(x) or await self._begin(x, Mask(tuple(x.shape)))

    def _opening(self, x: Secret) -> Opened | None:
        """The first opening of x, if there is one."""
        for key, value in x.memo.items():
            if isinstance(key, Mask) or key == _WEIGHT:
                opened: Opened = value
                return opened
        return None

    async def open_masked(
        self, x: Secret, *, shift: int = 0, degree: int = 1, compare: bool = False
    ) -> Opened:
        """x + r, opened once for the same readings however many operations ask: 8 bytes an element, one
        round."""
        few = compare and prod(x.shape) <= _FEW
        opened = await self._begin(x, Mask(tuple(x.shape), shift, degree, compare, one_level=few))
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
            weight.shares = tuple(by_columns(s) for s in weight.shares)
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

    async def polynomial_product(
        self, x: Secret, shift: int, coefficients: Sequence[float], out_bits: int, factor: Secret
    ) -> Secret:
        """One round: with P(y) = D_0 + sum_k D_k M_k in public D_k and mask powers M_k, and factor = c_f - f,
        P(y) * factor = D_0 [factor] + sum_k D_k (c_f [M_k] - [M_k f])."""
        degree, shape = len(coefficients) - 1, tuple(x.shape)
        if shape != tuple(torch.broadcast_shapes(shape, factor.shape)):
            raise ValueError(f"a factor of shape {tuple(factor.shape)} does not broadcast to {shape}")
        integers = tuple(integer_coefficients(coefficients, x.fraction_bits - shift, out_bits))
        opened = await self._begin(x, Mask(shape, shift, degree))
        other = await self._begin_any(factor)
        correlation = PolynomialProduct(shape, shift, degree, opened.number, other.number)
        _, products = self.source.next(correlation)
        await opened.arrived()
        await other.arrived()
        rest = [f.name for f in correlation.derived()]
        masked = {"power1": opened.fields["r"], **opened.fields}
        own = polynomial_share(
            opened.c, *(masked[n] for n in rest), coefficients=integers, shift=shift, add_public=False
        )
        both = polynomial_share(
            opened.c, *(products[n] for n in rest), coefficients=integers, shift=shift, add_public=False
        )
        share = (
            public_polynomial(opened.c, coefficients=integers, shift=shift) * factor.shares[0]
            + other.c * own
            - both
        )
        return Secret([share], out_bits + factor.fraction_bits)

    async def truncate(self, x: Secret, bits: int) -> Secret:
        """One bit an element, one round; right for abs(x) < 2^62."""
        share, first = x.shares[0], self.party == 0
        _, fields = self.source.next(Truncation(tuple(x.shape), bits))
        mine = wrap_message(share, fields["mask"], add_public=first)
        theirs = (await Exchange({self._peer: [mine]}, {self._peer: [TensorSpec.of(mine)]}))[self._peer][0]
        y = truncation_share(
            share, mine, theirs, fields["mask"], fields["product"], shift=bits, add_public=first
        )
        return Secret([y], x.fraction_bits - bits)

    # -- bits ------------------------------------------------------------------------------------------------

    async def below(self, opened: MaskedOpening, thresholds: Sequence[int]) -> Bits:
        """[x < t], x = c - r: the top bit of (c - t) - r, from the borrow of its lower 63 bits."""
        assert isinstance(opened, Opened)
        first, count = self.party == 0, len(thresholds) * prod(opened.x.shape)
        groups = opened.fields["groups"]
        if opened.mask.one_level:
            _, gate = self.source.next(And14(compare_radix256.words(count)))
            message, g7, top = compare_radix256.byte_compare_first(
                opened.c, groups, gate["masks"], thresholds=tuple(thresholds), add_public=first
            )
            e = await self._open_bits(message)
            bits = compare_radix256.byte_compare_last(
                e, gate["masks"], gate["products"], g7, top, add_public=first
            )
            return Bits([bits])
        words = compare_radix16.words(count)
        _, level = self.source.next(And4(words, True))
        message, g3, top = compare_radix16.compare_first(
            opened.c, groups, level["masks"], thresholds=tuple(thresholds), add_public=first
        )
        e = await self._open_bits(message)
        _, last = self.source.next(And4(words // 4, False))
        message, g3 = compare_radix16.compare_second(
            e, level["masks"], level["products"], g3, last["masks"], add_public=first
        )
        e = await self._open_bits(message)
        return Bits(
            [compare_radix16.compare_last(e, last["masks"], last["products"], g3, top, add_public=first)]
        )

    async def _open_bitmask(self, b: Bits, correlation: BitMask) -> tuple[Tensor, Fields]:
        """The packed bits of e = b ^ rho."""
        _, fields = self.source.next(correlation)
        return await self._open_bits(compare_radix16.pack_masked(b.shares[0], fields["packed"])), fields

    async def bits_to_ring(self, b: Bits) -> Secret:
        """b = e + (1 - 2e) rho from the opened e = b ^ rho: one bit, one round."""
        e, fields = await self._open_bitmask(b, BitMask(tuple(b.shape)))
        return Secret([bit_share(e, fields["ring"], add_public=self.party == 0)], 0)

    async def both(self, b: Bits, gate: Bits) -> Secret:
        """One round, a bit each."""
        _, fields = self.source.next(BothMask(tuple(b.shape)))
        mine = [
            compare_radix16.pack_masked(b.shares[0], fields["packed"]),
            compare_radix16.pack_masked(gate.shares[0], fields["gate_packed"]),
        ]
        specs = [TensorSpec.of(m) for m in mine]
        received = (await Exchange({self._peer: mine}, {self._peer: specs}))[self._peer]
        e, d = (m ^ r for m, r in zip(mine, received, strict=True))
        ring_fields = (fields[name] for name in ("ring", "gate", "product"))
        return Secret([both_share(e, d, *ring_fields, add_public=self.party == 0)], 0)

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
