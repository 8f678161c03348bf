"""DELPHI (Mishra et al., USENIX Security 2020): linear layers encrypted ahead, ReLU by garbled circuits or squares by triples.

Client and server; a prime field of 41 bits (42 with the circuit's carry), BFV ciphertexts of 8,192 slots. Sizes are those that
the public release (mc2-project/delphi) writes, as counted on it by Garimella et al., "Characterizing and Optimizing End-to-End
Systems for Private Inference" (ASPLOS 2023), whose artifact lists the bytes of every layer of ResNet-18 on TinyImageNet:

* a ReLU, offline: a garbled circuit of 15,896 bytes with the labels of the server's mask (42 of 28 bytes), and the client's
  labels by oblivious transfer, 42 * 32 bytes from the server and 42 * 16 from the client. Online: the labels of the server's
  share, 42 * 28 + 8. The circuit's size is a count, not derived: half gates would take 32 bytes a gate and the release frames
  each block.
* a square: a Beaver triple; offline two ciphertexts from the client and one back for every 8,192; online two masked values of 9
  bytes each way.
* a linear layer m x k x n, offline: the client's encrypted mask, ceil(m k / 8192) ciphertexts, and its product, ceil(m n / 8192);
  online the masked input, 9 bytes a value, from the client. A convolution's mask is sent once a kernel position, as in Gazelle.

DELPHI has no product of two secrets but the square's, no softmax, GELU or norm: those are listed as not priced.
"delphi-quadratic" takes every ReLU and GELU as a square, which is what its planner would put in their place.
"""

from __future__ import annotations

from math import ceil

from cost_models.peers.estimate import System, by_formulas
from cost_models.peers.tally import Formulas, Tally, free
from cost_models.workload import Work

FIELD_BITS, SLOTS, CIPHERTEXT = 42, 8192, 524_393
"""Bits of a value in the circuit, slots of a ciphertext and its serialised bytes."""

_LABEL, _CIRCUIT, _VALUE = 28, 15_896, 9
"""Serialised bytes of a wire's label, of a ReLU's circuit, of a masked value."""


def relu(elements: int) -> Tally:
    """The server sends most, offline and online; the client keeps circuit and both sets of labels."""
    offline = _CIRCUIT + FIELD_BITS * _LABEL + FIELD_BITS * 32
    kept = _CIRCUIT + 2 * FIELD_BITS * _LABEL
    return Tally((FIELD_BITS * _LABEL + 8) * elements, 1, offline * elements, keys=kept * elements)


def squared(elements: int) -> Tally:
    offline = 2 * CIPHERTEXT * ceil(elements / SLOTS)
    return Tally(2 * _VALUE * elements, 1, offline, keys=3 * 8 * elements)


def linear(w: Work) -> Tally:
    """The client sends most: its encrypted mask ahead, its masked input in the query."""
    offline = CIPHERTEXT * max(ceil(w.left / SLOTS), ceil(w.elements / SLOTS))
    return Tally(_VALUE * w.left, 1, offline, keys=8 * (w.left + w.elements))


def convolution(w: Work) -> Tally:
    positions = max(1, round(w.batch * w.m * w.k / w.left))
    offline = CIPHERTEXT * max(positions * ceil(w.left / SLOTS), ceil(w.elements / SLOTS))
    return Tally(_VALUE * w.left, 1, offline, keys=8 * (w.left + w.elements))


FORMULAS: Formulas = {
    "lookup": free,
    "scale": free,
    "linear": linear,
    "conv": convolution,
    "square": lambda w: squared(w.elements),
    "relu": lambda w: relu(w.elements),
}

_NOTES = (
    "Bytes are the sum over works of what the busier of client and server sends in each.",
    "Set-up keys of the homomorphic scheme (33 MB from the client, once) are not counted.",
    "A convolution whose windows don't overlap is a linear layer here.",
)
_SOURCE = "DELPHI, source of the public release (Mishra et al., USENIX Security 2020); sizes counted by Garimella et al., ASPLOS 2023"

SYSTEM = System(
    "delphi",
    "DELPHI, garbled circuits",
    "client and server, field of 41 bits, ReLU by garbled circuits",
    2,
    "cpu",
    _SOURCE,
    by_formulas(FORMULAS),
    _NOTES,
    servers=1,
)
QUADRATIC = System(
    "delphi-quadratic",
    "DELPHI, quadratic activations",
    "client and server, field of 41 bits, every ReLU and GELU replaced by a square",
    2,
    "cpu",
    _SOURCE,
    by_formulas({**FORMULAS, "relu": lambda w: squared(w.elements), "gelu": lambda w: squared(w.elements)}),
    _NOTES,
    servers=1,
)
