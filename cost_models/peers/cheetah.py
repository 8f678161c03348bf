"""SPU 0.9.5 with the Cheetah protocol (Huang et al., USENIX Security 2022): two parties without a dealer, ring FM64, 18 fraction bits.

Derived: a product of matrices (libspu/mpc/cheetah/arith, as published with BumbleBee). Both parties' cross terms are computed
under RLWE of degree 8192: blocks d0 x d1 x d2 with d0 d1 d2 <= 8192, chosen as the release chooses them; a party encrypts the
side with fewer blocks, min(m / d0, n / d2) * k / d1 ciphertexts, and answers with its (m / d0)(n / d2) packed d1 to one. What a
session sends first and the two ciphertexts' sizes (three primes and a seed; two primes) come from three counted products,
128x64x128 alone and twelve at once, and 128x768x768; 128x768x3072 then comes out within 0.1 %.

COUNTED: everything else, as the bytes an element and the send actions ("messages") of single functions on the running system,
from runs with up to 65,536 elements; there is no dealer, so the oblivious transfers that a function uses up are in its bytes.
Messages are those at 8,192 elements: more elements take more of them, so rounds are coarse.
"""

from __future__ import annotations

from functools import cache
from math import ceil, inf, log2

from cost_models.peers.estimate import System, by_formulas
from cost_models.peers.tally import Formula, Formulas, Tally, free
from cost_models.workload import Work

DEGREE = 8192
"""Coefficients of a ciphertext's polynomials."""

FRESH, ANSWER = 184_974, 254_355
"""Bytes of a fresh ciphertext (one polynomial over three primes; the other is a seed) and of an answer (two, over two primes)."""

SESSION = 10_450_672
"""Bytes a party at a session's start: public and Galois keys, first oblivious transfers."""

_CIPHERTEXT_PRICE, _PRODUCTS_PRICE = 200, 0.1
"""What the release's choice of blocks weighs a ciphertext and a product of two with, over an automorphism."""

COUNTS: dict[str, tuple[float, float]] = {
    "scale": (3.0, 1),
    "less": (69.1, 18),
    "equal": (35.8, 9),
    "where": (8.1, 2),
    "relu": (77.25, 20),
    "mul": (112.1, 10),
    "square": (112.1, 10),
    "exp": (583.6, 41),
    "tanh": (1135, 128),
    "sigmoid": (2057, 138),
    "silu": (2169, 148),
    "gelu": (1480.9, 161),
    "reciprocal": (1473.6, 67),
    "rsqrt": (1353, 85),
}
"""Function -> bytes an element and messages."""


@cache
def blocks(m: int, k: int, n: int) -> tuple[int, int]:
    """Ciphertexts that a party sends for a product [m, k] x [k, n], fresh ones and answers."""
    best, found = inf, (0, 0)
    for d0 in range(1, min(DEGREE, m) + 1):
        for d1 in _powers(min(k, DEGREE // d0)):
            rows, inner = ceil(m / d0), ceil(k / d1)
            columns = ceil(n / min(n, DEGREE // d0 // d1))
            fresh, answers = min(rows, columns) * inner, ceil(rows * columns / d1)
            cost: float = (fresh + answers) * _CIPHERTEXT_PRICE + ceil(m * n / DEGREE) * d1
            cost += rows * inner * columns * _PRODUCTS_PRICE
            if cost <= best:
                best, found = cost, (fresh, answers)
    return found


def _powers(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length())]


def of(name: str, elements: int) -> Tally:
    size, messages = COUNTS[name]
    return Tally(size * elements, messages)


def product(w: Work) -> Tally:
    """Fresh ciphertexts, answers, truncation. The answers of a batch are packed together."""
    fresh, answers = blocks(w.m, w.k, w.n)
    size = w.batch * (fresh * FRESH + answers * ANSWER)
    return Tally(size, w.batch * (fresh + answers)) + of("scale", w.elements)


def maximum(w: Work) -> Tally:
    """A tree of comparisons and selections: one less than there are columns."""
    size, messages = COUNTS["relu"]
    return Tally(size * w.rows * (w.columns - 1), messages * ceil(log2(w.columns)))


def softmax(w: Work) -> Tally:
    """Maximum, exp, sum, a reciprocal a row, product."""
    return maximum(w) + of("exp", w.elements) + of("reciprocal", w.rows) + of("mul", w.elements)


def norm(w: Work, centred: bool) -> Tally:
    """Scaled sums, squares, an inverse square root a row, a product with it and one with the gain."""
    means = (2 if centred else 1) * of("scale", w.rows)
    result = means + of("square", w.elements) + of("rsqrt", w.rows)
    return result + (2 if w.weight else 1) * of("mul", w.elements)


def _elementwise(name: str) -> Formula:
    return lambda w: of(name, w.elements)


FORMULAS: Formulas = {
    **{name: _elementwise(name) for name in COUNTS},
    "lookup": free,
    "linear": product,
    "matmul": product,
    "embedding": product,
    "public_product": _elementwise("scale"),
    "rotary": lambda w: 2 * of("scale", w.elements),
    "softmax": softmax,
    "softmax_numerator": lambda w: maximum(w) + of("exp", w.elements),
    "max": maximum,
    "clamp": lambda w: 2 * of("relu", w.elements),
    "layer_norm": lambda w: norm(w, centred=True),
    "rms_norm": lambda w: norm(w, centred=False),
}

SYSTEM = System(
    "spu-cheetah",
    "SPU, Cheetah",
    "two parties, no dealer, GELU by tanh",
    2,
    "cpu",
    "SPU 0.9.5: ciphertexts by its source, each function counted on the running system",
    by_formulas(FORMULAS),
    (
        "Rounds are send actions, coarse. What a session sends first is set-up; all else is in the query.",
        "Oblivious transfers are made in the query, in large batches: a small model may pay for more than it uses.",
    ),
    lambda works, whole: Tally(setup=SESSION) if works else Tally(),
)
