"""Polynomials fitted at import of a function's constants: near-minimax, and exact about the coefficients that a ring can hold.

A polynomial of degree d in a fixed-point number with F fraction bits is evaluated exactly in the ring at `out_bits` fraction bits,
so coefficient j is a multiple of 2^-(out_bits - jF): the leading one has the fewest bits. Rounding it and then fitting the lower
ones again costs a fraction of rounding all at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_POINTS = 4001


def chebyshev_grid(low: float, high: float, points: int = _POINTS) -> Array:
    """Points of [low, high], dense at the ends as minimax fits want them."""
    nodes: Array = np.cos(np.linspace(np.pi, 0, points))
    return (low + high) / 2 + (high - low) / 2 * nodes


def fit(
    function: Callable[[Array], Array],
    low: float,
    high: float,
    degree: int,
    x_bits: int,
    out_bits: int,
    relative: bool = False,
    points: int = _POINTS,
) -> tuple[float, ...]:
    """Coefficients, constant first, each a multiple of what the ring holds, for `function` on [low, high].

    The error (relative to the function's value if `relative`) is weighted until it is nearly level (Lawson, 1961). A few hundred
    `points` do for a short piece of a smooth function.
    """
    x = chebyshev_grid(low, high, points)
    y = function(x)
    scale = 1 / np.abs(y) if relative else np.ones_like(y)
    fixed: dict[int, float] = {}
    for j in range(degree, -1, -1):
        coefficients = _lawson(x, y - sum(c * x**k for k, c in fixed.items()), scale, j)
        step = 2.0 ** -(out_bits - j * x_bits)
        fixed[j] = round(coefficients[j] / step) * step
    return tuple(fixed[j] for j in range(degree + 1))


def _lawson(x: Array, y: Array, scale: Array, degree: int) -> Array:
    basis = np.stack([x**j for j in range(degree + 1)], axis=1) * scale[:, None]
    weights: Array = np.ones_like(x)
    coefficients: Array = np.zeros(degree + 1)
    for _ in range(40):
        root = np.sqrt(weights)
        found = np.linalg.lstsq(basis * root[:, None], y * scale * root, rcond=None)[0]
        coefficients = found.astype(np.float64)
        error = np.abs(basis @ coefficients - y * scale)
        weights = weights * (error + 1e-300)
        weights /= weights.max()
        weights = np.clip(weights, 1e-12, None).astype(np.float64)
    return coefficients


def evaluate(coefficients: tuple[float, ...], x: Array) -> Array:
    """The polynomial's values in float64."""
    total = np.zeros_like(x)
    for c in reversed(coefficients):
        total = total * x + c
    return total
