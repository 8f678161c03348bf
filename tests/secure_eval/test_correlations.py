"""Dealt randomness: shares of a valid correlation for any masks, in the plan's order, each once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.correlations.correlation import (
    Correlation,
    CorrelationReuse,
    Dealing,
    Fields,
    Recorder,
    Store,
    combine,
    expand,
)
from secure_eval.correlations.kinds import And4, BitMask, Mask, Product
from secure_eval.kernels import compare_radix16
from secure_eval.network.transport import TensorSpec
from secure_eval.protocols.base import LINEAR, MATMUL, MUL
from secure_eval.randomness import RandomnessReuse, Stream, new_seed
from secure_eval.testing.harness import evaluate

EXTREMES = torch.tensor(
    [0, 1, -1, 2**63 - 1, -(2**63), 2**62, -(2**62), 2**62 - 1, 0x5555555555555555, 15, 16, -16]
)


def masks(count: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.cat([EXTREMES, torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)])


def dealt(
    plan: Sequence[Correlation], weights: dict[str, dict[str, Tensor]] | None = None
) -> tuple[list[Fields], list[Fields], list[Fields]]:
    """The clear values and both parties' fields of a plan, dealt and expanded as the roles do it."""
    seeds = [new_seed(), new_seed()]

    def streams() -> tuple[Stream, Stream]:
        return Stream(seeds[0], "dealer to party0"), Stream(seeds[1], "dealer to party1")

    dealer, parties = streams(), streams()
    messages = list(Dealing(dealer, weights or {}, "cpu").deal(plan, 1))
    zero = [expand(c, 0, parties[0], 1, n, "cpu") for n, c in enumerate(plan)]
    one = [expand(c, 1, parties[1], 1, n, "cpu") for n, c in enumerate(plan)]
    clear = []
    for n, c in enumerate(plan):
        assert [TensorSpec.of(m) for m in messages[n]] == [f.spec for f in c.derived()]
        one[n].update({f.name: m for f, m in zip(c.derived(), messages[n], strict=True)})
        fields = [*c.random(), *c.derived()]
        assert set(zero[n]) == set(one[n]) == {f.name for f in fields}
        for f in fields:
            assert zero[n][f.name].dtype == one[n][f.name].dtype == f.spec.dtype
        clear.append({f.name: combine(f, zero[n][f.name], one[n][f.name]) for f in fields})
    return clear, zero, one


