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

import secure_eval
from secure_eval import protocols, ring
from secure_eval.functions.clamp import clamp
from secure_eval.functions.exponential import ExpRange, exp, exp_nonpositive
from secure_eval.functions.gelu import gelu
from secure_eval.functions.layer_norm import deviation_scale, layer_norm
from secure_eval.functions.logarithm import log
from secure_eval.functions.maximum import amax, max_with_index
from secure_eval.functions.normalised import Range, normalised_power, pieces, reciprocal, rsqrt
from secure_eval.functions.octave_power import signed_reciprocal, sqrt
from secure_eval.functions.octaves import Octaves
from secure_eval.functions.piecewise import PiecewiseCubic
from secure_eval.functions.rms_norm import rms_norm
from secure_eval.functions.root_mean_square import plan, widest
from secure_eval.functions.softmax import softmax_numerator
from secure_eval.operations import curves
from secure_eval.protocols.base import MUL, Protocol, Secret
from secure_eval.testing.harness import decoded, evaluate
from secure_eval.testing.operations import LookUp

BOUND = 2.0**-10

MANY = 8192
"""Elements from which on what an element costs does not depend on their number: few are compared in fewer rounds."""


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


def line(bits: int) -> Tensor:
    """Dense around zero and the thresholds, then up to all that is promised: 2^30, or what so many fraction bits leave."""
    largest = min(30, 60 - bits)
    ends = torch.logspace(0, largest - 1e-3, 300, base=2, dtype=torch.float64)
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
            line(bits),
            lambda x: F.gelu(x, approximate=approximate),
            bits,
        )
        < BOUND
    )


def curve(name: str, *parameters: Any) -> Callable[..., Any]:
    """The secure function of that name."""
    return lambda p, x: curves.evaluate(p, name, x, *parameters)


PIECEWISE: dict[str, tuple[Callable[..., Any], Callable[[Tensor], Tensor], float, int, float]] = {
    "sigmoid": (curve("sigmoid"), torch.sigmoid, BOUND / 2, 4, 51),
    "tanh": (curve("tanh"), torch.tanh, BOUND, 4, 51),
    "erf": (curve("erf"), torch.erf, BOUND, 4, 51),
    "silu": (curve("silu"), F.silu, BOUND, 5, 60.1),
    "softplus": (curve("softplus"), lambda x: torch.logaddexp(x, torch.zeros_like(x)), BOUND, 5, 55.6),
    "elu": (curve("elu", 1.0), F.elu, BOUND, 5, 46.6),
    "elu, alpha 1.67": (curve("elu", 1.67), lambda x: F.elu(x, 1.67), 1.67 * BOUND, 5, 46.6),
    "mish": (curve("mish"), F.mish, BOUND, 5, 60.1),
}
"""The function, what it is to be, its largest error, and its rounds and bytes an element with two parties and a dealer."""


@pytest.mark.parametrize("bits", [0, 8, 16, 20, 32, 46])
@pytest.mark.parametrize("name", PIECEWISE)
def test_piecewise_cubics(protocol: type[Protocol], name: str, bits: int) -> None:
    function, reference, bound, *_ = PIECEWISE[name]
    assert compare(protocol, function, line(bits), reference, bits) < bound


@pytest.mark.parametrize("name", PIECEWISE)
def test_piecewise_cubics_and_their_truncation_take_five_rounds(name: str) -> None:
    """With the truncation that the next product needs; those that grow with x have done it already."""
    function, *_, rounds, size = PIECEWISE[name]

    async def truncated(p: Protocol, x: Secret) -> Secret:
        return await p.rescale(await function(p, x))

    zeros = torch.zeros(MANY, dtype=torch.int64)
    result = evaluate(protocols.get("dealer2pc"), function, zeros)
    assert float(f"{result.bytes / MANY:.3g}") == size and result.rounds == rounds
    assert evaluate(protocols.get("dealer2pc"), truncated, zeros).rounds == 5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"knots": (1.0, 0.0)}, "rising knots"),
        ({"knots": (0.0,)}, "one fewer than pieces"),
        ({"pieces": ((0.0,) * 4, (0.0,) * 4, (0.0, 1.0, 2.0, 0.0))}, "outer two"),
    ],
)
def test_tables_that_make_no_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"knots": (0.0, 1.0), "pieces": ((0.0,) * 4,) * 3}
    PiecewiseCubic(**good)
    with pytest.raises(ValueError, match=said):
        PiecewiseCubic(**{**good, **fields})


