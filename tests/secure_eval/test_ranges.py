"""Calibrated ranges against fixed point: what does not fit is named before anything is sent."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secure_eval
from secure_eval import protocols, ranges
from secure_eval.parties.launch import Threads
from secure_eval.program import Program
from secure_eval.protocols.plain import Plain
from secure_eval.ranges.narrowing import NARROWED
from secure_eval.ranges.placement import place
from secure_eval.testing.operations import Function


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(F.gelu(self.first(x))))


@pytest.fixture
def block() -> nn.Module:
    torch.manual_seed(1)
    return Block().eval()


def batches(scale: float = 1.0, count: int = 3, shape: tuple[int, ...] = (5, 6)) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(shape, generator=generator) * scale,) for _ in range(count)]


def program_of(function: Any, *inputs: Tensor) -> Program:
    return secure_eval.capture(Function(function).eval(), inputs)


# -- calibration ---------------------------------------------------------------------------------------------


def test_calibration_keeps_the_largest_magnitudes_and_the_extents_of_arguments() -> None:
    xs = [torch.tensor([0.5, -3.0]), torch.tensor([7.0, 0.25])]
    program = program_of(lambda x: torch.reciprocal(x * x + 1), xs[0])
    seen = ranges.calibrate(program, [(x,) for x in xs])
    by_op = {o.op: o for o in seen.nodes.values()}
    assert set(seen.nodes) == {n.name for n in program.nodes if n.level == "secret"} and seen.batches == 2
    assert by_op["square"].largest == 49 and by_op["share_input"].largest == 7
    assert by_op["reciprocal"].quantities["argument"] == ranges.Extent(1.0625, 50.0)
    assert json.loads(json.dumps(seen.to_dict()))["nodes"]


def test_a_module_is_calibrated_as_its_program_is(block: nn.Module) -> None:
    program = secure_eval.capture(block, batches()[0])
    assert ranges.calibrate(block, batches()) == ranges.calibrate(program, batches())


def test_calibration_without_inputs_is_refused(block: nn.Module) -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        ranges.calibrate(block, [])


def test_infinities_are_named() -> None:
    x = torch.tensor([0.0, 2.0])
    with pytest.raises(ValueError, match="reciprocal.* is inf"):
        ranges.calibrate(program_of(torch.reciprocal, x), [(x,)])


# -- the check -----------------------------------------------------------------------------------------------


def test_ordinary_values_fit(block: nn.Module) -> None:
    program = secure_eval.capture(block, batches()[0])
    report = ranges.check(program, ranges.calibrate(program, batches()))
    assert report.fits and report.expected_failures == 0 and report.headroom_bits > 12
    # Both linear layers, GELU and the norm truncate at least their own inputs.
    assert report.truncated_elements > 5 * (6 + 8 + 8 + 4)
    assert "everything fits" in str(report) and json.loads(json.dumps(report.to_dict()))["fits"]


VIOLATIONS: dict[str, tuple[Any, Tensor, str, str]] = {
    "ring": (lambda x: (x * x) * (x * x), torch.tensor([200.0]), "mul", "magnitude"),
    "sum": (lambda x: (x * x * x).sum(-1), torch.full((4,), 500.0), "view", "magnitude"),
    "normalisation": (
        lambda x: F.layer_norm(x, (4,), torch.full((4,), 3e4)),
        torch.tensor([1.0, -1.0, 2.0, 0.5]),
        "layer_norm",
        "magnitude",
    ),
    "argument too small": (torch.rsqrt, torch.tensor([2.0**-7, 1.0]), "rsqrt", "smallest argument"),
    "argument too large": (torch.rsqrt, torch.tensor([2.0**13, 1.0]), "rsqrt", "largest argument"),
    "reciprocal of either sign": (
        torch.reciprocal,
        torch.tensor([-(2.0**-5), 1.0]),
        "signed_reciprocal",
        "smallest magnitude of the argument",
    ),
    "logarithm": (torch.log, torch.tensor([2.0**-15, 1.0]), "log", "smallest argument"),
    "exponential": (torch.exp, torch.tensor([19.0, 1.0]), "exp", "largest exponential"),
    "softmax": (
        lambda x: torch.softmax(x, -1),
        torch.tensor([2.0**26.5, 1.0]),
        "softmax_numerator",
        "largest magnitude of the scores",
    ),
    "layer norm": (
        lambda x: F.layer_norm(x, (4,)),
        torch.tensor([2.0**26.5, 0.0, 0.0, 0.0]),
        "layer_norm",
        "largest row length times deviation",
    ),
    "layer norm of large variance": (
        lambda x: F.layer_norm(x, (4096,), eps=1e-12),
        torch.cat([torch.full((2048,), 2.0**8.5), torch.full((2048,), -(2.0**8.5))]),
        "layer_norm",
        "largest variance",
    ),
    "rms norm": (
        lambda x: F.rms_norm(x, (4096,), eps=1e-12),
        torch.full((4096,), 2.0**8.5),
        "rms_norm",
        "largest mean square",
    ),
    "layer norm by a large weight": (
        lambda x: F.layer_norm(x, (4,), torch.full((4,), 2.0**15)),
        torch.tensor([1.0, 2.0, 0.0, 4.0]),
        "layer_norm",
        "largest weight",
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_caught_and_named(name: str) -> None:
    function, x, op, quantity = VIOLATIONS[name]
    program = program_of(function, x)
    report = ranges.check(program, ranges.calibrate(program, [(x,)]))
    found = [v for v in report.violations if v.op == op and v.quantity == quantity]
    assert found and not report.fits
    assert all(text in str(report) for text in (found[0].node, op, quantity))
    # Within the margin there is no violation: the check is no stricter than it says.
    if name not in ("ring", "normalisation", "layer norm by a large weight"):
        assert ranges.check(program, ranges.calibrate(program, [(x,)]), margin_bits=0).fits


@pytest.mark.parametrize("factor", (0.98, 1.02))
def test_the_margin_is_exact(factor: float) -> None:
    """A product with 32 fraction bits: 2^62 / 2^32 / 2^2 is the least magnitude that does not fit."""
    x = torch.tensor([factor * 2.0**14])
    program = program_of(lambda x: x * x, x)
    assert ranges.check(program, ranges.calibrate(program, [(x,)])).fits == (factor < 1)


def test_values_that_the_check_refuses_are_wrong_in_the_ring() -> None:
    """The limit is that of the ring, no more careful than its margin."""
    x = torch.tensor([1000.0])
    program = program_of(lambda x: (x * x) * x + 0.0, x)
    for scale, fits in ((1.0, True), (1.3, False)):
        y = x * scale
        report = ranges.check(program, ranges.calibrate(program, [(y,)]), margin_bits=0)
        with secure_eval.compile(program, protocol="plain") as secure:
            right = abs(float(secure(y)) - float(y) ** 3) < 2e-5 * float(y) ** 3
        assert report.fits == fits == right


def test_the_sum_of_a_softmax_needs_no_margin() -> None:
    x = torch.zeros(2, 16)
    x[0, 3] = 40.0  # sums of 16 and of 1: both ends of the range
    program = program_of(lambda x: torch.softmax(x, -1), x)
    assert ranges.check(program, ranges.calibrate(program, [(x,)])).fits


def test_calibration_of_another_program_is_refused(block: nn.Module) -> None:
    program = secure_eval.capture(block, batches()[0])
    other = program_of(torch.tanh, batches()[0][0])
    with pytest.raises(ValueError, match="another program"):
        ranges.check(program, ranges.calibrate(other, batches()))


def test_truncations_that_may_fail_are_added_up(block: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol that truncates locally fails with probability |x| / 2^64 an element."""

    class Local(Plain):
        @classmethod
        def truncation_failure(cls, magnitude_bits: float, shift: int) -> float:
            return min(1.0, 2.0 ** (magnitude_bits - 64))

    x = torch.full((10,), 3.0)
    program = program_of(lambda x: (x * x) * x, x)
    seen = ranges.calibrate(program, [(x,)])
    monkeypatch.setattr(protocols, "get", lambda name: Local)
    report = ranges.check(program, seen)
    # x^2 = 9 with 32 fraction bits is truncated for the second product, and this one before it leaves.
    assert report.truncated_elements == sum(t.elements for t in place(program, 16).truncations)
    truncated = [t for t in place(program, 16).truncations]
    of_source = {n: o.largest for n, o in seen.nodes.items()}
    wanted = sum(t.elements * of_source[t.source or ""] * 2.0 ** (t.fraction_bits - 64) for t in truncated)
    assert report.expected_failures == pytest.approx(wanted)


