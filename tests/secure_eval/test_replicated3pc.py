"""What three parties with replicated shares send, step by step; what any protocol must do is in tests/conformance."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

import secure_eval
from secure_eval import protocols
from secure_eval.protocols.base import LINEAR, MUL, Protocol, Secret
from secure_eval.scheduler import gather
from secure_eval.testing import evaluate, observe

CLS = protocols.get("replicated3pc")


def sent(function: Any, *values: torch.Tensor, **options: Any) -> list[int]:
    """Bytes that each party sends online."""
    result = evaluate(CLS, function, *values, record=True, **options)
    total: Counter[str] = Counter()
    for t in result.traffic:
        if t.phase == "online" and t.sent and t.peer.startswith("party"):
            total[t.role] += t.tensor.numel() * t.tensor.element_size()
    return [total[f"party{i}"] for i in range(3)]


@pytest.mark.parametrize("inner", [1, 8, 500])
def test_a_product_costs_one_element_of_the_result_a_party(inner: int) -> None:
    x, y = torch.ones(4, inner, dtype=torch.int64), torch.ones(6, inner, dtype=torch.int64)
    result = evaluate(CLS, lambda p, x, y: p.bilinear(LINEAR, x, y), x, y)
    assert (result.bytes, result.rounds) == (4 * 6 * 8, 1)
    assert sent(lambda p, x, y: p.bilinear(LINEAR, x, y), x, y) == [4 * 6 * 8] * 3


def test_a_truncation_opens_a_bit_and_makes_two_terms_replicated() -> None:
    """Two parties: a bit and 8 bytes an element; the one that deals: 2 bytes, modulo 2^shift."""
    x = torch.arange(800)
    assert sorted(sent(lambda p, x: p.truncate(x, 12), x)) == [
        800 * 2,
        800 // 8 + 800 * 8,
        800 // 8 + 800 * 8,
    ]
    assert evaluate(CLS, lambda p, x: p.truncate(x, 12), x).rounds == 2


def test_parties_take_turns_in_dealing() -> None:
    x = torch.arange(800)

    async def three(p: Protocol, x: Secret) -> list[Secret]:
        return await gather(*(p.truncate(Secret(x.shares, 40), s) for s in (10, 11, 12)))

    assert len(set(sent(three, x))) == 1


def test_independent_steps_share_rounds_although_parties_do_different_things() -> None:
    x, y = torch.arange(64), torch.arange(64) - 32

    async def several(p: Protocol, x: Secret, y: Secret) -> list[Secret]:
        return await gather(
            p.truncate(Secret(x.shares, 40), 8), p.bilinear(MUL, x, y), p.truncate(Secret(y.shares, 40), 8)
        )

    result = evaluate(CLS, several, x, y)
    assert result.rounds == 2
    assert torch.equal(result.value[1], x * y)


def test_nobody_but_the_three_parties_and_the_owners_of_data_takes_part() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2)).eval()
    x = torch.randn(3, 6)
    with secure_eval.compile(model, (x,), "replicated3pc") as secure:
        record = observe(secure._launcher._transports)  # type: ignore[attr-defined]
        secure(x)
        secure(x)
        assert secure.measurement.offline.bytes == 0
    assert {t.phase for t in record} == {"online"}
    assert {t.role for t in record} == {"party0", "party1", "party2", "client"}


def test_common_seeds_are_known_to_two_parties_each() -> None:
    torch.manual_seed(0)
    with secure_eval.compile(nn.Linear(4, 3).eval(), (torch.randn(2, 4),), "replicated3pc") as secure:
        parties = secure._launcher._parties  # type: ignore[attr-defined]
        keys = [{group: stream._key for group, stream in p._common.items()} for p in parties]
    for i, mine in enumerate(keys):
        assert set(mine) == {g for g in CLS.seed_groups if i in g}
    assert len({key for mine in keys for key in mine.values()}) == 3
    for a, b in CLS.seed_groups:
        assert keys[a][a, b] == keys[b][a, b]
