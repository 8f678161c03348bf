"""Mish, x tanh(log(1 + exp(x))): seven cubics between 0 and x (piecewise.py)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from secure_eval.functions.piecewise import PiecewiseCubic, fitted, piecewise_cubic
from secure_eval.protocols.base import Protocol, Secret

_KNOTS = (-10.549, -5.906, -2.61, -1.279, -0.036, 1.539, 3.246, 5.269)
"""Where the errors of neighbouring cubics are level, at 2^-11.8; 0 and x are as near outside."""


@lru_cache
def table() -> PiecewiseCubic:
    return fitted(lambda x: x * np.tanh(np.logaddexp(0, x)), _KNOTS, (0.0, 0.0), (0.0, 1.0))


async def mish(p: Protocol, x: Secret) -> Secret:
    """x tanh(log(1 + exp(x))), any shape. Absolute error below 2^-10, for all x that fit the ring.

    Five rounds, a truncation included; 60.1 bytes an element with two parties and a dealer.
    """
    return await piecewise_cubic(p, x, table())
