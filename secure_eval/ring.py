"""The ring Z_2^64 as int64 tensors, and fixed point numbers in it.

Torch's int64 arithmetic wraps modulo 2^64, so an int64 tensor *is* a tensor of ring elements; only right
shifts, comparisons and decoding give the sign a meaning. A real number x is held as round(x * 2^f) with f
fraction bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 64
"""Width l of the ring, in bits."""

DTYPE = torch.int64

VALUE_BITS = BITS - 2
"""An element has to be below 2^VALUE_BITS in magnitude wherever it is truncated, compared or selected."""


class EncodingError(ValueError):
    """A real number does not fit the ring at the requested number of fraction bits."""


def encode(x: Tensor, fraction_bits: int) -> Tensor:
    """Fixed point encoding: round(x * 2^fraction_bits), any shape, as int64.

    Raises EncodingError when a value is not finite or not below 2^(62 - fraction_bits) in magnitude. On the
    meta device only the shape is computed.
    """
    if (
        x.dtype in (torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        and fraction_bits == 0
    ):
        return x.to(DTYPE)
    scaled = torch.round(x.to(torch.float64) * 2.0**fraction_bits)
    if x.device.type != "meta" and x.numel():
        limit = 2.0**VALUE_BITS
        worst = scaled.abs().max().item()
        if not worst < limit:
            raise EncodingError(
                f"a value of magnitude {worst / 2.0**fraction_bits:.6g} does not fit {fraction_bits} "
                f"fraction bits in a {BITS}-bit ring: "
                f"allowed are magnitudes below 2^{VALUE_BITS - fraction_bits}"
            )
    return scaled.to(DTYPE)


def decode(x: Tensor, fraction_bits: int) -> Tensor:
    """The real numbers (float64, same shape) that ring elements with `fraction_bits` fraction bits stand
    for."""
    return x.to(torch.float64) / 2.0**fraction_bits


def wrap(value: int) -> int:
    """A Python integer reduced to the signed representative of its class modulo 2^64, as torch's int64
    scalars need it."""
    value &= (1 << BITS) - 1
    return value - (1 << BITS) if value >> (BITS - 1) else value


def smallest_dtype(bits: int) -> torch.dtype:
    """The smallest dtype whose wrap-around arithmetic holds integers modulo 2^bits."""
    return torch.int16 if bits <= 16 else torch.int32 if bits <= 32 else torch.int64


def shift_right_logical(x: Tensor, bits: int) -> Tensor:
    """x >> bits with zeros shifted in (int64 tensors shift in the sign). 0 <= bits < 64."""
    if bits == 0:
        return x
    return (x >> bits) & ((1 << (BITS - bits)) - 1)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product modulo 2^64 with torch.matmul's broadcasting, on the device of its operands.

    On CPU (and meta) torch's own int64 product; elsewhere, where torch has none, exact float64 products of
    16-bit limbs.
    """
    if x.device.type in ("cpu", "meta"):
        return torch.matmul(x, y)
    return matmul_by_limbs(x, y)


def matmul_by_limbs(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product modulo 2^64 from ten float64 products of unsigned 16-bit limbs; exact for inner sizes up
    to 2^21."""
    if x.shape[-1] > 2**21:
        raise ValueError(
            f"inner size {x.shape[-1]} is above 2^21, where a float64 product of 16-bit limbs is no longer "
            "exact"
        )
    xs = [((x >> (16 * i)) & 0xFFFF).to(torch.float64) for i in range(4)]
    ys = [((y >> (16 * i)) & 0xFFFF).to(torch.float64) for i in range(4)]
    total: Tensor | None = None
    for shift in range(4):
        for i in range(shift + 1):
            part = torch.matmul(xs[i], ys[shift - i]).to(DTYPE) << (16 * shift)
            total = part if total is None else total + part
    assert total is not None
    return total


def matmul_by_size(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product modulo 2^64 from exact float64 products of limbs as wide as the values at hand allow.

    For values in the clear only, as the number of products tells how large they are. Fixed-point operands of 20 to 40
    bits take two or three products, which is about ten times quicker on a CPU than torch's own int64 product.
    """
    if x.device.type == "meta" or not x.numel() or not y.numel():
        return torch.matmul(x, y)
    room = 53 - (x.shape[-1] - 1).bit_length()
    x_bits, y_bits = _signed_bits(x), _signed_bits(y)
    # Widths (x's limbs, y's limbs) whose products and their sums float64 holds, by the number of products.
    options = [(min(x_bits, room - width), width) for width in range(1, min(y_bits, room - 1) + 1)]
    a, b = min(options, key=lambda widths: -(-x_bits // widths[0]) * -(-y_bits // widths[1]))
    total: Tensor | None = None
    for i, x_limb in enumerate(_signed_limbs(x, x_bits, a)):
        for j, y_limb in enumerate(_signed_limbs(y, y_bits, b)):
            if (shift := i * a + j * b) < BITS:
                part = torch.matmul(x_limb, y_limb).to(DTYPE) << shift
                total = part if total is None else total + part
    assert total is not None
    return total


def _signed_bits(x: Tensor) -> int:
    """Bits of the largest value of x in two's complement, without the sign; at least 1."""
    low, high = (int(v) for v in torch.aminmax(x))
    return max(1, high.bit_length(), (-low - 1).bit_length() if low < 0 else 0)


def _signed_limbs(x: Tensor, bits: int, width: int) -> list[Tensor]:
    """float64 limbs of `width` bits, the lowest first; the last one carries the sign."""
    count = -(-bits // width)
    mask = (1 << width) - 1
    limbs = [(x >> (width * i)) & mask for i in range(count - 1)] + [x >> (width * (count - 1))]
    return [limb.to(torch.float64) for limb in limbs]
