"""Comparison in one level of gates, for few elements.

As in compare_radix16.py, but the mask's digits are bytes, each dealt as the XOR-shared indicator vector of its 256 values, and one gate
of 14 inputs joins the eight bytes: one opening less, for 256 bytes dealt an element and 46 a comparison in place of 32 and 11. That pays
where a round costs more than the bytes: in the divisors of rows, of which there are thousands and not millions.

The borrow is g7 ^ p7 (g6 ^ p6 (... (g1 ^ p1 g0))), [c_j < r_j] = g_j and [c_j = r_j] = p_j. Written out it is a sum of g_j times the
p_i above; with opened e = x ^ m, each product of inputs is a sum over the subsets S of its p's of (the others' e) * (m_S (e_g ^ m_g)).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.kernels import compare_radix16
from secure_eval.kernels.kernel import kernel, shapes

GROUPS = 8
INPUTS = 14
"""p7 ... p1, then g6 ... g0."""

_PS = 7
_ALL = (1 << _PS) - 1
_TOP_FLAG = 255


def p_row(bit: int) -> int:
    """Row of the input p_(bit + 1) among the inputs; subsets of the p's are words with these bits."""
    return _PS - 1 - bit


def g_row(j: int) -> int:
    """Row of the input g_j."""
    return INPUTS - 1 - j


def above(j: int) -> int:
    """The p's that g_j is multiplied with, as a word."""
    return _ALL & ~((1 << j) - 1)


@lru_cache
def monomials() -> tuple[tuple[int, int], ...]:
    """The products of two masks or more that are dealt: (word of p's, j of a g or -1)."""
    pure = [(s, -1) for s in range(_ALL + 1) if s.bit_count() > 1]
    return (*pure, *((s, j) for j in range(_PS) for s in range(1, _ALL + 1) if s & ~above(j) == 0))


def words(count: int) -> int:
    """Bytes of one input for `count` comparisons."""
    return -(-count // 8)


@kernel
def byte_indicators(r: Tensor) -> Tensor:
    """Indicator vectors of the bytes of r, [8, *r.shape, 32]: bit v of vector j says that byte j has the value v.

    The last byte has seven bits; the last bit of its vector holds the top bit of r instead.
    """
    digits = torch.stack([(r >> (8 * j)) & (255 if j < GROUPS - 1 else 127) for j in range(GROUPS)])
    places = torch.arange(32, device=r.device)
    vectors = torch.where(digits[..., None] >> 3 == places, 1 << (digits[..., None] & 7), 0)
    vectors[GROUPS - 1, ..., 31] |= ring.shift_right_logical(r, 63) << (_TOP_FLAG & 7)
    return vectors.to(torch.uint8)


def _look_up(c: Tensor, groups: Tensor, add_public: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of [c_j < r_j] and [c_j = r_j] ([8, *k, *s] each), and of c_63 ^ r_63, for public c [*k, *s]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=c.device)
    table = ((groups[..., None] >> shifts) & 1).flatten(-2).to(torch.int64)
    top = table[GROUPS - 1, ..., _TOP_FLAG].to(torch.uint8).expand(c.shape)
    if add_public:
        top = top ^ (c < 0).to(torch.uint8)
    table[GROUPS - 1, ..., 128:] = 0
    rising = table.cumsum(-1)
    higher = (rising[..., -1:] - rising) & 1
    digits = torch.stack([(c >> (8 * j)) & (255 if j < GROUPS - 1 else 127) for j in range(GROUPS)])

    def chosen(x: Tensor) -> Tensor:
        x = x.view(GROUPS, *[1] * (c.dim() - groups.dim() + 2), *groups.shape[1:-1], 256)
        return x.expand(*digits.shape, 256).gather(-1, digits[..., None])[..., 0].to(torch.uint8)

    return chosen(higher), chosen(table), top


@kernel
@shapes(
    lambda c, groups, masks, thresholds, add_public: [
        masks,
        (masks[0][1:], torch.uint8),
        ((len(thresholds), *c[0]), torch.uint8),
    ]
)
def byte_compare_first(
    c: Tensor, groups: Tensor, masks: Tensor, *, thresholds: tuple[int, ...], add_public: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """From an opened c to the opening: its masked inputs [14, words], and what stays here: g7 [words] and the top bits."""
    g, p, top = _look_up(torch.stack([c - t for t in thresholds]), groups, add_public)
    rows = [compare_radix16.pack_bits(x.reshape(-1)) for x in (*p.flip(0)[: GROUPS - 1], *g.flip(0)[1:])]
    return torch.stack(rows) ^ masks, compare_radix16.pack_bits(g[GROUPS - 1].reshape(-1)), top


@kernel
@shapes(lambda masks: [((len(monomials()), *masks[0][1:]), torch.uint8)])
def byte_mask_products(masks: Tensor) -> Tensor:
    """The dealt monomials of the inputs' masks [14, words], stacked."""
    products: dict[tuple[int, int], Tensor] = {(1 << b, -1): masks[p_row(b)] for b in range(_PS)}
    for s, j in monomials():
        low = s & -s
        products[s, j] = (
            products[s ^ low, -1] & masks[p_row(low.bit_length() - 1)]
            if j < 0
            else products[s, -1] & masks[g_row(j)]
        )
    return torch.stack([products[m] for m in monomials()])


@kernel
@shapes(lambda opened, masks, products, g7, top, add_public: [top])
def byte_compare_last(
    opened: Tensor, masks: Tensor, products: Tensor, g7: Tensor, top: Tensor, *, add_public: bool
) -> Tensor:
    """From the opening to shares of the comparison bits, in the shape of `top`."""
    one = torch.full_like(g7, 0xFF if add_public else 0)
    shares: dict[tuple[int, int], Tensor] = {(0, -1): one}
    shares |= {(1 << b, -1): masks[p_row(b)] for b in range(_PS)} | {
        (0, j): masks[g_row(j)] for j in range(_PS)
    }
    shares |= {m: products[i] for i, m in enumerate(monomials())}
    public = [torch.full_like(g7, 0xFF)]
    for s in range(1, _ALL + 1):
        low = s & -s
        public.append(public[s ^ low] & opened[p_row(low.bit_length() - 1)])
    borrow = g7
    for j in range(_PS):
        for s in range(_ALL + 1):
            if s & ~above(j) == 0:
                factor = public[above(j) ^ s]
                borrow = borrow ^ (factor & ((opened[g_row(j)] & shares[s, -1]) ^ shares[s, j]))
    return compare_radix16.unpack_bits(borrow, top.numel()).view(top.shape) ^ top