def test_protocols_state_that_they_do_not_fail() -> None:
    for name in protocols.names():
        assert protocols.get(name).truncation_failure(61.9, 16) == 0
        assert protocols.get(name).truncation_failure(62.0, 16) == 1


# -- fraction bits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("largest", "chosen"), ((1.0, 20), (2.0**11, 20), (2.0**21, 19), (2.0**27, 16)))
def test_the_most_fraction_bits_that_fit_are_chosen(largest: float, chosen: int) -> None:
    """x^2 < 2^(60 - 2f)."""
    x = torch.tensor([largest]).sqrt() * 0.99
    program = program_of(lambda x: x * x, x)
    report = ranges.choose_fraction_bits(program, ranges.calibrate(program, [(x,)]))
    assert report.fraction_bits == chosen and report.fits


def test_no_fraction_bits_fit() -> None:
    x = torch.tensor([2.0**23])
    program = program_of(lambda x: x * x, x)
    with pytest.raises(ranges.RangeError, match="8 fraction bits.*do not fit"):
        ranges.choose_fraction_bits(program, ranges.calibrate(program, [(x,)]))


# -- compile -------------------------------------------------------------------------------------------------


def test_nothing_is_started_where_values_do_not_fit(
    block: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a role was started")

    monkeypatch.setattr(Threads, "__init__", started)
    with pytest.raises(ranges.RangeError, match=r"gelu.*magnitude") as caught:
        secure_eval.compile(block, batches()[0], calibration=batches(1e9))
    assert isinstance(caught.value, ValueError) and caught.value.report.violations
    with pytest.raises(AssertionError, match="a role was started"):
        secure_eval.compile(block, batches()[0], calibration=batches())


def test_compile_chooses_fraction_bits_and_keeps_the_report(block: nn.Module) -> None:
    x = batches()[0][0]
    with secure_eval.compile(block, (x,), "plain", calibration=batches(), fraction_bits="auto") as secure:
        assert secure.ranges is not None and secure.ranges.fits
        assert secure.fraction_bits == secure.ranges.fraction_bits == 20
        assert float((secure(x) - block(x)).detach().abs().max()) < 2.0**-8
        assert secure.checked == "calibration of 3 inputs and example"


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"fraction_bits": "auto"}, "needs calibration"),
        ({"fraction_bits": "most"}, "allowed: 8 to 20"),
        ({"narrow": 4.0}, "needs calibration"),
    ),
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str, block: nn.Module) -> None:
    with pytest.raises(ValueError, match=message):
        secure_eval.compile(block, batches()[0], **options)