@pytest.mark.parametrize("bits", [0, 16, 40])
def test_clamp_is_exact(protocol: type[Protocol], bits: int) -> None:
    assert (
        compare(
            protocol, lambda p, x: clamp(p, x, -3.75, 6.0), line(bits), lambda x: x.clamp(-3.75, 6.0), bits
        )
        == 0
    )


def test_clamp_refuses_bounds_that_cross() -> None:
    with pytest.raises(ValueError, match="low < high"):
        evaluate(
            protocols.get("plain"), lambda p, x: clamp(p, x, 1.0, 1.0), torch.zeros(2, dtype=torch.int64)
        )


@pytest.mark.parametrize("bits", [0, 4, 10])
@pytest.mark.parametrize("name", ["gelu", "tanh", "layer_norm", "reciprocal", "rsqrt", "softmax"])
def test_values_with_few_fraction_bits(protocol: type[Protocol], name: str, bits: int) -> None:
    """Products by powers of two only move the binary point, so functions meet values with few fraction bits,
    or none.
    """
    x = torch.arange(1, 33, dtype=torch.float64).view(4, 8)
    functions: dict[str, tuple[Any, Any]] = {
        "gelu": (gelu, F.gelu),
        "tanh": (curve("tanh"), torch.tanh),
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


@pytest.mark.parametrize("bits", [12, 16, 20, 32, 46])
def test_exp(protocol: type[Protocol], bits: int) -> None:
    """Over the whole default range, around its pieces' edges, and zero below."""
    edges = [t + d * 2.0**-16 for t in (-12.0, -4 / 3, 28 / 3, 20.0) for d in range(-20, 21)]
    x = torch.cat(
        [torch.linspace(-12, 20, 8001, dtype=torch.float64), torch.tensor(edges, dtype=torch.float64)]
    )
    assert compare(protocol, exp, x.clamp(-12, 20), torch.exp, bits, relative=True) < BOUND
    below = torch.tensor([-12.001, -13.0, -100.0, -(2.0 ** min(29.9, 57 - bits))], dtype=torch.float64)
    assert compare(protocol, exp, below, torch.zeros_like, bits) == 0


@pytest.mark.parametrize(
    ("low", "high"), [(-12.0, 0.0), (-1.0, 1.0), (-12.0, 3.5), (0.0, 20.0), (-12.0, -11.0)]
)
def test_exp_over_other_ranges(protocol: type[Protocol], low: float, high: float) -> None:
    x = torch.linspace(low, high, 2001, dtype=torch.float64)
    assert (
        compare(protocol, lambda p, v: exp(p, v, ExpRange(low, high)), x, torch.exp, 20, relative=True)
        < BOUND
    )


def octaves(low: int, high: int) -> Tensor:
    """2^low to 2^high, with the neighbours of every power of two."""
    around = [2.0**k + d * 2.0**-16 for k in range(low, high + 1) for d in (-1, 0, 1)]
    line = torch.logspace(low, high, 6001, base=2, dtype=torch.float64)
    return torch.cat([line, torch.tensor(around, dtype=torch.float64)]).clamp(2.0**low, 2.0**high)


@pytest.mark.parametrize(("bits", "high"), [(16, 30), (24, 30), (31, 30), (32, 14), (46, 14)])
def test_log(protocol: type[Protocol], bits: int, high: int) -> None:
    assert compare(protocol, log, octaves(-16, high).clamp(max=2.0**high - 2.0**-16), torch.log, bits) < BOUND


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.5), (1.0, 2.0), (1.0, 200.0), (0.3, 5.0), (2.0**-16, 1.0)])
def test_log_over_other_ranges(protocol: type[Protocol], low: float, high: float) -> None:
    x = torch.linspace(low, high, 2001, dtype=torch.float64)
    assert compare(protocol, lambda p, v: log(p, v, Octaves(low, high)), x, torch.log, 20) < BOUND


