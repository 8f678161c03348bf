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
from secure_eval.program import Ref
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
    "number divided by either sign": (lambda x: 3 / (x + 0.05), (X,)),
    "divided by either sign": (lambda x, y: y / (x - 0.6), (X, Y)),
    "divided by what is negative": (lambda x, y: y / (-1 - x * x), (X, Y)),
    "divided by a root": (lambda x, y: y / torch.sqrt(x * x + 1), (X, Y)),
    "softsign": (F.softsign, (X,)),
    "normalised": (lambda x: F.normalize(x, dim=-1), (X,)),
    "norm": (lambda x: x.norm(dim=-1), (X,)),
    "one norm": (lambda x: torch.linalg.vector_norm(x, 1, -1), (X,)),
    "cosine similarity": (lambda x, y: F.cosine_similarity(x, y + 0.1, -1), (X, Y)),
    "exp": (torch.exp, (X,)),
    "exp of what is negative": (lambda x: torch.exp(-x * x), (X,)),
    "exp2": (torch.exp2, (X,)),
    "expm1": (torch.expm1, (X,)),
    "power of a number": (lambda x: 1.5**x, (X,)),
    "sigmoid written out": (lambda x: 1 / (1 + torch.exp(-x)), (X,)),
    "softplus written out": (lambda x: torch.log(1 + torch.exp(x)), (X,)),
    "log": (torch.log, (Z,)),
    "log2": (torch.log2, (Z,)),
    "log10": (torch.log10, (Z,)),
    "log1p": (torch.log1p, (Z,)),
    "log softmax": (lambda x: F.log_softmax(x, -1), (X,)),
    "log softmax to a type": (lambda x: F.log_softmax(x, 0, dtype=torch.float32), (X,)),
    "logsumexp": (lambda x: x.logsumexp(-1), (X,)),
    "logsumexp keepdim": (lambda x: x.logsumexp(0, keepdim=True), (X,)),
    "logaddexp": (torch.logaddexp, (X, Y)),
    "pow 5": (lambda x: x**5, (Y,)),
    "pow 6": (lambda x: x**6, (Y / 2,)),
    "pow -2": (lambda z: z**-2, (Z,)),
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
    "group norm": (lambda x: F.group_norm(x, 3), (X,)),
    "group norm of images": (lambda x: F.group_norm(x.view(1, 4, 3, 1), 2, torch.arange(1.0, 5)), (X,)),
    "instance norm": (lambda x: F.instance_norm(x.view(1, 2, 6)), (X,)),
    "batch norm": (lambda x: F.batch_norm(x, torch.arange(6.0), torch.arange(6.0) + 1), (X,)),
    "rms norm": (lambda x: F.rms_norm(x, (6,), torch.linspace(0.5, 1, 6)), (X,)),
    "rms norm written out": (lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6), (X,)),
    "rms norm of the first dimension": (lambda x: x / (x.pow(2).mean(0, True) + 1).sqrt(), (X,)),
    "layer norm written out": (
        lambda x: (x - x.mean(-1, True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5),
        (X,),
    ),
    "variance": (lambda x: x.var(-1), (X,)),
    "variance without correction": (lambda x: x.var((0, 1), unbiased=False, keepdim=True), (X,)),
    "standard deviation": (lambda x: x.std(-1), (X,)),
    "variance and mean": (lambda x: torch.var_mean(x, -1, keepdim=True), (X,)),
    "variance and mean, dropped": (lambda x: torch.var_mean(x, 0), (X,)),
    "amax keepdim": (lambda x: x - x.amax(-1, keepdim=True), (X,)),
    "clamp min": (lambda x: x.clamp(min=0.2), (X,)),
    "clamp max": (lambda x: x.clamp(max=0.2), (X,)),
    "clamp both": (lambda x: x.clamp(-0.3, 2.5), (X,)),
    "clamp to what no value reaches": (lambda x: x.clamp(torch.finfo().min, torch.finfo().max), (X,)),
    "clamp by tensors": (lambda x: x.clamp(torch.tensor(0.25), torch.tensor(1.0)), (X,)),
    "clamp by crossed bounds": (lambda x: x.clamp(2.0, 1.0), (X,)),
    "relu6": (F.relu6, (X,)),
    "hardtanh": (F.hardtanh, (X,)),
    "hardsigmoid": (F.hardsigmoid, (X,)),
    "hardswish": (F.hardswish, (X,)),
    "softshrink": (F.softshrink, (X,)),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.2), (X,)),
    "threshold": (lambda x: F.threshold(x, 0.5, 0.1), (X,)),
    "sigmoid": (torch.sigmoid, (X,)),
    "silu": (F.silu, (X,)),
    "silu written out": (lambda x: x * torch.sigmoid(x), (X,)),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), (X,)),
    "log sigmoid": (F.logsigmoid, (X,)),
    "softplus with beta": (lambda x: F.softplus(x, beta=2.0), (X,)),
    "elu with alpha": (lambda x: F.elu(x, 0.7), (X,)),
    "selu": (F.selu, (X,)),
    "celu": (lambda x: F.celu(x, 0.6), (X,)),
    "mish": (F.mish, (X,)),
    "erf": (torch.erf, (X,)),
    "erfc": (torch.erfc, (X,)),
    "glu": (F.glu, (X,)),
    "glu of the first dimension": (lambda x: F.glu(x, 0), (X,)),
    "gelu written out": (lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), (X,)),
    "layer norm by weight alone": (lambda x: F.layer_norm(x, (6,), torch.full((6,), 0.5)), (X,)),
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
    "and": (lambda x: torch.where((x > 0) & (x < 1.5), x, 0.0), (X,)),
    "or": (lambda x: torch.where((x > 1) | (x < -1), x, x * 2), (X,)),
    "xor": (lambda x: torch.where((x > -1) ^ (x > 1), x, -1.0), (X,)),
    "logical and": (lambda x, y: torch.logical_and(x > 0, y > 0) * 3.0, (X, Y)),
    "logical or, not": (lambda x, y: torch.logical_or(x > 0, ~(y >= 0)).float(), (X, Y)),
    "logical xor": (lambda x, y: torch.logical_xor(x > 0, y > x).float(), (X, Y)),
    "and with a public one": (lambda x: ((x > 0) & (torch.arange(6) > 2)).float(), (X,)),
    "or with a public one": (lambda x: ((torch.arange(6) > 2) | (x > 0)).float(), (X,)),
    "not of a combination": (lambda x: torch.where(~((x > 0) & (x < 1.5)), x, 0.0), (X,)),
    "all": (lambda x: (x > -5).all(-1).float(), (X,)),
    "all of all": (lambda x: (x > -9).all().float(), (X,)),
    "any": (lambda x: (x > 5).any(-1, keepdim=True) * x, (X,)),
    "count": (lambda x: (x > 0).sum(-1), (X,)),
    "equal to number": (lambda x: (x == 0.125).float(), (X,)),
    "not equal": (lambda x, y: torch.where(x != y, x, 9.0), (X, X.round())),
    "sign": (torch.sign, (X,)),
    "where of two numbers": (lambda x: torch.where(x > 0, 2.5, -1.0), (X,)),
    "where of numbers, inverted": (lambda x: torch.where(x >= 0.125, 2.5, -1.0), (X,)),
    "where of a full tensor": (lambda x: torch.where(x > 0, x, torch.full_like(x, 0.3)), (X,)),
    "where of a wider tensor": (lambda x: torch.where(x[0] > 0, x[1], torch.full((3, 6), 0.3)), (X,)),
    "fill by a secret mask": (lambda x: x.masked_fill(x < 0, 0.75), (X,)),
    "fill by a tensor": (lambda x: x.masked_fill(torch.arange(6) > 3, torch.tensor(0.75)), (X,)),
    "nan to num": (torch.nan_to_num, (X,)),
    "where infinite": (lambda x: torch.where(torch.isinf(x) | torch.isnan(x), 0.0, x), (X,)),
    "max of a dimension": (lambda x: tuple(x.max(-1)), (X,)),
    "min of a dimension": (lambda x: tuple(x.min(0, keepdim=True)), (X,)),
    "max of all": (lambda x: x.max(), (X,)),
    "min of all": (lambda x: x.min(), (X,)),
    "amin": (lambda x: x.amin(-1), (X,)),
    "amax of two": (lambda x: x.view(2, 3, 2).amax((0, 2)), (X,)),
    "amax of two, kept": (lambda x: x.view(2, 3, 2).amax((0, 2), keepdim=True), (X,)),
    "amin of all, kept": (lambda x: x.amin((0, 1), keepdim=True), (X,)),
    "argmax": (lambda x: x.argmax(-1), (X,)),
    "argmax kept": (lambda x: x.argmax(0, keepdim=True), (X,)),
    "argmax of all": (lambda x: x.argmax(), (X,)),
    "argmin": (lambda x: x.argmin(-1), (X,)),
    "top one": (lambda x: tuple(x.topk(1)), (X,)),
    "smallest one": (lambda x: tuple(x.topk(1, largest=False)), (X,)),
    "argmax of equal ones": (lambda x: (x > 0).float().argmax(-1), (X,)),
    "one-hot argmax": (lambda x: F.one_hot(x.argmax(-1), 6) * x, (X,)),
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
    "batch norm by the batch": (
        lambda x: F.batch_norm(x, None, None, training=True),
        "statistics of the batch",
    ),
    "sin": (torch.sin, "aten.sin"),
    "scaled add": (lambda x: torch.add(x, x, alpha=2), "aten.add"),
    "scaled sub": (lambda x: torch.sub(x, x, alpha=2), "aten.sub"),
    "rounding": (lambda x: x.long(), "as int64"),
    "odd power": (lambda x: x**2.5, "exponent 2.5"),
    "and of numbers": (lambda x: torch.logical_and(x, x > 0), "of what are not comparisons"),
    "any of numbers": (lambda x: x.any(), "of what are not comparisons"),
    "not of a number": (lambda x: torch.logical_not(x), "of what is not a comparison"),
    "sort": (lambda x: x.sort(-1)[0], "aten.sort"),
    "product": (lambda x: x.prod(-1), "aten.prod"),
    "floor": (torch.floor, "aten.floor"),
    "floor division": (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounding_mode 'floor'"),
    "maximum norm": (lambda x: torch.linalg.vector_norm(x, float("inf"), -1), "order inf"),
    "power of zero": (lambda x: 0**x, "not positive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_a_rule_are_refused(name: str) -> None:
    function, said = REFUSED[name]
    with pytest.raises(UnsupportedOperations, match=said.replace(".", r"\.")) as info:
        capture(module(function), (X,))
    assert isinstance(info.value, ValueError) and info.value.operations


def test_gates_by_the_value_itself_are_one_operation() -> None:
    for function, expected in (
        (lambda x: x * torch.sigmoid(x), {"silu"}),
        (lambda x: torch.sigmoid(1.702 * x) * x, {"mul", "silu"}),
        (lambda x: x * torch.sigmoid(0.1 * x), {"mul", "sigmoid"}),
        (lambda x: 2 * x * torch.sigmoid(x), {"mul", "silu"}),
    ):
        program = capture(module(function), (X,))
        assert {n.op for n in program.nodes if n.level == "secret"} == expected | {"share_input"}
        assert sum(n.op == "mul" and isinstance(n.args[1], Ref) for n in program.nodes) <= 1


class LlamaNorm(nn.Module):
    """As transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6)).to(torch.float32)


LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "normalize": lambda x: F.normalize(x, dim=-1),
    "by its norm": lambda x: x / x.norm(p=2, dim=-1, keepdim=True),
    "root written out": lambda x: x / x.pow(2).sum(-1, keepdim=True).sqrt().clamp(min=1e-8),
    "inverse root of a sum": lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6),
}


@pytest.mark.parametrize("size", (0.01, 1.0, 1e3), ids=str)
@pytest.mark.parametrize("spelling", LENGTHS)
def test_rows_of_length_one_have_the_range_of_a_norm(spelling: str, size: float) -> None:
    """Over lengths that no reciprocal or root alone is right for, one row's a thousandth of another's; zeros stay zeros."""
    x = (
        torch.randn(4, 24, generator=torch.Generator().manual_seed(6))
        * size
        * torch.tensor([[1.0], [0.05], [3.0], [0.0]])
    )
    module = Function(LENGTHS[spelling]).eval()
    with secure_eval.compile(module, (x,), "plain") as secure:
        assert "rms_norm" in {n.op for n in secure.program.nodes}
        assert not {n.op for n in secure.program.nodes} & {"reciprocal", "sqrt", "rsqrt"}
        got = secure(x)
    wanted = module(x.double()).nan_to_num(0.0)
    # 2^-17 of an element is lost where it is encoded, of a length then at most this part.
    lost = 2.0**-17 / float(x[:3].norm(dim=-1).min())
    assert float((got - wanted).abs().max()) < 2.0**-9 + 2 * lost


class Turned(nn.Module):
    """Rotary positions as products of complex numbers; `wrong` does something else with them as well."""

    def __init__(self, wrong: str = ""):
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[-2]).float(), 0.5 ** torch.arange(x.shape[-1] // 2))
        table = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        if self.wrong == "squared":
            return torch.view_as_real(pairs * pairs).flatten(-2)
        if self.wrong == "added":
            return torch.view_as_real(pairs + table).flatten(-2)
        if self.wrong == "doubled":
            return torch.view_as_real(pairs * 2.0).flatten(-2)
        return x + torch.view_as_real(table * (pairs * table)).flatten(-2)


def test_secret_pairs_are_turned_by_a_clear_table() -> None:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(6))
    with secure_eval.compile(Turned().eval(), (x,), "plain") as secure:
        assert float((secure(x) - Turned()(x)).abs().max()) < 2.0**-12


@pytest.mark.parametrize("wrong", ("squared", "added", "doubled"))
def test_other_arithmetic_of_complex_secrets_is_refused(wrong: str) -> None:
    with pytest.raises(UnsupportedOperations, match="a complex secret"):
        capture(Turned(wrong).eval(), (torch.randn(2, 5, 6),))


def test_a_divisor_is_inverted_before_it_is_expanded() -> None:
    module = Function(lambda x: x / (x.abs().sum(-1, keepdim=True) + 1).expand_as(x)).eval()
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(6))
    with secure_eval.compile(module, (x,), "plain") as secure:
        assert [n.shape for n in secure.program.nodes if n.op == "reciprocal"] == [(4, 1)]
        assert float((secure(x) - module(x)).abs().max()) < 2.0**-9


@pytest.mark.parametrize("model", [LlamaNorm(), nn.RMSNorm(6, eps=1e-6)], ids=["written out", "torch"])
def test_rms_norm_is_one_operation(model: nn.Module) -> None:
    program = capture(model.eval(), (X,))
    assert [n.op for n in program.nodes if n.level == "secret" and not n.op.startswith("share")] == [
        "rms_norm"
    ]
    small = X * 2.0**-5
    with secure_eval.compile(program) as secure:
        for x in (X, small, X * 50):
            wanted = model(x).detach()
            assert float((secure(x) - wanted).abs().max() / wanted.abs().max()) < 2.0**-9
        assert "w" not in secure.program.inputs and secure.measurement.operations.keys() >= {"rms_norm"}


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.BatchNorm1d(3), (2, 3)),
        (nn.BatchNorm1d(3), (2, 3, 4)),
        (nn.BatchNorm2d(3, affine=False), (2, 3, 2, 2)),
    ],
)
def test_batch_norm_is_a_scale_and_a_shift_that_the_owner_computes(
    model: nn.Module, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), model.running_mean, model.running_var):
        tensor.data = torch.rand(3, generator=generator) + 0.5
    x = torch.randn(shape, generator=generator)
    program = capture(model.eval(), (x,))
    assert [n.op for n in program.nodes if n.level == "secret" and not n.op.startswith("share")] == [
        "mul",
        "add",
    ]
    with secure_eval.compile(program) as secure:
        assert float((secure(x) - model(x).detach()).abs().max()) < 2.0**-12


def test_prelu_of_a_channel() -> None:
    model = nn.PReLU(6).eval()
    nn.init.uniform_(model.weight, -0.5, 0.5)
    with secure_eval.compile(model, (X,), "plain") as secure:
        assert float((secure(X) - model(X)).detach().abs().max()) < 2.0**-9


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: 1 / x, "signed_reciprocal(*, 0.015625, 16384.0)"),
        (lambda x: 1 / (1 + x * x), "reciprocal(*, 1.0, 16384.0)"),
        (lambda x: 1 / (2 + torch.tanh(x)), "reciprocal(*, 1.0, 3.0)"),
        (lambda x: 1 / torch.relu(x).sum(-1), "reciprocal(*, 0.015625, 16384.0)"),
        (lambda x: 1 / (x.abs().mean(-1) + 0.5), "reciprocal(*, 0.5, 16384.0)"),
        (lambda x: 1 / (1 + torch.exp(x)), "reciprocal(*, 1.0, 16384.0)"),
        (lambda x: 1 / (-3 + torch.sigmoid(x)), "reciprocal(*, 2.0, 3.0)"),
        (lambda x: 1 / torch.softmax(x, -1).cumsum(-1), "signed_reciprocal(*, 0.015625, 16384.0)"),
        (lambda x: torch.rsqrt(x.pow(2) + 4), "rsqrt(*, 4.0, 16384.0)"),
        (lambda x: torch.exp(x), "exp(*, -12.0, 20.0)"),
        (lambda x: torch.exp(-(x * x)), "exp(*, -12.0, 0.0)"),
        (lambda x: torch.exp(x - x.amax(-1, keepdim=True)), "exp(*, -12.0, 0.0)"),
        (lambda x: torch.exp(x.clamp(-2, 3)), "exp(*, -3.0, 3.0)"),
        (lambda x: torch.log(torch.softmax(x, -1)), "log(*, 1.52587890625e-05, 1.0)"),
        (lambda x: torch.log(torch.where(x > 0, x * x, 1.0) + 1), "log(*, 1.0, 1073741824.0)"),
    ],
)
def test_ranges_follow_from_what_is_known_of_a_value(function: Callable[..., Any], expected: str) -> None:
    op = expected.partition("(")[0]
    found = [n for n in capture(module(function), (X,)).nodes if n.op == op]
    assert f"{op}(*, {', '.join(map(repr, found[-1].args[1:]))})" == expected


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Linear(6, 6), module(torch.floor)),
            nn.ModuleDict({"inner": module(torch.digamma)}),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.second["inner"](self.first(x)))


def test_all_unsupported_operations_are_listed_with_their_modules() -> None:
    """Also those that follow from another unsupported one: the model's author sees the whole list at once."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.block = (
                module(torch.floor),
                nn.ModuleList([module(torch.digamma), module(torch.lgamma)]),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.block[0](x) * self.block[1](x) + torch.sin(x)

    with pytest.raises(UnsupportedOperations) as info:
        capture(Model().eval(), (X,))
    found = {(u.operation, u.site) for u in info.value.operations}
    assert found == {
        ("aten.floor", "a"),
        ("aten.digamma", "block.0"),
        ("aten.lgamma", "block.1"),
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
        ("aten.floor", "first.1"),
        ("aten.digamma", "second.inner"),
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
    # hidden * weight both belong to the owner, but x comes first: two secret products, a truncation of the output; x * shown is local.
    with secure_eval.compile(program) as secure:
        assert float((secure(X) - Buffers()(X).detach()).abs().max()) < 2.0**-8
        assert secure.measurement.operations["mul"].rounds <= 5


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
        assert (
            float((secure(X) - model(X).detach()).abs().max()) < {8: 2.0**-4, 12: 2.0**-7, 20: 2.0**-9}[bits]
        )
        assert secure.measurement.communication() == secure.predicted().communication()
