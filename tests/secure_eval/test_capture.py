"""From modules to programs: levels, lowering rules, errors that say everything at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secure_eval
from secure_eval import UnsupportedOperations, capture
from secure_eval.testing.operations import Function

X = torch.tensor([[-2.5, -0.3, 0.0, 0.4, 1.0, 7.25], [3.0, -3.0, 0.125, -0.125, 2.0, -7.0]])
Y = X.flip(-1) * 0.5
Z = (X - Y).abs() + 0.5


def module(function: Callable[..., Any], **parameters: Tensor) -> nn.Module:
    return Function(function, **parameters).eval()


SUPPORTED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "add number": (lambda x: 3 + x, (X,)),
    "rsub": (lambda x: 1 - x, (X,)),
    "in place": (lambda x: (x * 2).add_(1).mul_(3), (X,)),
    "times negative": (lambda x: x * -0.3, (X,)),
    "times large": (lambda x: x * 1234.5, (X,)),
    "times small": (lambda x: x * 1e-6 * 1e6, (X,)),
    "by a power of two, then a summand": (lambda x: x * 2.0**-40 + 100, (X,)),
    "by a power of two, then a tensor": (lambda x: x * 2.0**-40 + torch.full((6,), 100.0), (X,)),
    "few fraction bits": (lambda x: F.layer_norm(torch.relu(x) * 64, (6,)), (X,)),
    "divided by number": (lambda x: x / 3, (X,)),
    "divided by public": (lambda x: x / torch.arange(1, 7), (X,)),
    "number divided": (lambda z: 3 / z, (Z,)),
    "sqrt": (torch.sqrt, (Z,)),
    "pow half": (lambda z: z**0.5, (Z,)),
    "pow -1": (lambda z: z**-1, (Z,)),
    "pow -0.5": (lambda z: z**-0.5, (Z,)),
    "pow 3": (lambda x: x**3, (Y,)),
    "pow 8": (lambda x: (x / 4) ** 8, (Y,)),
    "sum to a type": (lambda x: (x * x).sum(-1, dtype=torch.float32), (X,)),
    "sum with keepdim to a type": (lambda x: (x * x).sum(dim=-1, keepdim=True, dtype=torch.float32), (X,)),
    "mean of all": (lambda x: x.mean(), (X,)),
    "mean of two": (lambda x: x.mean((0, -1), keepdim=True), (X,)),
    "cumsum": (lambda x: x.cumsum(-1), (X,)),
    "softmax to a type": (lambda x: torch.softmax(x, -1, dtype=torch.float32), (X,)),
    "softmax of the first dimension": (lambda x: torch.softmax(x, 0), (X,)),
    "mask of -10000": (lambda x: torch.softmax(x + (torch.arange(6) > 3) * -10000.0, -1), (X,)),
    "mask of -inf": (lambda x: torch.softmax(x.masked_fill(torch.arange(6) > 3, float("-inf")), -1), (X,)),
    "mask by where": (
        lambda x: torch.softmax(torch.where(torch.arange(6) > 1, x, torch.finfo(torch.float32).min), -1),
        (X,),
    ),
    "small additive mask is a number": (lambda x: torch.softmax(x + torch.arange(6) * -2.0, -1), (X,)),
    "layer norm, default eps": (lambda x: F.layer_norm(x, (6,)), (X,)),
    "layer norm of two dimensions": (lambda x: F.layer_norm(x, (2, 6)), (X,)),
    "amax keepdim": (lambda x: x - x.amax(-1, keepdim=True), (X,)),
    "clamp min": (lambda x: x.clamp(min=0.2), (X,)),
    "clamp max": (lambda x: x.clamp(max=0.2), (X,)),
    "maximum": (torch.maximum, (X, Y)),
    "minimum": (torch.minimum, (X, Y)),
    "abs": (torch.abs, (X,)),
    "lt": (lambda x, y: torch.where(x < y, x, y), (X, Y)),
    "le": (lambda x, y: torch.where(x <= y, x, y * 2), (X, Y)),
    "gt": (lambda x: torch.where(x > 0.4, x, x * 2), (X,)),
    "ge": (lambda x: torch.where(x >= 0.5, x, x * 2), (X,)),
    "not": (lambda x, y: torch.where(~(x > y), x, y), (X, Y)),
    "not ge": (lambda x, y: torch.where(~(x >= y), x, y), (X, Y)),
    "comparison as number": (lambda x, y: (x < y).float() * 3, (X, Y)),
    "comparison as output": (lambda x, y: (x < y).float(), (X, Y)),
    "comparison as factor": (lambda x: x * (x > 0), (X,)),
    "split": (lambda x: x.split([2, 4], -1)[1], (X,)),
    "chunk": (lambda x: x.chunk(3, -1)[1], (X,)),
    "select and slice": (lambda x: x[:, 1:4] * x[0, 0], (X,)),
    "rows by public index": (lambda x: x[torch.tensor([1, 0, 1])], (X,)),
    "matrix vector": (lambda x, y: x @ y[0], (X, Y)),
    "addmm": (lambda x, y: torch.addmm(torch.ones(2), x, y.T.contiguous()), (X, Y)),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        (X.view(1, 2, 6), Y.view(1, 2, 6), Z.view(1, 2, 6)),
    ),
    "attention with mask": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(2, 2).tril().bool()),
        (X.view(1, 2, 6), Y.view(1, 2, 6), Z.view(1, 2, 6)),
    ),
    "identity": (lambda x: x, (X,)),
    "input twice": (lambda x: (x, x * x), (X,)),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_operation_means_what_torch_means(name: str) -> None:
    """In plain fixed point: what is checked here is the lowering."""
    function, inputs = SUPPORTED[name]
    with secure_eval.compile(module(function), inputs, "plain") as secure:
        got, wanted = secure(*inputs), function(*inputs)
    for a, b in zip(*((got, wanted) if isinstance(wanted, tuple) else ((got,), (wanted,))), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert float(((a - b).abs() / b.abs().clamp(min=1)).max()) < 2.0**-9


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "sin": (torch.sin, "aten.sin"),
    "scaled addmm": (lambda x: torch.addmm(torch.ones(2), x, x.T.contiguous(), alpha=2), "alpha and beta"),
    "scaled add": (lambda x: torch.add(x, x, alpha=2), "aten.add"),
    "scaled sub": (lambda x: torch.sub(x, x, alpha=2), "aten.sub"),
    "rounding": (lambda x: x.long(), "as int64"),
    "truth of a number": (lambda x: x.bool(), "as bool"),
    "odd power": (lambda x: x**2.5, "exponent 2.5"),
    "and of comparisons": (lambda x: torch.where((x > 0) & (x < 1), x, 0.0), "aten.__and__"),
    "argmax": (lambda x: x.argmax(-1), "aten.argmax"),
    "causal attention": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), "is_causal"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_a_rule_are_refused(name: str) -> None:
    function, said = REFUSED[name]
    with pytest.raises(UnsupportedOperations, match=said.replace(".", r"\.")) as info:
        capture(module(function), (X,))
    assert isinstance(info.value, ValueError) and info.value.operations


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Linear(6, 6), nn.Softplus()),
            nn.ModuleDict({"inner": nn.Mish()}),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.second["inner"](self.first(x)))


def test_all_unsupported_operations_are_listed_with_their_modules() -> None:
    """Also those that follow from another unsupported one: the model's author sees the whole list at once."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.block = nn.Softplus(), nn.ModuleList([nn.Mish(), nn.ELU()])

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.block[0](x) * self.block[1](x) + torch.sin(x)

    with pytest.raises(UnsupportedOperations) as info:
        capture(Model().eval(), (X,))
    found = {(u.operation, u.site) for u in info.value.operations}
    assert found == {
        ("aten.softplus", "a"),
        ("aten.mish", "block.0"),
        ("aten.elu", "block.1"),
        ("aten.sin", ""),
    }
    assert (
        str(info.value).startswith("4 operation(s)")
        and "block.1" in str(info.value)
        and "the model itself" in str(info.value)
    )
    with pytest.raises(UnsupportedOperations) as info:
        capture(Two().eval(), (X,))
    assert [(u.operation, u.site) for u in info.value.operations] == [
        ("aten.softplus", "first.1"),
        ("aten.mish", "second.inner"),
        ("aten.sin", ""),
    ]


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        capture(nn.Sequential(nn.Linear(6, 6), nn.Dropout()), (X,))


