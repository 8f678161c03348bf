"""The guard's bit: one more output, for the client alone, that says whether an argument left its operation's range."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import secure_eval
from secure_eval import protocols, ranges
from secure_eval.program import Program, Ref
from secure_eval.reference import reference
from secure_eval.testing.operations import Function

ROWS = torch.randn(4, 64, generator=torch.Generator().manual_seed(4))

LEFT: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]] = {
    "reciprocal": (
        lambda x: torch.reciprocal(x * x),
        torch.tensor([1.0, 2.0]),
        [torch.tensor([1.0, 2.0**-4]), torch.tensor([200.0, 1.0])],
    ),
    "signed_reciprocal": (
        torch.reciprocal,
        torch.tensor([-1.0, 2.0]),
        [torch.tensor([2.0**-8, 1.0]), torch.tensor([-(2.0**-8), 1.0]), torch.tensor([-(2.0**15), 1.0])],
    ),
    "rsqrt": (
        torch.rsqrt,
        torch.tensor([1.0, 4.0]),
        [torch.tensor([1.0, 2.0**-9]), torch.tensor([-1.0, 1.0])],
    ),
    "sqrt": (torch.sqrt, torch.tensor([0.0, 4.0]), [torch.tensor([1.0, 2.0**17]), torch.tensor([-1.0, 1.0])]),
    "log": (torch.log, torch.tensor([1.0, 4.0]), [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])]),
    "exp": (torch.exp, torch.tensor([1.0, -30.0]), [torch.tensor([21.0, 1.0])]),
    "layer_norm": (lambda x: F.layer_norm(x, (64,)), ROWS, [ROWS * 8, ROWS / 8]),
    "rms_norm": (lambda x: F.rms_norm(x, (64,), eps=1e-6), ROWS, [ROWS * 8, ROWS / 8]),
}


def program_of(name: str) -> Program:
    """Norms with the range of their rows: the widest one is from eps to all that fits, and is not left."""
    function, x, _ = LEFT[name]
    program = secure_eval.capture(Function(function).eval(), (x,))
    return ranges.narrow_ranges(program, ranges.calibrate(program, [(x,)])) if "norm" in name else program


@pytest.mark.parametrize("protocol", ("plain", "dealer2pc", "replicated3pc"))
@pytest.mark.parametrize("name", LEFT)
def test_the_client_learns_whether_a_range_was_left(name: str, protocol: str) -> None:
    function, inside, outside = LEFT[name]
    with secure_eval.compile(program_of(name), protocol=protocol, guard=True) as secure:
        assert secure.within_ranges is None
        got = secure(inside)
        assert secure.within_ranges is True
        assert got.shape == inside.shape and float((got - function(inside)).abs().max()) < 2.0**-8
        for x in outside:
            secure(x)
            assert secure.within_ranges is False, x
        secure(inside)
        assert secure.within_ranges is True
        assert secure.measurement.communication() == secure.predicted().communication()


def test_without_a_guard_nothing_is_said_and_nothing_is_paid() -> None:
    function, x, _ = LEFT["reciprocal"]
    model, sizes = Function(function).eval(), {}
    for guard in (False, True):
        with secure_eval.compile(model, (x,), "dealer2pc", guard=guard) as secure:
            secure(x)
            sizes[guard] = secure.predicted().online.bytes
            assert (secure.within_ranges is None) == (not guard)
            assert ranges.is_guarded(secure.program) == guard
    assert sizes[True] > sizes[False]


def test_the_guard_is_one_bit_and_part_of_the_program() -> None:
    program = program_of("reciprocal")
    guarded = ranges.with_guard(program)
    assert guarded.outputs == (*program.outputs, Ref("guard")) and guarded["guard"].shape == ()
    assert ranges.with_guard(guarded) is guarded and guarded.key() != program.key()
    again = Program.from_json(guarded.to_json(), guarded.constants)
    assert ranges.is_guarded(again) and again.nodes == guarded.nodes
    x = LEFT["reciprocal"][1]
    assert torch.equal(reference(guarded, [x]), reference(program, [x]))


def test_what_is_proven_is_not_guarded() -> None:
    """The sum of a softmax, and an argument that was made positive; functions that are right for all values have no range."""
    x = torch.randn(3, 8)
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: torch.softmax(x, -1),
        lambda x: torch.log_softmax(x, -1),
        lambda x: torch.rsqrt(torch.sigmoid(x) + 1),
        F.silu,
    )
    for function in functions:
        program = secure_eval.capture(Function(function).eval(), (x,))
        assert ranges.with_guard(program) is program
        with secure_eval.compile(program, protocol="plain", guard=True) as secure:
            secure(x)
            assert secure.within_ranges is True


def test_the_price_of_a_guard_is_counted() -> None:
    program = program_of("layer_norm")
    plain, guarded = (
        secure_eval.count(p, protocols.get("dealer2pc")) for p in (program, ranges.with_guard(program))
    )
    # Variances are compared while the norm is worked out.
    assert guarded.online.bytes > plain.online.bytes and guarded.online.rounds == plain.online.rounds
