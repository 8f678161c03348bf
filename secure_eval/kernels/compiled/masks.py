"""Powers of masks, and polynomials from them."""

from __future__ import annotations

from math import comb

import numpy as np
import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.kernels.compiled.loops import BLOCK, U64, compiled, flat, loop, unsigned


@compiled
def _first_power(r, shift, power, unwrapped):  # type: ignore[no-untyped-def]
    for i in range(power.shape[0]):
        power[i] = r[i] >> shift
        unwrapped[i] = power[i] - ((U64(1) << (U64(64) - shift)) if shift else U64(0))


@compiled
def _next_power(r, shift, power, unwrapped):  # type: ignore[no-untyped-def]
    for i in range(power.shape[0]):
        t = r[i] >> shift
        unwrapped[i] *= t - ((U64(1) << (U64(64) - shift)) if shift else U64(0))
        power[i] *= t


@compiled
def _excess(r, shift, power, unwrapped, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = ((r[i] >> U64(63)) * (power[i] - unwrapped[i])) >> (U64(64) - shift)


@compiled
def _mask_powers(r, shift, powers, wraps):  # type: ignore[no-untyped-def]
    p, u = np.empty(BLOCK, U64), np.empty(BLOCK, U64)
    for first in range(0, r.shape[0], BLOCK):
        block = r[first : first + BLOCK]
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


@loop
def mask_powers(r: Tensor, *, shift: int, degree: int) -> tuple[Tensor, ...]:
    small = ring.smallest_dtype(shift)
    powers = torch.empty((degree, *r.shape), dtype=ring.DTYPE)
    wraps = torch.empty((degree if shift else 0, *r.shape), dtype=small)
    n = r.numel()
    _mask_powers(
        flat(r, U64),
        U64(shift),
        powers.numpy().view(U64).reshape(degree, n),
        wraps.numpy().view(_WRAP[small]).reshape(len(wraps), n),
    )
    if not shift:
        return tuple(powers[1:])
    return tuple(x for pair in zip(powers, wraps, strict=True) for x in pair)


@compiled
def _public_part(c, shift, public, not_wrapped):  # type: ignore[no-untyped-def]
    offset = U64(1) << U64(62)
    for i in range(public.shape[0]):
        x = c[i] + offset
        public[i] = (x >> shift) - (offset >> shift)
        not_wrapped[i] = (U64(1) - (x >> U64(63))) << (U64(64) - shift)


@compiled
def _horner(coefficients, count, x, out):  # type: ignore[no-untyped-def]
    out[:] = coefficients[count - 1]
    for j in range(count - 2, -1, -1):
        c = coefficients[j]
        for i in range(out.shape[0]):
            out[i] = out[i] * x[i] + c


@compiled
def _unwrap(power, wrap, not_wrapped, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] = power[i] - not_wrapped[i] * U64(wrap[i])


@compiled
def _accumulate(a, b, out):  # type: ignore[no-untyped-def]
    for i in range(out.shape[0]):
        out[i] += a[i] * b[i]


@compiled
def _polynomial(c, powers, wraps, derivatives, shift, add_public, out):  # type: ignore[no-untyped-def]
    """Row k of derivatives: the coefficients of (-1)^k P^(k) / k!."""
    degree = derivatives.shape[0] - 1
    public, not_wrapped = np.empty(BLOCK, U64), np.empty(BLOCK, U64)
    factor, mask = np.empty(BLOCK, U64), np.empty(BLOCK, U64)
    for first in range(0, c.shape[0], BLOCK):
        share = out[first : first + BLOCK]
        m = share.shape[0]
        end = first + m
        if shift:
            _public_part(c[first:end], shift, public[:m], not_wrapped[:m])
        else:
            public[:m] = c[first:end]
        if add_public:
            _horner(derivatives[0], degree + 1, public, share)
        else:
            share[:] = U64(0)
        for k in range(1, degree + 1):
            _horner(derivatives[k], degree + 1 - k, public, factor[:m])
            if shift:
                _unwrap(powers[k - 1][first:end], wraps[k - 1][first:end], not_wrapped, mask[:m])
                _accumulate(factor, mask, share)
            else:
                _accumulate(factor, powers[k - 1][first:end], share)


@loop
def polynomial_share(
    c: Tensor, *fields: Tensor, coefficients: tuple[int, ...], shift: int, add_public: bool
) -> Tensor:
    degree = len(coefficients) - 1
    rows = []
    for k in range(degree + 1):
        row = [(-1) ** k * comb(j, k) * coefficients[j] for j in range(k, degree + 1)]
        rows.append(unsigned(row + [0] * k))
    out = torch.empty(c.shape, dtype=ring.DTYPE)
    if not degree:
        return out.fill_(ring.wrap(coefficients[0]) if add_public else 0)
    powers = tuple([flat(f, U64) for f in fields[:degree]])
    wraps = tuple([flat(f, _WRAP[f.dtype]) for f in fields[degree:]]) if shift else powers
    _polynomial(
        flat(c, U64),
        powers,
        wraps,
        np.stack(rows),
        U64(shift),
        add_public,
        out.view(-1).numpy().view(U64),
    )
    return out