# -- narrowing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ("plain", "dealer2pc"))
def test_narrowed_ranges_cost_less_and_stay_right(protocol: str) -> None:
    xs = batches(1.0, 3, (6, 8))
    program = program_of(lambda x: torch.rsqrt(x * x + 0.5) + torch.reciprocal(x * x + 2), xs[0][0])
    seen = ranges.calibrate(program, xs)
    narrow = ranges.narrow_ranges(program, seen)
    for op in ("rsqrt", "reciprocal"):
        (proven, _), (low, high) = (
            next(n.args[1:] for n in p.nodes if n.op == op) for p in (program, narrow)
        )
        extent = next(o.quantities["argument"] for o in seen.nodes.values() if o.op == op)
        assert low == max(proven, extent.smallest / 4) and high == extent.largest * 4 < 2**14
    assert ranges.check(narrow, seen).fits
    wide_cost, narrow_cost = (
        secure_eval.count(p, protocols.get("dealer2pc")).online.bytes for p in (program, narrow)
    )
    assert narrow_cost < 0.7 * wide_cost
    with secure_eval.compile(narrow, protocol=protocol) as secure:
        for (x,) in xs:
            wanted = torch.rsqrt(x * x + 0.5) + torch.reciprocal(x * x + 2)
            assert float((secure(x) - wanted).abs().max()) < 2.0**-9


