"""The steps of a comparison: indicator vectors, and the look-up that makes its first message."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secure_eval.kernels import compare_radix16
from secure_eval.kernels.compiled.loops import BLOCK, U8, U16, U64, compiled, flat, loop, unsigned


@compiled
def _one_hot(r, out, shift, keep):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = U16(U16(1) << U16((r[i] >> shift) & keep))


@compiled
def _flag_top(r, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] |= U16(U16(r[i] >> U64(63)) << U16(15))


@compiled
def _indicators(r, out):  # type: ignore[no-untyped-def]
    for first in range(0, r.shape[0], BLOCK):
        block = r[first : first + BLOCK]
        for j in range(15):
            _one_hot(block, out[j, first : first + BLOCK], U64(4 * j), U64(15))
        _one_hot(block, out[15, first : first + BLOCK], U64(60), U64(7))
        _flag_top(block, out[15, first : first + BLOCK])


@loop
def indicators(r: Tensor) -> Tensor:
    out = torch.empty((compare_radix16.GROUPS, *r.shape), dtype=torch.int16)
    _indicators(flat(r, U64), out.numpy().view(U16).reshape(compare_radix16.GROUPS, -1))
    return out


@compiled
def _tables(group, keep, equal, less):  # type: ignore[no-untyped-def]
    for i in range(group.shape[0]):
        w = U16(group[i] & keep)
        equal[i] = w
        x = U16(w >> U16(1))
        x = U16(x ^ (x >> U16(1)))
        x = U16(x ^ (x >> U16(2)))
        x = U16(x ^ (x >> U16(4)))
        less[i] = U16(x ^ (x >> U16(8)))


@compiled
def _minus(c, t, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = c[i] - t


@compiled
def _digit(x, shift, keep, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = U16((x[i] >> shift) & keep)


@compiled
def _pick(table, digit, node, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] |= U8(U16(U16(table[i] >> digit[i]) & U16(1)) << node)


@compiled
def _top_bits(group, x, add_public, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        bit = U8(group[i] >> U16(15))
        out[i] = bit ^ U8(x[i] >> U64(63)) if add_public else bit


@compiled
def _join(low, high, mask, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = U8(U8(low[i] | U8(high[i] << U8(4))) ^ mask[i])


@compiled
def _look_up(c, groups, thresholds, add_public, nibbles, top):  # type: ignore[no-untyped-def]
    n = c.shape[0]
    equal, less = np.empty((16, BLOCK), U16), np.empty((16, BLOCK), U16)
    digit, x = np.empty(BLOCK, U16), np.empty(BLOCK, U64)
    for first in range(0, n, BLOCK):
        m = min(BLOCK, n - first)
        for j in range(16):
            _tables(groups[j, first : first + m], U16(0xFFFF) if j < 15 else U16(0xFF), equal[j], less[j])
        for k in range(thresholds.shape[0]):
            begin, end = k * n + first, k * n + first + m
            _minus(c[first : first + m], thresholds[k], x[:m])
            for j in range(16):
                _digit(x[:m], U64(4 * j), U64(15) if j < 15 else U64(7), digit[:m])
                _pick(less[j], digit[:m], U16(j >> 2), nibbles[j & 3, begin:end])
                _pick(equal[j], digit[:m], U16(j >> 2), nibbles[4 + (j & 3), begin:end])
            _top_bits(groups[15, first : first + m], x[:m], add_public, top[begin:end])


@compiled
def _pack(nibbles, order, masks, message):  # type: ignore[no-untyped-def]
    half = nibbles.shape[1] // 2
    for row in range(order.shape[0]):
        x = nibbles[order[row]]
        _join(x[:half], x[half:], masks[row], message[row])


_OPENED_FIRST = np.array([7, 6, 5, 2, 1, 0, 4])
_KEPT_FIRST = np.array([3])


@loop
def compare_first(
    c: Tensor, groups: Tensor, masks: Tensor, *, thresholds: tuple[int, ...], add_public: bool
) -> tuple[Tensor, Tensor, Tensor]:
    count = len(thresholds) * c.numel()
    words = compare_radix16.words(count)
    nibbles = np.zeros((8, 2 * words), U8)
    top = torch.empty((len(thresholds), *c.shape), dtype=torch.uint8)
    table = flat(groups, U16).reshape(compare_radix16.GROUPS, -1)
    _look_up(flat(c, U64), table, unsigned(thresholds), add_public, nibbles, top.view(-1).numpy())
    message, g3 = torch.empty((7, words), dtype=torch.uint8), torch.empty((1, words), dtype=torch.uint8)
    _pack(nibbles, _OPENED_FIRST, masks.contiguous().numpy(), message.numpy())
    _pack(nibbles, _KEPT_FIRST, np.zeros((1, words), U8), g3.numpy())
    return message, g3[0], top
