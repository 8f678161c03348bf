"""exp of a value that is not positive.

exp(y) = c(y)^27 with the cubic c near exp(y/27); each cubing follows from the opening that truncates, so it costs one round. Below
-12, where exp is under 2^-17, the result is zero. (CrypTen's (1 + y/256)^256 takes eight squarings and two rounds each.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from secure_eval.functions.approximation import fit
from secure_eval.protocols.base import Protocol, Secret

LOWEST = -12.0
_Y_BITS = 16
_SCALE_BITS = 4
_CUBIC_BITS = 60
_KEPT = 20


@lru_cache
def base_cubic() -> tuple[float, ...]:
    """exp(16 u / 27) on u = y/16 in [-3/4, 0]."""
    return fit(lambda u: np.exp(u * 16 / 27), LOWEST / 16, 0.0, 3, _Y_BITS, _CUBIC_BITS, relative=True)


async def exp_nonpositive(p: Protocol, y: Secret) -> Secret:
    """exp(y) for y <= 0 (a few units in the last place above are fine), any shape. Relative error below 8e-4 down to -12, then 0.

    The result has 60 fraction bits; truncate it to what is needed.
    """
    y = (
        Secret(y.shares, y.fraction_bits)
        if y.fraction_bits + _SCALE_BITS >= _Y_BITS
        else p.lift(y, _Y_BITS - _SCALE_BITS)
    )
    scaled = Secret(y.shares, y.fraction_bits + _SCALE_BITS)
    opened = await p.open_masked(scaled, shift=scaled.fraction_bits - _Y_BITS, degree=3, compare=True)
    power = await opened.polynomial(base_cubic(), _CUBIC_BITS)
    inside = p.invert(await opened.less_than([LOWEST / 2**_SCALE_BITS]))[0]
    for _ in range(3):
        step = await p.open_masked(power, shift=_CUBIC_BITS - _KEPT, degree=3)
        power = await step.polynomial([0.0, 0.0, 0.0, 1.0], 3 * _KEPT)
    return await p.select(inside, power)