@pytest.mark.parametrize("function", (torch.reciprocal, torch.rsqrt, torch.sqrt, torch.log))
def test_each_operation_with_a_range_is_narrowed(function: Any) -> None:
    x = torch.linspace(1.0, 5.0, 40)
    program = program_of(function, x)
    narrow = ranges.narrow_ranges(program, ranges.calibrate(program, [(x,)]))
    node = narrow.nodes[-1]
    assert node.op in NARROWED and node.args[1:] == (0.25, 20.0)
    cost = [secure_eval.count(p, protocols.get("dealer2pc")).online.bytes for p in (program, narrow)]
    assert cost[1] < cost[0]
    with secure_eval.compile(narrow, protocol="plain") as secure:
        assert float((secure(x) - function(x)).abs().max()) < 2.0**-9


def test_narrowing_leaves_a_range_that_is_narrower_already() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    program = program_of(lambda x: torch.softmax(x, -1), x)
    wide = next(n for n in program.nodes if n.op == "reciprocal")
    narrow = next(
        n
        for n in ranges.narrow_ranges(program, ranges.calibrate(program, [(x,)])).nodes
        if n.op == "reciprocal"
    )
    assert wide.args[1] <= narrow.args[1] <= 1.5 and narrow.args[2] <= wide.args[2]


def test_narrowing_is_asked_for() -> None:
    x = batches(1.0, 1, (6, 8))
    model = Function(lambda x: torch.reciprocal(x * x + 2)).eval()
    sizes = {}
    for narrow in (None, 4.0):
        with secure_eval.compile(model, x[0], "dealer2pc", calibration=x, narrow=narrow) as secure:
            sizes[narrow] = secure.predicted().online.bytes
            assert float((secure(*x[0]) - model(*x[0])).abs().max()) < 2.0**-10
    assert sizes[4.0] < sizes[None]


def test_a_margin_below_one_is_refused() -> None:
    x = torch.ones(3)
    program = program_of(torch.reciprocal, x)
    with pytest.raises(ValueError, match="margin=0.5"):
        ranges.narrow_ranges(program, ranges.calibrate(program, [(x,)]), margin=0.5)


# -- norms: right whatever their rows, and cheaper where they are known --------------------------------------------


SPREADS = (0.0, 2.0**-20, 0.02, 1.0, 300.0)


@pytest.mark.parametrize("kind", ("layer_norm", "rms_norm", "group_norm"))
def test_no_row_is_too_small_for_a_norm(kind: str) -> None:
    """Rows of standard deviation 0.02, nearly constant ones and zeros fit without calibration, and are right."""
    x = (
        torch.randn(5, 8, 4, generator=torch.Generator().manual_seed(7))
        * torch.tensor(SPREADS)[:, None, None]
    )
    functions = {
        "layer_norm": lambda x: F.layer_norm(x, (4,), eps=1e-12),
        "rms_norm": lambda x: F.rms_norm(x, (4,), eps=1e-12),
        "group_norm": lambda x: F.group_norm(x, 2, eps=1e-12),
    }
    program = program_of(functions[kind], x)
    assert ranges.check(program, ranges.calibrate(program, [(x,)])).fits
    with secure_eval.compile(program, protocol="plain") as secure:
        held = (x.double() * 2**16).round() / 2**16  # what the ring has of the input
        off = (secure(x) - functions[kind](held)).abs().amax((1, 2))
        assert float(off.max()) < 2.0**-9


def norm_of(program: Program) -> Any:
    return next(n for n in program.nodes if n.op in ("layer_norm", "rms_norm"))


