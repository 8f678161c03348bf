"""Random programs under every protocol: as near to the float64 reference as the derived bounds say, and as dear as predicted."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

import secure_eval
from secure_eval import protocols
from secure_eval.operations import OPERATIONS
from secure_eval.program import Node
from secure_eval.protocols.base import Protocol
from secure_eval.testing.bounds import RELATIVE
from tests.conformance.random_programs import DRAWS, Drawn, programs

DRAWN = ("share_input", "share_weight", *DRAWS)
SHORT = settings(
    max_examples=70,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
LONG = settings(SHORT, max_examples=int(os.environ.get("RANDOM_PROGRAMS", "10000")), derandomize=False)


def run(drawn: Drawn, protocol: str) -> None:
    """Every output within its bound, every count as predicted."""
    with secure_eval.compile(drawn.program, protocol=protocol, fraction_bits=drawn.fraction_bits) as secure:
        outputs = secure(**drawn.inputs)
        assert secure.measurement.communication() == secure.predicted().communication()
    for ref, got, wanted in zip(drawn.program.outputs, outputs, drawn.expected, strict=True):
        off = (got.double() - wanted.value).abs()
        # Outputs leave with the program's fraction bits: what had more is truncated.
        allowed = wanted.error + 2.0**-drawn.fraction_bits + RELATIVE * wanted.value.abs()
        worst = float((off / allowed).max()) if off.numel() else 0.0
        assert worst <= 1, (
            f"{ref} is {worst:.3g} times its bound off: {got.tolist()}, not {wanted.value.tolist()}"
        )


def check_examples(protocol: str, profile: settings, chosen: int | None = None) -> None:
    def check(drawn: Drawn) -> None:
        run(drawn, protocol)

    test = profile(given(programs())(check))
    (test if chosen is None else seed(chosen)(test))()


@pytest.mark.parametrize("protocol", protocols.names())
def test_random_programs(protocol: str) -> None:
    check_examples(protocol, SHORT)


Make = Callable[..., Awaitable[Any]]


async def off_by_a_little(rule: Make, p: Protocol, node: Node, *args: Any) -> Any:
    return p.add_real(await rule(p, node, *args), 2.0**-9)


async def swapped(rule: Make, p: Protocol, node: Node, c: Any, x: Any, y: Any) -> Any:
    return await rule(p, node, c, y, x)


async def cut_off(rule: Make, p: Protocol, node: Node, x: Any, y: Any) -> Any:
    """A public summand rounded to the fraction bits that a whole number has."""
    for number, value in ((x, y), (y, x)):
        if isinstance(number, float) and value.fraction_bits == 0:
            return p.add_public(value, round(number))
    return await rule(p, node, x, y)


async def flipped(rule: Make, p: Protocol, node: Node, x: Any, y: Any) -> Any:
    return p.add_public(p.scale(await rule(p, node, x, y), -1), 1)


@pytest.mark.parametrize(
    ("operation", "mutant"),
    (
        ("mul", off_by_a_little),
        ("linear", off_by_a_little),
        ("view", off_by_a_little),
        ("where", swapped),
        ("add", cut_off),
        ("less", flipped),
    ),
)
def test_a_wrong_engine_is_noticed(operation: str, mutant: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    row = OPERATIONS[operation]
    monkeypatch.setitem(OPERATIONS, operation, replace(row, run=partial(mutant, row.run)))
    with pytest.raises(AssertionError, match="times its bound off"):
        check_examples("plain", settings(SHORT, phases=[Phase.generate], max_examples=1000))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_secret_operation_is_drawn(operation: str) -> None:
    assert operation in DRAWN, f"{operation!r} is not drawn in random_programs.py"


def test_bounds_are_tight_and_programs_use_everything_that_is_drawn() -> None:
    """Most values are known to better than 2^-8 of max(1, value), and every operation is met."""
    seen: Counter[str] = Counter()
    bounds: list[torch.Tensor] = []

    @settings(SHORT, max_examples=700)
    @given(programs())
    def collect(drawn: Drawn) -> None:
        seen.update(n.op for n in drawn.program.nodes if n.level == "secret")
        bounds.extend((a.error / a.value.abs().clamp(min=1)).flatten() for a in drawn.expected)

    collect()
    assert not set(DRAWN) - set(seen)
    assert float((torch.cat(bounds) < 2.0**-8).double().mean()) > 0.85


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("protocol", protocols.names())
def test_many_random_programs(protocol: str) -> None:
    """Others in each run: RANDOM_PROGRAMS_SEED=<the number printed> repeats one, RANDOM_PROGRAMS=<n> sets how many."""
    chosen = int(os.environ.get("RANDOM_PROGRAMS_SEED", secrets.randbits(32)))
    print(f"RANDOM_PROGRAMS_SEED={chosen} repeats this run")
    check_examples(protocol, LONG, chosen)
