"""Bounds of values: what is proven, what rules do with it, and chained products over the whole promised range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import secure_eval
from secure_eval import protocols, ranges, ring
from secure_eval.magnitudes import bits, promise, proven, with_bounds
from secure_eval.operations import OPERATIONS
from secure_eval.operations.scaling import fit, sum_operands, times_clear
from secure_eval.program import Node, Program
from secure_eval.protocols.base import Protocol, Secret
from secure_eval.ranges.placement import place
from secure_eval.testing.harness import evaluate
from secure_eval.testing.operations import Function

Powers = dict[str, tuple[Callable[[Tensor], Tensor], float]]

POWERS: Powers = {
    "x**3": (lambda x: x**3, 1000.0),
    "x*x*x": (lambda x: x * x * x, 1000.0),
    "x**2*x**2": (lambda x: x.square() * x.square(), 180.0),
    "x**4": (lambda x: x**4, 180.0),
    "x**5": (lambda x: x**5, 60.0),
    "three different ones": (lambda x: (x + 3) * (x - 5) * (x * 0.7), 1000.0),
    "sum of cubes": (lambda x: (x**3).reshape(3, -1).sum(0), 690.0),
    "scaled cube": (lambda x: x**3 * 0.3 + 1000.0 * x, 1000.0),
    "cube in a matrix product": (
        lambda x: (x**3).reshape(3, -1) @ torch.ones(x.numel() // 3, 2) * 1e-3,
        150.0,
    ),
}


@pytest.mark.parametrize("protocol", protocols.names())
@pytest.mark.parametrize("name", POWERS)
def test_chained_products_are_right_up_to_the_promise(name: str, protocol: str) -> None:
    function, most = POWERS[name]
    x = torch.linspace(-most, most, 303)
    expected = (
        function(x.double())
        if "matrix" not in name
        else (x.double() ** 3).reshape(3, -1).sum(1, True).expand(3, 2) * 1e-3
    )
    off = (secure_eval.run(function, x, protocol=protocol) - expected).abs()
    # Truncations cost 2^-16 of each factor, beside the other.
    scale = expected.abs().clamp(min=1.0) if "matrix" not in name else (x.double().abs() ** 3).sum() * 1e-3
    scale = torch.maximum(scale, expected.abs().max() * 2.0**-6) if "sum" in name else scale
    assert float((off / scale).max()) < 2.0**-8 and float((off / scale).median()) < 2.0**-13


@pytest.mark.parametrize("name", ("x**4", "x**5"))
def test_powers_beyond_the_promise_are_refused(name: str) -> None:
    with pytest.raises(ranges.RangeError, match="magnitude"):
        secure_eval.run(POWERS[name][0], torch.tensor([1000.0, 1.0]), protocol="plain")


@pytest.mark.parametrize("fraction_bits", (8, 12, 20))
def test_the_promise_moves_with_the_fraction_bits(fraction_bits: int) -> None:
    most = 0.98 * 2.0 ** (promise(fraction_bits) / 3)
    x = torch.linspace(-most, most, 101)
    model = Function(lambda x: x * x * x).eval()
    with secure_eval.compile(model, (x,), "plain", fraction_bits=fraction_bits) as secure:
        off = (secure(x) - x.double() ** 3).abs() / (x.double() ** 2).clamp(min=1)
    assert float(off.max()) < 4 * 2.0**-fraction_bits * 1.5 + 1e-6 * most


# -- bounds ----------------------------------------------------------------------------------------------------


def bounds(function: Callable[..., Tensor], *inputs: Tensor) -> dict[str, int | None]:
    program = secure_eval.capture(Function(function).eval(), inputs)
    found = with_bounds(program, 16)
    return {n.op: n.bound for n in found.nodes if n.level == "secret"}


def test_bits_are_the_least_that_hold() -> None:
    assert [bits(v) for v in (0.0, 0.3, 1.0, 1.01, 2.0, 1000.0, 2.0**14, 2.0**30)] == [
        0,
        0,
        1,
        1,
        2,
        10,
        15,
        31,
    ]


def test_what_its_making_proves_bounds_a_value() -> None:
    x = torch.zeros(3, 8)
    assert bounds(torch.sigmoid, x)["sigmoid"] == 1
    assert bounds(lambda x: torch.sigmoid(x).sum(-1), x)["view"] == 4
    assert bounds(lambda x: torch.sigmoid(x) * 100.0, x)["mul"] == 7
    assert bounds(lambda x: torch.sigmoid(x) @ torch.sigmoid(x).mT, x)["matmul"] == 4
    assert bounds(lambda x: torch.softmax(x, -1), x)["mul"] == 1
    assert bounds(lambda x: x * 0.125, x)["mul"] == 27
    assert bounds(lambda x: x * x * x, x) == {"share_input": 30, "square": 30, "mul": 30}
    assert bounds(lambda x: F.silu(torch.tanh(x) * 6.0), x)["silu"] == 3


def test_only_what_is_proven_holds_for_all_inputs() -> None:
    program = secure_eval.capture(Function(lambda x: torch.tanh(x) + x).eval(), (torch.zeros(3),))
    assert set(proven(program)) == {n.name for n in program.nodes if n.op == "tanh"}


def test_a_certified_bound_bounds_what_follows() -> None:
    x = torch.full((4,), 3.0)
    program = secure_eval.capture(Function(lambda x: (x * x) * 5.0).eval(), (x,))
    node = next(n for n in program.nodes if n.op == "share_input")
    changed = program.with_nodes([replace(n, bound=2) if n is node else n for n in program.nodes])
    assert [n.bound for n in with_bounds(changed, 16).nodes if n.level == "secret"] == [2, 5, 7]


@pytest.mark.parametrize("fraction_bits", (8, 16, 20))
def test_no_value_has_more_fraction_bits_than_it_has_room_for(fraction_bits: int) -> None:
    x, y = torch.zeros(4, 6), torch.zeros(6)

    def function(x: Tensor, y: Tensor) -> Tensor:
        a = torch.softmax(x @ x.mT * 0.3, -1) @ F.silu(x)
        b = F.layer_norm(a * y * x, (6,)) + torch.exp(torch.tanh(x))
        return torch.where(b > 0, b.cumsum(-1), x * x * x).sum(-1) / (1 + x.square().sum(-1))

    program = secure_eval.capture(Function(function).eval(), (x, y))
    held = place(program, fraction_bits).fraction_bits
    for node in with_bounds(program, fraction_bits).nodes:
        if node.level == "secret":
            assert node.bound is not None and held[node.name] + node.bound <= ring.VALUE_BITS, node


# -- the rules, with and without a bound -------------------------------------------------------------------------


def result_bits(step: Callable[[Protocol, Secret], object], bits: int) -> int:
    found: list[int] = []

    async def run(p: Protocol, x: Secret) -> Secret:
        result = await step(p, Secret(x.shares, bits))  # type: ignore[misc]
        one = (
            result
            if isinstance(result, Secret)
            else Secret(result[0].shares, sum(v.fraction_bits for v in result))
        )
        found.append(one.fraction_bits)
        return Secret(x.shares, 0)

    evaluate(protocols.get("plain"), run, torch.ones(3, dtype=torch.int64))
    return found[0]


def node(bound: int | None, spread: int = 0) -> Node:
    return Node("n", "mul", (), "secret", (3,), bound=bound, spread=spread)


@pytest.mark.parametrize(("bound", "wanted"), ((None, 32), (30, 32), (14, 48), (13, 48), (10, 48), (0, 48)))
def test_factors_are_truncated_by_what_the_product_may_be(bound: int | None, wanted: int) -> None:
    async def step(p: Protocol, x: Secret) -> tuple[Secret, Secret]:
        return await fit(p, x, Secret(x.shares, 32), node(bound))

    assert result_bits(step, 32) == wanted


def test_a_small_factor_keeps_what_the_large_one_gives_up() -> None:
    kept: list[tuple[int, int]] = []

    async def step(p: Protocol, x: Secret) -> tuple[Secret, Secret]:
        pair = await fit(p, x, Secret(x.shares, 24), node(30, spread=4))
        kept.append((pair[0].fraction_bits, pair[1].fraction_bits))
        return pair

    assert result_bits(step, 32) == 32 and kept[0] == (12, 20)


FACTORS = (0.3, 1500.7, 1e-6, 4.0, 0.25, 7.0, torch.full((3,), 0.3), torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("bound", (30, 20, 0))
def test_public_factors_and_sums_keep_to_the_bound(bound: int) -> None:
    async def times(p: Protocol, x: Secret, factor: float | Tensor) -> Secret:
        clear = factor.to(x.shares[0].device) if isinstance(factor, Tensor) else factor
        integral = isinstance(factor, Tensor) and not factor.is_floating_point()
        return await times_clear(p, x, clear, integral, node(bound))

    async def twice(p: Protocol, x: Secret) -> Secret:
        return (await sum_operands(p, x, Secret(x.shares, 48), node(bound)))[0]

    for factor in FACTORS:
        assert result_bits(partial(times, factor=factor), 48) <= ring.VALUE_BITS - bound, factor
    assert result_bits(twice, 48) <= ring.VALUE_BITS - bound


def test_a_reciprocal_of_a_long_sum_stays_precise_without_a_certificate() -> None:
    """Attention over 700 equal scores: 1/700 has seven significant bits at 16 fraction bits, and is 0.4 % off."""
    v = torch.randn(700, 4, generator=torch.Generator().manual_seed(1)) + 3
    scores = torch.zeros(2, 700)
    scores[1, 7] = 30.0
    off = secure_eval.run(
        lambda s, v: torch.softmax(s, -1) @ (v * 1.5), scores, v, protocol="plain"
    ) - torch.softmax(scores, -1) @ (v * 1.5)
    assert float(off.abs().max()) < 4.5 * 2.0**-9


def test_a_program_without_bounds_reads_as_before() -> None:
    program = secure_eval.capture(Function(torch.tanh).eval(), (torch.zeros(3),))
    assert all(n.bound is None for n in Program.from_json(program.to_json(), {}).nodes)


def test_a_long_sum_is_truncated_before() -> None:
    """Logarithms have 48 fraction bits, and are below 32: 40,000 of them are not below 2^14."""
    x = torch.full((2, 40_000), 2.0**29)
    program = secure_eval.capture(Function(lambda x: torch.log(x).sum(-1)).eval(), (x,))
    with secure_eval.compile(program, (x,), "plain") as secure:
        assert float((secure(x) / (40_000 * 29 * math.log(2)) - 1).abs().max()) < 2.0**-9


def test_placement_has_the_fraction_bits_that_a_rule_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine truncates what has more than there is room for after its rule has made it: too late for what did not fit before."""
    program = secure_eval.capture(Function(torch.log).eval(), (torch.ones(3),))
    loose = program.with_nodes([replace(n, bound=29) if n.op == "share_input" else n for n in program.nodes])
    node = next(n for n in loose.nodes if n.op == "log")
    bound = with_bounds(loose, 16).by_name[node.name].bound
    assert bound is not None and place(loose, 16).fraction_bits[node.name] == 48

    async def widened(p: Protocol, node: Node, x: Secret, *rest: float) -> Secret:
        return Secret(x.shares, 60)

    monkeypatch.setitem(OPERATIONS, "log", replace(OPERATIONS["log"], run=widened))
    assert place(program, 16).fraction_bits[node.name] == 60 > ring.VALUE_BITS - bound
