"""What every protocol has to do, as tests that any project can run on its own protocol.

    from secure_eval.testing import ProtocolConformance

    class TestMine(ProtocolConformance):
        protocol = "mine"

The contract is the docstring of `secure_eval.protocols.base`. Values are compared with integer arithmetic
modulo 2^64, counts
with the counting run, and what parties see with what they see for other secrets. Protocols of one party are
held to the same
arithmetic; the tests of privacy say nothing about them and pass. Nothing here imports pytest: it only
collects the class.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import secure_eval
from secure_eval import protocols, ring
from secure_eval.correlations.correlation import Recorder
from secure_eval.functions.exponential import exp
from secure_eval.functions.layer_norm import layer_norm
from secure_eval.functions.logarithm import log
from secure_eval.functions.maximum import max_with_index
from secure_eval.functions.normalised import reciprocal, rsqrt
from secure_eval.functions.octave_power import signed_reciprocal, sqrt
from secure_eval.functions.octaves import Octaves
from secure_eval.functions.rms_norm import rms_norm
from secure_eval.functions.softmax import softmax_numerator
from secure_eval.network.transport import Counting
from secure_eval.operations import OPERATIONS, curves
from secure_eval.parties.roles import Party
from secure_eval.protocols.base import LINEAR, MATMUL, MUL, Bilinear, Bits, Protocol, Secret
from secure_eval.scheduler import Scheduler, gather
from secure_eval.testing.devices import OneDevice
from secure_eval.testing.harness import Evaluation, decoded, evaluate, observe
from secure_eval.testing.knowledge import Traffic
from secure_eval.testing.operations import CASES
from secure_eval.testing.secrecy import MASKED, VIEWED, SecrecyConformance
from secure_eval.testing.statistics import Z_LIMIT, two_sample_z

LIMIT = 1 << 62
"""Values below this in magnitude have to be right everywhere."""

Run = Callable[..., Evaluation]


def extremes() -> Tensor:
    """Values at the edges of what a protocol has to be right for, and around powers of two."""
    powers = [1 << k for k in range(0, 62, 3)]
    values = {0, LIMIT - 1, *powers, *(v - 1 for v in powers), *(v + 1 for v in powers)}
    return torch.tensor(sorted({*values, *(-v for v in values)}))


def any_values(count: int, seed: int, limit: int = LIMIT) -> Tensor:
    """Uniform values below `limit` in magnitude, then the extremes that are."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.randint(-limit + 1, limit, (count,), generator=generator)
    edges = extremes()
    return torch.cat([uniform, edges[edges.abs() < limit]])


def ulps_off(result: Tensor, x: Tensor, bits: int) -> Tensor:
    """How far an integer result is from x / 2^bits, rounded up to whole units: 0 where exact, 1 for either
    neighbour.
    """
    floor = x >> bits
    exact = (floor << bits) == x
    below, above = floor - result, result - floor
    return torch.where(exact, (result - floor).abs(), torch.maximum(below + 1, above))


SHAPES: dict[str, tuple[Bilinear, tuple[int, ...], tuple[int, ...]]] = {
    "mul": (MUL, (4, 5), (4, 5)),
    "mul row": (MUL, (4, 5), (5,)),
    "mul column": (MUL, (4, 1), (4, 5)),
    "mul outer": (MUL, (3, 1), (1, 4)),
    "mul scalar": (MUL, (), (2, 3)),
    "mul empty": (MUL, (0, 3), (3,)),
    "matmul": (MATMUL, (3, 4), (4, 5)),
    "matmul batched": (MATMUL, (2, 3, 4), (2, 4, 5)),
    "matmul broadcast": (MATMUL, (2, 1, 3, 4), (3, 4, 2)),
    "matmul with matrix": (MATMUL, (2, 3, 4), (4, 5)),
    "linear": (LINEAR, (2, 3, 8), (5, 8)),
}

POLYNOMIALS: dict[str, tuple[int, tuple[float, ...]]] = {
    "square": (2, (0.0, 0.0, 1.0)),
    "affine": (1, (0.75, -2.5)),
    "quadratic": (2, (-1.25, 3.0, 0.5)),
    "cubic": (3, (0.5, -1.5, 0.25, -1.0)),
}


_PARAMETERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gelu": {"gelu": ("none",), "gelu tanh": ("tanh",)},
    "elu": {"elu": (1.0,)},
    "clamp": {"clamp": (-3.7, 2.5)},
}
CURVES: list[tuple[str, str, tuple[Any, ...]]] = [
    (name, operation, parameters)
    for operation in curves.OPERATIONS
    for name, parameters in _PARAMETERS.get(operation, {operation: ()}).items()
]
"""Functions of one number: a name, the operation and its parameters."""


def curve(operation: str, *parameters: Any) -> Callable[..., Any]:
    """The secure function, of a protocol and a secret."""
    return lambda p, x: curves.evaluate(p, operation, x, *parameters)


def meaning(operation: str, *parameters: Any) -> Callable[[Tensor], Tensor]:
    """What it is to be."""
    return lambda x: curves.OPERATIONS[operation].meaning(x, *parameters)


def _function_cases() -> dict[str, tuple[Callable[..., Any], Tensor, Callable[[Tensor], Tensor], bool]]:
    """Name -> (secure function, float64 inputs, float64 reference, whether the error bound is relative)."""
    line = torch.linspace(-40, 40, 1501, dtype=torch.float64)
    wide = torch.cat([line, torch.tensor([0.0, 3.7, -3.7, 2.0**13, -(2.0**13)], dtype=torch.float64)])
    positive = torch.logspace(-6, 14, 301, base=2, dtype=torch.float64).clamp(max=2.0**14)
    generator = torch.Generator().manual_seed(5)
    rows = (
        torch.randn(6, 48, generator=generator, dtype=torch.float64)
        * torch.logspace(-1, 1.5, 6, dtype=torch.float64)[:, None]
    )
    scores = torch.randn(8, 19, generator=generator, dtype=torch.float64) * 12

    async def softmax(p: Protocol, x: Secret) -> Secret:
        e = await softmax_numerator(p, x, None, -1)
        total = e.map(lambda s: s.sum(-1, keepdim=True))
        return await p.bilinear(MUL, e, await reciprocal(p, total, 1.0, 32.0))

    return {
        **{
            name: (curve(operation, *parameters), wide, meaning(operation, *parameters), False)
            for name, operation, parameters in CURVES
        },
        "softmax": (softmax, scores, lambda x: torch.softmax(x, -1), False),
        "reciprocal": (lambda p, x: reciprocal(p, x), positive, torch.reciprocal, True),
        "rsqrt": (lambda p, x: rsqrt(p, x), positive, torch.rsqrt, True),
        "signed_reciprocal": (signed_reciprocal, torch.cat([positive, -positive]), torch.reciprocal, True),
        "sqrt": (sqrt, positive, torch.sqrt, True),
        "exp": (exp, torch.linspace(-11, 20, 1501, dtype=torch.float64), torch.exp, True),
        "log": (log, positive, torch.log, False),
        "rms_norm": (
            lambda p, x: rms_norm(p, x, 1, None, 1e-5),
            rows,
            lambda x: F.rms_norm(x, (48,), eps=1e-5),
            False,
        ),
        "layer_norm": (
            lambda p, x: layer_norm(p, x, 1, None, None, 1e-5),
            rows,
            lambda x: F.layer_norm(x, (48,), eps=1e-5),
            False,
        ),
    }


async def _compare(p: Protocol, x: Secret) -> Bits:
    return await p.less_than(x, [0.0, 0.5])


async def _select(p: Protocol, x: Secret) -> Secret:
    return await p.select(await p.msb(x), x)


async def _poly(p: Protocol, x: Secret) -> Secret:
    opened = await p.open_masked(x, shift=4, degree=3, compare=True)
    return await opened.polynomial([0.0, 1.0, 0.5, 0.25], 60)


