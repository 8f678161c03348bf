"""BumbleBee (Lu et al., NDSS 2025): Cheetah's protocols, packed matrix products, piecewise activations. Two parties, no dealer.

The steps are those of the public release (AntCPLab/OpenBumbleBee, libspu/kernel/hal/intrinsic/nn/activation.cc, its setting of 4
squarings for exp); each step costs what it does in SPU's Cheetah, on which it is built (cost_models.peers.cheetah):

* A square is one cross term where a product is two: half its ciphertexts (libspu/mpc/bumblebee/arithmetic.cc).
* GELU in a ring of 32 bits: truncation to 12 fraction bits, three comparisons, |x|, powers to the fourth (two squares, one
  product), one truncation, two selections. SiLU: three comparisons in 32 bits, and the polynomial and selections in 64.
* exp of what is at most 0: a comparison with -14, truncation, 4 squares, a selection. Softmax: maximum, exp, a reciprocal a row,
  product.

INFERRED: a step in 32 bits takes half the bytes of one in 64, a product 3/4 of them (its plain moduli are 3 in place of 4). The
release's cheaper truncations and its approximate comparisons (a few of the lowest bits left out) are not counted. Bytes and
rounds are coarse.
"""

from __future__ import annotations

from cost_models.peers import cheetah
from cost_models.peers.cheetah import maximum, of
from cost_models.peers.estimate import System, by_formulas
from cost_models.peers.tally import Formulas, Tally
from cost_models.workload import Work

EXP_STEPS = 4
"""Squarings of exp."""

_SMALL, _SMALL_PRODUCT = 0.5, 0.75
"""Of the bytes in 64 bits, what a step and a product take in 32."""


def squared(elements: int) -> Tally:
    """Half a product's ciphertexts, and the truncation."""
    product, truncation = of("mul", elements), of("scale", elements)
    return Tally((product.online + truncation.online) / 2, product.rounds)


def _small(tally: Tally, part: float = _SMALL) -> Tally:
    return Tally(tally.online * part, tally.rounds)


def _compared_thrice(elements: int) -> Tally:
    """Three comparisons at once, in 32 bits."""
    less = of("less", elements)
    return Tally(3 * _SMALL * less.online, less.rounds)


def gelu(elements: int) -> Tally:
    powers = 2 * squared(elements) + of("mul", elements)
    truncations = 2 * of("scale", elements)
    selections = 3 * of("where", elements)
    return _compared_thrice(elements) + _small(powers, _SMALL_PRODUCT) + _small(truncations + selections)


def silu(elements: int) -> Tally:
    polynomial = 2 * squared(elements) + of("mul", elements) + of("scale", elements)
    return _compared_thrice(elements) + polynomial + 4 * of("where", elements) + of("mul", elements)


def exp(elements: int) -> Tally:
    """Of numbers that are at most 0."""
    guard = of("less", elements) + of("where", elements)
    return guard + of("scale", elements) + EXP_STEPS * squared(elements)


def softmax(w: Work) -> Tally:
    return maximum(w) + exp(w.elements) + of("reciprocal", w.rows) + of("mul", w.elements)


FORMULAS: Formulas = {
    **cheetah.FORMULAS,
    "square": lambda w: squared(w.elements),
    "gelu": lambda w: gelu(w.elements),
    "silu": lambda w: silu(w.elements),
    "softmax": softmax,
    "softmax_numerator": lambda w: maximum(w) + exp(w.elements),
}

SYSTEM = System(
    "bumblebee",
    "BumbleBee",
    f"two parties, no dealer, piecewise GELU and SiLU, exp by {EXP_STEPS} squarings",
    2,
    "cpu",
    "BumbleBee, source of the public release (Lu et al., NDSS 2025); steps as counted in SPU 0.9.5's Cheetah",
    by_formulas(FORMULAS),
    ("Rounds are send actions, coarse. Steps in 32 bits are inferred from those in 64.",),
    lambda works, whole: Tally(setup=cheetah.SESSION) if works else Tally(),
    servers=1,
)