def test_unknown_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: client, onehot"):
        capture(nn.Linear(6, 6).eval(), (X,), embedding="server")


class Buffers(nn.Module):
    public_buffers = ("shown",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shown", torch.linspace(0.5, 1, 6))
        self.register_buffer("hidden", torch.linspace(1, 2, 6))
        self.register_buffer("derived", torch.linspace(2, 3, 6), persistent=False)
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.shown + self.derived) * self.hidden * self.weight


def test_who_knows_parameters_and_buffers() -> None:
    program = capture(Buffers().eval(), (X,))
    assert {n.name: n.level for n in program.nodes if n.op in ("constant", "parameter")} == {
        "b_shown": "constant",
        "b_derived": "constant",
        "b_hidden": "owner",
        "p_weight": "owner",
    }
    assert set(program.constants) == {"b_shown", "b_derived"} and set(program.parameters) == {
        "b_hidden",
        "p_weight",
    }
    # hidden * weight both belong to the owner, but x comes first: two secret products; x * shown is local.
    with secure_eval.compile(program) as secure:
        assert float((secure(X) - Buffers()(X).detach()).abs().max()) < 2.0**-8
        assert secure.measurement.operations["mul"].rounds <= 4


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.table(input_ids) + self.table(position_ids)


IDS = {"input_ids": torch.tensor([[0, 8, 3]]), "position_ids": torch.tensor([[0, 1, 2]])}


