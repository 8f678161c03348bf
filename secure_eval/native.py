"""Compiled loops for the CPU: each does in one pass over cache-sized blocks what the torch function of the
same name defines.

numba compiles a loop when it is first called (a second or more each) and keeps the machine code beside this
file or in the user's cache, so later processes only load it. The loops release the GIL. Inner loops run over
slices, unit stride and without index arithmetic on signed numbers, which is what lets the compiler use the
widest vector registers; ring elements are uint64 here, so that shifts are logical.
benchmarks/local_kernels.py says what each loop gains over its torch function; steps that gained nothing are
not here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb, prod
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from secure_eval import ring
from secure_eval.protocols import bitwords

_BLOCK = 1024
_U8, _U16, _U64 = np.uint8, np.uint16, np.uint64
Array = np.ndarray[Any, Any]
LOOPS: dict[str, Callable[..., Any]] = {}
"""The loops by the name of the torch function that they stand for; same arguments, same results."""

_compiled = njit(cache=True, nogil=True)


def _loop(function: Callable[..., Any]) -> Callable[..., Any]:
    LOOPS[function.__name__] = function
    return function


def _flat(x: Tensor, dtype: Any) -> Array:
    """The elements in order as a numpy array of an equally wide dtype."""
    return x.contiguous().view(-1).numpy().view(dtype)


def _unsigned(values: Any) -> Array:
    return np.array([v & (2**64 - 1) for v in values], dtype=np.uint64)


# -- indicators ----------------------------------------------------------------------------------------------


@_compiled
def _one_hot(r, out, shift, keep):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = _U16(_U16(1) << _U16((r[i] >> shift) & keep))


@_compiled
def _flag_top(r, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] |= _U16(_U16(r[i] >> _U64(63)) << _U16(15))


@_compiled
def _indicators(r, out):  # type: ignore[no-untyped-def]
    for first in range(0, r.shape[0], _BLOCK):
        block = r[first : first + _BLOCK]
        for j in range(15):
            _one_hot(block, out[j, first : first + _BLOCK], _U64(4 * j), _U64(15))
        _one_hot(block, out[15, first : first + _BLOCK], _U64(60), _U64(7))
        _flag_top(block, out[15, first : first + _BLOCK])


@_loop
def indicators(r: Tensor) -> Tensor:
    out = torch.empty((bitwords.GROUPS, *r.shape), dtype=torch.int16)
    _indicators(_flat(r, _U64), out.numpy().view(_U16).reshape(bitwords.GROUPS, -1))
    return out


# -- the first step of a comparison --------------------------------------------------------------------------


@_compiled
def _tables(group, keep, equal, less):  # type: ignore[no-untyped-def]
    for i in range(group.shape[0]):
        w = _U16(group[i] & keep)
        equal[i] = w
        x = _U16(w >> _U16(1))
        x = _U16(x ^ (x >> _U16(1)))
        x = _U16(x ^ (x >> _U16(2)))
        x = _U16(x ^ (x >> _U16(4)))
        less[i] = _U16(x ^ (x >> _U16(8)))


@_compiled
def _minus(c, t, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = c[i] - t


@_compiled
def _digit(x, shift, keep, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = _U16((x[i] >> shift) & keep)


@_compiled
def _pick(table, digit, node, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] |= _U8(_U16(_U16(table[i] >> digit[i]) & _U16(1)) << node)


@_compiled
def _top_bits(group, x, add_public, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        bit = _U8(group[i] >> _U16(15))
        out[i] = bit ^ _U8(x[i] >> _U64(63)) if add_public else bit


@_compiled
def _join(low, high, mask, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = _U8(_U8(low[i] | _U8(high[i] << _U8(4))) ^ mask[i])


@_compiled
def _look_up(c, groups, thresholds, add_public, nibbles, top):  # type: ignore[no-untyped-def]
    n = c.shape[0]
    equal, less = np.empty((16, _BLOCK), _U16), np.empty((16, _BLOCK), _U16)
    digit, x = np.empty(_BLOCK, _U16), np.empty(_BLOCK, _U64)
    for first in range(0, n, _BLOCK):
        m = min(_BLOCK, n - first)
        for j in range(16):
            _tables(groups[j, first : first + m], _U16(0xFFFF) if j < 15 else _U16(0xFF), equal[j], less[j])
        for k in range(thresholds.shape[0]):
            begin, end = k * n + first, k * n + first + m
            _minus(c[first : first + m], thresholds[k], x[:m])
            for j in range(16):
                _digit(x[:m], _U64(4 * j), _U64(15) if j < 15 else _U64(7), digit[:m])
                _pick(less[j], digit[:m], _U16(j >> 2), nibbles[j & 3, begin:end])
                _pick(equal[j], digit[:m], _U16(j >> 2), nibbles[4 + (j & 3), begin:end])
            _top_bits(groups[15, first : first + m], x[:m], add_public, top[begin:end])


@_compiled
def _pack(nibbles, order, masks, message):  # type: ignore[no-untyped-def]
    half = nibbles.shape[1] // 2
    for row in range(order.shape[0]):
        x = nibbles[order[row]]
        _join(x[:half], x[half:], masks[row], message[row])


_OPENED_FIRST = np.array([7, 6, 5, 2, 1, 0, 4])
_KEPT_FIRST = np.array([3])


@_loop
def compare_first(
    c: Tensor, groups: Tensor, masks: Tensor, *, thresholds: tuple[int, ...], add_public: bool
) -> tuple[Tensor, Tensor, Tensor]:
    count = len(thresholds) * c.numel()
    words = bitwords.words(count)
    nibbles = np.zeros((8, 2 * words), _U8)
    top = torch.empty((len(thresholds), *c.shape), dtype=torch.uint8)
    table = _flat(groups, _U16).reshape(bitwords.GROUPS, -1)
    _look_up(_flat(c, _U64), table, _unsigned(thresholds), add_public, nibbles, top.view(-1).numpy())
    message, g3 = torch.empty((7, words), dtype=torch.uint8), torch.empty((1, words), dtype=torch.uint8)
    _pack(nibbles, _OPENED_FIRST, masks.contiguous().numpy(), message.numpy())
    _pack(nibbles, _KEPT_FIRST, np.zeros((1, words), _U8), g3.numpy())
    return message, g3[0], top


# -- masks and polynomials -----------------------------------------------------------------------------------


@_compiled
def _first_power(r, shift, power, unwrapped):  # type: ignore[no-untyped-def]
    for i in range(power.shape[0]):
        power[i] = r[i] >> shift
        unwrapped[i] = power[i] - ((_U64(1) << (_U64(64) - shift)) if shift else _U64(0))


@_compiled
def _next_power(r, shift, power, unwrapped):  # type: ignore[no-untyped-def]
    for i in range(power.shape[0]):
        t = r[i] >> shift
        unwrapped[i] *= t - ((_U64(1) << (_U64(64) - shift)) if shift else _U64(0))
        power[i] *= t


@_compiled
def _excess(r, shift, power, unwrapped, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = ((r[i] >> _U64(63)) * (power[i] - unwrapped[i])) >> (_U64(64) - shift)


@_compiled
def _mask_readings(r, shift, powers, wraps):  # type: ignore[no-untyped-def]
    p, u = np.empty(_BLOCK, _U64), np.empty(_BLOCK, _U64)
    for first in range(0, r.shape[0], _BLOCK):
        block = r[first : first + _BLOCK]
        m = block.shape[0]
        for j in range(powers.shape[0]):
            if j == 0:
                _first_power(block, shift, p[:m], u[:m])
            else:
                _next_power(block, shift, p[:m], u[:m])
            powers[j, first : first + m] = p[:m]
            if shift:
                _excess(block, shift, p, u, wraps[j, first : first + m])


_WRAP = {torch.int16: np.uint16, torch.int32: np.uint32, torch.int64: np.uint64}


@_loop
def mask_readings(r: Tensor, *, shift: int, degree: int) -> tuple[Tensor, ...]:
    small = ring.smallest_dtype(shift)
    powers = torch.empty((degree, *r.shape), dtype=ring.DTYPE)
    wraps = torch.empty((degree if shift else 0, *r.shape), dtype=small)
    n = r.numel()
    _mask_readings(
        _flat(r, _U64),
        _U64(shift),
        powers.numpy().view(_U64).reshape(degree, n),
        wraps.numpy().view(_WRAP[small]).reshape(len(wraps), n),
    )
    if not shift:
        return tuple(powers[1:])
    return tuple(x for pair in zip(powers, wraps, strict=True) for x in pair)


@_compiled
def _public_part(c, shift, public, not_wrapped):  # type: ignore[no-untyped-def]
    offset = _U64(1) << _U64(62)
    for i in range(public.shape[0]):
        x = c[i] + offset
        public[i] = (x >> shift) - (offset >> shift)
        not_wrapped[i] = (_U64(1) - (x >> _U64(63))) << (_U64(64) - shift)


@_compiled
def _horner(coefficients, count, x, out):  # type: ignore[no-untyped-def]
    out[:] = coefficients[count - 1]
    for j in range(count - 2, -1, -1):
        c = coefficients[j]
        for i in range(out.shape[0]):
            out[i] = out[i] * x[i] + c


@_compiled
def _unwrap(power, wrap, not_wrapped, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = power[i] - not_wrapped[i] * _U64(wrap[i])


@_compiled
def _accumulate(a, b, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] += a[i] * b[i]


@_compiled
def _polynomial(c, powers, wraps, derivatives, shift, add_public, out):  # type: ignore[no-untyped-def]
    """Row k of derivatives: the coefficients of (-1)^k P^(k) / k!."""
    degree = derivatives.shape[0] - 1
    public, not_wrapped = np.empty(_BLOCK, _U64), np.empty(_BLOCK, _U64)
    factor, mask = np.empty(_BLOCK, _U64), np.empty(_BLOCK, _U64)
    for first in range(0, c.shape[0], _BLOCK):
        share = out[first : first + _BLOCK]
        m = share.shape[0]
        end = first + m
        if shift:
            _public_part(c[first:end], shift, public[:m], not_wrapped[:m])
        else:
            public[:m] = c[first:end]
        if add_public:
            _horner(derivatives[0], degree + 1, public, share)
        else:
            share[:] = _U64(0)
        for k in range(1, degree + 1):
            _horner(derivatives[k], degree + 1 - k, public, factor[:m])
            if shift:
                _unwrap(powers[k - 1][first:end], wraps[k - 1][first:end], not_wrapped, mask[:m])
                _accumulate(factor, mask, share)
            else:
                _accumulate(factor, powers[k - 1][first:end], share)


@_loop
def polynomial_share(
    c: Tensor, *fields: Tensor, coefficients: tuple[int, ...], shift: int, add_public: bool
) -> Tensor:
    degree = len(coefficients) - 1
    rows = []
    for k in range(degree + 1):
        row = [(-1) ** k * comb(j, k) * coefficients[j] for j in range(k, degree + 1)]
        rows.append(_unsigned(row + [0] * k))
    out = torch.empty(c.shape, dtype=ring.DTYPE)
    if not degree:
        return out.fill_(ring.wrap(coefficients[0]) if add_public else 0)
    powers = tuple([_flat(f, _U64) for f in fields[:degree]])
    wraps = tuple([_flat(f, _WRAP[f.dtype]) for f in fields[degree:]]) if shift else powers
    _polynomial(
        _flat(c, _U64),
        powers,
        wraps,
        np.stack(rows),
        _U64(shift),
        add_public,
        out.view(-1).numpy().view(_U64),
    )
    return out


# -- selections ----------------------------------------------------------------------------------------------


@_compiled
def _unpack(words, shift, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = _U64((words[i] >> shift) & _U8(1))


@_compiled
def _bits(packed, first, out):  # type: ignore[no-untyped-def]
    """Bits number `first` and on, as many as `out` has room for."""
    size, done = packed.shape[0], 0
    while done < out.shape[0]:
        bit, at = divmod(first + done, size)
        m = min(size - at, out.shape[0] - done)
        _unpack(packed[at : at + m], _U8(bit), out[done : done + m])
        done += m


@_compiled
def _chosen(e, rho, x, c, product, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        t = rho[i] * c[i] - product[i]
        out[i] = e[i] * x[i] + (t - (e[i] + e[i]) * t)


@_compiled
def _select(packed, rho, x, c, product, out):  # type: ignore[no-untyped-def]
    """x and c repeat for each of the leading bits."""
    n = x.shape[0]
    e = np.empty(_BLOCK, _U64)
    for start in range(0, out.shape[0], n):
        for first in range(0, n, _BLOCK):
            a, b = start + first, start + min(first + _BLOCK, n)
            _bits(packed, a, e[: b - a])
            _chosen(e, rho[a:b], x[first : first + _BLOCK], c[first : first + _BLOCK], product[a:b], out[a:b])


@_loop
def select_share(packed: Tensor, rho: Tensor, x: Tensor, c: Tensor, product: Tensor) -> Tensor:
    shape = tuple(product.shape)
    if rho.shape != product.shape:  # one bit serves several values: spread the bits first
        bits = bitwords.unpack_bits(packed, rho.numel()).view(rho.shape).expand(shape)
        packed, rho = bitwords.pack_bits(bits.reshape(-1)), rho.expand(shape)
    if shape[len(shape) - x.dim() :] != tuple(x.shape):
        x, c = x.expand(shape), c.expand(shape)
    out = torch.empty(shape, dtype=ring.DTYPE)
    if prod(shape):
        _select(
            _flat(packed, _U8),
            _flat(rho, _U64),
            _flat(x, _U64),
            _flat(c, _U64),
            _flat(product, _U64),
            out.view(-1).numpy().view(_U64),
        )
    return out