def test_log_of_what_is_below_its_range_stays_finite(protocol: type[Protocol]) -> None:
    x = ring.encode(torch.tensor([0.0, 2.0**-20, 2.0**-17], dtype=torch.float64), 20)
    result = decoded(evaluate(protocol, log, x, fraction_bits=20))
    assert bool(((result > -16 * 0.6932 - 3) & (result < -16 * 0.6931)).all())


@pytest.mark.parametrize("bits", [16, 20, 32, 44])
def test_sqrt(protocol: type[Protocol], bits: int) -> None:
    assert compare(protocol, sqrt, octaves(-16, 16), torch.sqrt, bits, relative=True) < BOUND / 2
    below = torch.linspace(0, 2.0**-16, 65, dtype=torch.float64)
    assert compare(protocol, sqrt, below, torch.sqrt, bits) < 2.0**-9


@pytest.mark.parametrize("bits", [16, 20, 32, 46])
def test_signed_reciprocal(protocol: type[Protocol], bits: int) -> None:
    x = octaves(-4 if bits == 16 else -6, 14)
    assert (
        compare(protocol, signed_reciprocal, torch.cat([x, -x]), torch.reciprocal, bits, relative=True)
        < BOUND
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Octaves(0.0, 1.0),
        lambda: Octaves(2.0, 1.0),
        lambda: Range(-1.0, 2.0**-13, 2.0**14),
        lambda: Range(-0.5, 2.0**-21, 2.0**20),
        lambda: evaluate(protocols.get("plain"), curve("elu", 5000.0), torch.ones(1, dtype=torch.int64)),
        lambda: ExpRange(0.0, 30.0),
        lambda: ExpRange(1.0, 0.0),
        lambda: evaluate(
            protocols.get("plain"),
            lambda p, x: signed_reciprocal(p, x, Octaves(1.0, 2.0)),
            torch.ones(1, dtype=torch.int64),
        ),
    ],
)
def test_ranges_of_powers_that_make_no_sense_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        make()


COSTS: dict[str, tuple[Callable[..., Any], int, float]] = {
    "exp": (exp, 6, 117.4),
    "exp of what is not positive": (exp_nonpositive, 5, 44.4),
    "log": (log, 5, 212.9),
    "sqrt": (sqrt, 8, 167.9),
    "signed_reciprocal": (signed_reciprocal, 8, 202.9),
    "clamp": (lambda p, x: clamp(p, x, -1.0, 1.0), 4, 16.75),
}


@pytest.mark.parametrize("name", COSTS)
def test_rounds_and_bytes_an_element(name: str) -> None:
    function, rounds, size = COSTS[name]
    result = evaluate(protocols.get("dealer2pc"), function, torch.zeros(MANY, dtype=torch.int64))
    assert result.rounds == rounds and result.bytes / MANY == pytest.approx(size, abs=0.1)


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


@pytest.mark.parametrize(("exponent", "low", "high"), [(-0.5, -20, 0), (-0.5, -20, 20), (-1.0, -12, 14)])
def test_few_units_in_the_last_place_are_right(
    protocol: type[Protocol], exponent: float, low: int, high: int
) -> None:
    """An argument of one unit is no less exact than a large one: errors are against what the ring holds."""
    x = torch.arange(1, 40, dtype=torch.float64) * 2.0**low
    r = Range(exponent, 2.0**low, 2.0**high)
    error = compare(
        protocol, lambda p, v: normalised_power(p, v, r), x, lambda v: v**exponent, -low, relative=True
    )
    assert error < BOUND


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


