"""Three parties with replicated shares, honest majority, no dealer and no data-independent messages. Semi-honest.

x = x_0 + x_1 + x_2; party i holds x_i and x_{i+1} (Araki et al., CCS 2016; ABY3, CCS 2018). A product costs one ring element a party
for each element of the result, however long the sums inside it are.

For everything else two facts about replicated shares do the work of a masked opening without opening anything. Let i be any party,
a = i + 1 and b = i + 2 the others:

    x = c - r   with c = x_{i+2}, which a and b know, and r = -(x_i + x_{i+1}), which i knows
    x = u + v   with u = x_{i+1} + x_{i+2}, which a knows, and v = x_i, which b knows

c is uniform and r its mask. So party i deals, at that moment, what a dealer deals ahead of a query in `dealer2pc`: shares of the
powers of r, of the indicator vectors of its digits, of its products with bits; a and b take the same local steps (steps.py). What a
and b get is a sum of two terms; one message each way between them makes it replicated again, its other two parts coming from seeds
that i has in common with a and with b. The party that deals changes from step to step, so that all send about as much.

One share of what i deals comes from the seed that it has in common with a; the other is a message to b. Every message is masked by
values that its receiver cannot expand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.correlations.correlation import (
    CommonField,
    Correlation,
    Field,
    Fields,
    Source,
    combine,
    difference,
)
from secure_eval.correlations.kinds import And4, BitMask, Mask, Truncation
from secure_eval.kernels import compare_radix16
from secure_eval.kernels.masked_opening import (
    bit_share,
    polynomial_share,
    select_share,
    truncation_share,
    wrap_message,
)
from secure_eval.network.transport import TensorSpec
from secure_eval.protocols.base import (
    MUL,
    Bilinear,
    Bits,
    Secret,
    by_columns,
)
from secure_eval.protocols.masked_opening import MaskedOpening, OpensUnderMask
from secure_eval.scheduler import Exchange, Task, gather, start

_SUM = "sum of the parts"
_PAIRS = ((0, 1), (1, 2), (0, 2))


def _pair(a: int, b: int) -> tuple[int, int]:
    return (min(a, b), max(a, b))


# -- what parties expand from common seeds --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Zero(Correlation):
    """Three ring elements that add up to zero: party i knows the one that it has in common with i + 1 less that with i - 1."""

    shape: tuple[int, ...]

    def common(self) -> Sequence[CommonField]:
        return [CommonField(f"to{i}", TensorSpec(self.shape), _pair(i, (i - 1) % 3)) for i in range(3)]


@dataclass(frozen=True)
class Parts(Correlation):
    """The two parts that a dealing party has in common with the others, of a value that they hold in two terms."""

    spec: TensorSpec
    dealing: int

    def common(self) -> Sequence[CommonField]:
        i = self.dealing
        return [CommonField(name, self.spec, _pair(i, (i + k) % 3)) for k, name in ((1, "a"), (2, "b"))]


@dataclass(frozen=True)
class Dealing(Correlation):
    """A correlation that party `dealing` deals to the two others: their shares of its uniform fields, and one share of its derived
    ones, come from common seeds."""

    correlation: Correlation
    dealing: int

    def common(self) -> Sequence[CommonField]:
        i = self.dealing
        fields = []
        for f in self.uniform():
            fields += [CommonField(f"{f.name}{k}", f.spec, _pair(i, (i + k) % 3)) for k in (1, 2)]
        return fields + [
            CommonField(f.name, f.spec, _pair(i, (i + 1) % 3)) for f in self.correlation.derived()
        ]

    def uniform(self) -> list[Field]:
        """Uniform fields; the mask of a value is none, it is in the parts that the dealing party has."""
        return [] if isinstance(self.correlation, (Mask, BitMask)) else list(self.correlation.random())


class Opened(MaskedOpening):
    """A secret x = c - r seen from one party; see the module."""

    def __init__(
        self, protocol: Replicated3PC, x: Secret, dealing: int, mask: Mask, dealt: Task[Fields], number: int
    ):
        self.protocol: Replicated3PC = protocol
        self.x, self.dealing, self.mask, self._dealt, self.number = x, dealing, mask, dealt, number

    @property
    def fields(self) -> Fields:
        assert self._dealt.result is not None, "read before the round in which it is dealt"
        return self._dealt.result

    async def arrived(self) -> None:
        """Waits for the round in which it is dealt."""
        await self._dealt

    async def ring_polynomial(self, integers: tuple[int, ...], out_bits: int) -> Secret:
        """One element from each of two parties."""
        p, term = self.protocol, None
        if p.party != self.dealing:
            powers = range(1, len(integers))
            dealt = {"power1": p.term_of_mask(self.x, self.dealing), **self.fields}
            fields = [dealt[f"power{j}"] for j in powers]
            if self.mask.shift:
                fields += [dealt[f"wrap{j}"] for j in powers]
            c, first = p.known(self.x, self.dealing), p.is_first(self.dealing)
            term = polynomial_share(
                c, *fields, coefficients=integers, shift=self.mask.shift, add_public=first
            )
        return Secret(await p.replicate(term, TensorSpec(tuple(self.x.shape)), self.dealing), out_bits)


class Replicated3PC(OpensUnderMask):
    """Three parties, replicated shares; see the module."""

    name = "replicated3pc"
    parties = 3
    parts = 3
    seed_groups = _PAIRS
    adversary = "semi-honest, one of the three parties, no two of them colluding"
    disclosure = (
        "to the three parties: the architecture, the numbers in the program's text, tensor shapes, sequence length and batch size, and "
        "timing; the public inputs (attention mask, token types, positions) and the tensors listed as public",
        "to the client alone: the declared outputs; with client-side embedding also the embedding table",
        "to the model owner: nothing of the queries",
    )

    def __init__(
        self, party: int, source: Source, device: torch.device | str = "cpu", fraction_bits: int = 16
    ):
        super().__init__(party, source, device, fraction_bits)
        self._turn = 0

    @classmethod
    def parts_of(cls, party: int) -> tuple[int, ...]:
        return (party, (party + 1) % 3)

    # -- who knows what --------------------------------------------------------------------------------------------------------

    def _next_dealing(self) -> int:
        """Takes turns: steps are begun in the same order in all parties."""
        self._turn += 1
        return self._turn % 3

    def is_first(self, dealing: int) -> bool:
        """Whether this party is `a`, the one that adds what a and b know."""
        return self.party == (dealing + 1) % 3

    def known(self, x: Secret | Bits, dealing: int) -> Tensor:
        """The part c that a and b have in common."""
        return x.shares[1] if self.is_first(dealing) else x.shares[0]

    def _term(self, x: Secret, dealing: int) -> Tensor:
        """This party's term of x = u + v."""
        return x.shares[0] + x.shares[1] if self.is_first(dealing) else x.shares[1]

    def term_of_mask(self, x: Secret, dealing: int) -> Tensor:
        """This party's term of r = -x_{i+1} - x_i."""
        return -(x.shares[0] if self.is_first(dealing) else x.shares[1])

    def _peer(self, dealing: int) -> str:
        """The other one of a and b."""
        return f"party{3 - self.party - dealing}"

    # -- messages --------------------------------------------------------------------------------------------------------------

    async def _between(self, mine: Tensor | None, dealing: int) -> Tensor | None:
        """Swaps tensors of one shape between a and b; the dealing party takes part in the round with nothing."""
        if mine is None:
            await Exchange({}, {})
            return None
        peer = self._peer(dealing)
        return (await Exchange({peer: [mine]}, {peer: [TensorSpec.of(mine)]}))[peer][0]

    async def replicate(self, term: Tensor | None, spec: TensorSpec, dealing: int) -> list[Tensor]:
        """Replicated parts of the sum of a's and b's terms (of their XOR where the dtype is not the ring's)."""
        xor = Field("", spec, xor=spec.dtype != ring.DTYPE)
        _, parts = self.source.next(Parts(spec, dealing))
        if term is None:
            await Exchange({}, {})
            return [parts["b"], parts["a"]]
        mine = parts["a" if self.is_first(dealing) else "b"]
        message = difference(xor, term, mine)
        theirs = await self._between(message, dealing)
        assert theirs is not None
        both = combine(xor, message, theirs)
        return [mine, both] if self.is_first(dealing) else [both, mine]

    async def _deal(
        self, correlation: Correlation, number_fields: Fields, dealing: int, own: Mapping[str, Tensor]
    ) -> Fields:
        """Shares of a correlation's derived fields at a and b; `own` are the dealing party's uniform fields in the clear."""
        derived = list(correlation.derived())
        to = f"party{(dealing + 2) % 3}"
        if self.party == dealing:
            masks = {"r": own["r"]} if "r" in own else {}
            values = correlation.derive(own, lambda _: masks)
            shares = [number_fields[f.name] for f in derived]
            messages = [difference(f, values[f.name], s, out=s) for f, s in zip(derived, shares, strict=True)]
            await Exchange({to: messages} if messages else {}, {})
            return {}
        if self.is_first(dealing) or not derived:
            await Exchange({}, {})
            return number_fields
        received = await Exchange({}, {f"party{dealing}": [f.spec for f in derived]})
        return dict(zip((f.name for f in derived), received[f"party{dealing}"], strict=True))

    def _mask_of(self, x: Secret) -> Tensor:
        """r, at the dealing party."""
        return -(x.shares[0] + x.shares[1])

    async def weight(self, name: str, x: Secret) -> Secret:
        """Nothing is opened; the sum that products need is made once, and matrices are laid out as they are read."""
        if x.shares[0].dim() > 1:
            x.shares = tuple(by_columns(s) for s in x.shares)
        x.memo[_SUM] = x.shares[0] + x.shares[1]
        return x

    # -- arithmetic ------------------------------------------------------------------------------------------------------------

    async def bilinear(self, op: Bilinear, x: Secret, y: Secret) -> Secret:
        """z_i = op(x_i, y_i + y_{i+1}) + op(x_{i+1}, y_i), masked by a share of zero and sent to the party before."""
        shape = op.shape(tuple(x.shape), tuple(y.shape))
        _, zero = self.source.next(Zero(shape))
        if _SUM not in y.memo:
            y.memo[_SUM] = y.shares[0] + y.shares[1]
        share = op(x.shares[0], y.memo[_SUM])
        share += op(x.shares[1], y.shares[0])
        before, after = (self.party - 1) % 3, (self.party + 1) % 3
        share += zero[f"to{after}"]
        share -= zero[f"to{self.party}"]
        received = await Exchange({f"party{before}": [share]}, {f"party{after}": [TensorSpec.of(share)]})
        return Secret([share, received[f"party{after}"][0]], x.fraction_bits + y.fraction_bits)

    async def square(self, x: Secret) -> Secret:
        return await self.bilinear(MUL, x, x)

    async def open_masked(
        self, x: Secret, *, shift: int = 0, degree: int = 1, compare: bool = False
    ) -> Opened:
        """Deals once, however many operations ask, what these readings of x = c - r need: one round."""
        mask = Mask(tuple(x.shape), shift, degree, compare)
        if mask not in x.memo:
            dealing = self._next_dealing()
            number, fields = self.source.next(Dealing(mask, dealing))
            own = {"r": self._mask_of(x)} if self.party == dealing else {}
            pending = await start(self._deal(mask, fields, dealing, own))
            x.memo[mask] = Opened(self, x, dealing, mask, pending, number)
        opened: Opened = x.memo[mask]
        await opened.arrived()
        return opened

    async def truncate(self, x: Secret, bits: int) -> Secret:
        """From x = u + v: one bit between a and b, then their terms; right for abs(x) < 2^62. Two rounds."""
        dealing = self._next_dealing()
        correlation = Truncation(tuple(x.shape), bits)
        _, fields = self.source.next(Dealing(correlation, dealing))
        spec, out_bits = TensorSpec(tuple(x.shape)), x.fraction_bits - bits
        if self.party == dealing:
            own = {"mask": torch.stack([fields["mask1"], fields["mask2"]])}
            await gather(self._deal(correlation, fields, dealing, own), self._between(None, dealing))
            return Secret(await self.replicate(None, spec, dealing), out_bits)
        first = self.is_first(dealing)
        term, mask = self._term(x, dealing), fields["mask1" if first else "mask2"]
        mine = wrap_message(term, mask, add_public=first)
        dealt, theirs = await gather(
            self._deal(correlation, fields, dealing, {}), self._between(mine, dealing)
        )
        y = truncation_share(term, mine, theirs, mask, dealt["product"], shift=bits, add_public=first)
        return Secret(await self.replicate(y, spec, dealing), out_bits)

    # -- bits ------------------------------------------------------------------------------------------------------------------

    async def below(self, opened: MaskedOpening, thresholds: Sequence[int]) -> Bits:
        """[x < t], x = c - r: the top bit of (c - t) - r, from the borrow of its lower 63 bits. Four-input AND gates on bits that a
        and b share, their masks dealt."""
        assert isinstance(opened, Opened)
        dealing, first = opened.dealing, self.is_first(opened.dealing)
        shape = (len(thresholds), *opened.x.shape)
        words = compare_radix16.words(prod(shape))
        gates = And4(words, True), And4(words // 4, False)
        levels = [self.source.next(Dealing(gate, dealing))[1] for gate in gates]
        spec = TensorSpec((-(-prod(shape) // 8),), torch.uint8)
        if self.party == dealing:
            for gate, fields in zip(gates, levels, strict=True):
                own = {"masks": fields["masks1"] ^ fields["masks2"]}
                await gather(self._deal(gate, fields, dealing, own), self._between(None, dealing))
            packed = await self.replicate(None, spec, dealing)
        else:
            masks = [fields["masks1" if first else "masks2"] for fields in levels]
            message, g3, top = compare_radix16.compare_first(
                self.known(opened.x, dealing),
                opened.fields["groups"],
                masks[0],
                thresholds=tuple(thresholds),
                add_public=first,
            )
            dealt, e = await gather(
                self._deal(gates[0], levels[0], dealing, {}), self._between(message, dealing)
            )
            message, g3 = compare_radix16.compare_second(
                e ^ message, masks[0], dealt["products"], g3, masks[1], add_public=first
            )
            dealt, e = await gather(
                self._deal(gates[1], levels[1], dealing, {}), self._between(message, dealing)
            )
            bits = compare_radix16.compare_last(
                e ^ message, masks[1], dealt["products"], g3, top, add_public=first
            )
            packed = await self.replicate(compare_radix16.pack_bits(bits.reshape(-1)), spec, dealing)
        return Bits([compare_radix16.unpack_bits(s, prod(shape)).view(shape) for s in packed])

    async def bits_to_ring(self, b: Bits) -> Secret:
        """b = e + (1 - 2e) rho with e = b_{i+2}, which a and b know, and rho = b_i ^ b_{i+1}, dealt. Two rounds."""
        dealing = self._next_dealing()
        correlation = BitMask(tuple(b.shape))
        _, fields = self.source.next(Dealing(correlation, dealing))
        dealt = await self._deal(correlation, fields, dealing, self._bit_mask(b, dealing))
        return await self._bit(b, dealt, dealing)

    def _bit_mask(self, b: Bits, dealing: int) -> dict[str, Tensor]:
        if self.party != dealing:
            return {}
        return {"packed": compare_radix16.pack_bits((b.shares[0] ^ b.shares[1]).reshape(-1))}

    def _packed(self, b: Bits, dealing: int) -> Tensor:
        return compare_radix16.pack_bits(self.known(b, dealing).reshape(-1))

    async def _bit(self, b: Bits, dealt: Fields, dealing: int) -> Secret:
        term = None
        if self.party != dealing:
            term = bit_share(self._packed(b, dealing), dealt["ring"], add_public=self.is_first(dealing))
        return Secret(await self.replicate(term, TensorSpec(tuple(b.shape)), dealing), 0)

    async def select(self, b: Bits, x: Secret) -> Secret:
        """b * x from the dealt rho and rho r. Two rounds."""
        return (await self._select(b, x))[0]

    async def select_with_bits(self, b: Bits, x: Secret) -> tuple[Secret, Secret]:
        """b * x, and b as a ring element, from the same dealing."""
        selected, bit = await self._select(b, x, with_bits=True)
        assert bit is not None
        return selected, bit

    async def _select(self, b: Bits, x: Secret, with_bits: bool = False) -> tuple[Secret, Secret | None]:
        dealing = self._next_dealing()
        correlation = BitMask(tuple(b.shape), "x", tuple(x.shape))
        _, fields = self.source.next(Dealing(correlation, dealing))
        own = self._bit_mask(b, dealing)
        if self.party == dealing:
            own["r"] = self._mask_of(x)
        dealt = await self._deal(correlation, fields, dealing, own)
        shape = tuple(torch.broadcast_shapes(b.shape, x.shape))
        term = None
        if self.party != dealing:
            term = select_share(
                self._packed(b, dealing),
                dealt["ring"],
                self._term(x, dealing),
                self.known(x, dealing),
                dealt["product"],
            )

        async def selected() -> Secret:
            return Secret(await self.replicate(term, TensorSpec(shape), dealing), x.fraction_bits)

        if not with_bits:
            return await selected(), None
        value, bit = await gather(selected(), self._bit(b, dealt, dealing))
        return value, bit
