"""Fixed point encoding, wrap-around, and matrix products modulo 2^64."""

from __future__ import annotations

import pytest
import torch

from secure_eval import ring


def full_range(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [0, 1, 8, 16, 30, 48])
def test_decode_inverts_encode_to_half_a_unit(bits: int) -> None:
    x = torch.linspace(-100, 100, 4001, dtype=torch.float64)
    assert float((ring.decode(ring.encode(x, bits), bits) - x).abs().max()) <= 2.0 ** -(bits + 1)


def test_encode_rounds_to_the_nearest() -> None:
    assert ring.encode(torch.tensor([0.74, 0.76, -0.74, -0.76]), 1).tolist() == [1, 2, -1, -2]


def test_encode_keeps_integers_exactly() -> None:
    x = torch.tensor([2**61 + 1, -(2**61) - 1, 3])
    assert torch.equal(ring.encode(x, 0), x)
    assert ring.encode(torch.tensor([True, False]), 0).tolist() == [1, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2.0**46, -(2.0**46), 1e30])
def test_encode_refuses_what_does_not_fit(value: float) -> None:
    with pytest.raises(ring.EncodingError, match="below 2"):
        ring.encode(torch.tensor([1.0, value]), 16)


def test_encode_takes_what_just_fits() -> None:
    largest = 2.0**46 - 2.0**-6
    assert ring.encode(torch.tensor([largest], dtype=torch.float64), 16).item() == round(largest * 2**16)


def test_encode_of_nothing_and_on_meta() -> None:
    assert ring.encode(torch.empty(0, 3), 16).shape == (0, 3)
    assert ring.encode(torch.empty(2, 3, device="meta"), 16).device.type == "meta"


@pytest.mark.parametrize(
    "value", [0, 1, -1, 2**63 - 1, -(2**63), 2**63, 2**64, 2**64 + 5, -(2**64) - 5, 3**70]
)
def test_wrap_is_the_signed_representative(value: int) -> None:
    wrapped = ring.wrap(value)
    assert -(2**63) <= wrapped < 2**63 and (wrapped - value) % 2**64 == 0


@pytest.mark.parametrize("bits", [0, 1, 15, 32, 63])
def test_logical_shift_equals_unsigned_division(bits: int) -> None:
    x = torch.cat([full_range(200, seed=0), torch.tensor([0, -1, 2**63 - 1, -(2**63)])])
    assert [v % 2**64 for v in ring.shift_right_logical(x, bits).tolist()] == [
        (v % 2**64) >> bits for v in x.tolist()
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 5), (5, 4)),
        ((2, 3, 5), (2, 5, 4)),
        ((2, 1, 3, 5), (4, 5, 2)),
        ((1, 1), (1, 1)),
        ((3, 700), (700, 2)),
    ],
)
def test_limb_product_equals_the_int64_product(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, y = (full_range(*s, seed=i) for i, s in enumerate(shapes))
    assert torch.equal(ring.matmul_by_limbs(x, y), torch.matmul(x, y))
    assert torch.equal(ring.matmul(x, y), torch.matmul(x, y))


@pytest.mark.parametrize("value", [-1, 2**63 - 1, -(2**63)])
def test_limb_product_of_extremes(value: int) -> None:
    x = torch.full((2, 64), value)
    assert torch.equal(ring.matmul_by_limbs(x, x.T), torch.matmul(x, x.T))


def test_int64_product_is_the_product_modulo_the_ring() -> None:
    x, y = full_range(2, 3, seed=8), full_range(3, 2, seed=9)
    wanted = [
        [ring.wrap(sum(a * b for a, b in zip(row, column, strict=True))) for column in y.T.tolist()]
        for row in x.tolist()
    ]
    assert ring.matmul(x, y).tolist() == wanted


def test_limb_product_refuses_inner_sizes_that_round() -> None:
    with pytest.raises(ValueError, match="2\\^21"):
        ring.matmul_by_limbs(
            torch.empty(1, 2**21 + 1, dtype=torch.int64, device="meta"),
            torch.empty(2**21 + 1, 1, dtype=torch.int64, device="meta"),
        )


@pytest.mark.parametrize("inner", [1, 3, 384, 1537])
def test_matmul_by_size_is_exact_whatever_the_sizes(inner: int) -> None:
    generator = torch.Generator().manual_seed(inner)
    for x_bits in (1, 15, 31, 47, 63):
        for y_bits in (1, 20, 31, 63):
            x = torch.randint(-(2**x_bits), 2**x_bits - 1, (2, 5, inner), generator=generator)
            y = torch.randint(-(2**y_bits), 2**y_bits - 1, (inner, 4), generator=generator)
            assert torch.equal(ring.matmul_by_size(x, y), torch.matmul(x, y))
    least = torch.full((2, inner), -(2**63))
    assert torch.equal(ring.matmul_by_size(least, least.T.contiguous()), torch.matmul(least, least.T))
    assert ring.matmul_by_size(x[:, :, :0], y[:0]).shape == (2, 5, 4)
