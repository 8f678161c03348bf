"""Softplus, log(1 + exp(x)): six cubics between 0 and x (piecewise.py)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from secure_eval.functions.piecewise import PiecewiseCubic, fitted, piecewise_cubic
from secure_eval.protocols.base import Protocol, Secret

_KNOTS = (-8.266, -4.65, -2.3, 0.0, 2.3, 4.65, 8.266)
"""Where the errors of neighbouring cubics are level, at 2^-11.9; 0 and x are as near outside."""


@lru_cache
def table() -> PiecewiseCubic:
    return fitted(lambda x: np.logaddexp(0, x), _KNOTS, (0.0, 0.0), (0.0, 1.0))


async def softplus(p: Protocol, x: Secret) -> Secret:
    """log(1 + exp(x)), any shape. Absolute error below 2^-10, for all x that fit the ring.

    Five rounds, a truncation included; 55.6 bytes an element with two parties and a dealer.
    """
    return await piecewise_cubic(p, x, table())