@pytest.mark.parametrize("kind", ("layer_norm", "rms_norm"))
@pytest.mark.parametrize("spread", (2.0**-8, 1.0, 500.0))
def test_a_calibrated_norm_costs_less_and_stays_right(kind: str, spread: float) -> None:
    x = torch.randn(16, 96, generator=torch.Generator().manual_seed(8)) * spread
    function = {
        "layer_norm": lambda x: F.layer_norm(x, (96,), eps=1e-6),
        "rms_norm": lambda x: F.rms_norm(x, (96,), eps=1e-6),
    }[kind]
    program = program_of(function, x)
    seen = ranges.calibrate(program, [(x,)])
    narrow = ranges.narrow_ranges(program, seen)
    extent = next(iter(seen.nodes[norm_of(program).name].quantities.values()))
    assert norm_of(narrow).args[-2:] == (max(1e-6, extent.smallest / 4), extent.largest * 4)
    assert ranges.check(narrow, seen).fits
    wide_cost, cost = (secure_eval.count(p, protocols.get("dealer2pc")) for p in (program, narrow))
    assert cost.online.bytes < 0.75 * wide_cost.online.bytes
    assert (
        cost.online.rounds <= wide_cost.online.rounds and cost.offline.bytes < 0.75 * wide_cost.offline.bytes
    )
    with secure_eval.compile(narrow, protocol="dealer2pc") as secure:
        held = (x.double() * 2**16).round() / 2**16
        assert float((secure(x) - function(held)).abs().max()) < 2.0**-10 * float(function(held).abs().max())
    # The range is the node's own: what parties get of the program has it too, and the check holds others against it.
    again = Program.from_json(narrow.to_json(), narrow.constants)
    assert norm_of(again).args == norm_of(narrow).args
    far = ranges.calibrate(narrow, [(x * 20,)])
    assert not ranges.check(narrow, far).fits
    assert ranges.check(ranges.narrow_ranges(narrow, far), far).fits


WIDER: dict[str, tuple[Any, Tensor]] = {
    "reciprocal": (lambda x: torch.reciprocal(x * x), torch.linspace(0.04, 0.2, 40)),
    "reciprocal of large ones": (lambda x: torch.reciprocal(x * x), torch.linspace(150.0, 500.0, 40)),
    "signed_reciprocal": (torch.reciprocal, torch.tensor([-(2.0**-8), 2.0**-7, 1.0])),
    "rsqrt": (torch.rsqrt, torch.linspace(0.001, 0.2, 40)),
    "sqrt": (torch.sqrt, torch.linspace(10.0, 2.0**18, 40)),
    "log": (torch.log, torch.linspace(2.0**-15, 2.0**-4, 40)),
    "exp": (torch.exp, torch.tensor([19.0, 10.0, 5.0])),
    "layer_norm": (
        lambda x: F.layer_norm(x, (4096,), eps=1e-12),
        torch.cat([torch.full((2048,), 2.0**10), torch.full((2048,), -(2.0**10))]),
    ),
}


@pytest.mark.parametrize("name", WIDER)
def test_a_range_that_is_not_enough_is_refused_or_widened(name: str) -> None:
    function, x = WIDER[name]
    program = program_of(function, x)
    seen = ranges.calibrate(program, [(x,)])
    assert not ranges.check(program, seen).fits
    wide = ranges.narrow_ranges(program, seen)
    assert ranges.check(wide, seen).fits, str(ranges.check(wide, seen))
    with secure_eval.compile(wide, protocol="plain") as secure:
        held = (x.double() * 2**16).round() / 2**16
        op = wide.nodes[-1]
        # A square is held with 32 fraction bits; the argument of a root or reciprocal is what the ring has of it.
        got, wanted = secure(x), function(held)
        assert float(((got - wanted) / wanted.abs().clamp(min=2.0**-8)).abs().max()) < 2.0**-9, op