STEPS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "mul": (lambda p, x: p.bilinear(MUL, x, x), (1400,)),
    "matmul": (lambda p, x: p.bilinear(MATMUL, x, x), (40, 40)),
    "square": (lambda p, x: p.square(x), (1400,)),
    "truncate": (lambda p, x: p.truncate(x, 16), (11264,)),
    "compare": (_compare, (11264,)),
    "compare few": (_compare, (1400,)),
    "select": (_select, (11264,)),
    "polynomial": (_poly, (1400,)),
    **{name: (curve(operation, *parameters), (5632,)) for name, operation, parameters in CURVES},
    "reciprocal": (lambda p, x: reciprocal(p, p.add_real(x, 100.0), 1.0, 128.0), (5632,)),
    "rsqrt": (lambda p, x: rsqrt(p, p.add_real(x, 100.0), 1.0, 128.0), (5632,)),
    "signed_reciprocal": (
        lambda p, x: signed_reciprocal(p, p.add_real(x, -100.0), Octaves(1.0, 128.0, signed=True)),
        (5632,),
    ),
    "sqrt": (lambda p, x: sqrt(p, x, Octaves(1.0, 128.0)), (5632,)),
    "exp": (exp, (5632,)),
    "log": (lambda p, x: log(p, x, Octaves(1.0, 128.0)), (5632,)),
    "layer_norm": (lambda p, x: layer_norm(p, x, 1, None, None, 1e-5), (1400, 2)),
    "rms_norm": (lambda p, x: rms_norm(p, p.add_real(x, 1.0), 1, None, 1e-5), (1400, 2)),
    "max_with_index": (lambda p, x: max_with_index(p, x, -1), (11264, 3)),
    "softmax": (lambda p, x: softmax_numerator(p, x, None, -1), (11264, 2)),
}
"""Everything that sends, on a shape that gives each message enough samples for a test of its bytes."""


