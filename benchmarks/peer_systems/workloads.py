"""What is compared: each workload's shapes, inputs and weights, the same for every system.

Needs numpy only. `reference.py` adds the float64 result and writes all of it to the file that the runners read.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

TOKENS, HIDDEN, HEADS, INNER = 128, 768, 12, 3072
"""BERT-base at 128 tokens."""

LAYER_NORM_EPSILON = 1e-12
QUAD = (0.125, 0.25, 0.5)
"""MPCFormer (Li et al., ICLR 2023), section 3: Quad(x) = 0.125 x^2 + 0.25 x + 0.5 in place of GELU."""
TWO_QUAD_SHIFT = 5.0
"""MPCFormer, section 3: 2Quad(x) = (x + c)^2 / sum of (x + c)^2 in place of softmax."""

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


class UnknownName(ValueError):
    """An option names a workload or a system that there isn't."""


@dataclass(frozen=True)
class Workload:
    """One row of the comparison.

    Args:
        kind: which function: linear, mul, relu, gelu, softmax, layer_norm, quad, 2quad or bert.
        inputs: name -> shape of the secret inputs.
        spread: standard deviation of the inputs.
        layers, activation, softmax: of a `bert`: encoder layers, "gelu" or "quad", "exact" or "2quad".
        width, inner, heads: of a `bert`; `inner` is also the output width of a `linear`.
        queries: timed queries each time that a system is started, after `warm_ups` untimed ones.
    """

    name: str
    title: str
    kind: str
    inputs: Mapping[str, tuple[int, ...]]
    spread: float = 1.0
    layers: int = 0
    activation: str = "gelu"
    softmax: str = "exact"
    width: int = HIDDEN
    inner: int = INNER
    heads: int = HEADS
    queries: int = 5
    warm_ups: int = 1
    seed: int = field(default=2026)

    def specification(self) -> dict[str, Any]:
        """What a runner needs to know besides the arrays; JSON-ready."""
        return {
            **asdict(self),
            "inputs": {k: list(v) for k, v in self.inputs.items()},
            "epsilon": LAYER_NORM_EPSILON,
            "quad": list(QUAD),
            "two_quad_shift": TWO_QUAD_SHIFT,
        }

    def input_arrays(self) -> Arrays:
        """float32 inputs, by name."""
        generator = np.random.default_rng([self.seed, 0])
        return {
            name: (self.spread * generator.standard_normal(shape)).astype(np.float32)
            for name, shape in self.inputs.items()
        }

    def weight_arrays(self) -> Arrays:
        """float32 weights by name, random as BERT initialises them (standard deviation 0.02), with biases and gains that do something."""
        generator = np.random.default_rng([self.seed, 1])

        def normal(spread: float, *shape: int) -> np.ndarray[Any, np.dtype[Any]]:
            return (spread * generator.standard_normal(shape)).astype(np.float32)

        def linear(name: str, width: int, out: int) -> Arrays:
            return {f"{name}.weight": normal(0.02, out, width), f"{name}.bias": normal(0.02, out)}

        def norm(name: str) -> Arrays:
            return {
                f"{name}.weight": 1 + normal(0.1, self.width),
                f"{name}.bias": normal(0.1, self.width),
            }

        if self.kind == "linear":
            return linear("linear", self.width, self.inner)
        if self.kind == "layer_norm":
            return norm("norm")
        arrays: Arrays = {}
        for i in range(self.layers):
            for name in ("query", "key", "value", "attention_output"):
                arrays |= linear(f"{i}.{name}", self.width, self.width)
            arrays |= norm(f"{i}.attention_norm")
            arrays |= linear(f"{i}.intermediate", self.width, self.inner)
            arrays |= linear(f"{i}.output", self.inner, self.width)
            arrays |= norm(f"{i}.output_norm")
        return arrays


_STATES, _INNER, _SCORES = (TOKENS, HIDDEN), (TOKENS, INNER), (HEADS, TOKENS, TOKENS)


def _bert(layers: int, activation: str, softmax: str) -> Workload:
    cheap = activation == "quad"
    kind = "layer" if layers == 1 else f"{layers}-layers"
    title = f"BERT-base {'layer' if layers == 1 else f'{layers} layers'}, {'Quad and 2Quad' if cheap else 'GELU and softmax'}"
    return Workload(
        f"bert-{kind}-{'quad' if cheap else 'exact'}",
        title,
        "bert",
        {"x": _STATES},
        layers=layers,
        activation=activation,
        softmax=softmax,
        queries=2,
        warm_ups=1
        if layers == 1
        else 0,  # a query of twelve layers takes a peer minutes: the first counts, too
    )


_ALL = (
    Workload("matmul-768", "matmul 128x768x768", "linear", {"x": _STATES}, inner=HIDDEN),
    Workload("matmul-3072", "matmul 128x768x3072", "linear", {"x": _STATES}),
    Workload("mul", "elementwise mul 128x3072", "mul", {"x": _INNER, "y": _INNER}),
    Workload("relu", "ReLU 128x3072", "relu", {"x": _INNER}, spread=2.0, queries=3),
    Workload("gelu", "GELU (tanh) 128x3072", "gelu", {"x": _INNER}, spread=2.0, queries=3),
    Workload("softmax", "softmax 12x128x128", "softmax", {"x": _SCORES}, spread=2.0, queries=3),
    Workload("layer-norm", "LayerNorm 128x768", "layer_norm", {"x": _STATES}),
    Workload("quad", "Quad 128x3072", "quad", {"x": _INNER}, spread=2.0),
    Workload("2quad", "2Quad 12x128x128", "2quad", {"x": _SCORES}, spread=2.0),
    _bert(1, "gelu", "exact"),
    _bert(1, "quad", "2quad"),
    _bert(12, "gelu", "exact"),
    _bert(12, "quad", "2quad"),
)

WORKLOADS: dict[str, Workload] = {w.name: w for w in _ALL}
QUICK = ("matmul-768", "relu", "quad")
"""Seconds each: to see that everything is installed and works."""


def choose(what: str, names: list[str], allowed: list[str]) -> list[str]:
    """`names` in the order of `allowed`, without duplicates. Raises UnknownName that lists what is allowed."""
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownName(f"unknown {what} {name!r}.{hint} Allowed: {', '.join(allowed)}")
    return [name for name in allowed if name in names]
