"""SIGMA (Gupta et al., PoPETs 2024(4), ePrint 2023/1269) on GPUs: function secret sharing, two parties and a dealer.

Derived step by step from the public release (mpc-msri/EzPC, folder GPU-MPC: fss/*.cu, backend/sigma.h, utils/gpu_comms.h, and for
the inverse square root ext/sytorch/ext/llama/api.cpp). No constant is fitted: bytes of keys and messages come out as the release
writes them, padding to words included. Rings have `bits` bits (the release takes 37, 48, 50 or 51, a model) and 12 fraction bits,
in 64-bit words of keys; openings are packed to the ring's width.

Its steps are in sigma_steps.py; section 4 of the paper puts them together as follows:
* GELU: truncation with slack to 6 fraction bits, DReLU and an interval bit from one DCF, a 4-way choice of a clipped 8-bit value,
  a 256-entry look-up of ReLU - GELU, select. SiLU: 10 bits and 1024 entries.
* softmax: a maximum by a tree of ReLUs on n - s + 1 bits, exp of what is clipped to 16 bits as the product of two 256-entry
  look-ups, sum, reciprocal by one look-up, product. Causal scores are kept as lower triangles.
* LayerNorm: mean by LRS, squares, inverse square root in a bfloat16-like form by a 13-bit look-up (on the processor), two
  products.

Rounds are the exchanges of the GPU code. The inverse square root on the processor takes 5 more a norm, which published counts
leave out as well; a note of the estimate says how many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2

from cost_models.peers.estimate import Priced, System
from cost_models.peers.sigma_steps import (
    BLOCK,
    INT,
    WORD,
    ceil_div,
    drelu,
    key,
    looked_up,
    packed,
    relu,
    select,
    sent,
    shifted_right,
    size_of,
    truncated_with_slack,
)
from cost_models.peers.tally import Tally
from cost_models.workload import Work

SCALE = 12
"""Fraction bits."""

_SECONDS_A_KEY_BYTE = 0.056 / 2**30
"""Computing time of BERT-base, BERT-large, GPT-2 and GPT-Neo on two RTX 5090, published, over their keys: 0.053-0.058 s a GiB."""


@dataclass(frozen=True)
class Sigma:
    """The formulas for a ring of `bits` bits."""

    bits: int = 50

    def product(self, left: int, right: int, out: int, shift: int = SCALE) -> Tally:
        """Matrices: a triple of words, one opening of the result, an exact shift."""
        return self._untruncated(left, right, out) + shifted_right(self.bits, shift, out)

    def _untruncated(self, left: int, right: int, out: int) -> Tally:
        return key(WORD * (left + right + out)) + sent(self.bits, out)

    def multiplied(self, left: int, right: int) -> Tally:
        """Elementwise, the right operand repeated, truncated with slack."""
        product = key(WORD * (2 * left + right)) + sent(self.bits, left)
        return product + truncated_with_slack(self.bits, self.bits, SCALE, left)

    def squared(self, elements: int) -> Tally:
        return key(2 * WORD * elements) + sent(self.bits, elements) + self.shifted(elements)

    def shifted(self, elements: int) -> Tally:
        return shifted_right(self.bits, SCALE, elements)

    def clipped_table(self, elements: int, table_bits: int) -> Tally:
        """GELU (8 bits, bytes) and SiLU (10 bits, 16-bit words)."""
        width = 1 if table_bits <= 8 else 2
        narrow = self.bits - 2 * SCALE + 7
        result = key(INT) + truncated_with_slack(self.bits, narrow, SCALE - 6, elements)
        result += drelu(narrow, elements) + key(packed(elements)) + sent(1, 64 * ceil_div(elements, 32))
        result += key(8 * width * elements) + sent(table_bits, elements, width)
        result += looked_up(table_bits, self.bits, elements, opened=False)
        return result + select(self.bits, elements, opened=False) + sent(self.bits, elements)

    def negative_exp(self, elements: int, bits: int) -> Tally:
        result = relu(bits, 16, elements, 2) + looked_up(8, self.bits, elements)
        result += truncated_with_slack(16, 8, 8, elements, 1) + looked_up(8, self.bits, elements)
        return result + self.multiplied(elements, elements)

    def maximum(self, rows: int, columns: int, causal: bool) -> Tally:
        bits, matrices = self.bits - SCALE, rows // columns
        result = key(INT)
        for level in range(ceil(log2(columns))):
            compared = rows * (columns // 2 ** (level + 1))
            if causal:
                compared = matrices * (columns * columns // 2 ** (level + 2) + columns // 2)
            result += relu(bits + 1, bits + 2, compared)
        return result

    def softmax(self, w: Work) -> Tally:
        causal = _causal(w)
        size = w.kept if causal else w.elements
        sums = SCALE + ceil(log2(w.columns))
        result = self.maximum(w.rows, w.columns, causal)
        result += self.negative_exp(size, self.bits - SCALE + 2)
        result += truncated_with_slack(sums, sums - 6, 6, w.rows, 2) + looked_up(sums - 6, self.bits, w.rows)
        return result + self.multiplied(size, w.rows)

    def rsqrt(self, rows: int) -> Tally:
        """On the processor, whose rounds are not counted: three openings to a 13-bit float, a look-up, a select, three bytes of sync."""
        word, n = size_of(self.bits), self.bits

        def tree(bits: int, out: int) -> int:
            return BLOCK * (bits + 1) + size_of(out) * (bits + 1) + 8

        converted = tree(n, n) + tree(n - 8, 8) + 5 * word + size_of(13)
        table = BLOCK * 7 + 2 * size_of(13) + BLOCK + 8 + word + 1
        messages = rows * (3 * word + size_of(13) + 2 * word) + ceil_div(rows, 8) + 3
        return Tally(messages) + key(rows * (converted + table + 5 * word))

    def norm(self, w: Work, centred: bool) -> Tally:
        result = Tally()
        if centred:
            power = w.columns & (w.columns - 1) == 0
            result += shifted_right(self.bits, int(log2(w.columns)) if power else SCALE, w.rows)
        result += key(2 * WORD * w.elements) + sent(self.bits, w.rows) + self.rsqrt(w.rows)
        gain = self.multiplied(w.elements, w.columns) if w.weight else Tally()
        return result + self.multiplied(w.elements, w.rows) + gain

    # -- a workload --------------------------------------------------------------------------------------------

    def price(self, works: Sequence[Work]) -> Priced:
        """Layers of one input that are three or more (attention's projections) are one product, as the release has them; a scale
        of scores by a power of two is part of the shift behind their product."""
        priced: list[tuple[Work, Tally]] = []
        missing: list[Work] = []
        shared: dict[str, list[Work]] = {}
        for w in works:
            if w.kind == "linear":
                shared.setdefault(w.operand, []).append(w)
        formulas = self._formulas()
        skip: Work | None = None
        for i, w in enumerate(works):
            if w is skip:
                priced.append((w, Tally()))
                continue
            together = shared.get(w.operand, []) if w.kind == "linear" and w.operand else []
            following = works[i + 1] if i + 1 < len(works) else None
            if len(together) >= 3:
                merged = replace(
                    w, right=sum(t.right for t in together), elements=sum(t.elements for t in together)
                )
                cost = formulas["linear"](merged) if w is together[0] else Tally()
                priced.append((w, cost))
            elif w.kind == "matmul":
                shift = SCALE
                if following is not None and following.kind == "scale" and following.elements == w.elements:
                    power = log2(abs(following.factor)) if following.factor else 1.0
                    if power < 0 and power == int(power):
                        shift, skip = SCALE - int(power), following
                priced.append((w, self.product(w.left, w.right, w.kept or w.elements, shift)))
            elif w.kind in formulas:
                priced.append((w, formulas[w.kind](w)))
            else:
                missing.append(w)
        return priced, missing

    def _formulas(self) -> dict[str, Callable[[Work], Tally]]:
        n = self.bits
        return {
            "lookup": lambda w: Tally(),
            "linear": lambda w: self.product(w.left, w.right, w.elements),
            "conv": lambda w: self.product(w.left, w.right, w.elements),
            "public_product": lambda w: self.shifted(w.elements),
            "scale": lambda w: self.shifted(w.kept or w.elements),
            "rotary": lambda w: truncated_with_slack(n, n, SCALE - 3, w.elements),
            "mul": lambda w: key(WORD * (2 * w.left + w.right)) + sent(n, w.left) + self.shifted(w.left),
            "square": lambda w: self.squared(w.elements),
            "relu": lambda w: relu(n - SCALE, n, w.elements),
            "gelu": lambda w: self.clipped_table(w.elements, 8),
            "silu": lambda w: self.clipped_table(w.elements, 10),
            "softmax": self.softmax,
            "max": lambda w: self.maximum(w.rows, w.columns, causal=False),
            "less": lambda w: drelu(n - SCALE, w.elements) + sent(1, w.elements),
            "where": lambda w: select(n, w.elements),
            "layer_norm": lambda w: self.norm(w, centred=True),
            "rms_norm": lambda w: self.norm(w, centred=False),
        }


def _causal(w: Work) -> bool:
    return 0 < w.kept < w.elements and 2 * w.kept == w.rows * (w.columns + 1) and w.rows % w.columns == 0


def _extra(works: Sequence[Work], whole: Tally) -> Tally:
    """The mask of the output, which is what the last work gives; one byte of synchronisation; keys in whole pages of 4096 bytes."""
    if not works:
        return Tally()
    mask = WORD * works[-1].elements
    return key(mask + 4096 - (whole.keys + mask) % 4096) + Tally(1)


def _caution(works: Sequence[Work]) -> str:
    norms = sum(w.kind in ("layer_norm", "rms_norm") for w in works)
    if not norms:
        return ""
    return f"{5 * norms} further rounds, of the norms' inverse square roots on the processor, are not in the count."


def _seconds(works: Sequence[Work], whole: Tally) -> float:
    return _SECONDS_A_KEY_BYTE * whole.keys


def system(bits: int = 50) -> System:
    """SIGMA with a ring of so many bits: 50 for BERT and GPT-2, 48 for Llama 2, 51 for GPT-Neo, 37 for BERT-tiny in the release.

    Raises ValueError outside 33 to 63.
    """
    if not 33 <= bits <= 63:
        raise ValueError(f"bits={bits}; allowed: 33 to 63")
    return System(
        "sigma",
        "SIGMA",
        f"two parties and a dealer, ring of {bits} bits, {SCALE} fraction bits",
        2,
        "gpu",
        "SIGMA, source of the public release (EzPC, GPU-MPC; Gupta et al., PoPETs 2024)",
        Sigma(bits).price,
        (
            "Keys are for one query and hold new masks of all weights; the masked weights themselves are not counted by SIGMA.",
            "The release's benchmark makes keys with a generator of a fixed seed at each party, in place of a dealer's messages.",
        ),
        _extra,
        _seconds,
        "two RTX 5090 in one host, scaled by keys",
        _caution,
    )


SYSTEM = system()
