"""Maximum along a dimension by a balanced tree of comparisons, alone or with the place where it is."""

from __future__ import annotations

import torch

from secure_eval.protocols.base import Protocol, Secret
from secure_eval.scheduler import gather

_INDEX_BITS = 16
"""Places are below 2^_INDEX_BITS."""


async def maximum(p: Protocol, a: Secret, b: Secret) -> Secret:
    """Elementwise maximum: b + [a >= b] (a - b)."""
    d = p.sub(a, b)
    larger = p.invert(await p.less_than(d, [0.0]))[0]
    return p.add(b, await p.select(larger, d))


async def amax(p: Protocol, x: Secret, dim: int, keepdim: bool = False) -> Secret:
    """Largest value along `dim`, in ceil(log2 n) comparisons. Exact."""
    x = x.map(lambda s: s.movedim(dim, 0))
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        top = await maximum(p, x.map(lambda s, h=half: s[:h]), x.map(lambda s, h=half: s[h : 2 * h]))  # type: ignore[misc]
        rest = [s[2 * half :] for s in x.shares]
        x = Secret([torch.cat([t, r]) for t, r in zip(top.shares, rest, strict=True)], x.fraction_bits)
    return x.map(lambda s: s.movedim(0, dim) if keepdim else s[0])


def _neighbours(x: Secret, even: int) -> tuple[Secret, Secret]:
    """Of the first `even` rows every other one, and the one after it."""
    return x.map(lambda s: s[0:even:2]), x.map(lambda s: s[1:even:2])


async def max_with_index(p: Protocol, x: Secret, dim: int, keepdim: bool = False) -> Secret:
    """Largest value along `dim` and the index of its first occurrence, stacked in front: shape [2, ...], x's fraction bits. Exact.

    Neighbours are compared, so that the one before wins where they are equal. As many rounds as amax: the index is selected by the
    bit that selects the value. Needs n < 2^16 and x with at most 46 fraction bits, and truncates it otherwise.
    """
    x = await p.rescale(x, min(x.fraction_bits, 62 - _INDEX_BITS))
    x = x.map(lambda s: s.movedim(dim, 0))
    n = x.shape[0]
    if n >= 2**_INDEX_BITS:
        raise ValueError(f"the largest of {n} values: allowed are fewer than {2**_INDEX_BITS}")
    places = torch.arange(n, device=x.shares[0].device).view(-1, *[1] * (len(x.shape) - 1)).expand(x.shape)
    index = p.public(places, 0)
    first = True
    while x.shape[0] > 1:
        even = x.shape[0] // 2 * 2
        (a, b), (i, j) = _neighbours(x, even), _neighbours(index, even)
        d = p.sub(a, b)
        larger = p.invert(await p.less_than(d, [0.0]))[0]
        if first:  # i = j - 1: the bit is all that is missing
            chosen, bit = await p.select_with_bits(larger, d)
            place = p.sub(j, bit)
        else:
            chosen, apart = await gather(p.select(larger, d), p.select(larger, p.sub(i, j)))
            place = p.add(j, apart)
        top, first = p.add(b, chosen), False
        x = Secret(
            [torch.cat([t, s[even:]]) for t, s in zip(top.shares, x.shares, strict=True)], x.fraction_bits
        )
        index = Secret([torch.cat([t, s[even:]]) for t, s in zip(place.shares, index.shares, strict=True)], 0)
    both = zip(x.shares, p.lift(index, x.fraction_bits).shares, strict=True)
    return Secret(
        [torch.stack([s.movedim(0, dim) if keepdim else s[0] for s in pair]) for pair in both],
        x.fraction_bits,
    )
