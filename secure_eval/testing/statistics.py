"""Tests of uniformity with a fixed, tiny false positive rate.

All are chi-square tests of byte values, position by position: a mask that is too small, biased or reused
leaves bytes that are not
uniform. Quantiles come from Wilson and Hilferty's approximation (PNAS 17, 1931), far more exact here than the
thresholds need.
"""

from __future__ import annotations

from math import log, log10, sqrt

import torch
from torch import Tensor

Z_LIMIT = 7.0
"""Standard normal quantile of one test: a true uniform fails with probability 1.3e-12."""

MIN_SAMPLES = 1280
"""Five expected samples a byte value."""


def chi_square_z(statistic: float, degrees: int) -> float:
    """The chi-square statistic as a standard normal deviate."""
    ratio = (max(statistic, 0.0) / degrees) ** (1 / 3)
    return (ratio - (1 - 2 / (9 * degrees))) / sqrt(2 / (9 * degrees))


def byte_columns(x: Tensor) -> Tensor:
    """The bytes of an integer tensor, shape [itemsize, elements], least significant first."""
    flat = x.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).view(flat.numel(), flat.element_size()).T


def uniform_z(x: Tensor) -> float:
    """The worst deviate over the byte positions of x from uniform bytes; NaN below MIN_SAMPLES elements."""
    columns = byte_columns(x)
    n = columns.shape[1]
    if n < MIN_SAMPLES:
        return float("nan")
    worst = -float("inf")
    for column in columns:
        observed = torch.bincount(column.to(torch.int64), minlength=256).to(torch.float64)
        worst = max(worst, chi_square_z(float(((observed - n / 256) ** 2 / (n / 256)).sum()), 255))
    return worst


def two_sample_z(x: Tensor, y: Tensor) -> float:
    """The worst deviate over the byte positions from x and y having one distribution; NaN below MIN_SAMPLES
    elements each.
    """
    a, b = byte_columns(x), byte_columns(y)
    if min(a.shape[1], b.shape[1]) < MIN_SAMPLES:
        return float("nan")
    worst = -float("inf")
    for p, q in zip(a, b, strict=True):
        f, g = (torch.bincount(c.to(torch.int64), minlength=256).to(torch.float64) for c in (p, q))
        n, m = f.sum(), g.sum()
        both = f + g
        used = both > 0
        degrees = int(used.sum()) - 1
        if degrees == 0:
            worst = max(worst, 0.0)
            continue
        statistic = (((m / n).sqrt() * f - (n / m).sqrt() * g)[used] ** 2 / both[used]).sum()
        worst = max(worst, chi_square_z(float(statistic), degrees))
    return worst


SURPRISE_LIMIT = 18.0
"""Of `surprises`: a uniform tensor passes it with probability 1e-16 or less, a million of them in a run with 1e-10."""

_SAMPLES = 4096


def samples(x: Tensor) -> Tensor:
    """Elements from all over a tensor, flat, as many as tests look at: those at the same places of each tensor of a size."""
    flat = x.detach().reshape(-1).cpu()
    return flat if len(flat) <= _SAMPLES else flat[torch.arange(_SAMPLES) * len(flat) // _SAMPLES]


def surprises(rows: Tensor) -> Tensor:
    """How far each row of an integer tensor [rows, elements] is from uniform over its dtype: -log10 of the probability that a uniform
    one is as far away, of the most telling of these tests.

    For every byte position: the share of ones in each of its bits (Hoeffding, JASA 58, 1963), the largest distance of its distribution
    from the uniform one (Kolmogorov and Smirnov, with the bound of Massart, Ann. Probab. 18, 1990), and chi-square over its 256 values.
    The first two are bounds; the third is a tail of Wilson and Hilferty's approximation, less what five expected samples a value are
    skewed by. A row of bits, 0 or 1 in uint8, is tested as such.
    """
    count, n = rows.shape
    if n < MIN_SAMPLES:
        raise ValueError(f"{n} elements are too few for a test; it takes {MIN_SAMPLES}")
    size = rows.element_size()
    flat = rows.contiguous().view(torch.uint8).view(count, n, size).to(torch.int64)
    place = torch.arange(count * size).view(count, 1, size) * 256
    counts = torch.bincount((flat + place).reshape(-1), minlength=count * size * 256).view(count, size, 256)
    shares = counts.to(torch.float64) / n
    values = torch.arange(256)
    bits = torch.stack([(values >> k) & 1 for k in range(8)], 1).to(torch.float64)
    off_bits = (shares @ bits - 0.5).abs()
    off_steps = (shares.cumsum(-1) - (values + 1) / 256).abs()
    if rows.dtype == torch.uint8 and int(rows.max()) <= 1:
        off_bits, off_steps = off_bits[..., :1], off_steps[..., :0]
    off = torch.cat([off_bits, off_steps], -1).amax((-1, -2))
    bound = 2 * n * off**2 / log(10) - log10(2)
    if off_steps.shape[-1] == 0:
        return bound
    statistic = ((shares - 1 / 256) ** 2).sum(-1) * 256 * n
    z = ((statistic / 255) ** (1 / 3) - (1 - 2 / (9 * 255))) / sqrt(2 / (9 * 255))
    z = z.amax(-1).clamp(min=0.0)
    return torch.maximum(bound, (z**2 / 2 - _SKEW * z.clamp(max=12.0) ** 3) / log(10))


_SKEW = 0.08 / 6
"""Sixth of what the skewness of Pearson's statistic with five expected samples a value exceeds that of chi-square by."""
