"""One small model for every secret operation: what protocols are counted and compared on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Function(nn.Module):
    """A function of tensors as a module; `parameters` become the model owner's."""

    def __init__(self, function: Callable[..., Any], **parameters: Tensor):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, **dict(self.named_parameters()))


class LookUp(Function):
    """A function of a secret tensor and of public indices."""

    def forward(self, x: Tensor, position_ids: Tensor) -> Any:  # type: ignore[override]
        return self.function(x, position_ids, **dict(self.named_parameters()))


@dataclass(frozen=True)
class Case:
    """`function(*inputs, **parameters)` on normal values times `scale` of these shapes, or their magnitudes
    plus 0.1 if `positive`.

    With `rows` the last input is public: indices below `rows`, of the shape `indices`.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()
    tolerance: float = 2.0**-10
    scale: float = 1.0
    positive: bool = False
    rows: int = 0
    indices: tuple[int, ...] = ()

    def model(self, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        parameters = {name: torch.randn(shape, generator=generator) / 4 for name, shape in self.parameters}
        return (LookUp if self.rows else Function)(self.function, **parameters).eval()

    def inputs(self, seed: int = 1) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        values = [torch.randn(shape, generator=generator) * self.scale for shape in self.shapes]
        values = [v.abs() + 0.1 if self.positive else v for v in values]
        if self.rows:
            values.append(torch.randint(self.rows, self.indices, generator=generator))
        return tuple(values)


def _masked_softmax(x: Tensor) -> Tensor:
    mask = torch.zeros(x.shape[-1]).index_fill(0, torch.tensor([0, 2]), torch.finfo(torch.float32).min)
    return torch.softmax(x + mask, -1)


def _public_where(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(torch.arange(x.shape[-1]) % 2 == 0, x, y)


CASES: dict[str, Case] = {
    "view": Case(lambda x: x.transpose(-1, -2).unsqueeze(0).expand(2, -1, -1).sum(-1), ((3, 5),)),
    "cat": Case(lambda x, y: torch.cat([x, y * y], -1), ((2, 3), (2, 4))),
    "stack": Case(lambda x, y: torch.stack([x, y], 1), ((2, 3), (2, 3))),
    "take": Case(
        lambda x, ids, table: F.embedding(ids, table) + x,
        ((2, 2, 4),),
        (("table", (3, 4)),),
        rows=3,
        indices=(2, 2),
    ),
    "add": Case(lambda x, y: x + y * y + 1.5, ((4, 3), (3,))),
    "sub": Case(lambda x, y: 2.0 - (x - y), ((4, 3), (4, 1))),
    "neg": Case(lambda x: -x, ((7,),)),
    "mul": Case(lambda x, y: x * y, ((4, 3), (4, 1))),
    "mul constant": Case(lambda x: x * 0.3 * -1.7 * 8, ((4, 3),)),
    "mul weight": Case(lambda x, w: x * w, ((4, 3),), (("w", (3,)),)),
    "square": Case(lambda x: x * x, ((9,),)),
    "power": Case(lambda x: x**4, ((9,),), tolerance=2.0**-8),
    "matmul": Case(lambda x, y: x @ y, ((2, 3, 5), (2, 5, 4))),
    "linear": Case(lambda x, w, b: F.linear(x, w, b), ((2, 3, 8),), (("w", (4, 8)), ("b", (4,)))),
    "linear without bias": Case(lambda x, w: F.linear(x, w), ((3, 8),), (("w", (4, 8)),)),
    "conv": Case(
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
        ((2, 4, 5, 5),),
        (("w", (3, 4, 3, 3)), ("b", (3,))),
    ),
    "depthwise conv": Case(
        lambda x, w: F.conv1d(x, w, padding=2, groups=4), ((2, 4, 7),), (("w", (4, 1, 3)),)
    ),
    "one_hot": Case(
        lambda x: F.embedding((x > 0).long() + (x > 1).long(), torch.arange(6.0).view(3, 2)),
        ((2, 5),),
        scale=2.0,
    ),
    "index": Case(
        lambda x, ids, table: x[:, torch.tensor([1, 1, 0])] * table[ids],
        ((2, 2, 4),),
        (("table", (3, 4)),),
        rows=3,
        indices=(2, 3),
    ),
    "relu": Case(torch.relu, ((4, 5),), scale=30.0),
    "clamp": Case(lambda x: x.clamp(-1.0, 2.0), ((4, 5),), scale=3.0),
    "gelu": Case(F.gelu, ((5, 7),), scale=3.0),
    "gelu tanh": Case(lambda x: F.gelu(x, approximate="tanh"), ((5, 7),), scale=3.0),
    "tanh": Case(torch.tanh, ((5, 7),), scale=2.0),
    "sigmoid": Case(torch.sigmoid, ((5, 7),), scale=4.0),
    "silu": Case(F.silu, ((5, 7),), scale=4.0),
    "erf": Case(torch.erf, ((5, 7),)),
    "softplus": Case(F.softplus, ((5, 7),), scale=4.0),
    "elu": Case(F.elu, ((5, 7),), scale=3.0),
    "mish": Case(F.mish, ((5, 7),), scale=4.0),
    "reciprocal": Case(torch.reciprocal, ((6,),), positive=True),
    "signed reciprocal": Case(lambda x: 1 / (x * 2 + torch.tensor([3.0, -3.0])), ((6, 2),), scale=0.25),
    "rsqrt": Case(torch.rsqrt, ((6,),), positive=True),
    "sqrt": Case(torch.sqrt, ((6,),), positive=True),
    "exp": Case(torch.exp, ((6,),), scale=3.0),
    "log": Case(torch.log, ((6,),), positive=True, scale=40.0),
    "log softmax": Case(lambda x: torch.log_softmax(x, -1), ((3, 6),), scale=4.0),
    "division": Case(lambda x, y: x / (y * y + 1), ((4, 3), (4, 1))),
    "softmax": Case(lambda x: torch.softmax(x, -1), ((3, 6),), scale=4.0),
    "masked softmax": Case(_masked_softmax, ((2, 3, 5),), scale=4.0),
    "layer norm": Case(
        lambda x, weight, bias: F.layer_norm(x, (12,), weight, bias, 1e-5),
        ((3, 12),),
        (("weight", (12,)), ("bias", (12,))),
    ),
    "layer norm without affine": Case(lambda x: F.layer_norm(x, (7,)), ((3, 7),)),
    "rms norm": Case(
        lambda x, weight: weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
        ((3, 12),),
        (("weight", (12,)),),
    ),
    "amax": Case(lambda x: x.amax(-1), ((3, 7),)),
    "max with index": Case(lambda x: torch.cat([v.float() for v in x.max(-1)]), ((3, 7),)),
    "equal": Case(lambda x: torch.where((x.relu() == 0) | (x > 1), x, x * 2), ((4, 3),)),
    "less": Case(lambda x, y: torch.where(x < y, x, y), ((4, 3), (4, 3))),
    "where": Case(lambda x: torch.where(x > 0.5, x, x * x), ((4, 3),)),
    "public where": Case(_public_where, ((4, 6), (4, 6))),
    "mean": Case(lambda x: x.mean(-1), ((4, 6),)),
}
"""Together they use every operation of `operations.OPERATIONS`."""
