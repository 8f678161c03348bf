"""Bits packed in words, and the pure local steps of the comparison circuit.

Layout. A comparison of two 63-bit numbers has sixteen 4-bit groups (the last of three bits). Child k of carry
node i is group 4i + k, so the four children words hold bit i of node i, and one level of the tree is one
expression on words. All functions are elementwise functions of tensors without data-dependent control flow,
on any device; those marked as kernels run as one compiled loop where there is one (see kernels.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.kernels.kernel import kernel, shapes

GROUPS = 16
_TOP_FLAG = 15
_TOP_GROUP = 0xFF


def _digits(x: Tensor) -> Tensor:
    """The 4-bit groups of x (three bits in the last), shape [16, *x.shape]."""
    shifts = torch.arange(0, 64, 4, device=x.device).view(-1, *[1] * x.dim())
    keep = torch.tensor([15] * (GROUPS - 1) + [7], device=x.device).view_as(shifts)
    return (x >> shifts) & keep


@kernel
def indicators(r: Tensor) -> Tensor:
    """Indicator vectors of the 4-bit groups of r as int16 bit words, shape [16, *r.shape].

    Bit v of word j says that group j has the value v. The last group has three bits, hence eight values; bit
    15 of its word holds the top bit of r instead.
    """
    words = torch.ones((), dtype=torch.int32, device=r.device) << _digits(r).to(torch.int32)
    words[GROUPS - 1] |= ring.shift_right_logical(r, 63).to(torch.int32) << _TOP_FLAG
    return words.to(torch.int16)


def suffix_parity(words: Tensor) -> Tensor:
    """Bit v of the result is the XOR of the bits above v of a 16-bit word."""
    x = (words.to(torch.int32) & 0xFFFF) >> 1
    for step in (1, 2, 4, 8):
        x = x ^ (x >> step)
    return x.to(torch.int16)


def look_up(c: Tensor, groups: Tensor, add_public: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of the group comparisons of public c (shape [*k, *s]) with dealt r (groups of shape [16, *s]).

    Returns g and p: uint8 of shape [4, *k, *s], where bit i of g[n] is [c_j < r_j] and of p[n] is [c_j =
    r_j], j = 4i + n; and the share of c_63 ^ r_63. Because exactly one bit of an indicator vector is set,
    both are linear in it: no message.
    """
    last = groups[GROUPS - 1]
    top = ((last >> _TOP_FLAG) & 1).to(torch.uint8).expand(c.shape)
    if add_public:
        top = top ^ (c < 0).to(torch.uint8)
    words = torch.cat([groups[: GROUPS - 1], (last & _TOP_GROUP)[None]])
    value = _digits(c).to(torch.int16)
    nodes = torch.arange(4, device=c.device).view(-1, *[1] * (c.dim() + 1))

    def chosen(table: Tensor) -> Tensor:
        table = table.view(GROUPS, *[1] * (c.dim() + 1 - table.dim()), *table.shape[1:])
        bits = ((table >> value) & 1).view(4, 4, *c.shape) << nodes
        return bits.sum(0).to(torch.uint8)

    return chosen(suffix_parity(words)), chosen(words), top


def _padded(x: Tensor, multiple: int) -> Tensor:
    missing = -x.shape[-1] % multiple
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def pack_nibbles(x: Tensor) -> Tensor:
    """Rows of four-bit values, two to a byte: the first half of a row's elements in the low nibbles. Rows are
    padded to eights."""
    low, high = _padded(x, 8).chunk(2, -1)
    return low | (high << 4)


def split_nibbles(words: Tensor) -> list[Tensor]:
    """From packed nibbles the four words of their bits 0..3, packed eight elements to a byte (joined again by
    unpack_split)."""
    quarters = words.chunk(4)
    result = []
    for bit in range(4):
        parts = [((quarter >> bit) & 0x11) << k for k, quarter in enumerate(quarters)]
        result.append((parts[0] | parts[1]) | (parts[2] | parts[3]))
    return result


def pack_bits(bits: Tensor) -> Tensor:
    """Flat uint8 zeros and ones, eight to a byte (the first eighth of the elements in the bits of weight 1,
    and so on)."""
    parts = _padded(bits, 8).chunk(8)
    total = parts[0] if parts else bits
    for i, part in enumerate(parts[1:], 1):
        total = total | (part << i)
    return total


def unpack_bits(words: Tensor, count: int) -> Tensor:
    """The first `count` bits that pack_bits packed, one a byte in the elements' order."""
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device).view(-1, 1)
    return ((words >> shifts) & 1).view(-1)[:count]


def unpack_split(words: Tensor, count: int) -> Tensor:
    """The first `count` bits packed by pack_nibbles and then split_nibbles: they end up where pack_bits puts
    them."""
    return unpack_bits(words, count)


# Inputs of a four-input carry node in the order in which they are opened.
P3, P2, P1, G2, G1, G0, P0 = range(7)
_CARRY_TERMS = ((P3, G2), (P3, P2, G1), (P3, P2, P1, G0))
_PROPAGATE_TERM = (P3, P2, P1, P0)


def inputs(need_p: bool) -> int:
    """How many bits a node opens."""
    return 7 if need_p else 6


