"""CrypTen 0.4.1 (Knott et al., NeurIPS 2021), two parties: each function's messages, by the functions of its public release.

Ring of 64 bits, 16 fraction bits, truncation by a local division, so products by public numbers are free. Every product opens
both masked operands (crypten/mpc/primitives/beaver.py); a comparison adds the two shares in a boolean circuit of 7 levels and
converts one bit back (circuit.py, converters.py); exp, reciprocal, inverse square root, sigmoid, erf, softmax are its
configs/default.yaml: exp by 8 squarings, reciprocal by 10 Newton steps from an exponential, inverse square root by 3
(common/functions/approximations.py), max by "log_reduction" with its one-hot answer (maximum.py). Rounds are its communicator's.
The bytes and rounds of a run equal these exactly.

"crypten" takes GELU by tanh, as a run does that is to give the right answer; "crypten-stock" takes the Taylor series of erf that
the release has, which is off without bound past |x| = 2.5.
"""

from __future__ import annotations

from math import log as natural_log

from cost_models.peers.estimate import System, by_formulas
from cost_models.peers.tally import Formulas, Tally, free
from cost_models.workload import Work

WORD = 8
"""Bytes of a ring element."""

EXP_STEPS, NEWTON_STEPS, RSQRT_STEPS, LOG_STEPS, ERF_TERMS = 8, 10, 3, 2, 8


def opened(elements: float) -> Tally:
    """One opening: each party sends its share."""
    return Tally(WORD * elements, 1)


def product(left: float, right: float) -> Tally:
    """Any bilinear product opens both masked operands in one round."""
    return opened(left + right)


def multiplied(elements: float) -> Tally:
    return product(elements, elements)


def and_words(elements: float) -> Tally:
    return product(elements, elements)


def less_than_zero(elements: float) -> Tally:
    """One AND, six levels of two ANDs, one bit to arithmetic: 216 bytes, 8 rounds."""
    return and_words(elements) + 6 * and_words(2 * elements) + opened(elements)


def equal_to_zero(elements: float) -> Tally:
    return 6 * and_words(elements) + opened(elements)


def relu(elements: float) -> Tally:
    return less_than_zero(elements) + multiplied(elements)


def selected(elements: float) -> Tally:
    """where(c, x, y) for a secret c: two products, one after the other."""
    return 2 * multiplied(elements)


def exp(elements: float, steps: int = EXP_STEPS) -> Tally:
    return steps * opened(elements)


def newton(elements: float, steps: int) -> Tally:
    """A step is a square and a product."""
    return steps * (opened(elements) + multiplied(elements))


def reciprocal(elements: float) -> Tally:
    """Of what is known to be positive."""
    return exp(elements) + newton(elements, NEWTON_STEPS)


def signed_reciprocal(elements: float) -> Tally:
    return less_than_zero(elements) + 2 * multiplied(elements) + reciprocal(elements)


def rsqrt(elements: float, steps: int = RSQRT_STEPS) -> Tally:
    return exp(elements) + steps * (opened(elements) + 2 * multiplied(elements))


def sigmoid(elements: float) -> Tally:
    """Of |x| by exp and 3 Newton steps from the public 0.75, the first of which is local; then reflected."""
    forward = less_than_zero(elements) + multiplied(elements) + exp(elements)
    return forward + newton(elements, 2) + selected(elements)


def gelu_tanh(elements: float) -> Tally:
    return opened(elements) + multiplied(elements) + sigmoid(elements) + multiplied(elements)


