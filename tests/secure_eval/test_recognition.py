"""Activations, however they are spelled, become one operation, and what only looks like one does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import secure_eval
from secure_eval import protocols
from secure_eval.testing.operations import Function


def spellings() -> dict[str, tuple[Callable[[Tensor], Tensor], str]]:
    from transformers.activations import ACT2FN

    found = {
        name: (ACT2FN[name], "gelu")
        for name in ("gelu", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python", "gelu_pytorch_tanh")
    }
    found["quick_gelu"] = (ACT2FN["quick_gelu"], "silu")
    found |= {
        "torch, erf": (lambda x: F.gelu(x), "gelu"),
        "torch, tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
        "Phi by erf": (lambda x: x * (0.5 + 0.5 * torch.erf(x / math.sqrt(2))), "gelu"),
        "Phi by erf, half behind": (lambda x: x * (1 + torch.erf(x * 0.70710678)) * 0.5, "gelu"),
        "cube by pow": (
            lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * torch.pow(x, 3)))),
            "gelu",
        ),
        "cube by products": (
            lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x * x * x))),
            "gelu",
        ),
        "factored": (lambda x: x * (torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)) + 1) / 2, "gelu"),
        "quick, by exp": (lambda x: x / (1 + torch.exp(-1.702 * x)), "silu"),
        "SiLU by exp": (lambda x: x / (1 + torch.exp(-x)), "silu"),
        "of a sum": (
            lambda x: (lambda y: 0.5 * y * (1 + torch.erf(y / math.sqrt(2))))(x + x.flip(0) * 0.25),
            "gelu",
        ),
    }
    return found


SPELLINGS = spellings()


@pytest.mark.parametrize("protocol", protocols.names())
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_gelu_is_right_from_minus_to_plus_a_thousand(name: str, protocol: str) -> None:
    function, op = SPELLINGS[name]
    x = torch.cat([torch.linspace(-1000, 1000, 201), torch.linspace(-8, 8, 161)])
    program = secure_eval.capture(Function(function).eval(), (x,))
    assert [
        n.op
        for n in program.nodes
        if n.level == "secret" and n.op not in ("share_input", "mul", "view", "add")
    ] == [op]
    with secure_eval.compile(program, (x,), protocol) as secure:
        off = (secure(x) - function(x.double())).abs()
    assert float((off / x.abs().clamp(min=1) ** (0.5 if op == "silu" else 0)).max()) < 2.0**-10


def test_what_only_looks_like_gelu_is_left_alone() -> None:
    for function in (
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
        lambda x: 0.5 * x * (1 + torch.erf(x / 1.5)),
        lambda x: 0.5 * x * (1 + torch.erf(x.flip(0) / math.sqrt(2))),
        lambda x: x * torch.sigmoid(1.7 * x) + torch.sigmoid(x),
    ):
        x = torch.linspace(-9, 9, 40)
        program = secure_eval.capture(Function(function).eval(), (x,))
        assert not {"gelu", "mish"} & {n.op for n in program.nodes}
        assert float((secure_eval.run(function, x, protocol="plain") - function(x)).abs().max()) < 2.0**-6


def test_a_scaled_gelu_keeps_its_factor() -> None:
    x = torch.linspace(-9, 9, 40)
    function = lambda x: x * (1 + torch.erf(x / math.sqrt(2))) * 1.25  # noqa: E731
    program = secure_eval.capture(Function(function).eval(), (x,))
    ops = [(n.op, n.args[1]) for n in program.nodes if n.op in ("gelu", "mul")]
    assert ops == [("gelu", "none"), ("mul", 2.5)]
    assert float((secure_eval.run(function, x, protocol="plain") - function(x)).abs().max()) < 2.0**-8


def test_an_intermediate_that_is_an_output_stays() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        gate = 1 + torch.erf(x / math.sqrt(2))
        return 0.5 * x * gate, gate

    x = torch.linspace(-3, 3, 20)
    for got, wanted in zip(secure_eval.run(function, x, protocol="plain"), function(x), strict=True):
        assert float((got - wanted).abs().max()) < 2.0**-9
