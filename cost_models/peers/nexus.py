"""NEXUS (Zhang et al., NDSS 2025): a transformer under CKKS, bootstrapped by the server; one message each way.

Messages follow from the parameters of the public release (zju-abclab/NEXUS, src/bootstrapping.cpp): degree 2^15, a chain of 51 +
16 x 46 + 14 x 51 bits, 8,192 values a ciphertext. The client sends its embeddings as fresh ciphertexts of two polynomials, the
server returns what its last work gives at the chain's lowest level. INFERRED: that the input is sent at the full chain and
without compression; the paper's breakdown was not at hand. What the model computes in between costs time and no message, so every
work is priced.

Seconds: the published 37.3 s for BERT-base at 128 tokens (abstract), scaled by the multiplications of the model's matrix
products, since how much of that time its activations take is not known here: coarse.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from cost_models.peers.estimate import Priced, System
from cost_models.peers.tally import Tally
from cost_models.workload import Work

DEGREE, SLOTS, LOWEST_BITS = 2**15, 2**13, 51
CHAIN_BITS = LOWEST_BITS + 16 * 46 + 14 * 51

_BERT_BASE_MACS = 12 * 128 * 768 * (4 * 768 + 2 * 3072 + 2 * 128)
"""Multiplications of BERT-base's products at 128 tokens."""


def ciphertexts(values: int, bits: int) -> Tally:
    """Bytes of the ciphertexts that hold so many values."""
    return Tally(ceil(values / SLOTS) * 2 * DEGREE * bits / 8)


def _price(works: Sequence[Work]) -> Priced:
    priced = [(w, Tally()) for w in works]
    if works:
        first = next((w for w in works if w.kind in ("lookup", "embedding")), works[0])
        values = first.elements if first.kind in ("lookup", "embedding") else first.left or first.elements
        priced.insert(0, (Work("input", first.site, values), ciphertexts(values, CHAIN_BITS)))
    return priced, []


def _answer(works: Sequence[Work], whole: Tally) -> Tally:
    """The round there and back; the client sends more than it gets, so that the answer is not in the bytes."""
    return Tally(rounds=1)


def _seconds(works: Sequence[Work], whole: Tally) -> float:
    return 37.3 * sum(w.batch * w.m * w.k * w.n for w in works) / _BERT_BASE_MACS


SYSTEM = System(
    "nexus",
    "NEXUS",
    "client and server, CKKS of degree 2^15, no interaction",
    2,
    "gpu",
    "NEXUS, source of the public release and abstract (Zhang et al., NDSS 2025)",
    _price,
    (
        "Bytes are the client's input; the server computes alone. Evaluation keys, sent once, are not counted.",
        "That the input is sent at the full chain is inferred, and the seconds are scaled by multiplications alone: both coarse.",
        "One round: the query and its answer.",
    ),
    _answer,
    _seconds,
    "the GPUs of the paper, scaled by the multiplications of the products from BERT-base",
    servers=1,
)
