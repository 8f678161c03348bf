"""SPU 0.9.5 (Ma et al., USENIX ATC 2023), ring FM64 with 18 fraction bits: protocols SEMI2K (two parties), ABY3 (three) and Cheetah (two).

COUNTED, not derived: what each function of the public release sends was counted by running it alone at two sizes, and is given
per element; so are the send actions ("messages"), which take the place of rounds and bound them from above. What is derived is
how they make up a model: SPU's matrix products of a batch run one after the other, a maximum is a tree of pairwise maxima and one
more with minus infinity, a softmax is maximum, exp, sum, reciprocal a row, product; LayerNorm two scaled sums, a square, an
inverse square root a row, two products. Compiled with enable_optimize_denominator_with_broadcast, without which reciprocals are
taken of every element.

SEMI2K: a product opens both masked operands; a truncation sends 4 bytes an element. Its provider makes triples at party 0. Its
counts are the same in every run, and its totals come out exact. ABY3: a product sends one element of the result a party, a
truncation 4 to 12 bytes; the parties' parts are drawn anew in each step, only their sum is fixed. A third of it is taken: the
party that sends most is within some percent of that in a model, and 15 to 30 % above it in a single operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2

from cost_models.peers.estimate import System, by_formulas
from cost_models.peers.tally import Formula, Formulas, Tally, free
from cost_models.workload import Work

WORD = 8

Counts = Mapping[str, tuple[float, float]]
"""Function -> bytes an element and messages."""

SEMI2K: Counts = {
    "scale": (4, 1),
    "mul": (20, 2),
    "square": (20, 2),
    "less": (56, 7),
    "equal": (104, 7),
    "where": (16, 1),
    "max": (72, 8),
    "relu": (72, 8),
    "exp": (100, 17),
    "log": (510, 26),
    "tanh": (324, 36),
    "sigmoid": (605, 53),
    "silu": (625, 55),
    "erf": (721, 60),
    "gelu": (396, 45),
    "reciprocal": (505, 36),
    "rsqrt": (429, 26),
    "sqrt": (513, 35),
}

ABY3_OF_THREE: Mapping[str, tuple[int, int]] = {
    "scale": (28, 5),
    "mul": (52, 8),
    "square": (52, 8),
    "less": (108, 24),
    "equal": (62, 22),
    "where": (64, 8),
    "max": (172, 32),
    "relu": (172, 32),
    "exp": (444, 69),
    "log": (2524, 120),
    "tanh": (868, 146),
    "sigmoid": (1780, 221),
    "silu": (1832, 229),
    "erf": (1944, 250),
    "gelu": (1108, 185),
    "reciprocal": (1336, 152),
    "rsqrt": (1548, 142),
    "sqrt": (1784, 179),
}
"""Of the three parties together, which is the same in every run; who sends which part of it is drawn anew in each step."""

ABY3: Counts = {name: (size / 3, messages / 3) for name, (size, messages) in ABY3_OF_THREE.items()}


@dataclass(frozen=True)
class Spu:
    """A protocol's counts, and whether a product opens its operands (two parties) or sends its result (three)."""

    counts: Counts
    opens_operands: bool

    def of(self, name: str, elements: int) -> Tally:
        size, messages = self.counts[name]
        return Tally(size * elements, messages)

    def product(self, w: Work) -> Tally:
        """Matrices of a batch one after the other, each with its truncation."""
        truncated, messages = self.counts["mul"]
        if self.opens_operands:
            size = WORD * (w.left + w.right) + self.counts["scale"][0] * w.elements
        else:
            size = truncated * w.elements
        return Tally(size, messages * w.batch)

    def maximum(self, w: Work) -> Tally:
        """With the comparison to minus infinity that jax adds."""
        size, messages = self.counts["max"]
        return Tally(size * w.rows * w.columns, messages * (ceil(log2(w.columns)) + 1))

    def softmax(self, w: Work) -> Tally:
        result = self.maximum(w) + self.of("exp", w.elements)
        return result + self.of("reciprocal", w.rows) + self.of("mul", w.elements)

    def norm(self, w: Work, centred: bool) -> Tally:
        means = (2 if centred else 1) * self.of("scale", w.rows)
        result = means + self.of("square", w.elements) + self.of("rsqrt", w.rows)
        return result + (2 if w.weight else 1) * self.of("mul", w.elements)

    def formulas(self) -> Formulas:
        def elementwise(name: str) -> Formula:
            return lambda w: self.of(name, w.elements)

        special: Formulas = {
            "lookup": free,
            "linear": self.product,
            "matmul": self.product,
            "embedding": self.product,
            "public_product": elementwise("scale"),
            "rotary": lambda w: 2 * self.of("scale", w.elements),
            "softmax": self.softmax,
            "softmax_numerator": lambda w: self.maximum(w) + self.of("exp", w.elements),
            "max": self.maximum,
            "clamp": lambda w: 2 * self.of("max", w.elements),
            "layer_norm": lambda w: self.norm(w, centred=True),
            "rms_norm": lambda w: self.norm(w, centred=False),
        }
        return {**{name: elementwise(name) for name in self.counts if name != "max"}, **special}


_SOURCE = "SPU 0.9.5, FM64, 18 fraction bits: each function counted on the running system"
_MESSAGES = "Rounds are the send actions of the party that has most: an upper bound."

SEMI2K_SYSTEM = System(
    "spu-semi2k",
    "SPU, SEMI2K",
    "two parties, GELU by tanh",
    2,
    "cpu",
    _SOURCE,
    by_formulas(Spu(SEMI2K, opens_operands=True).formulas()),
    (
        _MESSAGES,
        "Party 0 makes the triples (the default), so it could read everything; their bytes are in the query's.",
    ),
)
ABY3_SYSTEM = System(
    "spu-aby3",
    "SPU, ABY3",
    "three parties with an honest majority, GELU by tanh",
    3,
    "cpu",
    _SOURCE,
    by_formulas(Spu(ABY3, opens_operands=False).formulas()),
    (
        _MESSAGES,
        "Bytes and messages are the mean party's; the one that sends most in a run is within a few percent of it.",
    ),
)