def words(count: int) -> int:
    """Bytes of one operand of the first level for `count` comparisons; the second level's are a quarter of
    it."""
    return -(-count // 8) * 4


@lru_cache
def monomials(need_p: bool) -> tuple[tuple[int, ...], ...]:
    """All products of two or more masks that occur when the node's terms are written in opened bits and
    masks."""
    terms = (*_CARRY_TERMS, _PROPAGATE_TERM) if need_p else _CARRY_TERMS
    found = {
        tuple(sorted(s))
        for term in terms
        for size in range(2, len(term) + 1)
        for s in combinations(term, size)
    }
    return tuple(sorted(found, key=lambda s: (len(s), s)))


def order(g: Sequence[Tensor] | Tensor, p: Sequence[Tensor] | Tensor, need_p: bool) -> list[Tensor]:
    """The node's inputs in opening order, from the children's words."""
    rows = [p[3], p[2], p[1], g[2], g[1], g[0]]
    return [*rows, p[0]] if need_p else rows


@kernel
def mask_products(masks: Tensor, *, need_p: bool) -> Tensor:
    """The monomials of a level's masks (shape [inputs, words]), stacked: each is an earlier one times one
    more mask."""
    rows: dict[tuple[int, ...], Tensor] = {(i,): masks[i] for i in range(inputs(need_p))}
    for monomial in monomials(need_p):
        rows[monomial] = rows[monomial[:-1]] & masks[monomial[-1]]
    return torch.stack([rows[m] for m in monomials(need_p)])


def carry(
    opened: Tensor, masks: Tensor, products: Tensor, g3: Tensor, need_p: bool, add_public: bool
) -> tuple[Tensor, Tensor | None]:
    """Shares of G = g3 ^ p3 (g2 ^ p2 (g1 ^ p1 g0)) and P = p3 p2 p1 p0, from opened inputs e = x ^ m and
    dealt products of masks m.

    `times(s, ...)` is a share of m_s * (the rest of the formula), m_s the product of the masks in s, by x = e
    ^ m: m_s * x * rest = e * (m_s * rest) ^ m_{s, x} * rest.
    """
    index = {m: products[i] for i, m in enumerate(monomials(need_p))}

    def mask(s: tuple[int, ...]) -> Tensor | None:
        """A share of m_s; of 1 for the empty s, which party 0 alone holds (None: a share 0)."""
        if not s:
            return torch.full_like(g3, 0xFF) if add_public else None
        return masks[s[0]] if len(s) == 1 else index[tuple(sorted(s))]

    def xor(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return b if a is None else a if b is None else a ^ b

    def and_(a: Tensor, b: Tensor | None) -> Tensor | None:
        return None if b is None else a & b

    def times(s: tuple[int, ...], ps: tuple[int, ...], gs: tuple[int, ...]) -> Tensor | None:
        """m_s * (gs[0] ^ ps[0] * (gs[1] ^ ps[1] * ...)), with gs[i] left out where it is negative."""
        total = None
        if gs[0] >= 0:
            total = xor(and_(opened[gs[0]], mask(s)), mask((*s, gs[0])))
        if ps:
            inner = times(s, ps[1:], gs[1:])
            total = xor(total, xor(and_(opened[ps[0]], inner), times((*s, ps[0]), ps[1:], gs[1:])))
        return total

    generate = xor(g3, times((), (P3, P2, P1), (-1, G2, G1, G0)))
    assert generate is not None
    return generate, times((), (P3, P2, P1), (-1, -1, -1, P0)) if need_p else None


# -- the comparison circuit between its openings -------------------------------------------------------------


@kernel
@shapes(
    lambda c, groups, masks, thresholds, add_public: [
        masks,
        (masks[0][1:], torch.uint8),
        ((len(thresholds), *c[0]), torch.uint8),
    ]
)
def compare_first(
    c: Tensor, groups: Tensor, masks: Tensor, *, thresholds: tuple[int, ...], add_public: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """From an opened c to the first opening: its masked operands [7, words], and what stays here: g3 [words]
    and the top bits."""
    g, p, top = look_up(torch.stack([c - t for t in thresholds]), groups, add_public)
    g, p = (pack_nibbles(x.reshape(4, -1)) for x in (g, p))
    return torch.stack(order(g, p, True)) ^ masks, g[3], top


@kernel
@shapes(
    lambda opened, masks, products, g3, next_masks, add_public: [
        next_masks,
        (next_masks[0][1:], torch.uint8),
    ]
)
def compare_second(
    opened: Tensor, masks: Tensor, products: Tensor, g3: Tensor, next_masks: Tensor, *, add_public: bool
) -> tuple[Tensor, Tensor]:
    """From the first level's opening to the second: its masked operands [6, words / 4], and g3."""
    generate, propagate = carry(opened, masks, products, g3, True, add_public)
    assert propagate is not None
    g, p = split_nibbles(generate), split_nibbles(propagate)
    return torch.stack(order(g, p, False)) ^ next_masks, g[3]


@kernel
@shapes(lambda opened, masks, products, g3, top, add_public: [top])
def compare_last(
    opened: Tensor, masks: Tensor, products: Tensor, g3: Tensor, top: Tensor, *, add_public: bool
) -> Tensor:
    """From the second level's opening to shares of the comparison bits, in the shape of `top`."""
    borrow, _ = carry(opened, masks, products, g3, False, add_public)
    return unpack_split(borrow, top.numel()).view(top.shape) ^ top


@kernel
def pack_masked(bits: Tensor, mask: Tensor) -> Tensor:
    """Bits of any shape packed eight to a byte, under a mask of as many bytes."""
    return pack_bits(bits.reshape(-1)) ^ mask
