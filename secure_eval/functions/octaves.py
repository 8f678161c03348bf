"""Bringing a number of unknown magnitude into [1/2, 1]: what logarithms, roots and divisions by either sign start from.

x is compared with public thresholds, one an octave, all from one opening. The bits choose a power of two s (negative for negative x),
so that z = s x lies in [1/2, 1], and by public weights anything else that depends on the octave alone. A quartic in z is good to
2^-12 and follows from the opening that truncates z. Four rounds to z, one more to the quartic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2

from secure_eval.functions.approximation import Array, fit
from secure_eval.functions.piecewise import weighted_sum
from secure_eval.protocols.base import Protocol, Secret

DEGREE = 4
"""Of the polynomial in z that functions use."""
_LEAST_BITS = 16
_FIT_POINTS = 513
_RING_BITS = 62


@dataclass(frozen=True)
class Octaves:
    """low <= abs(x) <= high, x > 0 unless `signed`. Outside, what is made of them is wrong."""

    low: float
    high: float
    signed: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"range {self.low} to {self.high}: allowed are 0 < low < high")

    @property
    def exponents(self) -> tuple[int, ...]:
        """Of the positive octaves [2^(k-1), 2^k], rising: k."""
        return tuple(
            range(floor(log2(self.low)) + 1, max(ceil(log2(self.high)), floor(log2(self.low)) + 1) + 1)
        )

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Where the second octave begins, and the ones after it, from the lowest x to the highest."""
        inner = tuple(2.0 ** (k - 1) for k in self.exponents[1:])
        return (*(-t for t in reversed(inner)), 0.0, *inner) if self.signed else inner

    def each(self, positive: Sequence[float], negative: Sequence[float]) -> tuple[float, ...]:
        """A number an octave in the order of x, from those by rising magnitude of positive and of negative x."""
        return (*reversed(negative), *positive) if self.signed else tuple(positive)


@dataclass(frozen=True)
class Normalised:
    """z = s x in [1/2, 1], and the bits [x >= threshold k] as ring elements (none where there is one octave)."""

    z: Secret
    above: Secret | None

    def weighted(self, p: Protocol, values: Sequence[float], fraction_bits: int) -> Secret:
        """The value of x's octave, given one an octave in the order of x."""
        integers = [round(v * 2.0**fraction_bits) for v in values]
        if self.above is None:
            total = self.z.map(lambda s: s * 0, fraction_bits)
        else:
            steps = [b - a for a, b in zip(integers, integers[1:], strict=False)]
            total = weighted_sum(self.above, steps, fraction_bits)
        return p.add_public(total, integers[0])


async def normalised(p: Protocol, x: Secret, octaves: Octaves) -> Normalised:
    """See the module. x of any shape, with any fraction bits; truncated where x / low would not fit the ring. Four rounds."""
    exponents = octaves.exponents
    scale_bits = max(0, exponents[-1])
    x = await p.rescale(x, min(max(x.fraction_bits, _LEAST_BITS), _RING_BITS - scale_bits))
    positive = [2.0**-k for k in exponents]
    scales = [int(s * 2.0**scale_bits) for s in octaves.each(positive, [-s for s in positive])]
    if not octaves.thresholds:
        return Normalised(p.scale(x, scales[0], scale_bits), None)
    above = p.invert(await p.less_than(x, octaves.thresholds))
    chosen, bits = await p.select_with_bits(above, x)
    steps = [b - a for a, b in zip(scales, scales[1:], strict=False)]
    z = p.add(
        p.scale(x, scales[0], scale_bits),
        weighted_sum(chosen, steps, scale_bits),
    )
    return Normalised(z, bits)


def quartic(
    function: Callable[[Array], Array], relative: bool, z_bits: int, out_bits: int
) -> tuple[float, ...]:
    """Coefficients of the quartic near `function` on [1/2, 1], for a z truncated to z_bits."""
    return fit(function, 0.5, 1.0, DEGREE, z_bits, out_bits, relative, _FIT_POINTS)
