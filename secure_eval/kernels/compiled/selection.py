"""Bits spread to ring elements, and selections by them."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.kernels import compare_radix16
from secure_eval.kernels.compiled.loops import BLOCK, U8, U64, compiled, flat, loop


@compiled
def _unpack(words, shift, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = U64((words[i] >> shift) & U8(1))


@compiled
def bits(packed, first, out):  # type: ignore[no-untyped-def]
    """Bits number `first` and on, as many as `out` has room for."""
    size, done = packed.shape[0], 0
    while done < out.shape[0]:
        bit, at = divmod(first + done, size)
        m = min(size - at, out.shape[0] - done)
        _unpack(packed[at : at + m], U8(bit), out[done : done + m])
        done += m


@compiled
def _chosen(e, rho, x, c, product, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        t = rho[i] * c[i] - product[i]
        out[i] = e[i] * x[i] + (t - (e[i] + e[i]) * t)


@compiled
def _select(packed, rho, x, c, product, out):  # type: ignore[no-untyped-def]
    """x and c repeat for each of the leading bits."""
    n = x.shape[0]
    e = np.empty(BLOCK, U64)
    for start in range(0, out.shape[0], n):
        for first in range(0, n, BLOCK):
            a, b = start + first, start + min(first + BLOCK, n)
            bits(packed, a, e[: b - a])
            _chosen(e, rho[a:b], x[first : first + BLOCK], c[first : first + BLOCK], product[a:b], out[a:b])


@loop
def select_share(packed: Tensor, rho: Tensor, x: Tensor, c: Tensor, product: Tensor) -> Tensor:
    shape = tuple(product.shape)
    if rho.shape != product.shape:  # one bit serves several values: spread the bits first
        bits = compare_radix16.unpack_bits(packed, rho.numel()).view(rho.shape).expand(shape)
        packed, rho = compare_radix16.pack_bits(bits.reshape(-1)), rho.expand(shape)
    if shape[len(shape) - x.dim() :] != tuple(x.shape):
        x, c = x.expand(shape), c.expand(shape)
    out = torch.empty(shape, dtype=ring.DTYPE)
    if prod(shape):
        _select(
            flat(packed, U8),
            flat(rho, U64),
            flat(x, U64),
            flat(c, U64),
            flat(product, U64),
            out.view(-1).numpy().view(U64),
        )
    return out
