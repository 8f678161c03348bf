"""SHAFT (Kei and Chow, NDSS 2025), built on CrypTen: its softmax, GELU and embedding, by the source of its public release.

Softmax (section IV of the paper; softmax_method "ode"): clip to [-4, 12] by two comparisons, then 16 steps of an ordinary
differential equation, two products each. GELU and SiLU: ReLU, one comparison of |x|, a Fourier series from one opening of x minus
a dealt angle, one product; erf the series alone. Inverse square root by 5 Newton steps instead of 3. A one-hot lookup opens the
masked index, then multiplies. All else is CrypTen's.

The opened x - t for a t of the series' period leaks about |x| where x goes beyond it; what is estimated is the system as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from cost_models.peers import crypten
from cost_models.peers.crypten import less_than_zero, multiplied, normalised, opened, product, relu
from cost_models.peers.estimate import System, by_formulas
from cost_models.peers.tally import Formulas, Tally
from cost_models.workload import Work

SOFTMAX_STEPS, RSQRT_STEPS = 16, 5

_SECONDS_A_BYTE = 3.09 / (10.46 * 2**30 / 2)
"""3.09 s of computing for BERT-base and its 10.46 GiB in both directions; BERT-large, scaled so, comes out 11 % high (7.60 s)."""


def fourier_activation(elements: int) -> Tally:
    """GELU or SiLU: 472 bytes an element, 19 rounds."""
    compared = relu(elements) + less_than_zero(elements)
    return compared + opened(elements) + multiplied(elements)


def softmax(elements: int) -> Tally:
    return relu(2 * elements) + SOFTMAX_STEPS * 2 * multiplied(elements)


def _seconds(works: Sequence[Work], whole: Tally) -> float:
    return _SECONDS_A_BYTE * whole.online


FORMULAS: Formulas = {
    **{kind: f for kind, f in crypten.FORMULAS.items() if kind != "softmax_numerator"},
    "erf": lambda w: opened(w.elements),
    "gelu": lambda w: fourier_activation(w.elements),
    "silu": lambda w: fourier_activation(w.elements),
    "softmax": lambda w: softmax(w.elements),
    "layer_norm": lambda w: normalised(w, RSQRT_STEPS),
    "rms_norm": lambda w: normalised(w, RSQRT_STEPS),
    "rsqrt": lambda w: crypten.rsqrt(w.elements, RSQRT_STEPS),
    "sqrt": lambda w: crypten.rsqrt(w.elements, RSQRT_STEPS) + multiplied(w.elements),
    "embedding": lambda w: opened(w.m) + product(w.left, w.right),
}
SYSTEM = System(
    "shaft",
    "SHAFT",
    "two parties, softmax by 16 steps of its differential equation, GELU by a Fourier series of 8 terms",
    2,
    "gpu",
    "SHAFT, source of the public release (Kei and Chow, NDSS 2025)",
    by_formulas(FORMULAS),
    (
        "Triples come from party 0, as in CrypTen; they need no message.",
        "What SHAFT opens inside a Fourier series is not uniform: it tells about |x|.",
    ),
    seconds=_seconds,
    hardware="two RTX 5090 in one host, scaled by bytes from BERT-base",
)
