"""GELU: x/2 plus an even function of x, which is a polynomial of degree 6 in x^2 between two thresholds and abs(x)/2 beyond.

Any polynomial of degree 6 is N - L^2 with L cubic and N quadratic when its leading coefficient is negative (N + L^2 when positive),
so three openings do: of x (its square, and both comparisons), of x^2 (L and N), of L (its square).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi, sqrt

import numpy as np
import torch

from secure_eval.functions.approximation import Array, chebyshev_grid, evaluate, fit
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.scheduler import gather

_THRESHOLD = 3.7
_SQUARE_SCALE_BITS = 4
_V_BITS = 16
_OUT_BITS = 60
_SUM_BITS = 32


@dataclass(frozen=True)
class Even:
    """sign * L(v)^2 + N(v) with v = x^2/16: coefficients of L and N, constant first."""

    sign: int
    cubic: tuple[float, ...]
    quadratic: tuple[float, ...]


def _even_part(x: Array, approximate: str) -> Array:
    if approximate == "tanh":
        gate = np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
    else:
        gate = torch.special.erf(torch.from_numpy(x / sqrt(2))).numpy()
    result: Array = 0.5 * x * gate
    return result


@lru_cache
def even_polynomial(approximate: str) -> Even:
    """Fitted to gelu(x) - x/2 on abs(x) <= 3.7, with L's coefficients rounded first and N fitted to what they leave."""

    def target(v: Array) -> Array:
        return _even_part(4 * np.sqrt(np.maximum(v, 0)), approximate)

    top = _THRESHOLD**2 / 16
    c = fit(target, 0.0, top, 6, 0, 60)
    sign = 1 if c[6] > 0 else -1
    l3 = sqrt(abs(c[6]))
    l2 = sign * c[5] / (2 * l3)
    l1 = (sign * c[4] - l2**2) / (2 * l3)
    l0 = (sign * c[3] - 2 * l2 * l1) / (2 * l3)
    cubic = tuple(round(a * 2.0**s) / 2.0**s for a, s in zip((l0, l1, l2, l3), (60, 44, 28, 12), strict=True))
    v = chebyshev_grid(0.0, top)
    rest = target(v) - sign * evaluate(cubic, v) ** 2
    quadratic = fit(lambda u: np.interp(u, v, rest), 0.0, top, 2, _V_BITS, _OUT_BITS)
    return Even(sign, cubic, quadratic)


async def gelu(p: Protocol, x: Secret, approximate: str = "none") -> Secret:
    """GELU, any shape; `approximate` is "none" (erf) or "tanh". Absolute error below 2^-10 for abs(x) < 2^30. Four rounds."""
    even = even_polynomial(approximate)
    x = await p.rescale(x, max(x.fraction_bits, p.fraction_bits))
    bits = min(x.fraction_bits, p.fraction_bits)
    opened = await p.open_masked(x, shift=x.fraction_bits - bits, degree=2, compare=True)

    async def middle() -> Secret:
        square = await opened.polynomial([0.0, 0.0, 1.0], 2 * bits)
        v = Secret(square.shares, square.fraction_bits + _SQUARE_SCALE_BITS)
        of_v = await p.open_masked(v, shift=v.fraction_bits - _V_BITS, degree=3)
        cubic, quadratic = (
            await of_v.polynomial(even.cubic, _OUT_BITS),
            await of_v.polynomial(even.quadratic, _OUT_BITS),
        )
        of_cubic, n = await gather(
            p.open_masked(cubic, shift=_OUT_BITS - _SUM_BITS // 2, degree=2),
            p.rescale(quadratic, _SUM_BITS),
        )
        squared = await of_cubic.polynomial([0.0, 0.0, float(even.sign)], _SUM_BITS)
        half = Secret((await opened.truncated()).shares, bits + 1)
        return p.add(p.add(squared, n), half)

    below, value = await gather(opened.less_than([-_THRESHOLD, _THRESHOLD]), middle())
    inside, low = below[0] ^ below[1], below[1]
    part, beyond = await gather(p.select(inside, value), p.select(low, x))
    upper = p.sub(x, beyond)
    return p.add(part, await p.rescale(upper, min(upper.fraction_bits, _SUM_BITS)))
