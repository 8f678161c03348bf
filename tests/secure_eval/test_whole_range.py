"""Truncations and comparisons over the whole range of their arguments, under every protocol with shares."""

from __future__ import annotations

import pytest
import torch

from secure_eval import protocols
from secure_eval.protocols.base import Bits, Protocol, Secret
from secure_eval.testing.conformance import LIMIT, any_values, extremes, ulps_off
from secure_eval.testing.harness import evaluate

SHARED = ["dealer2pc", "replicated3pc"]


async def by_itself(p: Protocol, x: Secret, shift: int) -> Secret:
    return await p.truncate(Secret(x.shares, 48), shift)


async def with_other_readings(p: Protocol, x: Secret, shift: int) -> Secret:
    opened = await p.open_masked(Secret(x.shares, 48), shift=shift, degree=2)
    return await opened.truncated()


@pytest.mark.parametrize("truncate", [by_itself, with_other_readings])
@pytest.mark.parametrize("protocol", SHARED)
def test_truncation_over_the_whole_range_never_fails(protocol: str, truncate: object) -> None:
    """A million samples over all shifts: truncating shares locally would fail on half of them at these magnitudes."""
    edges = extremes()
    count = 1_000_000 // 48
    wrong: list[int] = []
    for shift in range(1, 49):
        large = LIMIT - 1 - any_values(count // 2, 100 + shift, 1 << 40).abs()
        x = torch.cat([any_values(count // 2, shift), large, edges, -edges])
        result = evaluate(protocols.get(protocol), lambda p, x, s=shift: truncate(p, x, s), x).value  # type: ignore[operator]
        if int(ulps_off(result, x, shift).max()) > 1:
            wrong.append(shift)
        exact = (x & ((1 << shift) - 1)) == 0
        assert torch.equal(result[exact], x[exact] >> shift)
    assert not wrong


@pytest.mark.parametrize("truncate", [by_itself, with_other_readings])
@pytest.mark.parametrize("protocol", SHARED)
def test_truncation_rounds_both_ways_without_bias_in_the_mean(protocol: str, truncate: object) -> None:
    """The upper neighbour comes with the probability of the part cut off: the mean is right."""
    x = torch.full((200_000,), (5 << 8) + 64)
    result = evaluate(protocols.get(protocol), lambda p, x: truncate(p, x, 8), x).value  # type: ignore[operator]
    assert set(result.tolist()) == {5, 6}
    assert abs(float(result.double().mean()) - 5.25) < 0.01  # ten standard deviations


@pytest.mark.parametrize("more", [20_000, 100])
@pytest.mark.parametrize("protocol", SHARED)
def test_comparison_is_exact_next_to_every_threshold(protocol: str, more: int) -> None:
    """Many values, and few: protocols may use other circuits for few."""
    thresholds = [0, 1, -1, 2**15, -(2**31), 2**47 + 1, LIMIT - 1, -(LIMIT - 1)]
    near = [t + d for t in thresholds for d in (-3, -2, -1, 0, 1, 2, 3) if abs(t + d) < LIMIT]
    x = torch.cat([torch.tensor(near), extremes(), any_values(more, 1)])

    async def function(p: Protocol, x: Secret) -> Bits:
        opened = await p.open_masked(x, compare=True)
        return await p.below(opened, thresholds)  # type: ignore[attr-defined]

    result = evaluate(protocols.get(protocol), function, x).value
    for row, t in zip(result, thresholds, strict=True):
        assert torch.equal(row, (x < t).to(torch.uint8)), t
