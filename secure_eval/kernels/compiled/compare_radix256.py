"""The steps of a comparison in one level of gates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secure_eval.kernels import compare_radix256
from secure_eval.kernels.compiled.loops import BLOCK, U8, U64, Array, compiled, flat, loop, unsigned


@compiled
def _indicators(r, out):  # type: ignore[no-untyped-def]
    for j in range(8):
        keep = U64(255) if j < 7 else U64(127)
        for i in range(r.shape[0]):
            digit = (r[i] >> U64(8 * j)) & keep
            out[j, i, digit >> U64(3)] = U8(1) << U8(digit & U64(7))
    for i in range(r.shape[0]):
        out[7, i, 31] |= U8(r[i] >> U64(63)) << U8(7)


@loop
def byte_indicators(r: Tensor) -> Tensor:
    out = torch.zeros((8, *r.shape, 32), dtype=torch.uint8)
    _indicators(flat(r, U64), out.numpy().reshape(8, -1, 32))
    return out


@compiled
def _higher(vector, keep, out):  # type: ignore[no-untyped-def]
    """out[k]: the XOR of the bytes after k."""
    total = U8(0)
    for k in range(31, -1, -1):
        out[k] = total
        if k < keep:
            total ^= vector[k]


@compiled
def _look_up(c, groups, thresholds, add_public, g, p, top):  # type: ignore[no-untyped-def]
    n = c.shape[0]
    rest = np.empty(32, U8)
    for i in range(n):
        for j in range(8):
            vector, keep = groups[j, i], 32 if j < 7 else 16
            _higher(vector, keep, rest)
            mask = U64(255) if j < 7 else U64(127)
            for k in range(thresholds.shape[0]):
                digit = ((c[i] - thresholds[k]) >> U64(8 * j)) & mask
                at, bit = digit >> U64(3), U8(digit & U64(7))
                p[j, k * n + i] = (vector[at] >> bit) & U8(1)
                x = rest[at] ^ U8((vector[at] >> bit) >> U8(1))
                x ^= x >> U8(4)
                x ^= x >> U8(2)
                x ^= x >> U8(1)
                g[j, k * n + i] = x & U8(1)
        bit = groups[7, i, 31] >> U8(7)
        for k in range(thresholds.shape[0]):
            own = U8((c[i] - thresholds[k]) >> U64(63)) if add_public else U8(0)
            top[k * n + i] = bit ^ own


@compiled
def _pack(bits, out):  # type: ignore[no-untyped-def]
    size = out.shape[0]
    for k in range(8):
        part = bits[k * size : (k + 1) * size]
        for i in range(part.shape[0]):
            out[i] ^= part[i] << U8(k)


@loop
def byte_compare_first(
    c: Tensor, groups: Tensor, masks: Tensor, *, thresholds: tuple[int, ...], add_public: bool
) -> tuple[Tensor, Tensor, Tensor]:
    count = len(thresholds) * c.numel()
    size = compare_radix256.words(count)
    g, p = np.zeros((8, count), U8), np.zeros((8, count), U8)
    top = torch.empty((len(thresholds), *c.shape), dtype=torch.uint8)
    _look_up(
        flat(c, U64),
        flat(groups, U8).reshape(8, -1, 32),
        unsigned(thresholds),
        add_public,
        g,
        p,
        top.view(-1).numpy(),
    )
    message, g7 = masks.clone(memory_format=torch.contiguous_format), torch.zeros(size, dtype=torch.uint8)
    rows = message.numpy()
    for row, bits in enumerate((*p[:0:-1], *g[6::-1])):
        _pack(bits, rows[row])
    _pack(g[7], g7.numpy())
    return message, g7, top


@compiled
def _xor_product(a, b, c, d, out):  # type: ignore[no-untyped-def]
    """out ^= a & ((b & c) ^ d)."""
    for i in range(out.shape[0]):
        out[i] ^= a[i] & ((b[i] & c[i]) ^ d[i])


@compiled
def _and(a, b, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = a[i] & b[i]


@compiled
def _borrow(opened, masks, products, terms, add_public, out):  # type: ignore[no-untyped-def]
    """terms: rows of (word of public p's, row of g, index of m_s or its input, index of m_s m_g or its input); see `_terms`."""
    public = np.empty((128, BLOCK), U8)
    ones, zeros = np.full(BLOCK, 255, U8), np.zeros(BLOCK, U8)
    for first in range(0, out.shape[0], BLOCK):
        last = min(out.shape[0], first + BLOCK)
        m = last - first
        public[0] = U8(255)
        for s in range(1, 128):
            bit = 0
            while not (s >> bit) & 1:
                bit += 1
            _and(public[s & (s - 1), :m], opened[6 - bit, first:last], public[s, :m])
        for t in range(terms.shape[0]):
            s, row, own, both = terms[t]
            if own == -100:
                share = ones[:m] if add_public else zeros[:m]
            elif own < 0:
                share = masks[-1 - own, first:last]
            else:
                share = products[own, first:last]
            product = masks[-1 - both, first:last] if both < 0 else products[both, first:last]
            _xor_product(public[s, :m], opened[row, first:last], share, product, out[first:last])


def _rows(x: Tensor) -> Array:
    return x.contiguous().numpy()


def _terms() -> Array:
    index = {m: i for i, m in enumerate(compare_radix256.monomials())}
    index |= {(1 << b, -1): -1 - compare_radix256.p_row(b) for b in range(7)}
    index |= {(0, j): -1 - compare_radix256.g_row(j) for j in range(7)} | {(0, -1): -100}
    rows = [
        (compare_radix256.above(j) ^ s, compare_radix256.g_row(j), index[s, -1], index[s, j])
        for j in range(7)
        for s in range(128)
        if s & ~compare_radix256.above(j) == 0
    ]
    return np.array(rows, dtype=np.int64)


_TERMS = _terms()


@loop
def byte_compare_last(
    opened: Tensor, masks: Tensor, products: Tensor, g7: Tensor, top: Tensor, *, add_public: bool
) -> Tensor:
    out = g7.clone()
    _borrow(_rows(opened), _rows(masks), _rows(products), _TERMS, add_public, out.numpy())
    bits = torch.empty(top.shape, dtype=torch.uint8)
    _unpack(out.numpy(), flat(top, U8), bits.view(-1).numpy())
    return bits


@compiled
def _unpack(words, top, out):  # type: ignore[no-untyped-def]
    size = words.shape[0]
    for k in range(8):
        begin = k * size
        end = min(out.shape[0], begin + size)
        for i in range(begin, end):
            out[i] = top[i] ^ ((words[i - begin] >> U8(k)) & U8(1))