@pytest.mark.parametrize("embedding", ["client", "onehot"])
def test_embeddings(embedding: str) -> None:
    torch.manual_seed(0)
    model = Ids().eval()
    program = capture(model, IDS, embedding=embedding)
    assert [program[i].level for i in program.inputs] == ["client", "public"]
    assert any(n.op == "table" for n in program.nodes) == (embedding == "client")
    with secure_eval.compile(program) as secure:
        assert float((secure(**IDS) - model(**IDS)).detach().abs().max()) < 2.0**-12


def test_inputs_are_checked_against_the_example() -> None:
    with secure_eval.compile(Ids().eval(), IDS, "plain") as secure:
        for wrong, said in (
            ({"input_ids": IDS["input_ids"]}, "missing: \\['position_ids'\\]"),
            ({**IDS, "mask": X}, "unknown: \\['mask'\\]"),
            ({**IDS, "input_ids": IDS["input_ids"][:, :2]}, "captured for torch.int64 \\(1, 3\\)"),
            ({**IDS, "input_ids": IDS["input_ids"].float()}, "torch.float32"),
        ):
            with pytest.raises(secure_eval.InputError, match=said):
                secure(**wrong)
        assert secure(**IDS).shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parties": "thread"}, "allowed: threads"),
        ({"fraction_bits": 24}, "8 to 20"),
        ({"protocol": "dealer2pcs"}, "did you mean 'dealer2pc'"),
    ],
)
def test_compile_refuses_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        secure_eval.compile(nn.Linear(6, 6).eval(), (X,), **options)


def test_run_takes_any_function() -> None:
    got = secure_eval.run(lambda x, y: torch.relu(x) @ y.transpose(0, 1), X, Y)
    assert float((got - torch.relu(X) @ Y.T).abs().max()) < 2.0**-8


def test_capture_needs_no_values() -> None:
    """A model and inputs on the meta device give the same program."""
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8)).eval()
    real = capture(model, (X,))
    meta = capture(model.to("meta"), (X.to("meta"),))
    assert meta.key() == real.key() and str(meta) == str(real)


@pytest.mark.parametrize("bits", [8, 12, 20])
def test_other_numbers_of_fraction_bits(bits: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3), nn.Softmax(-1)).eval()
    with secure_eval.compile(model, (X,), fraction_bits=bits) as secure:
        assert float((secure(X) - model(X).detach()).abs().max()) < {8: 2.0**-4, 12: 2.0**-7, 20: 2.0**-9}[bits]
        assert secure.measurement.communication() == secure.predicted().communication()
