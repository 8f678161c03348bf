"""The natural logarithm: of z in [1/2, 1] by a quartic, plus the octave's multiple of log 2 (octaves.py)."""

from __future__ import annotations

from functools import lru_cache
from math import log as real_log

import numpy as np

from secure_eval.functions.octaves import DEGREE, Octaves, normalised, quartic
from secure_eval.protocols.base import Protocol, Secret

LOG_RANGE = Octaves(2.0**-16, 2.0**30)
_Z_BITS = 12
_OUT_BITS = 48


@lru_cache
def _coefficients() -> tuple[float, ...]:
    return quartic(np.log, False, _Z_BITS, _OUT_BITS)


async def log(p: Protocol, x: Secret, r: Octaves = LOG_RANGE) -> Secret:
    """log(x) for x in the range, any shape. Absolute error below 2^-10. For 0 <= x < low it lies between log(low) - 3 and log(low).

    Five rounds; with two parties and a dealer 16 bytes an element and 4.4 for each octave after the first: 213 for the default range.
    """
    value = await normalised(p, x, r)
    opened = await p.open_masked(value.z, shift=value.z.fraction_bits - _Z_BITS, degree=DEGREE)
    octaves = value.weighted(p, [k * real_log(2) for k in r.exponents], _OUT_BITS)
    return p.add(await opened.polynomial(_coefficients(), _OUT_BITS), octaves)
