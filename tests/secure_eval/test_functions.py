"""Every function against float64 over its whole stated range, under each protocol.

References get the value that the ring holds, so that what is measured is the function's error and not the
encoding's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from secure_eval import ring
from secure_eval.functions.exponential import exp_nonpositive
from secure_eval.functions.gelu import gelu
from secure_eval.functions.layer_norm import layer_norm
from secure_eval.functions.maximum import amax
from secure_eval.functions.normalised import Range, normalised_power, pieces, reciprocal, rsqrt
from secure_eval.functions.softmax import softmax_numerator
from secure_eval.functions.tanh import tanh
from secure_eval.protocols.base import MUL, Protocol, Secret
from secure_eval.testing.harness import decoded, evaluate

BOUND = 2.0**-10


def compare(
    protocol: type[Protocol],
    function: Callable[..., Any],
    x: Tensor,
    reference: Callable[[Tensor], Tensor],
    bits: int = 16,
    relative: bool = False,
) -> float:
    """The worst error of the secure function on the values that the ring holds for x."""
    encoded = ring.encode(x, bits)
    wanted = reference(ring.decode(encoded, bits))
    error = (decoded(evaluate(protocol, function, encoded, fraction_bits=bits)) - wanted).abs()
    assert error.shape == x.shape
    return float((error / wanted.abs() if relative else error).max())


def line() -> Tensor:
    """Dense around zero and the thresholds, then up to the ends of the range."""
    ends = torch.logspace(0, 13.99, 300, base=2, dtype=torch.float64)
    near = torch.cat(
        [
            torch.arange(-40, 41, dtype=torch.float64) * 2.0**-16 + t
            for t in (-12.0, -6.0, -3.7, 0.0, 3.7, 6.0, 12.0)
        ]
    )
    return torch.cat([torch.linspace(-13, 13, 8001, dtype=torch.float64), ends, -ends, near])


@pytest.mark.parametrize("bits", [16, 20, 32, 46])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(protocol: type[Protocol], approximate: str, bits: int) -> None:
    assert (
        compare(
            protocol,
            lambda p, x: gelu(p, x, approximate),
            line(),
            lambda x: F.gelu(x, approximate=approximate),
            bits,
        )
        < BOUND
    )


@pytest.mark.parametrize("bits", [16, 32, 46])
def test_tanh(protocol: type[Protocol], bits: int) -> None:
    assert compare(protocol, tanh, line(), torch.tanh, bits) < BOUND


@pytest.mark.parametrize("bits", [0, 4, 10])
@pytest.mark.parametrize("name", ["gelu", "tanh", "layer_norm", "reciprocal", "rsqrt", "softmax"])
def test_values_with_few_fraction_bits(protocol: type[Protocol], name: str, bits: int) -> None:
    """Products by powers of two only move the binary point, so functions meet values with few fraction bits,
    or none.
    """
    x = torch.arange(1, 33, dtype=torch.float64).view(4, 8)
    functions: dict[str, tuple[Any, Any]] = {
        "gelu": (gelu, F.gelu),
        "tanh": (tanh, torch.tanh),
        "layer_norm": (lambda p, v: layer_norm(p, v, 1, None, None, 1e-5), lambda v: F.layer_norm(v, (8,))),
        "reciprocal": (reciprocal, torch.reciprocal),
        "rsqrt": (rsqrt, torch.rsqrt),
        "softmax": (softmax(None, 8), lambda v: torch.softmax(v, -1)),
    }
    function, reference = functions[name]
    assert compare(protocol, function, x, reference, bits) < BOUND


@pytest.mark.parametrize("bits", [16, 20, 40])
def test_exp_of_what_is_not_positive(protocol: type[Protocol], bits: int) -> None:
    x = torch.cat(
        [
            torch.linspace(-12, 0, 4001, dtype=torch.float64),
            torch.tensor([2.0**-16, -12.0, -(2.0**-16)], dtype=torch.float64),
        ]
    )
    assert compare(protocol, exp_nonpositive, x, torch.exp, bits, relative=True) < 1e-3
    below = torch.tensor([-12.001, -13.0, -100.0, -(2.0**13)], dtype=torch.float64)
    assert compare(protocol, exp_nonpositive, below, torch.zeros_like, bits) == 0


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_reciprocal(protocol: type[Protocol], bits: int) -> None:
    octaves = torch.logspace(-4 if bits == 16 else -6, 14, 4001, base=2, dtype=torch.float64).clamp(
        2.0**-6, 2.0**14
    )
    edges = torch.tensor(
        [f * 2.0**k for k in range(-3, 14) for f in (1.0, 4 / 3, 4 / 3 + 2.0**-12, 1 - 2.0**-12)],
        dtype=torch.float64,
    )
    assert (
        compare(protocol, reciprocal, torch.cat([octaves, edges]), torch.reciprocal, bits, relative=True)
        < BOUND
    )


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_rsqrt(protocol: type[Protocol], bits: int) -> None:
    octaves = torch.logspace(-4 if bits == 16 else -8, 14, 4001, base=2, dtype=torch.float64).clamp(
        2.0**-8, 2.0**14
    )
    assert compare(protocol, rsqrt, octaves, torch.rsqrt, bits, relative=True) < BOUND


@pytest.mark.parametrize(
    ("exponent", "low", "high"),
    [(-1.0, 1.0, 2.0), (-1.0, 1.0, 200.0), (-1.0, 3.0, 3.5), (-0.5, 1.0, 1.2), (-0.5, 0.25, 1e4)],
)
def test_normalised_power_over_its_range(
    protocol: type[Protocol], exponent: float, low: float, high: float
) -> None:
    r = Range(exponent, low, high)
    x = torch.linspace(low, high, 2001, dtype=torch.float64)
    assert (
        compare(protocol, lambda p, v: normalised_power(p, v, r), x, lambda v: v**exponent, 20, relative=True)
        < BOUND / 2
    )


@pytest.mark.parametrize(
    ("exponent", "low", "high"), [(-2.0, 1.0, 2.0), (-1.0, 0.0, 1.0), (-1.0, 2.0, 2.0), (-0.5, -1.0, 1.0)]
)
def test_ranges_that_make_no_sense_are_refused(exponent: float, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Range(exponent, low, high)


def test_pieces_scale_into_two_thirds_to_one() -> None:
    table = pieces(Range(-1.0, 2.0**-6, 2.0**14))
    starts = (2.0**-6, *table.thresholds, 2.0**14)
    for scale, low, high in zip(table.scales, starts[:-1], starts[1:], strict=True):
        assert 2 / 3 - 1e-12 <= scale * low <= scale * high <= 1 + 1e-12


# -- softmax -----------------------------------------------------------------------------------------------
# ----------------------


def softmax(keep: Tensor | None, length: int) -> Callable[..., Any]:
    async def function(p: Protocol, x: Secret) -> Secret:
        mask = None if keep is None else keep.to(p.device)
        e = await softmax_numerator(p, x, mask, -1)
        total = e.map(lambda s: s.sum(-1, keepdim=True))
        return await p.bilinear(MUL, e, await reciprocal(p, total, 1.0, float(max(2, length))))

    return function


def scores(rows: int, length: int, spread: float, seed: int = 0) -> Tensor:
    return (
        torch.randn(rows, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    )


@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 200])
@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
def test_softmax(protocol: type[Protocol], length: int, spread: float) -> None:
    x = scores(5, length, spread).clamp(-60, 60)
    assert compare(protocol, softmax(None, length), x, lambda v: torch.softmax(v, -1)) < BOUND


def test_softmax_of_extreme_scores(protocol: type[Protocol]) -> None:
    x = torch.tensor(
        [[60.0, -60.0, 0.0], [-60.0, -60.0, -60.0], [2000.0, -2000.0, 1999.0], [0.0, 11.99, 12.01]],
        dtype=torch.float64,
    )
    for bits in (16, 32, 48):
        assert compare(protocol, softmax(None, 3), x, lambda v: torch.softmax(v, -1), bits) < BOUND


def test_softmax_rows_sum_to_one(protocol: type[Protocol]) -> None:
    x = scores(20, 200, 3.0)
    result = decoded(evaluate(protocol, softmax(None, 200), ring.encode(x, 16)))
    assert float((result.sum(-1) - 1).abs().max()) < BOUND


@pytest.mark.parametrize("kept", [1, 2, 7, 16])
def test_masked_softmax(protocol: type[Protocol], kept: int) -> None:
    """Masked entries are exactly zero, however large their scores are."""
    x = scores(6, 16, 8.0)
    keep = torch.arange(16) < kept
    x[:, kept:] = 1000.0
    wanted = torch.softmax(x.masked_fill(~keep, float("-inf")), -1)
    result = decoded(evaluate(protocol, softmax(keep, 16), ring.encode(x, 16)))
    assert float((result - wanted).abs().max()) < BOUND
    assert not result[:, kept:].any()


def test_fully_masked_rows_become_uniform(protocol: type[Protocol]) -> None:
    x = scores(4, 12, 8.0)
    keep = torch.ones(4, 12, dtype=torch.bool)
    keep[1], keep[3] = False, torch.arange(12) > 4
    wanted = torch.softmax(x.masked_fill(~keep, float("-inf")), -1)
    wanted[1] = 1 / 12
    assert (
        float((decoded(evaluate(protocol, softmax(keep, 12), ring.encode(x, 16))) - wanted).abs().max())
        < BOUND
    )


# -- layer_norm --------------------------------------------------------------------------------------------
# ------------------------


@pytest.mark.parametrize("n", [3, 64, 384, 768, 1000])
@pytest.mark.parametrize("bits", [16, 32])
def test_layer_norm(protocol: type[Protocol], n: int, bits: int) -> None:
    """Variances over the whole range, means away from zero, an outlier as language models have them."""
    variances = torch.logspace(-10, 16, 27, base=2, dtype=torch.float64)[:, None]
    x = scores(27, n, 1.0, seed=n)
    x[::3, 0] *= 6
    x = (x - x.mean(-1, keepdim=True)) / x.var(-1, unbiased=False, keepdim=True).sqrt()
    x = x * variances.sqrt() + torch.linspace(-8, 8, 27, dtype=torch.float64)[:, None]
    encoded = ring.encode(x, bits)
    wanted = F.layer_norm(ring.decode(encoded, bits), (n,), eps=1e-12)
    result = decoded(
        evaluate(protocol, lambda p, v: layer_norm(p, v, 1, None, None, 1e-12), encoded, fraction_bits=bits)
    )
    error = (result - wanted).abs().amax(-1) / wanted.abs().amax(-1)
    assert float(error.max()) < BOUND, error


def test_layer_norm_with_affine_parameters_and_two_dimensions(protocol: type[Protocol]) -> None:
    x = scores(6, 24, 2.0).view(6, 4, 6)
    weight, bias = scores(4, 6, 1.0, 1), scores(4, 6, 1.0, 2)

    async def function(p: Protocol, v: Secret, w: Secret, b: Secret) -> Secret:
        return await layer_norm(p, v, 2, w, b, 1e-5)

    result = decoded(evaluate(protocol, function, ring.encode(x, 16), weights=[weight, bias]))
    wanted = F.layer_norm(x, (4, 6), weight, bias, 1e-5)
    assert float((result - wanted).abs().max() / wanted.abs().max()) < BOUND


def test_layer_norm_of_a_constant_row_is_finite_and_small(protocol: type[Protocol]) -> None:
    """A variance below the range: eps holds the scale down."""
    x = torch.full((2, 16), 3.25, dtype=torch.float64)
    result = decoded(
        evaluate(protocol, lambda p, v: layer_norm(p, v, 1, None, None, 1e-5), ring.encode(x, 16))
    )
    assert float(result.abs().max()) < 2.0**-6


# -- maximum -----------------------------------------------------------------------------------------------
# ------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("dim", [0, -1])
def test_amax_is_exact(protocol: type[Protocol], length: int, dim: int) -> None:
    shape = (length, 4) if dim == 0 else (4, length)
    x = torch.randint(-(2**61), 2**61, shape, generator=torch.Generator().manual_seed(length))
    for keepdim in (True, False):
        result = evaluate(protocol, lambda p, v, k=keepdim: amax(p, v, dim, k), x)
        assert torch.equal(result.value, x.amax(dim, keepdim=keepdim))