KEEP = torch.tensor([True, True, False])


def masked_softmax(x: Tensor) -> Tensor:
    return torch.softmax(x.masked_fill(~KEEP, -torch.inf), -1)


def test_softmax_of_extreme_scores(protocol: type[Protocol]) -> None:
    x = torch.tensor(
        [[60.0, -60.0, 0.0], [-60.0, -60.0, -60.0], [2000.0, -2000.0, 1999.0], [0.0, 11.99, 12.01]],
        dtype=torch.float64,
    )
    for bits in (16, 32, 48):
        assert compare(protocol, softmax(None, 3), x, lambda v: torch.softmax(v, -1), bits) < BOUND
    far = torch.tensor(
        [[2.0**27.9, -(2.0**27.9), 0.0], [-(2.0**27.9), -(2.0**27.9) + 1, -(2.0**27)]], dtype=torch.float64
    )
    for bits in (16, 32):
        assert compare(protocol, softmax(None, 3), far, lambda v: torch.softmax(v, -1), bits) < BOUND
        # A masked entry stays farther below than any score.
        assert compare(protocol, softmax(KEEP, 3), far, masked_softmax, bits) < BOUND


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


PADDING = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
"""A batch with padding, one row of which is nothing else."""

FINFO_MIN = torch.finfo(torch.float32).min