def test_what_no_range_is_right_for_stays_refused() -> None:
    """A reciprocal of numbers 2^30 apart: its results do not fit one ring element."""
    x = torch.tensor([2.0**-13, 2.0**14])
    program = program_of(torch.reciprocal, x)
    seen = ranges.calibrate(program, [(x,)])
    narrow = ranges.narrow_ranges(program, seen)
    assert narrow.nodes == program.nodes and not ranges.check(narrow, seen).fits


def test_a_known_eps_is_the_low_end_of_a_range() -> None:
    x = torch.tensor([0.0, 1e-4, 0.01, 1.0, 50.0])
    program = program_of(lambda x: torch.rsqrt(x * x + 1e-5), x)
    node = next(n for n in program.nodes if n.op == "rsqrt")
    assert node.args[1] == pytest.approx(1e-5)
    assert ranges.check(program, ranges.calibrate(program, [(x,)])).fits
    with secure_eval.compile(program, protocol="plain") as secure:
        wanted = torch.rsqrt((x * x + 1e-5).double())
        # The ring holds 1e-5 with 32 fraction bits.
        assert float(((secure(x) - wanted) / wanted).abs().max()) < 2.0**-9


def test_an_exponential_is_narrowed_to_the_pieces_that_it_needs() -> None:
    x = torch.linspace(-3.0, 4.0, 50)
    program = program_of(torch.exp, x)
    seen = ranges.calibrate(program, [(x,)])
    narrow = ranges.narrow_ranges(program, seen)
    low, high = narrow.nodes[-1].args[1:]
    assert -5 < low < -3 < 4 < high < 6 and ranges.check(narrow, seen).fits
    sizes = [secure_eval.count(p, protocols.get("dealer2pc")).online.bytes for p in (program, narrow)]
    assert sizes[1] < 0.6 * sizes[0]
    below = ranges.calibrate(narrow, [(x - 4,)])
    assert any(v.quantity == "smallest exponential" for v in ranges.check(narrow, below).violations)


# -- the example ---------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """Two values that do not fit for inputs of a thousand, and one that does."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x * 0.03125) + (x * x) * (x * x) * 1e-9 + torch.tanh(x)


def test_the_example_is_checked_and_every_value_that_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def started(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a role was started")

    monkeypatch.setattr(Threads, "__init__", started)
    with pytest.raises(ranges.RangeError) as caught:
        secure_eval.compile(Wide().eval(), (torch.tensor([1000.0, 1.0]),))
    found = {(v.op, v.quantity): v.value for v in caught.value.report.violations}
    exponential = ("exp", "largest exponential")
    assert found[exponential] == pytest.approx(math.exp(31.25)) and found["mul", "magnitude"] == 1e12
    assert "tanh" not in {op for op, _ in found}
    assert all(text in str(caught.value) for text in ("exp", "4.85165e+08", "1e+12", "below 2^30"))
    with pytest.raises(ranges.RangeError, match="largest exponential"):
        secure_eval.run(Wide().eval(), torch.tensor([1000.0]))


def test_the_example_needs_no_margin(block: nn.Module) -> None:
    x = torch.tensor([31000.0])
    model = Function(lambda x: x * x).eval()
    assert not ranges.check(secure_eval.capture(model, (x,)), ranges.calibrate(model, [(x,)])).fits
    with secure_eval.compile(model, (x,), "plain") as secure:
        assert float(secure(x)) == pytest.approx(31000.0**2, rel=1e-6)


def test_what_is_infinite_in_floating_point_is_named() -> None:
    with pytest.raises(ranges.RangeError, match="smallest magnitude of the argument 0,"):
        secure_eval.compile(Function(torch.reciprocal).eval(), (torch.tensor([0.0, 1.0]),), "plain")
    with pytest.raises(ranges.RangeError, match="smallest argument -1,"):
        secure_eval.compile(Function(torch.log).eval(), (torch.tensor([-1.0, 1.0]),), "plain")
    for value in ("nan", "inf"):
        with pytest.raises(ranges.RangeError, match=f"share_input.*magnitude {value}"):
            secure_eval.compile(Function(torch.tanh).eval(), (torch.tensor([float(value), 1.0]),), "plain")


@pytest.mark.parametrize(
    ("options", "said"),
    (
        ({}, "example"),
        ({"check": False}, "not checked (check=False)"),
        ({"example_inputs": None}, "not checked (a program without example inputs)"),
        ({"example_inputs": None, "check": False}, "not checked (check=False)"),
        ({"example_inputs": None, "calibration": batches()}, "calibration of 3 inputs"),
    ),
)
def test_every_measurement_says_what_was_checked(
    options: dict[str, Any], said: str, block: nn.Module
) -> None:
    program = secure_eval.capture(block, batches()[0])
    with secure_eval.compile(
        **{"model": program, "example_inputs": batches()[0], "protocol": "plain", **options}
    ) as secure:
        assert secure.checked == secure.measurement.checked == said
        secure(*batches()[0])
        assert secure.measurement.checked == secure.measurement.to_dict()["checked"] == said
        assert secure.predicted().checked.startswith("not checked (a prediction")


def test_check_false_runs_what_does_not_fit() -> None:
    model, x = Function(torch.exp).eval(), torch.tensor([25.0])
    with pytest.raises(ranges.RangeError):
        secure_eval.compile(model, (x,), "plain")
    secure_eval.compile(model, (x,), "plain", check=False).close()


def test_a_program_is_checked_on_its_example() -> None:
    x = torch.tensor([25.0])
    program = program_of(torch.exp, x)
    with pytest.raises(ranges.RangeError, match="largest exponential"):
        secure_eval.compile(program, (x,), "plain")


def test_weights_without_values_are_named() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3)).eval()
    for given in (model, secure_eval.capture(model, (torch.zeros(2, 3, device="meta"),))):
        with pytest.raises(ValueError, match=r"on the meta device, without values: .*0.*weight"):
            secure_eval.compile(given, (torch.zeros(2, 3),))
    with pytest.raises(ValueError, match="on the meta device, without values: inputs_0"):
        secure_eval.compile(program_of(torch.tanh, torch.zeros(3)), (torch.zeros(3, device="meta"),))


