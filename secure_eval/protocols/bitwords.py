"""Bits packed in words, and the pure local steps of the comparison circuit.

Layout. A comparison of two 63-bit numbers has sixteen 4-bit groups (the last of three bits). Child k of carry node i is group
4i + k, so the four children words hold bit i of node i, and one level of the tree is one expression on words. All functions are
elementwise functions of tensors without data-dependent control flow, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from secure_eval import ring

GROUPS = 16
_TOP_FLAG = 15


def indicators(r: Tensor) -> Tensor:
    """Indicator vectors of the 4-bit groups of r as int16 bit words, shape [16, *r.shape].

    Bit v of word j says that group j has the value v. The last group has three bits, hence eight values; bit 15 of its word holds
    the top bit of r instead.
    """
    words = []
    one = torch.ones((), dtype=torch.int32, device=r.device)
    for j in range(GROUPS - 1):
        words.append((one << ((r >> (4 * j)) & 15).to(torch.int32)).to(torch.int16))
    top = one << ((r >> 60) & 7).to(torch.int32)
    top = top | (ring.shift_right_logical(r, 63).to(torch.int32) << _TOP_FLAG)
    words.append(top.to(torch.int16))
    return torch.stack(words)


def suffix_parity(words: Tensor) -> Tensor:
    """Bit v of the result is the XOR of the bits above v of a 16-bit word."""
    x = (words.to(torch.int32) & 0xFFFF) >> 1
    for step in (1, 2, 4, 8):
        x = x ^ (x >> step)
    return x.to(torch.int16)


def look_up(c: Tensor, groups: Tensor, add_public: bool) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Shares of the group comparisons of public c (shape [K, *s]) with dealt r (groups of shape [16, *s]).

    Returns g[k], p[k] (k = 0..3): uint8 words of shape [K, *s] whose bit i is [c_j < r_j] and [c_j = r_j] of group j = 4i + k; and the
    share of c_63 ^ r_63. Because exactly one bit of an indicator vector is set, both are linear in it: no message.
    """
    last = groups[GROUPS - 1]
    top_bit = ((last >> _TOP_FLAG) & 1).to(torch.uint8).expand(c.shape)
    if add_public:
        top_bit = top_bit ^ (c < 0).to(torch.uint8)
    g: list[Tensor] = [None] * 4  # type: ignore[list-item]
    p: list[Tensor] = [None] * 4  # type: ignore[list-item]
    for j in range(GROUPS):
        word = groups[j] if j < GROUPS - 1 else last & 0xFF
        value = ((c >> (4 * j)) & (15 if j < GROUPS - 1 else 7)).to(torch.int16)
        node, k = divmod(j, 4)
        equal = (((word >> value) & 1) << node).to(torch.uint8)
        less = (((suffix_parity(word) >> value) & 1) << node).to(torch.uint8)
        g[k] = less if node == 0 else g[k] | less
        p[k] = equal if node == 0 else p[k] | equal
    return g, p, top_bit


def _padded(x: Tensor, multiple: int) -> Tensor:
    missing = -x.numel() % multiple
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def pack_nibbles(x: Tensor) -> Tensor:
    """Four-bit values, any shape, two to a byte: the first half of the elements in the low nibbles."""
    flat = _padded(x.reshape(-1), 8)
    low, high = flat.chunk(2)
    return low | (high << 4)


def split_nibbles(words: Tensor) -> list[Tensor]:
    """From packed nibbles the four words of their bits 0..3, packed eight elements to a byte (joined again by unpack_split)."""
    quarters = words.chunk(4)
    result = []
    for bit in range(4):
        total = None
        for k, quarter in enumerate(quarters):
            part = ((quarter >> bit) & 0x11) << k
            total = part if total is None else total | part
        assert total is not None
        result.append(total)
    return result


def unpack_split(words: Tensor, count: int) -> Tensor:
    """Bits packed by pack_nibbles and then split_nibbles, one a byte in the elements' order; the first `count`."""
    return torch.cat([(words >> i) & 1 for i in range(8)])[:count]


def pack_bits(bits: Tensor) -> Tensor:
    """Flat uint8 zeros and ones, eight to a byte (the first eighth of the elements in the bits of weight 1, and so on)."""
    flat = _padded(bits, 8)
    total = None
    for i, part in enumerate(flat.chunk(8)):
        total = part if total is None else total | (part << i)
    return flat if total is None else total


def unpack_bits(words: Tensor, count: int) -> Tensor:
    """The first `count` bits that pack_bits packed."""
    return torch.cat([(words >> i) & 1 for i in range(8)])[:count]


# Inputs of a four-input carry node in the order in which they are opened.
P3, P2, P1, G2, G1, G0, P0 = range(7)
_CARRY_TERMS = ((P3, G2), (P3, P2, G1), (P3, P2, P1, G0))
_PROPAGATE_TERM = (P3, P2, P1, P0)


def inputs(need_p: bool) -> int:
    """How many bits a node opens."""
    return 7 if need_p else 6


@lru_cache
def monomials(need_p: bool) -> tuple[tuple[int, ...], ...]:
    """All products of two or more masks that occur when the node's terms are written in opened bits and masks."""
    terms = (*_CARRY_TERMS, _PROPAGATE_TERM) if need_p else _CARRY_TERMS
    found = {tuple(sorted(s)) for term in terms for size in range(2, len(term) + 1) for s in combinations(term, size)}
    return tuple(sorted(found, key=lambda s: (len(s), s)))


def order(g: Sequence[Tensor], p: Sequence[Tensor], need_p: bool) -> list[Tensor]:
    """The node's inputs in opening order, from the children's words."""
    words = [p[3], p[2], p[1], g[2], g[1], g[0]]
    return [*words, p[0]] if need_p else words


def carry(opened: Tensor, masks: Tensor, products: Tensor, g3: Tensor, need_p: bool, add_public: bool) -> tuple[Tensor, Tensor | None]:
    """Shares of a node's generate and propagate words, from opened inputs e = x ^ m and dealt products of masks m."""
    index = {m: products[i] for i, m in enumerate(monomials(need_p))}

    def term(members: tuple[int, ...]) -> Tensor:
        total = None
        for size in range(len(members) + 1):
            for masked in combinations(members, size):
                if not masked and not add_public:
                    continue
                factor = None if not masked else masks[masked[0]] if size == 1 else index[tuple(sorted(masked))]
                for i in members:
                    if i not in masked:
                        factor = opened[i] if factor is None else factor & opened[i]
                assert factor is not None
                total = factor if total is None else total ^ factor
        assert total is not None
        return total

    generate = g3
    for members in _CARRY_TERMS:
        generate = generate ^ term(members)
    return generate, term(_PROPAGATE_TERM) if need_p else None