def _additive(below: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, position_ids: torch.softmax(x + (1.0 - position_ids[:, None, :].float()) * below, -1)


def _where(fill: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, position_ids: torch.softmax(torch.where(position_ids[:, None, :] > 0, x, fill), -1)


MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "-10000": _additive(-10000.0),
    "finfo.min": _additive(FINFO_MIN),
    "where -inf": _where(float("-inf")),
    "where finfo.min": _where(FINFO_MIN),
    "where tensor": lambda x, position_ids: torch.softmax(
        torch.where(position_ids[:, None, :] > 0, x, torch.tensor(float("-inf"))), -1
    ),
    "where full": lambda x, position_ids: torch.softmax(
        torch.where(position_ids[:, None, :] > 0, x, torch.full_like(x, FINFO_MIN)), -1
    ),
    "where the other way": lambda x, position_ids: torch.softmax(
        torch.where(position_ids[:, None, :] == 0, FINFO_MIN, x), -1
    ),
    "masked_fill": lambda x, position_ids: torch.softmax(
        x.masked_fill(position_ids[:, None, :] == 0, FINFO_MIN), -1
    ),
    "masked_fill by tensor": lambda x, position_ids: torch.softmax(
        x.masked_fill(position_ids[:, None, :] == 0, torch.tensor(FINFO_MIN)), -1
    ),
    "attention, bool": lambda x, position_ids: F.scaled_dot_product_attention(
        x, x, x, attn_mask=(position_ids[:, None, :] > 0).expand(4, 6, 6)
    ),
    "attention, additive": lambda x, position_ids: F.scaled_dot_product_attention(
        x, x, x, attn_mask=(1.0 - position_ids[:, None, :].float()) * FINFO_MIN
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_padded_batches(protocol: type[Protocol], name: str) -> None:
    """Rows that keep something are as torch's, masked entries exactly zero; a row of padding alone becomes uniform."""
    x = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(3)) * 3
    model = LookUp(MASKS[name]).eval()
    with secure_eval.compile(model, (x, PADDING), protocol.name) as secure:
        got, wanted = secure(x, PADDING), model(x, PADDING)
        assert secure.measurement.communication() == secure.predicted().communication()
    assert float((got - wanted)[:3].abs().max()) < 4 * BOUND
    if not name.startswith("attention"):
        assert not got[1, :, 2:].any() and not got[2, :, 1:].any()
        # A number that floating point can add to every score leaves their differences as they are.
        alone = torch.softmax(x[3].double(), -1) if name == "-10000" else torch.full((6, 6), 1 / 6)
        assert float((got[3] - alone).abs().max()) < 4 * BOUND


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


EPSILONS = (1e-12, 1e-6, 1e-5)
NORMS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "layer_norm": (
        lambda p, x, eps, *r: layer_norm(p, x, 1, None, None, eps, *r),
        lambda x, eps: F.layer_norm(x, x.shape[-1:], eps=eps),
    ),
    "rms_norm": (
        lambda p, x, eps, *r: rms_norm(p, x, 1, None, eps, *r),
        lambda x, eps: F.rms_norm(x, x.shape[-1:], eps=eps),
    ),
}


def rows_of(squares: Tensor, n: int) -> Tensor:
    """Rows without mean and of these mean squares: normal, with an outlier as language models have them, and of two values."""
    x = scores(len(squares), n, 1.0, seed=n)
    x[::3, 0] *= 6
    x[1::3] = torch.ones(n, dtype=torch.float64).cumsum(0) % 2
    x = x - x.mean(-1, keepdim=True)
    return x / (x * x).mean(-1, keepdim=True).sqrt() * squares[:, None].sqrt()


def norm_error(protocol: type[Protocol], name: str, x: Tensor, bits: int, eps: float, *between: Any) -> float:
    """The largest error relative to the row's largest output, or to 1 where that is less (rows far below eps)."""
    secure, meaning = NORMS[name]
    encoded = ring.encode(x, bits)
    wanted = meaning(ring.decode(encoded, bits), eps)
    result = evaluate(protocol, lambda p, v: secure(p, v, eps, *between), encoded, fraction_bits=bits)
    return float(((decoded(result) - wanted).abs().amax(-1) / wanted.abs().amax(-1).clamp(min=1)).max())


@pytest.mark.parametrize("n", [3, 64, 384, 768, 1000])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("name", NORMS)
def test_norms_over_every_variance(protocol: type[Protocol], name: str, n: int, bits: int) -> None:
    """From eps, or what the ring's own steps leave, to what fits; layer norms with means away from zero as well."""
    low = -40 if bits == 32 else -26
    squares = torch.logspace(low, 20, 3 * (20 - low) + 1, base=2, dtype=torch.float64)
    x = rows_of(squares, n)
    if name == "layer_norm":
        x = x + torch.linspace(-8, 8, len(x), dtype=torch.float64)[:, None]
    assert norm_error(protocol, name, x, bits, 1e-12) < BOUND


@pytest.mark.parametrize("eps", EPSILONS)
@pytest.mark.parametrize("name", NORMS)
def test_norms_at_the_ends_of_their_range_and_around_where_windows_meet(
    protocol: type[Protocol], name: str, eps: float
) -> None:
    n = 96
    k = deviation_scale(n) if name == "layer_norm" else 1.0
    low, high = widest(n, k, eps)
    fine, coarse = plan(n, low * k**2, high * k**2).windows
    # As far as n (x - mean), with some 40 fraction bits, fits; the range itself goes further for larger eps.
    top = min(high, 2.0**36)
    meeting = fine.high / k**2
    squares = [low * 1e-9, low, meeting * 0.98, meeting - eps, meeting * 1.02, (top - eps) * (1 - 2.0**-20)]
    assert coarse.low == fine.high and low == eps
    assert norm_error(protocol, name, rows_of(torch.tensor(squares, dtype=torch.float64), n), 32, eps) < BOUND


@pytest.mark.parametrize("name", NORMS)
def test_norms_beyond_their_range_are_wrong(name: str) -> None:
    """The stated end is where they stop to be right, give or take one bit of the ring: no more careful than it says."""
    high = widest(4096, 1.0, 1e-12)[1]
    x = rows_of(torch.tensor([high * 2.1], dtype=torch.float64), 4096)
    assert norm_error(protocols.get("plain"), name, x, 32, 1e-12) > 2.0**-4


@pytest.mark.parametrize("between", [(2.0**-24, 2.0**-8), (2.0**-3, 2.0**3), (2.0**10, 2.0**24), (1.0, 1.0)])
@pytest.mark.parametrize("name", NORMS)
def test_norms_over_a_range_of_their_own(
    protocol: type[Protocol], name: str, between: tuple[float, float]
) -> None:
    squares = torch.logspace(
        *(float(torch.tensor(v).log2()) for v in between), 12, base=2, dtype=torch.float64
    )
    assert norm_error(protocol, name, rows_of(squares, 200), 32, 1e-12, between) < BOUND


@pytest.mark.parametrize("eps", EPSILONS)
@pytest.mark.parametrize("value", [0.0, 3.25, -1000.0])
def test_a_layer_norm_of_a_constant_row_is_exactly_its_bias(
    protocol: type[Protocol], value: float, eps: float
) -> None:
    x = torch.full((3, 48), value, dtype=torch.float64)
    weight, bias = torch.linspace(-2, 2, 48), torch.linspace(-7, 7, 48)

    async def function(p: Protocol, v: Secret, w: Secret, b: Secret) -> Secret:
        return await layer_norm(p, v, 1, w, b, eps)

    result = decoded(evaluate(protocol, function, ring.encode(x, 16), weights=[weight, bias]))
    assert torch.equal(result, ring.decode(ring.encode(bias, 16), 16).expand(3, 48))


def test_norms_with_weights_as_large_as_is_stated(protocol: type[Protocol]) -> None:
    n, eps = 96, 1e-12
    x = rows_of(torch.logspace(-38, 20, 30, base=2, dtype=torch.float64), n)
    low, high = widest(n, 1.0, eps)
    largest = plan(n, low, high).largest_weight(n, 16)
    assert 2.0**12 < largest < 2.0**14
    weight = torch.linspace(-largest * 0.99, largest * 0.99, n)

    async def function(p: Protocol, v: Secret, w: Secret) -> Secret:
        return await rms_norm(p, v, 1, w, eps)

    encoded = ring.encode(x, 32)
    result = decoded(evaluate(protocol, function, encoded, fraction_bits=32, weights=[weight]))
    held = ring.decode(ring.encode(weight, 16), 16)
    wanted = F.rms_norm(ring.decode(encoded, 32), (n,), eps=eps) * held
    assert float(((result - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max()) < BOUND


def test_truncations_of_one_opening_by_different_shifts(protocol: type[Protocol]) -> None:
    """What compares nothing is read from an opening that is there: 8 bytes an element with two parties and a dealer."""
    x = torch.randint(-(2**61), 2**61, (500,), generator=torch.Generator().manual_seed(5))

    async def function(p: Protocol, v: Secret) -> list[Secret]:
        opened = [await p.open_masked(v, shift=shift, degree=2) for shift in (20, 33, 7)]
        return [await o.truncated() for o in opened]

    result = evaluate(protocol, function, x, fraction_bits=40)
    for shift, value in zip((20, 33, 7), result.value, strict=True):
        assert int((value - (x >> shift)).abs().max()) <= 1
    if protocol.name == "dealer2pc":
        assert result.rounds == 1 and result.bytes <= 8 * x.numel() + 64


def test_both_is_the_product_of_two_bits(protocol: type[Protocol]) -> None:
    x = torch.tensor([[-1, 1, -1, 1], [-1, -1, 1, 1], [1, 1, -1, -1]]).repeat(
        1, 32
    )  # under masks of every kind

    async def function(p: Protocol, v: Secret) -> Secret:
        bits = await p.less_than(v, [0.0])
        return await p.both(bits.map(lambda s: s[0]), bits.map(lambda s: s[0, 0]))

    bits = (x < 0).long()
    result = evaluate(protocol, function, x, fraction_bits=0)
    assert torch.equal(result.value, bits * bits[0])
    if protocol.name == "dealer2pc":
        assert result.rounds == evaluate(protocol, lambda p, v: p.less_than(v, [0.0]), x).rounds + 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (2.0**-40, 2.0**60)])
def test_ranges_of_norms_that_make_no_sense_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        plan(768, low, high)


@pytest.mark.parametrize("affine", [False, True])
def test_two_windows_take_the_rounds_of_one(affine: bool) -> None:
    """And a product with the weight takes no opening of its own: 8 bytes an element for x and for the numerator of each window."""
    n, count = 1024, 64
    x, weights = torch.zeros(count, n, dtype=torch.int64), [torch.ones(n)] if affine else []
    found = []
    for between in ((0.5, 2.0), None):

        async def function(p: Protocol, v: Secret, *w: Secret, r: Any = between) -> Secret:
            return await layer_norm(p, v, 1, w[0] if w else None, None, 1e-12, r)

        found.append(evaluate(protocols.get("dealer2pc"), function, x, fraction_bits=32, weights=weights))
    one, two = found
    assert one.rounds == two.rounds == 7
    assert one.bytes / x.numel() < 16.3 + affine / 8 and two.bytes / x.numel() < 25 + affine / 4


def test_layer_norm_with_affine_parameters_and_two_dimensions(protocol: type[Protocol]) -> None:
    x = scores(6, 24, 2.0).view(6, 4, 6)
    weight, bias = scores(4, 6, 1.0, 1), scores(4, 6, 1.0, 2)

    async def function(p: Protocol, v: Secret, w: Secret, b: Secret) -> Secret:
        return await layer_norm(p, v, 2, w, b, 1e-5)

    result = decoded(evaluate(protocol, function, ring.encode(x, 16), weights=[weight, bias]))
    wanted = F.layer_norm(x, (4, 6), weight, bias, 1e-5)
    assert float((result - wanted).abs().max() / wanted.abs().max()) < BOUND


def test_rms_norm_costs_no_more_than_layer_norm() -> None:
    x, weight = torch.zeros(4, 64, dtype=torch.int64), torch.ones(64)

    async def rms(p: Protocol, v: Secret, w: Secret) -> Secret:
        return await rms_norm(p, v, 1, w, 1e-5)

    async def layer(p: Protocol, v: Secret, w: Secret) -> Secret:
        return await layer_norm(p, v, 1, w, None, 1e-5)

    one, other = (evaluate(protocols.get("dealer2pc"), f, x, weights=[weight]) for f in (rms, layer))
    assert one.rounds == other.rounds and one.bytes <= other.bytes


def test_rms_norm_of_zeros_is_zero(protocol: type[Protocol]) -> None:
    x = torch.zeros(2, 16, dtype=torch.int64)
    assert not decoded(evaluate(protocol, lambda p, v: rms_norm(p, v, 1, None, 1e-6), x)).any()


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


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("dim", [0, -1])
def test_max_with_index_is_exact_and_takes_the_first(protocol: type[Protocol], length: int, dim: int) -> None:
    shape = (length, 40) if dim == 0 else (40, length)
    generator = torch.Generator().manual_seed(length)
    for few in (3, 2**61):  # with ties, and without
        x = torch.randint(-few, few, shape, generator=generator)
        values, indices = x.max(dim, keepdim=True)
        assert torch.equal(indices, (x == values).to(torch.int64).argmax(dim, keepdim=True))
        for keepdim in (True, False):
            result = evaluate(protocol, lambda p, v, k=keepdim: max_with_index(p, v, dim, k), x).value
            wanted = torch.stack([values, indices << 16])
            assert torch.equal(result, wanted if keepdim else wanted.squeeze(dim + (dim >= 0)))


def test_max_with_index_takes_as_many_rounds_as_amax() -> None:
    x = torch.arange(21).view(3, 7)
    p = protocols.get("dealer2pc")
    one, other = (evaluate(p, lambda p, v, f=f: f(p, v, -1), x) for f in (max_with_index, amax))
    assert one.rounds == other.rounds


def test_max_with_index_of_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed"):
        evaluate(
            protocols.get("plain"),
            lambda p, x: max_with_index(p, x, 0),
            torch.zeros(2**16, dtype=torch.int64),
        )