# -- certificates --------------------------------------------------------------------------------------------


def test_a_certificate_binds_values_and_says_what_was_met(block: nn.Module) -> None:
    program = secure_eval.capture(block, batches()[0])
    certified, certificate = ranges.certify(program, batches(), margin_bits=3.0)
    seen = ranges.calibrate(program, batches())
    for node in certified.nodes:
        if node.level == "secret" and node.op != "share_weight":
            largest = seen.nodes[node.name].largest
            assert (
                node.bound is not None
                and 2.0 ** (node.bound - 4) <= max(2.0**-4, largest)
                and largest * 8 <= 2.0**node.bound
            )
        else:
            assert node.bound is None
    assert (
        certificate.inputs == 3 and certificate.margin_bits == 3 and certificate.spare_bits >= 2
    )  # of the narrowed norm
    linear = next(
        e for e in certificate.entries if (e.site, e.op, e.quantity) == ("first", "linear", "magnitude")
    )
    assert linear.largest == next(
        o.largest for o in seen.nodes.values() if (o.site, o.op) == ("first", "linear")
    )
    assert linear.high is not None and linear.spare_bits == pytest.approx(
        math.log2(linear.high / linear.largest)
    )
    assert 3 <= linear.spare_bits <= 4
    assert {e.site for e in certificate.entries} >= {"first", "second", "norm"}
    assert "3 inputs" in str(certificate) and "bits to spare" in str(certificate)
    assert certificate.program == certified.key() != program.key()


def test_a_certificate_survives_json(block: nn.Module) -> None:
    program = secure_eval.capture(block, batches()[0])
    _, certificate = ranges.certify(program, batches())
    again = ranges.Certificate.from_json(certificate.to_json())
    assert again.to_dict() == certificate.to_dict() == json.loads(certificate.to_json())
    with pytest.raises(ValueError, match="columns"):
        ranges.Certificate.from_dict({**certificate.to_dict(), "columns": ["site"]})