def views(traffic: Sequence[Traffic], parties: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """What each party learns online from the other parties, message by message: what arrives, and its sum (or
    XOR) with what it sent.

    The sum is what an additive opening reveals; a mask that does not cover the ring shows there and in no
    single message.
    """
    sent: dict[tuple[Any, ...], Tensor] = {}
    received: dict[tuple[Any, ...], Tensor] = {}
    for t in traffic:
        if t.phase == "online" and t.role in parties and t.peer in parties:
            (sent if t.sent else received)[(t.role, t.peer, t.round, t.position)] = t.tensor
    for key, tensor in received.items():
        yield (*key, "received"), tensor
        for peer in parties:
            mine = sent.get((key[0], peer, *key[2:]))
            if mine is not None and mine.shape == tensor.shape and mine.dtype == tensor.dtype:
                yield (
                    (*key, f"with what went to {peer}"),
                    mine + tensor if tensor.dtype == ring.DTYPE else mine ^ tensor,
                )


class ProtocolConformance(SecrecyConformance):
    """Inherit, set `protocol` to a registered name, and let pytest collect the class. `device` is where shares live in it."""

    def pytest_generate_tests(self, metafunc: Any) -> None:
        tables: dict[str, Any] = {
            "case": CASES,
            "shapes": SHAPES,
            "polynomial": POLYNOMIALS,
            "function": _function_cases(),
            "step": STEPS,
            "viewed": VIEWED,
            "masked": MASKED,
        }
        for name, table in tables.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, list(table))

    def run(self, function: Callable[..., Any], *values: Tensor, **options: Any) -> Evaluation:
        """Runs in all parties; the counting run has to predict what was sent, whatever the test is about."""
        evaluation = evaluate(self.cls, function, *values, device=self.device, **options)
        predicted = (evaluation.predicted_bytes, evaluation.predicted_rounds)
        sent = (evaluation.bytes, evaluation.rounds)
        assert predicted == sent, f"predicted bytes and rounds {predicted}, sent {sent}"
        return evaluation

    # -- description -----------------------------------------------------------------------------------
    # ------------------------

    def test_describes_itself(self) -> None:
        cls = self.cls
        assert cls.name == self.protocol and self.protocol in protocols.names()
        assert isinstance(cls.adversary, str) and cls.adversary
        assert (
            not isinstance(cls.disclosure, str)
            and all(isinstance(d, str) and d for d in cls.disclosure)
            and cls.disclosure
        )

    def test_parts_cover_the_secret_and_no_party_has_all(self) -> None:
        held = [set(self.cls.parts_of(i)) for i in range(self.cls.parties)]
        assert set().union(*held) == set(range(self.cls.parts))
        if self.cls.parties > 1:
            assert all(h < set(range(self.cls.parts)) for h in held)

    def test_has_no_way_to_reveal(self) -> None:
        """Outputs leave through the parties' role only: a protocol object offers nothing that opens a secret
        by name.
        """
        names = [n for n, _ in inspect.getmembers(self.cls, callable)]
        assert not [
            n
            for n in names
            if n.lstrip("_") in ("reveal", "open", "decrypt", "reconstruct", "get_plain_text") and n[0] != "_"
        ]

    # -- local steps -----------------------------------------------------------------------------------
    # ------------------------

    def test_linear_steps_are_exact_and_local(self) -> None:
        x, y = any_values(50, 1), any_values(50, 2)
        public = torch.arange(len(x)) - 7

        async def function(p: Protocol, x: Secret, y: Secret) -> list[Any]:
            known = public.to(p.device)
            return [
                p.add(x, y),
                p.sub(x, y),
                p.scale(x, -3),
                p.scale(x, known, 4),
                p.add_public(x, known),
                p.add_public(x, 5),
                p.add_real(x, -0.75),
                p.lift(x, 20),
                p.public(known, 16),
                p.add(p.lift(x, 18), y),
                x.map(lambda s: s.sum(0, keepdim=True)),
            ]

        result = self.run(function, x, y)
        expected = [
            x + y,
            x - y,
            -3 * x,
            x * public,
            x + public,
            x + 5,
            x - 3 * 2**14,
            x << 4,
            public,
            (x + y) << 2,
            x.sum(0, keepdim=True),
        ]
        for got, wanted in zip(result.value, expected, strict=True):
            assert torch.equal(got, wanted)
        assert result.bytes == result.rounds == 0
        assert result.raw[0][3].fraction_bits == 20 and result.raw[0][9].fraction_bits == 18

    def test_invert_and_xor_of_bits(self) -> None:
        x = any_values(50, 3)

        async def function(p: Protocol, x: Secret) -> list[Bits]:
            b = await p.msb(x)
            return [p.invert(b), b ^ p.invert(b), b[3:5]]

        inverted, ones, part = self.run(function, x).value
        assert torch.equal(inverted, (x >= 0).to(torch.uint8)) and bool((ones == 1).all())
        assert torch.equal(part, (x[3:5] < 0).to(torch.uint8))

    # -- products --------------------------------------------------------------------------------------
    # ------------------------

    def test_bilinear_is_exact_modulo_the_ring(self, shapes: str) -> None:
        op, left, right = SHAPES[shapes]
        generator = torch.Generator().manual_seed(4)
        x = torch.randint(-(2**63), 2**63 - 1, left, generator=generator)
        y = torch.randint(-(2**63), 2**63 - 1, right, generator=generator)
        result = self.run(lambda p, x, y: p.bilinear(op, x, y), x, y, fraction_bits=[3, 5])
        assert torch.equal(result.value, op(x, y)) and result.raw[0].fraction_bits == 8

    def test_products_with_weights(self) -> None:
        x = any_values(52, 5)[:48].view(6, 8)
        weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(6))
        scale = torch.randn(8, generator=torch.Generator().manual_seed(7))

        async def function(p: Protocol, x: Secret, w: Secret, v: Secret) -> list[Secret]:
            return await gather(p.bilinear(LINEAR, x, w), p.bilinear(MUL, x, v), p.bilinear(LINEAR, w, x))

        w, v = ring.encode(weight, 16), ring.encode(scale, 16)
        linear, mul, swapped = self.run(function, x, weights=[weight, scale]).value
        assert (
            torch.equal(linear, LINEAR(x, w))
            and torch.equal(mul, x * v)
            and torch.equal(swapped, LINEAR(w, x))
        )

    def test_square_is_exact_modulo_the_ring(self) -> None:
        x = any_values(200, 8)
        assert torch.equal(self.run(lambda p, x: p.square(x), x).value, x * x)

    def test_independent_products_share_a_round(self) -> None:
        x, y = any_values(10, 9), any_values(10, 10)
        one = self.run(lambda p, x, y: p.bilinear(MUL, x, y), x, y)

        async def both(p: Protocol, x: Secret, y: Secret) -> list[Secret]:
            return await gather(p.bilinear(MUL, x, y), p.bilinear(MUL, p.scale(x, 2), p.scale(y, 3)))

        result = self.run(both, x, y)
        assert result.rounds == one.rounds
        assert torch.equal(result.value[0], x * y) and torch.equal(result.value[1], 6 * x * y)

    # -- truncation, comparison, selection
    # ---------------------------------------------------------------------------------------

    def test_truncate_is_off_by_less_than_a_unit(self) -> None:
        x = any_values(300, 11)
        shifts = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48)
        result = self.run(lambda p, x: gather(*(p.truncate(Secret(x.shares, 48), s) for s in shifts)), x)
        for shift, got, raw in zip(shifts, result.value, result.raw[0], strict=True):
            assert int(ulps_off(got, x, shift).max()) <= 1, shift
            assert raw.fraction_bits == 48 - shift

    def test_rescale_lifts_for_free_and_truncates_once(self) -> None:
        x = any_values(20, 12, 1 << 40)
        free = self.run(lambda p, x: p.rescale(x, 18), x)
        assert torch.equal(free.value, x << 2) and free.bytes == 0

        async def twice(p: Protocol, x: Secret) -> list[Secret]:
            return await gather(p.rescale(x), p.rescale(x))

        once = self.run(lambda p, x: p.rescale(x), x, fraction_bits=30)
        result = self.run(twice, x, fraction_bits=30)
        assert result.bytes == once.bytes and int(ulps_off(result.value[0], x, 14).max()) <= 1
        assert torch.equal(result.value[0], result.value[1])

    def test_msb_is_exact(self) -> None:
        x = any_values(300, 13)
        assert torch.equal(self.run(lambda p, x: p.msb(x), x).value, (x < 0).to(torch.uint8))

    def test_less_than_is_exact_around_thresholds(self) -> None:
        thresholds = [0.0, 1.0, -1.0, 2.0**-16, 3.7, -1000.25, 2.0**40, -(2.0**40)]
        around = torch.tensor([round(t * 2**16) for t in thresholds])
        x = torch.cat([around + d for d in (-(2**20), -1, 0, 1, 2**20)] + [any_values(50, 14)])
        result = self.run(lambda p, x: p.less_than(x, thresholds), x)
        assert torch.equal(result.value, torch.stack([(x < t).to(torch.uint8) for t in around.tolist()]))

    def test_less_than_keeps_shapes(self) -> None:
        x = any_values(0, 15)[:12].view(3, 4)
        assert self.run(lambda p, x: p.less_than(x, [0.0, 1.0]), x).value.shape == (2, 3, 4)

    def test_bits_to_ring_is_exact(self) -> None:
        x = any_values(100, 16)

        async def function(p: Protocol, x: Secret) -> Secret:
            return await p.bits_to_ring(await p.msb(x))

        result = self.run(function, x)
        assert torch.equal(result.value, (x < 0).to(torch.int64)) and result.raw[0].fraction_bits == 0

    def test_select_is_exact_and_broadcasts(self) -> None:
        x, y = any_values(100, 17), any_values(100, 18)

        async def function(p: Protocol, x: Secret, y: Secret) -> list[Any]:
            b = await p.msb(x)
            stacked = Bits([torch.stack([s, s]) for s in b.shares])
            return [await p.select(b, y), *(await p.select_with_bits(b, y)), await p.select(stacked, y)]

        chosen, again, bit, broadcast = self.run(function, x, y).value
        wanted = torch.where(x < 0, y, 0)
        assert torch.equal(chosen, wanted) and torch.equal(again, wanted)
        assert torch.equal(bit, (x < 0).to(torch.int64)) and torch.equal(
            broadcast, torch.stack([wanted, wanted])
        )

    # -- several readings of one value
    # -------------------------------------------------------------------------------------------

    def test_polynomial_is_exact_modulo_the_ring(self, polynomial: str) -> None:
        """Of the truncated y that the same reading returns, which may be either neighbour; with and without
        truncation.
        """
        degree, coefficients = POLYNOMIALS[polynomial]
        for x, shift, bits in (
            (any_values(100, 19), 0, 12),
            (any_values(100, 20), 9, 21),
            (any_values(100, 21), 30, 42),
        ):
            y_bits = bits - shift
            out_bits = degree * y_bits + 4

            async def function(
                p: Protocol, x: Secret, shift: int = shift, out_bits: int = out_bits
            ) -> list[Any]:
                opened = await p.open_masked(x, shift=shift, degree=degree, compare=True)
                return [
                    await opened.truncated(),
                    await opened.polynomial(coefficients, out_bits),
                    await opened.less_than([0.0]),
                ]

            result = self.run(function, x, fraction_bits=bits)
            y, value, sign = result.value
            assert int(ulps_off(y, x, shift).max() if shift else (y - x).abs().max()) <= (1 if shift else 0)
            wanted = torch.zeros_like(y)
            for j, c in enumerate(coefficients):
                wanted = wanted + ring.wrap(round(c * 2.0 ** (out_bits - j * y_bits))) * y**j
            assert torch.equal(value, wanted)
            assert torch.equal(sign[0], (x < 0).to(torch.uint8))
            assert result.raw[0][0].fraction_bits == y_bits and result.raw[0][1].fraction_bits == out_bits

    def test_readings_that_were_not_asked_for_are_refused(self) -> None:
        async def too_high(p: Protocol, x: Secret) -> Any:
            return await (await p.open_masked(x, degree=2)).polynomial([0.0, 0.0, 0.0, 1.0], 48)

        async def not_comparing(p: Protocol, x: Secret) -> Any:
            return await (await p.open_masked(x, degree=2)).less_than([0.0])

        for function in (too_high, not_comparing):
            try:
                self.run(function, torch.arange(3))
            except ValueError:
                continue
            raise AssertionError(f"{function.__name__} was not refused with a ValueError")

    # -- functions -------------------------------------------------------------------------------------
    # --------------------------

    def test_functions_keep_their_error_bounds(self, function: str) -> None:
        secure, x, reference, relative = _function_cases()[function]
        for bits in (16, 30):
            result = self.run(secure, ring.encode(x, bits), fraction_bits=bits)
            wanted = reference(ring.decode(ring.encode(x, bits), bits))
            error = (decoded(result) - wanted).abs()
            worst = float((error / wanted.abs() if relative else error).max())
            assert worst < (2.0**-8 if function in ("layer_norm", "rms_norm") else 2.0**-10), (bits, worst)

    # -- whole programs --------------------------------------------------------------------------------
    # ----------------------------

    def test_operation_is_right_and_costs_what_is_predicted(self, case: str) -> None:
        chosen = CASES[case]
        model, inputs = chosen.model(), chosen.inputs()
        with secure_eval.compile(model, inputs, self.protocol, device=self.device) as secure:
            got, wanted = secure(*inputs).cpu(), model(*inputs)
            assert got.shape == wanted.shape and got.dtype == wanted.dtype
            worst = float(((got - wanted).abs() / wanted.abs().clamp(min=1)).max())
            assert worst < chosen.tolerance, worst
            assert secure.measurement.communication() == secure.predicted().communication()

    def test_cases_cover_all_secret_operations(self) -> None:
        used = {
            n.op
            for c in CASES.values()
            for n in secure_eval.capture(c.model(), c.inputs()).nodes
            if n.level == "secret"
        }
        assert used == set(OPERATIONS), used ^ set(OPERATIONS)

    # -- devices ---------------------------------------------------------------------------------------

    def test_step_stays_on_its_device(self, step: str) -> None:
        """In each party, on meta tensors: nothing is read, and nothing is moved to where it could be."""
        function, shape = STEPS[step]
        for party in range(self.cls.parties):
            p = self.cls(party, Recorder(), "meta", 16)
            x = Secret(
                [torch.empty(shape, dtype=ring.DTYPE, device="meta") for _ in self.cls.parts_of(party)], 16
            )
            with OneDevice("meta"):
                Scheduler(Counting(f"party{party}")).run(function(p, x))

    def test_operation_stays_on_its_device(self, case: str) -> None:
        """The same for every secret operation, with weights and clear values."""
        chosen = CASES[case]
        program = secure_eval.capture(chosen.model(), chosen.inputs())
        for number in range(self.cls.parties):
            party = Party(self.cls, Counting(f"party{number}"), 16)
            party.begin(program)
            party.share_weights_on_meta()
            public, inputs = party.meta_inputs()
            with OneDevice("meta"):
                party.open_weights(Recorder())
                party.evaluate(Recorder(), public, inputs)

    # -- what parties see ------------------------------------------------------------------------------
    # ------------------------------

    def test_what_parties_see_does_not_depend_on_secrets(self, step: str) -> None:
        """Two very different secrets, one distribution of every message and of every opening, by bytes."""
        if self.cls.parties == 1:
            return
        function, shape = STEPS[step]
        parties = [f"party{i}" for i in range(self.cls.parties)]
        seen: list[dict[tuple[Any, ...], Tensor]] = []
        for value in (0.0, 27.3):
            x = ring.encode(torch.full(shape, value, dtype=torch.float64), 16)
            seen.append(dict(views(self.run(function, x, record=True).traffic, parties)))
        assert seen[0].keys() == seen[1].keys() and seen[0]
        tested = 0
        for key, tensor in seen[0].items():
            z = two_sample_z(tensor, seen[1][key])
            if z == z:
                tested += 1
                assert z < Z_LIMIT, (key, z)
        assert tested >= 0.5 * len(seen[0]), (
            f"only {tested} of {len(seen[0])} messages are large enough to test"
        )

    def test_two_runs_open_different_values(self) -> None:
        if self.cls.parties == 1:
            return
        x = torch.arange(64)
        parties = [f"party{i}" for i in range(self.cls.parties)]

        async def function(p: Protocol, x: Secret) -> Secret:
            return await p.truncate(await p.square(x), 3)

        first, second = (dict(views(self.run(function, x, record=True).traffic, parties)) for _ in range(2))
        assert first and first.keys() == second.keys()
        assert not [key for key in first if torch.equal(first[key], second[key])]

    def test_only_declared_outputs_leave(self) -> None:
        """The client gets one reply a party, of the declared output's shape; nothing else goes to a role
        outside the parties.
        """
        case = CASES["softmax"]
        with secure_eval.compile(case.model(), case.inputs(), self.protocol, device=self.device) as secure:
            record = observe(secure._launcher._transports)  # type: ignore[attr-defined]
            secure(*case.inputs())
        outside = [
            t for t in record if t.sent and t.role.startswith("party") and not t.peer.startswith("party")
        ]
        assert {t.peer for t in outside} == {"client"} and {t.phase for t in outside} == {"online"}
        by_role: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        for t in outside:
            by_role[t.role].append(tuple(t.tensor.shape))
        assert all(shape in ((1,), case.shapes[0]) for shapes in by_role.values() for shape in shapes)
        assert (
            sum(shape == case.shapes[0] for shapes in by_role.values() for shape in shapes) == self.cls.parts
        )

    def test_each_query_needs_its_own_offline_phase(self) -> None:
        case = CASES["mul"]
        with secure_eval.compile(case.model(), case.inputs(), self.protocol, device=self.device) as secure:
            secure(*case.inputs())
            try:
                secure._launcher.online(dict(zip(secure.program.inputs, case.inputs(), strict=True)))
            except RuntimeError:
                return
        raise AssertionError("a second online phase ran without an offline phase of its own")
