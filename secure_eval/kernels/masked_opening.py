"""Local steps on masked openings: pure functions of tensors that protocols share.

Two holders, one of whom adds what is public (`add_public`), turn an opened c = x + r and shares of what is known of r into shares of
readings of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, prod

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.kernels import compare_radix16
from secure_eval.kernels.kernel import kernel

_OFFSET_BITS = ring.VALUE_BITS
_TRUNCATION_OFFSET = (1 << _OFFSET_BITS) - 1


@kernel
def mask_powers(r: Tensor, *, shift: int, degree: int) -> tuple[Tensor, ...]:
    """The derived fields of a Mask but for its groups, in their order: power j unless it is r itself, and
    wrap j where shift > 0."""
    top = ring.shift_right_logical(r, ring.BITS - 1)
    truncated = ring.shift_right_logical(r, shift)
    unwrapped = truncated - (1 << (ring.BITS - shift)) if shift else truncated
    power, unwrapped_power = truncated, unwrapped
    values = []
    for j in range(1, degree + 1):
        if j > 1 or shift:
            values.append(power)
        if shift:
            excess = ring.shift_right_logical(top * (power - unwrapped_power), ring.BITS - shift)
            values.append(excess.to(ring.smallest_dtype(shift)))
        power, unwrapped_power = power * truncated, unwrapped_power * unwrapped
    return tuple(values)


@kernel
def polynomial_share(
    c: Tensor, *fields: Tensor, coefficients: tuple[int, ...], shift: int, add_public: bool
) -> Tensor:
    """Share of sum_j coefficients[j] y^j, y = x / 2^shift, from an opened c = x + r.

    Taylor's formula around y's public part: sum_k P^(k)(public)/k! * (-mask)^k. `fields` are the shares of
    the powers 1 to the degree of r / 2^shift, then where shift > 0 as many wraps. The term without a mask is
    added by one party.
    """
    degree = len(coefficients) - 1
    public = _public_part(c, shift)
    if shift:
        # x + r wrapped exactly when r's top bit is 1 and the opened one is 0.
        not_wrapped = (c + (1 << _OFFSET_BITS) >= 0).to(ring.DTYPE) << (ring.BITS - shift)
    share = _horner(coefficients, public) if add_public else torch.zeros_like(public)
    for k in range(1, degree + 1):
        power = fields[k - 1]
        if shift:
            power = power - not_wrapped * fields[degree + k - 1]
        derivative = _horner([comb(j, k) * coefficients[j] for j in range(k, degree + 1)], public)
        share = share - derivative * power if k % 2 else share + derivative * power
    return share


def _public_part(c: Tensor, shift: int) -> Tensor:
    """What an opened c says of y = x / 2^shift."""
    if not shift:
        return c
    return ring.shift_right_logical(c + (1 << _OFFSET_BITS), shift) - (1 << (_OFFSET_BITS - shift))


@kernel
def public_polynomial(c: Tensor, *, coefficients: tuple[int, ...], shift: int) -> Tensor:
    """The term of a polynomial of y = x / 2^shift that an opened c says alone."""
    return _horner(coefficients, _public_part(c, shift))


def _horner(coefficients: Sequence[int], x: Tensor) -> Tensor:
    total = torch.full_like(x, ring.wrap(coefficients[-1]))
    for c in reversed(coefficients[:-1]):
        total = total * x + ring.wrap(c)
    return total


@kernel
def wrap_message(x: Tensor, mask: Tensor, *, add_public: bool) -> Tensor:
    """Packed under a mask: whether this party's share of x + 2^62 - 1, which is not negative, has its top bit set."""
    shifted = x + _TRUNCATION_OFFSET if add_public else x
    return compare_radix16.pack_bits((shifted < 0).to(torch.uint8).reshape(-1)) ^ mask


@kernel
def truncation_share(
    x: Tensor, mine: Tensor, theirs: Tensor, mask: Tensor, product: Tensor, *, shift: int, add_public: bool
) -> Tensor:
    """Share of x / 2^shift, less than a unit in the last place off.

    The signed shares of v = x + 2^62 - 1 add up to v - [both top bits are set] * 2^64, so that v / 2^shift is the sum of the shifted
    shares and b_0 b_1 2^(64 - shift). With opened e_i = b_i ^ m_i (`mine`, `theirs`, packed) and dealt m_0 m_1:
    b_0 b_1 = b_0 e_1 + (1 - 2 e_1) b_0 m_1,  b_0 m_1 = e_0 m_1 + (1 - 2 e_0) m_0 m_1; b_0 is party 0's, m_1 party 1's (`mask`).
    """
    count = x.numel()
    own, other = (compare_radix16.unpack_bits(e, count).view(x.shape).to(ring.DTYPE) for e in (mine, theirs))
    dealt = product.to(ring.DTYPE)
    if add_public:
        v = x + _TRUNCATION_OFFSET
        both = (v < 0).to(ring.DTYPE) * other + (1 - 2 * other) * (1 - 2 * own) * dealt
        return (v >> shift) + (both << (ring.BITS - shift)) + (1 - (1 << (_OFFSET_BITS - shift)))
    private = compare_radix16.unpack_bits(mask, count).view(x.shape).to(ring.DTYPE)
    both = (1 - 2 * own) * (other * private + (1 - 2 * other) * dealt)
    return (x >> shift) + (both << (ring.BITS - shift))


@kernel
def product_share(c_x: Tensor, r_x: Tensor, y: Tensor, c_y: Tensor, product: Tensor) -> Tensor:
    """Share of x * y elementwise, broadcasting: c_x [y] - [r_x] c_y + [r_x r_y]."""
    return torch.addcmul(torch.addcmul(product, c_x, y), r_x, c_y, value=-1)


@kernel
def bits_as_ring(packed: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    """Packed bits as ring elements 0 and 1 of a shape."""
    return compare_radix16.unpack_bits(packed, prod(shape)).view(shape).to(ring.DTYPE)


@kernel
def bit_share(packed: Tensor, rho: Tensor, *, add_public: bool) -> Tensor:
    """Share of a bit as a ring element from the packed opened e = b ^ rho: e + (1 - 2e) rho, shape of rho."""
    e = compare_radix16.unpack_bits(packed, rho.numel()).view(rho.shape).to(ring.DTYPE)
    share = (1 - 2 * e) * rho
    return share + e if add_public else share


@kernel
def both_share(
    packed: Tensor, gate_packed: Tensor, rho: Tensor, gate: Tensor, product: Tensor, *, add_public: bool
) -> Tensor:
    """Share of b g as a ring element from the packed opened e = b ^ rho and d = g ^ gate: (e + (1 - 2e) rho) (d + (1 - 2d) gate)."""
    e = compare_radix16.unpack_bits(packed, rho.numel()).view(rho.shape).to(ring.DTYPE)
    d = compare_radix16.unpack_bits(gate_packed, gate.numel()).view(gate.shape).to(ring.DTYPE)
    share = (1 - 2 * e) * d * rho + e * (1 - 2 * d) * gate + (1 - 2 * e) * (1 - 2 * d) * product
    return share + e * d if add_public else share


@kernel
def select_share(packed: Tensor, rho: Tensor, x: Tensor, c: Tensor, product: Tensor) -> Tensor:
    """Share of b * x from the packed opened e = b ^ rho and c = x + r.

    e [x] + (1 - 2e)([rho] c - [rho r]).
    """
    e = compare_radix16.unpack_bits(packed, rho.numel()).view(rho.shape).to(ring.DTYPE)
    return e * x + (1 - 2 * e) * (rho * c - product)
