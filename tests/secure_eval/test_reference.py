"""The float64 reference: what every operation means, and that a captured program means what the model does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secure_eval
from secure_eval.program import Node, Program, Ref
from secure_eval.reference import reference, values
from secure_eval.spec import check
from secure_eval.testing.operations import CASES


def double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


@pytest.mark.parametrize("name", CASES)
def test_a_captured_program_means_what_its_model_computes(name: str) -> None:
    case = CASES[name]
    model, inputs = case.model(), case.inputs()
    got = reference(secure_eval.capture(model, inputs), inputs)
    wanted = copy.deepcopy(model).double()(*double(inputs))
    assert got.dtype == torch.float64 and got.shape == wanted.shape
    assert float(((got - wanted).abs() / wanted.abs().clamp(min=1)).max()) < 1e-9


class Attention(nn.Module):
    """A layer with an embedding, a public mask, and heads: what clear nodes and passes there are in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.table(input_ids)
        q, k, v = (f(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        y = torch.softmax(q @ k.mT / 2 + bias, -1) @ v
        return {"hidden": self.norm(x + F.gelu(y.transpose(1, 2).reshape(x.shape)))}


@pytest.mark.parametrize("embedding", ("client", "onehot"))
def test_a_transformer_layer(embedding: str) -> None:
    torch.manual_seed(3)
    model = Attention().eval()
    inputs = {
        "input_ids": torch.randint(11, (2, 5)),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    }
    program = secure_eval.capture(model, inputs, embedding=embedding)
    wanted = copy.deepcopy(model).double()(**inputs)["hidden"].detach()
    got = reference(program, inputs)
    assert set(got) == {"hidden"} and float((got["hidden"] - wanted).abs().max()) < 1e-9
    seen = {node.name: value for node, _, value in values(program, inputs)}
    assert set(seen) == {n.name for n in program.nodes}
    assert all(tuple(seen[n.name].shape) == n.shape for n in program.nodes)


class ScaledTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 3))

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight * 2)


def test_a_table_that_the_owner_computes() -> None:
    torch.manual_seed(4)
    model, ids = ScaledTable().eval(), torch.tensor([[3, 0, 6]])
    program = secure_eval.capture(model, (ids,))
    wanted = model(ids).detach()
    assert float((reference(program, (ids,)) - wanted).abs().max()) < 1e-6
    with secure_eval.compile(program, protocol="plain") as secure:
        assert float((secure(ids) - wanted).abs().max()) < 2.0**-15


def softmax_program(mask: Tensor) -> Program:
    nodes = (
        Node("x", "input", ("x",), "client", (2, 3)),
        Node("m", "constant", (), "constant", tuple(mask.shape), mask.dtype),
        Node("s", "share_input", (Ref("x"),), "secret", (2, 3)),
        Node("e", "softmax_numerator", (Ref("s"), Ref("m"), -1), "secret", (2, 3)),
    )
    return check(Program(nodes, ("x",), (Ref("e"),), {"m": mask}))


@pytest.mark.parametrize(
    "mask",
    (
        torch.tensor([[True, False, True], [False, False, False]]),
        torch.tensor([[0.0, float("-inf"), -1.5], [float("-inf")] * 3]),
    ),
    ids=("bool", "additive"),
)
@pytest.mark.parametrize("protocol", ("plain", "dealer2pc"))
def test_masks_mean_what_the_engine_makes_of_them(mask: Tensor, protocol: str) -> None:
    """Also in a row that keeps nothing, which becomes uniform."""
    program = softmax_program(mask)
    x = torch.tensor([[0.3, 9.0, 1.7], [4.0, -3.0, 0.5]])
    wanted = reference(program, (x,))[0]
    assert torch.equal(wanted[1], torch.ones(3, dtype=torch.float64)) and wanted[0, 1] == 0
    with secure_eval.compile(program, protocol=protocol) as secure:
        assert float((secure(x)[0] - wanted).abs().max()) < 2.0**-9


CALLS: dict[str, tuple[Callable[[Program], object], str]] = {
    "missing": (lambda p: reference(p, ()), "missing: \\['x'\\]"),
    "unknown": (lambda p: reference(p, {"x": torch.zeros(2, 3), "y": torch.zeros(1)}), "unknown: \\['y'\\]"),
    "too many": (lambda p: reference(p, (torch.zeros(2, 3),) * 2), "2 inputs; the program has 1"),
}


@pytest.mark.parametrize("name", CALLS)
def test_inputs_that_do_not_fit_are_named(name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        call(softmax_program(torch.ones(3, dtype=torch.bool)))