def test_bounds_travel_with_the_program(block: nn.Module) -> None:
    program = secure_eval.capture(block, batches()[0])
    certified, _ = ranges.certify(program, batches(), narrow=None)
    again = Program.from_json(certified.to_json(), certified.constants)
    assert [n.bound for n in again.nodes] == [n.bound for n in certified.nodes]
    assert again.key() == certified.key() != program.key()


def test_what_does_not_fit_is_not_certified() -> None:
    x = torch.tensor([500.0])
    program = program_of(lambda x: (x * x) * x, x)
    assert ranges.certify(program, [(x,)], margin_bits=2.0)[1].spare_bits >= 2
    with pytest.raises(ranges.RangeError, match="4 bits of margin.*1 value"):
        ranges.certify(program, [(x,)], margin_bits=4.0)
    with pytest.raises(ValueError, match="margin_bits=0.5"):
        ranges.certify(program, [(x,)], margin_bits=0.5)


def test_values_up_to_the_margin_are_right_and_certified_programs_cost_no_more() -> None:
    """A product of three whose values are small keeps 48 fraction bits and truncates nothing."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(4)).clamp(-2, 2)
    program = program_of(lambda x: ((x + 1) * x) * (x - 1), x)
    certified, certificate = ranges.certify(program, [(x,)], margin_bits=2.0)
    costs = [secure_eval.count(p, protocols.get("dealer2pc")).online for p in (program, certified)]
    assert costs[1].rounds < costs[0].rounds and costs[1].bytes < costs[0].bytes
    for protocol in protocols.names():
        with secure_eval.compile(certified, (x,), protocol, certificate=certificate) as secure:
            assert secure.measurement.checked == "certificate of 1 inputs and example"
            for scale in (1.0, 1.5):
                y = x * scale
                assert float((secure(y) - ((y + 1) * y) * (y - 1)).abs().max()) < 2.0**-11
            assert secure.measurement.communication() == secure.predicted().communication()


def test_a_query_beyond_its_bound_is_refused_by_the_check() -> None:
    x = torch.ones(3)
    certified, _ = ranges.certify(program_of(lambda x: x * 3.0, x), [(x,)])
    with pytest.raises(ranges.RangeError, match="magnitude 300, allowed below 2^4".replace("^", r"\^")):
        secure_eval.compile(certified, (x * 100,), "plain")


def test_the_certificate_of_another_program_is_refused(block: nn.Module) -> None:
    program = secure_eval.capture(block, batches()[0])
    certified, certificate = ranges.certify(program, batches())
    with pytest.raises(ValueError, match="of another program"):
        secure_eval.compile(program, protocol="plain", certificate=certificate)
    with pytest.raises(ValueError, match="other fraction bits"):
        secure_eval.compile(certified, protocol="plain", certificate=certificate, fraction_bits=12)


def test_weights_are_taken_to_float64_once(block: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_eval import reference

    taken: list[str] = []
    original = reference._value

    def watched(program: Program, node: Any, *rest: Any) -> Any:
        taken.append(node.op)
        return original(program, node, *rest)

    monkeypatch.setattr(reference, "_value", watched)
    program = secure_eval.capture(block, batches()[0])
    ranges.calibrate(program, batches())
    parameters = sum(n.op == "parameter" for n in program.nodes)
    assert parameters and taken.count("parameter") == parameters


def test_a_certificate_has_nothing_to_spare_of_what_is_proven() -> None:
    """The sum of a softmax is between 1 and its length whatever the scores, and reaches both: no bit of margin says anything there."""
    x = torch.zeros(2, 8)
    x[0, 3] = 9.0
    _, certificate = ranges.certify(program_of(lambda x: torch.softmax(x, -1), x), [(x,)], narrow=None)
    entries = {(e.op, e.quantity): e for e in certificate.entries}
    assert (
        entries["reciprocal", "argument"].largest == 8.0
        and entries["reciprocal", "argument"].spare_bits is None
    )
    assert entries["softmax_numerator", "magnitude"].spare_bits is None
    assert entries["share_input", "magnitude"].spare_bits is not None and certificate.spare_bits >= 2
