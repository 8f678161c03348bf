"""Maximum along a dimension by a balanced tree of comparisons."""

from __future__ import annotations

import torch

from secure_eval.protocols.base import Protocol, Secret


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
