"""How right normalisations are over the variances that rows have: largest relative error of layer, RMS and group norms.

    python benchmarks/norm_ranges.py [PROTOCOL ...]

Rows of 768 values (groups of 192 for the group norm) with variances from 2^-40 to 2^20, rows of one value and of zeros besides, held with
32 fraction bits as sums and products are. Errors are against float64 of the values that the ring holds, relative to the row's largest
output, or to 1 where that is less (rows whose variance is far below eps).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secure_eval import protocols, ring
from secure_eval.functions.layer_norm import layer_norm
from secure_eval.functions.rms_norm import rms_norm
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.testing.harness import decoded, evaluate

EXPONENTS = range(-40, 21, 4)
EPSILONS = (1e-12, 1e-6, 1e-5)
N = 768
GROUPS = 4
_BITS = 32
_ROWS = 4


def rows(exponent: int) -> Tensor:
    """Four rows of variance 2^exponent: normal, with one outlier, of two values, and a ramp; means zero, as their squares are wanted."""
    generator = torch.Generator().manual_seed(exponent + 100)
    normal = torch.randn(2, N, generator=generator, dtype=torch.float64)
    normal[1, 0] *= 8
    two = torch.ones(N, dtype=torch.float64)
    two[::2] = -1
    x = torch.stack([*normal, two, torch.linspace(-1, 1, N, dtype=torch.float64)])
    x = x - x.mean(-1, keepdim=True)
    return x / x.var(-1, unbiased=False, keepdim=True).sqrt() * 2.0 ** (exponent / 2)


def norms(eps: float) -> dict[str, tuple[Callable[..., Any], Callable[[Tensor], Tensor]]]:
    """Name -> the secure function, and its meaning in float64."""

    async def grouped(p: Protocol, x: Secret) -> Secret:
        split = x.map(lambda s: s.view(-1, GROUPS, N // GROUPS))
        return (await layer_norm(p, split, 1, None, None, eps)).map(lambda s: s.reshape(-1, N))

    return {
        "layer_norm": (
            lambda p, x: layer_norm(p, x, 1, None, None, eps),
            lambda x: F.layer_norm(x, (N,), eps=eps),
        ),
        "rms_norm": (lambda p, x: rms_norm(p, x, 1, None, eps), lambda x: F.rms_norm(x, (N,), eps=eps)),
        "group_norm": (grouped, lambda x: F.group_norm(x, GROUPS, eps=eps)),
    }


def error(protocol: str, name: str, eps: float, x: Tensor) -> float:
    """The largest error relative to the largest output of its row, or to 1; where all outputs are zero they have to be so exactly."""
    secure, meaning = norms(eps)[name]
    encoded = ring.encode(x, _BITS)
    wanted = meaning(ring.decode(encoded, _BITS))
    got = decoded(evaluate(protocols.get(protocol), secure, encoded, fraction_bits=_BITS))
    largest = wanted.abs().amax(-1, keepdim=True)
    off = (got - wanted).abs()
    assert not off[(largest == 0).expand_as(off)].any(), "an output of zeros that is not zero"
    return float((off / largest.clamp(min=1)).max())


def main(names: list[str]) -> None:
    for protocol in names:
        print(f"{protocol}: largest relative error; every variance counts alone, eps comes on top")
        print(
            "| log2 of the variance | "
            + " | ".join(f"{n}, eps {e:g}" for n in norms(1e-5) for e in EPSILONS)
            + " |"
        )
        print("|---|" + "---|" * 3 * len(EPSILONS))
        for exponent in EXPONENTS:
            found = [error(protocol, n, e, rows(exponent)) for n in norms(1e-5) for e in EPSILONS]
            print(f"| {exponent} | " + " | ".join(f"{f:.1e}" for f in found) + " |")
        constant = torch.stack(
            [torch.zeros(N, dtype=torch.float64), torch.full((N,), 3.0, dtype=torch.float64)]
        )
        found = [error(protocol, n, e, constant) for n in norms(1e-5) for e in EPSILONS]
        print("| zeros, constant rows | " + " | ".join(f"{f:.1e}" for f in found) + " |")


if __name__ == "__main__":
    main(sys.argv[1:] or ["plain"])
