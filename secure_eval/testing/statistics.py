"""Tests of uniformity with a fixed, tiny false positive rate.

All are chi-square tests of byte values, position by position: a mask that is too small, biased or reused
leaves bytes that are not
uniform. Quantiles come from Wilson and Hilferty's approximation (PNAS 17, 1931), far more exact here than the
thresholds need.
"""

from __future__ import annotations

from math import sqrt

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
