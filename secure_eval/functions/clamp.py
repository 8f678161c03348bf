"""Values cut off below and above."""

from __future__ import annotations

from secure_eval import ring
from secure_eval.protocols.base import Protocol, Secret


async def clamp(p: Protocol, x: Secret, low: float, high: float) -> Secret:
    """min(max(x, low), high), any shape, exact but for the rounding of the bounds to x's fraction bits. Needs low < high.

    Both comparisons come from one opening, which the selection uses as well. Four rounds, 17 bytes an element with two parties and a
    dealer.
    """
    if not low < high:
        raise ValueError(f"clamp between {low} and {high}: allowed is low < high")
    x = p.lift(x, max(x.fraction_bits, p.fraction_bits))
    limit = 2.0 ** (ring.VALUE_BITS - 1 - x.fraction_bits)  # beyond what x may be
    low, high = max(low, -limit), min(high, limit)
    selected, bits = await p.select_with_bits(await p.less_than(x, [low, high]), x)
    # high + [x < high] (x - high) - [x < low] (x - low)
    bottom, top = (round(bound * 2.0**x.fraction_bits) for bound in (low, high))
    of_bits = bits.map(lambda s: s[1] * top - s[0] * bottom, x.fraction_bits)
    return p.add_real(p.sub(selected.map(lambda s: s[1] - s[0]), of_bits), high)
