"""The workloads as torch modules: what Sordino runs, and in float64 what every system's result is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peer_systems.workloads import LAYER_NORM_EPSILON, QUAD, TWO_QUAD_SHIFT, Arrays, Workload

Make = Callable[[], nn.Module]


class Quad(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b, c = QUAD
        return a * x * x + b * x + c


class TwoQuad(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        squares = (scores + TWO_QUAD_SHIFT) ** 2
        return squares / squares.sum(-1, keepdim=True)


class Product(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


class Layer(nn.Module):
    """One encoder layer of BERT (Devlin et al., 2019; post-layer-norm) on hidden states [tokens, width], without a mask."""

    def __init__(self, width: int, inner: int, heads: int, activation: str, softmax: str):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.intermediate, self.output = nn.Linear(width, inner), nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        activations: dict[str, Make] = {"gelu": lambda: nn.GELU(approximate="tanh"), "quad": Quad}
        softmaxes: dict[str, Make] = {"exact": lambda: nn.Softmax(-1), "2quad": TwoQuad}
        self.activation, self.softmax = activations[activation](), softmaxes[softmax]()

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(f(x)) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        context = (self.softmax(scores) @ v).transpose(0, 1).flatten(-2)
        x = self.attention_norm(x + self.attention_output(context))
        return self.output_norm(x + self.output(self.activation(self.intermediate(x))))


class _Named(nn.Module):
    """One module under the name that its weights have."""

    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.name = name
        self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


def module(specification: Mapping[str, Any], weights: Mapping[str, Any]) -> nn.Module:
    """The workload's module with its weights, float32, in eval mode. Raises KeyError for a kind that there isn't."""
    s = specification
    kinds: dict[str, Make] = {
        "linear": lambda: _Named("linear", nn.Linear(s["width"], s["inner"])),
        "mul": Product,
        "relu": nn.ReLU,
        "gelu": lambda: nn.GELU(approximate="tanh"),
        "softmax": lambda: nn.Softmax(-1),
        "layer_norm": lambda: _Named("norm", nn.LayerNorm(s["width"], eps=LAYER_NORM_EPSILON)),
        "quad": Quad,
        "2quad": TwoQuad,
        "bert": lambda: nn.Sequential(
            *(
                Layer(s["width"], s["inner"], s["heads"], s["activation"], s["softmax"])
                for _ in range(s["layers"])
            )
        ),
    }
    made = kinds[s["kind"]]()
    made.load_state_dict({name: torch.from_numpy(np.asarray(w)) for name, w in weights.items()})
    return made.eval()


def write(workload: Workload, path: Path) -> None:
    """Writes the file that every runner reads: `specification` (JSON), `input.*`, `weight.*` (float32) and `expected` (float64)."""
    inputs, weights = workload.input_arrays(), workload.weight_arrays()
    with torch.no_grad():
        exact = module(workload.specification(), weights).double()
        expected = exact(*(torch.from_numpy(a).double() for a in inputs.values())).numpy()
    arrays: dict[str, Any] = {f"input.{name}": array for name, array in inputs.items()}
    arrays |= {f"weight.{name}": array for name, array in weights.items()}
    np.savez(path, specification=np.array(json.dumps(workload.specification())), expected=expected, **arrays)


def read(path: Path) -> tuple[dict[str, Any], Arrays, Arrays, np.ndarray[Any, np.dtype[Any]]]:
    """Specification, inputs, weights and expected result of a file that `write` wrote."""
    with np.load(path) as data:
        inputs = {k[6:]: data[k] for k in data.files if k.startswith("input.")}
        weights = {k[7:]: data[k] for k in data.files if k.startswith("weight.")}
        return json.loads(str(data["specification"])), inputs, weights, data["expected"]
