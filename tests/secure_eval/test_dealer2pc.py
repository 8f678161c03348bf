"""The two-party protocol over the whole range of its arguments; what any protocol must do is in
tests/conformance.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secure_eval import protocols, ring
from secure_eval.kernels import compare_radix16
from secure_eval.protocols.base import LINEAR, MUL, Protocol, Secret
from secure_eval.protocols.dealer2pc import Dealer2PC
from secure_eval.scheduler import gather
from secure_eval.testing.conformance import any_values, ulps_off
from secure_eval.testing.harness import evaluate

CLS = protocols.get("dealer2pc")


def test_sign_of_a_million_values() -> None:
    x = torch.cat([any_values(500_000, 2), any_values(500_000, 3, 1 << 20)])
    assert torch.equal(evaluate(CLS, lambda p, x: p.msb(x), x).value, (x < 0).to(torch.uint8))


@pytest.mark.parametrize("shift", [0, 1, 16, 30, 44])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomials_of_the_truncated_value_are_exact(shift: int, degree: int) -> None:
    """On the whole range, where powers wrap around the ring many times: x + r wrapped or not, the value is
    the same.
    """
    x = any_values(20_000, 4)
    bits = shift + 4
    coefficients = (-3.0, 5.0, -7.0, 1.0)[: degree + 1]
    out = 4 * degree + 2

    async def function(p: Protocol, x: Secret) -> list[Secret]:
        opened = await p.open_masked(x, shift=shift, degree=degree)
        return [await opened.truncated(), await opened.polynomial(coefficients, out)]

    y, value = evaluate(CLS, function, x, fraction_bits=bits).value
    wanted = sum(ring.wrap(round(c * 2.0 ** (out - 4 * j))) * y**j for j, c in enumerate(coefficients))
    assert torch.equal(value, wanted)
    assert int(ulps_off(y, x, shift).max() if shift else (y - x).abs().max()) <= (1 if shift else 0)


def test_coefficients_that_leave_no_bits_are_refused() -> None:
    async def function(p: Protocol, x: Secret) -> Secret:
        return await (await p.open_masked(x, degree=3)).polynomial([0.0, 0.0, 0.0, 1.0], 47)

    with pytest.raises(ValueError, match="at least 48, not 47"):
        evaluate(CLS, function, torch.arange(3))


@pytest.mark.parametrize(
    ("bits", "value"),
    [((3, 4), (3, 4)), ((2, 1, 4), (3, 4)), ((4,), (3, 4)), ((), (5,)), ((2, 3, 4), (3, 4))],
)
def test_selection_broadcasts(bits: tuple[int, ...], value: tuple[int, ...]) -> None:
    s, x = (
        any_values(0, 5)[: max(1, int(torch.tensor(bits).prod()))].reshape(bits),
        any_values(64, 6)[: int(torch.tensor(value).prod())].view(value),
    )

    async def function(p: Protocol, s: Secret, x: Secret) -> list[Secret]:
        return list(await p.select_with_bits(await p.msb(s), x))

    chosen, bit = evaluate(CLS, function, s, x).value
    assert torch.equal(bit, (s < 0).long()) and torch.equal(chosen, (s < 0).long() * x)


@pytest.mark.parametrize(
    "count, gates, rounds", [(8192, 8192 * 4 * 7 // 8 + 8192 * 6 // 8, 4), (1024, 1024 * 14 // 8, 3)]
)
def test_one_opening_serves_truncation_powers_comparison_and_selection(
    count: int, gates: int, rounds: int
) -> None:
    """8 bytes an element for the opening; its readings add only the comparison's and the selection's bits. Few elements take one
    level of gates."""
    x = any_values(count, 7)[:count]

    async def readings(p: Protocol, x: Secret) -> list[Secret]:
        opened = await p.open_masked(x, shift=16, degree=2, compare=True)
        negative = (await opened.less_than([0.0]))[0]
        return [
            await opened.truncated(),
            await opened.polynomial([0.0, 0.0, 1.0], 0),
            await p.select(negative, x),
        ]

    result = evaluate(CLS, readings, x, fraction_bits=16)
    assert result.bytes == count * 8 + gates + count // 8
    assert result.rounds == rounds
    assert torch.equal(result.value[2], torch.where(x < 0, x, 0))


def test_an_operand_is_opened_once_however_many_products_use_it() -> None:
    x, y = any_values(64, 8)[:64].view(8, 8), any_values(64, 9)[:64].view(8, 8)

    async def function(p: Protocol, x: Secret, y: Secret) -> list[Secret]:
        return await gather(p.bilinear(LINEAR, x, y), p.bilinear(MUL, x, y), p.bilinear(MUL, y, y))

    result = evaluate(CLS, function, x, y)
    assert (result.bytes, result.rounds) == (2 * 64 * 8, 1)
    assert torch.equal(result.value[0], LINEAR(x, y)) and torch.equal(result.value[2], y * y)


def test_a_fixed_weight_costs_nothing_online_but_the_other_operand() -> None:
    weight = torch.randn(300, 20, generator=torch.Generator().manual_seed(1))
    x = any_values(0, 10)[:20].view(1, 20)
    result = evaluate(CLS, lambda p, x, w: p.bilinear(LINEAR, x, w), x, weights=[weight])
    assert (result.bytes, result.rounds) == (20 * 8, 1)
    assert torch.equal(result.value, LINEAR(x, ring.encode(weight, 16)))


# -- the comparison circuit's local steps
# ------------------------------------------------------------------------------------------


def test_look_up_equals_integer_comparison_of_groups() -> None:
    r, c = any_values(200, 11, 1 << 62), any_values(200, 12, 1 << 62)
    r, c = torch.cat([r, r]), torch.cat([c, r])
    g, p, top = compare_radix16.look_up(c, compare_radix16.indicators(r), add_public=True)
    for i, (a, b) in enumerate(zip(c.tolist(), r.tolist(), strict=True)):
        assert top[i].item() == (a < 0) ^ (b < 0)
        for j in range(16):
            mask = 15 if j < 15 else 7
            x, y = a >> 4 * j & mask, b >> 4 * j & mask
            node, k = divmod(j, 4)
            assert (g[k][i].item() >> node & 1, p[k][i].item() >> node & 1) == (x < y, x == y)


def test_packing_is_undone(count: int = 77) -> None:
    generator = torch.Generator().manual_seed(2)
    for n in (1, 7, 8, 9, 64, count):
        bits = torch.randint(0, 2, (n,), generator=generator, dtype=torch.uint8)
        packed = compare_radix16.pack_bits(bits)
        assert packed.numel() == -(-n // 8) and torch.equal(compare_radix16.unpack_bits(packed, n), bits)
        nibbles = torch.randint(0, 16, (n,), generator=generator, dtype=torch.uint8)
        words = compare_radix16.split_nibbles(compare_radix16.pack_nibbles(nibbles))
        for k, word in enumerate(words):
            assert torch.equal(compare_radix16.unpack_split(word, n), nibbles >> k & 1)


def words(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("need_p", [True, False])
def test_carry_node_is_the_carry_formula(need_p: bool) -> None:
    g, p = words(1, 4, 50), words(2, 4, 50)
    inputs = torch.stack(compare_radix16.order(list(g), list(p), need_p))
    masks = words(3, *inputs.shape)
    products = torch.stack([_and([masks[i] for i in m]) for m in compare_radix16.monomials(need_p)])
    generate, propagate = compare_radix16.carry(inputs ^ masks, masks, products, g[3], need_p, True)
    assert torch.equal(generate, g[3] ^ (p[3] & g[2]) ^ (p[3] & p[2] & g[1]) ^ (p[3] & p[2] & p[1] & g[0]))
    assert (propagate is None) == (not need_p)
    if propagate is not None:
        assert torch.equal(propagate, p[3] & p[2] & p[1] & p[0])


def _and(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for t in tensors[1:]:
        total = total & t
    return total


def test_parts_and_contract() -> None:
    assert Dealer2PC.parts_of(0) == (0,) and Dealer2PC.parts_of(1) == (1,) and Dealer2PC.has_dealer
