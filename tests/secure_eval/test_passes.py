"""Passes keep a program's meaning and do what they are for; spec refuses broken programs; programs survive
JSON.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secure_eval
from secure_eval import Program, capture, passes, protocols
from secure_eval.program import Node, Ref
from secure_eval.spec import InvalidProgram, check
from secure_eval.testing.operations import Function

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def parameter(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 2


def unoptimised(model: nn.Module, inputs: tuple[Tensor, ...]) -> Program:
    """The program as captured, with unused nodes dropped and no other pass."""
    return capture(model, inputs, passes=(passes.remove_unused,))


def evaluate(program: Program, *inputs: Tensor, protocol: str = "plain") -> Any:
    with secure_eval.compile(program, protocol=protocol) as secure:
        return secure(*inputs)


def ops(program: Program) -> list[str]:
    return [n.op for n in program.nodes if n.level == "secret" and not n.op.startswith("share")]


def online_bytes(program: Program) -> float:
    return secure_eval.count(program, protocols.get("dealer2pc")).roles["online"]["party0"].bytes


def check_pass(
    name: str, function: Any, inputs: tuple[Tensor, ...], **parameters: Tensor
) -> tuple[Program, Program]:
    """Applies one pass: the program before, and the rewritten one, which computes the same."""
    model = Function(function, **parameters).eval()
    before = unoptimised(model, inputs)
    after = check(passes.remove_unused(getattr(passes, name)(before)))
    wanted = model(*inputs)
    for program in (before, after):
        assert float((evaluate(program, *inputs) - wanted).abs().max()) < 2.0**-9
    return before, after


class TestPushScales:
    def test_through_views_and_products(self) -> None:
        def scores(x: Tensor, q: Tensor, b: Tensor, k: Tensor) -> Tensor:
            left, right = F.linear(x, q, b), F.linear(x, k)
            return left.view(5, 2, 3).transpose(0, 1) @ right.view(5, 2, 3).permute(1, 2, 0) * 0.3

        before, after = check_pass(
            "push_scales_into_weights",
            scores,
            (X,),
            q=parameter(6, 6),
            b=parameter(6),
            k=parameter(6, 6, seed=3),
        )
        assert "mul" in ops(before) and "mul" not in ops(after)
        assert online_bytes(after) < online_bytes(before)  # no truncation for the factor's bits

    def test_not_where_the_linear_layer_has_other_users(self) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            h = F.linear(x, w)
            return h * 0.3 + h

        before, after = check_pass("push_scales_into_weights", function, (X,), w=parameter(4, 6))
        assert ops(after) == ops(before)

    def test_not_where_the_weights_would_lose_their_bits(self) -> None:
        """A mean over many rows divides by their number: inside the weights, little of them would be left."""
        x = torch.randn(2, 384, 6, generator=torch.Generator().manual_seed(1))
        w = parameter(4, 6) / 25
        model = Function(lambda x, w: F.linear(x, w).mean(1) * 50, w=w).eval()
        assert float((evaluate(capture(model, (x,)), x) - model(x)).abs().max()) < 2.0**-9


class TestFoldChannelAffine:
    @staticmethod
    def quad_channel(
        x: Tensor, w: Tensor, b: Tensor, s: Tensor, a: Tensor, c: Tensor, v: Tensor, d: Tensor
    ) -> Tensor:
        h = F.linear(x, w, b)
        return F.linear(a * (h + s) ** 2 + c, v, d)

    PARAMETERS = {
        "w": parameter(8, 6), "b": parameter(8, seed=3), "s": parameter(8, seed=4), "a": parameter(8, seed=5),
        "c": parameter(8, seed=6), "v": parameter(3, 8, seed=7), "d": parameter(3, seed=8),
    }  # fmt: skip

    def test_a_calibrated_quadratic_costs_one_square(self) -> None:
        model = Function(self.quad_channel, **self.PARAMETERS).eval()
        program = capture(model, (X,))
        assert ops(program) == ["linear", "power", "linear"] or ops(program) == ["linear", "square", "linear"]
        plain = Function(
            lambda x, w, b, v, d: F.linear(F.linear(x, w, b), v, d), **{k: self.PARAMETERS[k] for k in "wbvd"}
        ).eval()
        linears = capture(plain, (X,))
        # Between the linear layers: one opening an element for truncation there, one for truncation
        # and square here, one for the
        # truncated square as the next layer's operand in both.
        assert online_bytes(program) - online_bytes(linears) == 8 * 5 * 8
        with secure_eval.compile(program) as secure:
            assert float((secure(X) - model(X).detach()).abs().max()) < 2.0**-8
            assert secure.measurement.communication() == secure.predicted().communication()

    @pytest.mark.parametrize("missing", ["b", "d", "s", "a", "c"])
    def test_without_one_of_its_parts(self, missing: str) -> None:
        used = {k: v for k, v in self.PARAMETERS.items() if k != missing}

        def function(x: Tensor, **p: Tensor) -> Tensor:
            h = F.linear(x, p["w"], p.get("b"))
            u = (h + p["s"] if "s" in p else h) ** 2
            u = p["a"] * u if "a" in p else u
            u = u + p["c"] if "c" in p else u
            return F.linear(u, p["v"], p.get("d"))

        _, after = check_pass("fold_channel_affine", function, (X,), **used)
        assert [o for o in ops(after) if o not in ("power", "square")] == ["linear", "linear"]

    def test_vectors_with_leading_ones(self) -> None:
        _, after = check_pass(
            "fold_channel_affine",
            lambda x, w, s, v, a: F.linear((F.linear(x, w) + s) ** 2 * a, v),
            (X,), w=parameter(8, 6), s=parameter(1, 8), v=parameter(3, 8), a=parameter(1, 8, seed=4),
        )  # fmt: skip
        assert ops(after)[0] == ops(after)[-1] == "linear" and len(ops(after)) == 3

    @pytest.mark.parametrize("shape", [(5, 1), (5, 8)])
    def test_what_is_not_a_channel_stays(self, shape: tuple[int, int]) -> None:
        before, after = check_pass(
            "fold_channel_affine",
            lambda x, w, s: F.linear(x, w) + s,
            (X,),
            w=parameter(8, 6),
            s=parameter(*shape),
        )
        assert ops(after) == ops(before) == ["linear", "add"]

    def test_not_where_others_use_the_value(self) -> None:
        def function(x: Tensor, w: Tensor, s: Tensor, v: Tensor) -> Tensor:
            h = F.linear(x, w)
            shifted = h + s
            return F.linear(shifted, v) + shifted.sum(-1, keepdim=True) + h.sum(-1, keepdim=True)

        before, after = check_pass(
            "fold_channel_affine", function, (X,), w=parameter(8, 6), s=parameter(8), v=parameter(3, 8)
        )
        assert ops(after) == ops(before)


class TestDivideAfterMatmul:
    def test_attention_divides_fewer_elements(self) -> None:
        def attention(x: Tensor, v: Tensor) -> Tensor:
            return torch.softmax(x @ x.transpose(0, 1), -1) @ v

        model_inputs = (X, torch.randn(5, 3, generator=torch.Generator().manual_seed(9)))
        before, after = check_pass("divide_after_matmul", attention, model_inputs)
        assert ops(before)[-2:] == ["mul", "matmul"] and ops(after)[-2:] == ["matmul", "mul"]
        assert online_bytes(after) < online_bytes(before)

    def test_a_factor_per_column_stays(self) -> None:
        def function(x: Tensor, y: Tensor) -> Tensor:
            return (x * torch.reciprocal(y * y + 1)) @ x.transpose(0, 1)

        before, after = check_pass("divide_after_matmul", function, (X, X.flip(0)))
        assert ops(after) == ops(before)


def _shifted(x: Tensor) -> Tensor:
    y = x + 1
    return y * (0.3 * y)


@pytest.mark.parametrize(
    "function", [lambda x: 0.125 * x * x + 0.25 * x + 0.5, lambda x: x * (x * -3.0), _shifted]
)
def test_a_scaled_value_times_itself_is_a_square(function: Any) -> None:
    """MPCFormer writes Quad so: a product would open two values."""
    model = Function(function).eval()
    before, after = unoptimised(model, (X,)), capture(model, (X,))
    assert "square" in ops(after) and online_bytes(after) < online_bytes(before)
    assert torch.allclose(evaluate(after, X), function(X), atol=2**-10)


def test_unused_nodes_go_and_inputs_stay() -> None:
    program = capture(Function(lambda x, y: (x * x, torch.relu(y))[0]).eval(), (X, X))
    assert ops(program) == ["square"] and len(program.inputs) == 2
    assert float((evaluate(program, X, X) - X * X).abs().max()) < 2.0**-10


def test_passes_do_not_change_what_a_model_computes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh()).eval()
    assert (
        float((evaluate(unoptimised(model, (X,)), X) - evaluate(capture(model, (X,)), X)).abs().max())
        < 2.0**-10
    )


# -- programs ----------------------------------------------------------------------------------------------
# --------------------------


def sample() -> Program:
    return capture(nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.LayerNorm(4), nn.Softmax(-1)).eval(), (X,))


def test_json_round_trip() -> None:
    program = sample()
    again = Program.from_json(program.to_json(), program.constants)
    assert (
        again == replace(program, restore=None)
        and str(again) == str(program)
        and again.key() == program.key()
    )
    check(again)
    cls = protocols.get("dealer2pc")
    again = replace(again, parameters=program.parameters)
    assert secure_eval.count(again, cls).communication() == secure_eval.count(program, cls).communication()


def test_json_holds_no_tensor_of_the_owner() -> None:
    program = sample()
    assert not Program.from_json(program.to_json(), {}).parameters
    assert str(float(next(iter(program.parameters.values())).reshape(-1)[0]))[:8] not in program.to_json()


def test_key_tells_programs_apart() -> None:
    models = [
        nn.Linear(6, 4),
        nn.Linear(6, 5),
        nn.Linear(6, 4, bias=False),
        nn.Sequential(nn.Linear(6, 4), nn.ReLU()),
    ]
    assert len({capture(m.eval(), (X,)).key() for m in models}) == 4
    assert capture(nn.Linear(6, 4).eval(), (X,)).key() == capture(nn.Linear(6, 4).eval(), (X,)).key()


def node(name: str, op: str, args: tuple[Any, ...], level: str, shape: tuple[int, ...] = (2,)) -> Node:
    return Node(name, op, args, level, shape)


INPUT = [node("x", "input", ("x",), "client"), node("s", "share_input", (Ref("x"),), "secret")]
BROKEN: dict[str, tuple[list[Node], str]] = {
    "defined twice": ([*INPUT, node("s", "neg", (Ref("s"),), "secret")], "defined twice"),
    "unknown level": ([node("x", "input", ("x",), "everyone")], "unknown level"),
    "used before defined": ([node("y", "neg", (Ref("s"),), "secret"), *INPUT], "not defined before"),
    "secret in the clear": (
        [*INPUT, node("y", "aten::aten.neg.default", (Ref("s"),), "public")],
        "in the clear",
    ),
    "secret becomes the client's": (
        [*INPUT, node("y", "aten::aten.neg.default", (Ref("s"),), "client")],
        "in the clear",
    ),
    "client's value made public": (
        [*INPUT, node("y", "aten::aten.neg.default", (Ref("x"),), "public")],
        "private value public",
    ),
    "owner's value made constant": (
        [node("w", "parameter", (), "owner"), node("y", "aten::aten.neg.default", (Ref("w"),), "constant")],
        "private value public",
    ),
    "owner reads the client": (
        [*INPUT, node("y", "aten::aten.neg.default", (Ref("x"),), "owner")],
        "does not know",
    ),
    "client reads the owner": (
        [node("w", "parameter", (), "owner"), node("y", "aten::aten.neg.default", (Ref("w"),), "client")],
        "does not know",
    ),
    "unknown operation": ([*INPUT, node("y", "reveal", (Ref("s"),), "secret")], "not a secure operation"),
    "sharing another's value": (
        [*INPUT, node("y", "share_weight", (Ref("x"),), "secret")],
        "takes one owner value",
    ),
    "sharing a secret": ([*INPUT, node("y", "share_input", (Ref("s"),), "secret")], "takes one client value"),
    "clear argument of a secret operation": (
        [*INPUT, node("y", "add", (Ref("s"), Ref("x")), "secret")],
        "is client",
    ),
    "secret mask": (
        [*INPUT, node("y", "softmax_numerator", (Ref("s"), Ref("s"), -1), "secret")],
        "is secret",
    ),
    "secret index": ([*INPUT, node("y", "take", (Ref("s"), Ref("s")), "secret")], "is secret"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_spec_refuses(name: str) -> None:
    nodes, said = BROKEN[name]
    with pytest.raises(InvalidProgram, match=said):
        check(Program(tuple(nodes), ("x",), ()))


def test_spec_refuses_an_output_that_is_not_defined() -> None:
    with pytest.raises(InvalidProgram, match="output y"):
        check(Program(tuple(INPUT), ("x",), (Ref("y"),)))
    assert check(Program(tuple(INPUT), ("x",), (Ref("s"),)))


def test_passes_do_not_make_the_same_name_twice() -> None:
    """A layer that one pass scales and another one shifts, as the scaled logits of a tied head do."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.scale = nn.Linear(4, 4), nn.Parameter(torch.rand(4) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = F.linear(x * self.scale, self.first.weight, self.first.bias) * 0.25
            return y

    module, x = Model().eval(), torch.randn(3, 4)
    with secure_eval.compile(module, (x,), "plain") as secure:
        assert [n.op for n in secure.program.nodes if n.level == "secret"].count("mul") == 0
        assert float((secure(x) - module(x)).detach().abs().max()) < 2.0**-10
