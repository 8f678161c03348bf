"""The two local steps of a one-bit truncation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.kernels.compiled.loops import BLOCK, U8, U64, compiled, flat, loop
from secure_eval.kernels.compiled.selection import bits

_OFFSET = (1 << 62) - 1


@compiled
def _tops(x, offset, bit, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        out[i] |= U8((x[i] + offset) >> U64(63)) << bit


@compiled
def _message(x, offset, mask, out):  # type: ignore[no-untyped-def]
    size = out.shape[0]
    out[:] = mask
    top = np.zeros(size, U8)
    for bit in range(8):
        row = x[bit * size : (bit + 1) * size]
        _tops(row, offset, U8(bit), top)
    for i in range(size):
        out[i] ^= top[i]


@loop
def wrap_message(x: Tensor, mask: Tensor, *, add_public: bool) -> Tensor:
    out = torch.empty(mask.shape, dtype=torch.uint8)
    _message(flat(x, U64), U64(_OFFSET if add_public else 0), flat(mask, U8), out.numpy())
    return out


@compiled
def _first(x, own, other, product, shift, constant, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        v = x[i] + U64(_OFFSET)
        p = U64(product[i])
        both = (v >> U64(63)) * other[i] + (U64(1) - (other[i] << U64(1))) * (p - ((own[i] * p) << U64(1)))
        sign = U64(0) - (v >> U64(63))
        out[i] = ((v >> shift) | (sign << (U64(64) - shift))) + (both << (U64(64) - shift)) + constant


@compiled
def _second(x, own, other, private, product, shift, out):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        p = U64(product[i])
        both = other[i] * private[i] + p - ((other[i] * p) << U64(1))
        both = both - ((own[i] * both) << U64(1))
        sign = U64(0) - (x[i] >> U64(63))
        out[i] = ((x[i] >> shift) | (sign << (U64(64) - shift))) + (both << (U64(64) - shift))


@compiled
def _truncate(x, mine, theirs, mask, product, shift, first, constant, out):  # type: ignore[no-untyped-def]
    own, other, private = np.empty(BLOCK, U64), np.empty(BLOCK, U64), np.empty(BLOCK, U64)
    for start in range(0, x.shape[0], BLOCK):
        end = min(x.shape[0], start + BLOCK)
        m = end - start
        bits(mine, start, own[:m])
        bits(theirs, start, other[:m])
        if first:
            _first(x[start:end], own, other, product[start:end], shift, constant, out[start:end])
        else:
            bits(mask, start, private[:m])
            _second(x[start:end], own, other, private, product[start:end], shift, out[start:end])


_SMALL = {torch.int16: np.uint16, torch.int32: np.uint32, torch.int64: np.uint64}


@loop
def truncation_share(
    x: Tensor, mine: Tensor, theirs: Tensor, mask: Tensor, product: Tensor, *, shift: int, add_public: bool
) -> Tensor:
    out = torch.empty(x.shape, dtype=ring.DTYPE)
    _truncate(
        flat(x, U64),
        flat(mine, U8),
        flat(theirs, U8),
        flat(mask, U8),
        flat(product, _SMALL[product.dtype]),
        U64(shift),
        add_public,
        U64((1 - (1 << (62 - shift))) & (2**64 - 1)),
        out.view(-1).numpy().view(U64),
    )
    return out