def check_mask(mask: Mask, values: Fields) -> None:
    """Each field against Python integers."""
    for i, r in enumerate(values["r"].reshape(-1).tolist()):
        unsigned = r % 2**64
        t = unsigned >> mask.shift
        for j in range(1, mask.degree + 1):
            if f"power{j}" in values:
                assert values[f"power{j}"].reshape(-1)[i].item() == ring.wrap(t**j)
            if mask.shift:
                excess = (unsigned >> 63) * (t**j - (t - 2 ** (64 - mask.shift)) ** j)
                assert excess % 2 ** (64 - mask.shift) == 0
                held = values[f"wrap{j}"].reshape(-1)[i].item()
                assert (held - excess // 2 ** (64 - mask.shift)) % 2**mask.shift == 0
        if mask.compare:
            words = [w % 2**16 for w in values["groups"].reshape(16, -1)[:, i].tolist()]
            assert words[:15] == [1 << (unsigned >> 4 * k & 15) for k in range(15)]
            assert words[15] == 1 << (unsigned >> 60 & 7) | (unsigned >> 63) << 15


MASKS = [
    Mask((412,), s, d, c)
    for s, d, c in (
        (0, 1, False),
        (0, 3, True),
        (1, 2, False),
        (16, 3, True),
        (17, 1, True),
        (32, 2, False),
        (48, 3, False),
    )
]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_mask_fields_for_random_and_extreme_masks(mask: Mask) -> None:
    r = masks(400)
    values = {"r": r, **mask.derive({"r": r}, lambda reference: {})}
    assert {f.name for f in [*mask.random(), *mask.derived()]} <= set(values)
    for f in mask.derived():
        assert TensorSpec.of(values[f.name]) == f.spec
    check_mask(mask, values)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_dealt_shares_of_masks_add_up(mask: Mask) -> None:
    check_mask(mask, dealt([mask])[0][0])


@pytest.mark.parametrize(
    ("op", "x", "y"), [(MUL, (3, 4), (4,)), (MATMUL, (2, 3, 4), (4, 5)), (LINEAR, (3, 4), (5, 4))]
)
def test_products_of_masks_and_of_weights(op: object, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    weight = {"r": torch.randint(-(2**63), 2**63 - 1, y)}
    plan = [Mask(x), Mask(y), Product(op, 0, 1, x, y), Product(op, 0, "w", x, y)]  # type: ignore[arg-type]
    clear, _, _ = dealt(plan, {"w": weight})
    assert torch.equal(clear[2]["product"], op(clear[0]["r"], clear[1]["r"]))  # type: ignore[operator]
    assert torch.equal(clear[3]["product"], op(clear[0]["r"], weight["r"]))  # type: ignore[operator]


@pytest.mark.parametrize("need_p", [True, False])
def test_and4_products(need_p: bool) -> None:
    clear = dealt([And4(300, need_p)])[0][0]
    assert clear["masks"].shape == (7 if need_p else 6, 300)
    for word, monomial in zip(clear["products"], compare_radix16.monomials(need_p), strict=True):
        wanted = torch.full((300,), 255, dtype=torch.uint8)
        for i in monomial:
            wanted &= clear["masks"][i]
        assert torch.equal(word, wanted)


@pytest.mark.parametrize(("shape", "value_shape"), [((13,), (13,)), ((3, 5, 1), (5, 4)), ((), (2,))])
def test_bit_masks_as_bits_as_ring_elements_and_times_a_mask(
    shape: tuple[int, ...], value_shape: tuple[int, ...]
) -> None:
    clear, _, _ = dealt([Mask(value_shape), BitMask(shape), BitMask(shape, 0, value_shape)])
    for fields in clear[1:]:
        count = fields["ring"].numel()
        bits = compare_radix16.unpack_bits(fields["packed"], count).view(shape)
        assert torch.equal(fields["ring"], bits.to(torch.int64))
    assert torch.equal(clear[2]["product"], clear[2]["ring"] * clear[0]["r"])


def test_fresh_seeds_deal_fresh_shares_and_no_share_is_the_value() -> None:
    plan = [Mask((64,), 16, 2, True), And4(64, True)]
    (first, zero, one), (second, _, _) = dealt(plan), dealt(plan)
    for n in range(2):
        for name, value in first[n].items():
            assert not torch.equal(value, second[n][name])
            assert not torch.equal(value, zero[n][name]) and not torch.equal(value, one[n][name])


def store_of(plan: Sequence[Correlation]) -> Store:
    store = Store()
    for n, correlation in enumerate(plan):
        store.put(correlation, {"r": torch.tensor([n])})
    return store


def test_each_correlation_is_handed_out_once() -> None:
    store = store_of([Mask((1,)), Mask((1,), 2)])
    assert store.peek(1)["r"].item() == 1
    assert store.next(Mask((1,))) == (0, {"r": torch.tensor([0])})
    with pytest.raises(CorrelationReuse, match="correlation 0 was used"):
        store.peek(0)
    assert store.next(Mask((1,), 2))[0] == 1
    with pytest.raises(CorrelationReuse, match="own offline phase"):
        store.next(Mask((1,)))


@pytest.mark.parametrize(
    "asked",
    [Mask((2,)), Mask((1,), 3), Mask((1,), degree=2), Mask((1,), compare=True), And4(1, True)],
    ids=str,
)
def test_another_correlation_than_the_next_is_refused(asked: Correlation) -> None:
    store = store_of([Mask((1,)), asked])
    with pytest.raises(CorrelationReuse, match="was dealt for"):
        store.next(asked)
    assert store.next(Mask((1,)))[0] == 0  # nothing was lost


def test_a_query_cannot_be_dealt_twice() -> None:
    plan = [Mask((3,), 4)]
    dealing = Dealing((Stream(new_seed(), "a"), Stream(new_seed(), "b")), {}, "cpu")
    list(dealing.deal(plan, 1))
    with pytest.raises(RandomnessReuse):
        list(dealing.deal(plan, 1))
    list(dealing.deal(plan, 2))
    stream = Stream(new_seed(), "a")
    expand(plan[0], 0, stream, 5, 0, "cpu")
    with pytest.raises(RandomnessReuse):
        expand(plan[0], 0, stream, 5, 0, "cpu")


def test_recorder_writes_the_plan_and_deals_shapes() -> None:
    recorder = Recorder()
    plan = [Mask((2, 3), 4, 2, True), BitMask((5,), 0, (2, 5))]
    for number, correlation in enumerate(plan):
        got, fields = recorder.next(correlation)
        assert got == number
        assert {k: TensorSpec.of(v) for k, v in fields.items()} == {
            f.name: f.spec for f in [*correlation.random(), *correlation.derived()]
        }
    assert recorder.plan == plan


def test_the_plan_names_what_is_used_and_nothing_else() -> None:
    from secure_eval.protocols import get

    result = evaluate(get("dealer2pc"), lambda p, x: p.square(x), torch.arange(6).view(2, 3))
    assert result.plan == (Mask((2, 3), degree=2),)