def power(elements: float, exponent: int) -> Tally:
    """Its recursion: x^p is (x^2)^(p/2) or (x^3)^((p-1)/2)."""
    if exponent <= 1:
        return Tally()
    if exponent % 2 == 0:
        return opened(elements) + power(elements, exponent // 2)
    return opened(elements) + multiplied(elements) + power(elements, (exponent - 1) // 2)


def erf(elements: float) -> Tally:
    result = Tally()
    for n in range(1, ERF_TERMS + 1):
        result += power(elements, 2 * n + 1)
    return result


def gelu_erf(elements: float) -> Tally:
    return erf(elements) + multiplied(elements)


def log(elements: float) -> Tally:
    """Householder steps of order 8, whose polynomial is a tree of 1, 2 and 4 products by the highest power."""
    polynomial = opened(elements) + product(2 * elements, elements) + product(4 * elements, elements)
    return exp(elements) + LOG_STEPS * (exp(elements) + multiplied(elements) + polynomial)


def _weighted_index(rows: int, columns: int) -> Tally:
    """A one-hot among ties: 16 random bits a row, a product with the count, a comparison of every element."""
    return opened(16 * rows) + multiplied(rows) + less_than_zero(rows * columns)


def maximum(rows: int, columns: int) -> Tally:
    """Halvings, then all pairs of what is left, then the one-hot of all that equal the maximum."""
    result, width = Tally(), columns
    for _ in range(int(natural_log(columns))):
        half = width // 2
        result += less_than_zero(rows * half) + selected(rows * half)
        width = half + width % 2
    result += less_than_zero(rows * max(width - 1, 1) * width)
    factors = width - 1
    while factors > 1:
        result += multiplied(rows * (factors // 2) * width)
        factors = factors // 2 + factors % 2
    result += _weighted_index(rows, width) + multiplied(rows * width)
    return result + equal_to_zero(rows * columns) + _weighted_index(rows, columns)


def softmax(rows: int, columns: int) -> Tally:
    size = rows * columns
    return maximum(rows, columns) + exp(size) + reciprocal(rows) + product(size, rows)


def normalised(w: Work, rsqrt_steps: int = RSQRT_STEPS) -> Tally:
    """Square, inverse square root a row, product by it, product by the gain. Means are local."""
    gain = product(w.elements, w.columns) if w.weight else Tally()
    return opened(w.elements) + rsqrt(w.rows, rsqrt_steps) + product(w.elements, w.rows) + gain


FORMULAS: Formulas = {
    "lookup": free,
    "scale": free,
    "rotary": free,
    "public_product": free,
    "linear": lambda w: product(w.left, w.right),
    "matmul": lambda w: product(w.left, w.right),
    "embedding": lambda w: product(w.left, w.right),
    "conv": lambda w: product(w.left, w.right),
    "mul": lambda w: product(w.left, w.right),
    "square": lambda w: opened(w.elements),
    "relu": lambda w: relu(w.elements),
    "clamp": lambda w: relu(2 * w.elements),
    "gelu": lambda w: gelu_tanh(w.elements),
    "erf": lambda w: erf(w.elements),
    "tanh": lambda w: sigmoid(w.elements),
    "sigmoid": lambda w: sigmoid(w.elements),
    "silu": lambda w: sigmoid(w.elements) + multiplied(w.elements),
    "exp": lambda w: exp(w.elements),
    "log": lambda w: log(w.elements),
    "reciprocal": lambda w: reciprocal(w.elements),
    "signed_reciprocal": lambda w: signed_reciprocal(w.elements),
    "rsqrt": lambda w: rsqrt(w.elements),
    "sqrt": lambda w: rsqrt(w.elements) + multiplied(w.elements),
    "softmax": lambda w: softmax(w.rows, w.columns),
    "softmax_numerator": lambda w: maximum(w.rows, w.columns) + exp(w.elements),
    "max": lambda w: maximum(w.rows, w.columns),
    "layer_norm": normalised,
    "rms_norm": normalised,
    "less": lambda w: less_than_zero(w.elements),
    "equal": lambda w: equal_to_zero(w.elements),
    "where": lambda w: selected(w.elements),
}

_NOTES = (
    "The default provider makes the triples at party 0, which so could read everything; they need no message. A dealer of its own "
    "would send the products of the triples besides.",
    "CrypTen shares no opening between layers of one input and opens masked weights anew in every query.",
    "Masks on scores are ignored: CrypTen adds a large negative number, which its exp does not survive.",
)
_SOURCE = (
    "CrypTen 0.4.1, source of the public release (Knott et al., NeurIPS 2021); counted on the running system"
)

SYSTEM = System(
    "crypten",
    "CrypTen",
    "two parties, GELU by tanh, exp by 8 squarings, reciprocal by 10 Newton steps",
    2,
    "cpu",
    _SOURCE,
    by_formulas(FORMULAS),
    _NOTES,
)
STOCK = System(
    "crypten-stock",
    "CrypTen as released",
    "two parties, GELU by the Taylor series of erf (wrong past |x| = 2.5), exp by 8 squarings, reciprocal by 10 Newton steps",
    2,
    "cpu",
    _SOURCE,
    by_formulas({**FORMULAS, "gelu": lambda w: gelu_erf(w.elements)}),
    _NOTES,
)
