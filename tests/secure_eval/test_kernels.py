"""Every compiled loop equals the torch function that defines it, bit for bit; shapes on meta are those of
real tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.counting import WorkCounter
from secure_eval.kernels import compare_radix16, compare_radix256, compiled, masked_opening
from secure_eval.kernels.kernel import Kernel
from secure_eval.kernels.meta_tensors import MetaMemo, meta
from secure_eval.kernels.observation import observing
from secure_eval.measurement import Ledger, Work

EXTREMES = torch.tensor(
    [0, 1, -1, 2**63 - 1, -(2**63), 2**62, -(2**62), 2**62 - 1, 0x0123456789ABCDEF, 15, 16, 1 << 60]
)
SIZES = ((), (1,), (7,), (8, 3), (5, 1, 409), (2500,))

KERNELS: dict[str, Kernel[..., Any]] = {
    k.name: k
    for module in (compare_radix16, compare_radix256, masked_opening)
    for k in vars(module).values()
    if isinstance(k, Kernel)
}


class Random:
    """Uniform tensors, every third of them from the extremes."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)
        self._count = 0

    def __call__(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        self._count += 1
        bits = torch.randint(0, 256, (*shape, dtype.itemsize), generator=self._generator, dtype=torch.uint8)
        x = bits.view(dtype).view(shape)
        if self._count % 3 == 0 and dtype == torch.int64:
            x = EXTREMES[torch.randint(0, len(EXTREMES), shape, generator=self._generator)]
        return x


def byte(r: Random, *shape: int) -> Tensor:
    return r(*shape, dtype=torch.uint8)


def packed(count: int) -> int:
    return -(-count // 8)


def cases(r: Random, s: tuple[int, ...]) -> Iterator[tuple[str, tuple[Tensor, ...], dict[str, Any]]]:
    """Calls of every kernel for values of shape s."""
    n = torch.Size(s).numel()
    yield "indicators", (r(*s),), {}
    for thresholds in ((0,), (-5, 3 << 40, -(2**63))):
        words = compare_radix16.words(n * len(thresholds))
        groups = r(16, *s, dtype=torch.int16)
        for first in (True, False):
            parameters = {"thresholds": thresholds, "add_public": first}
            yield "compare_first", (r(*s), groups, byte(r, 7, words)), parameters
            inputs = r(*s), byte(r, 8, *s, 32), byte(r, compare_radix256.INPUTS, packed(n * len(thresholds)))
            yield "byte_compare_first", inputs, parameters
    yield "byte_indicators", (r(*s),), {}
    gate = byte(r, compare_radix256.INPUTS, packed(n)), byte(r, compare_radix256.INPUTS, packed(n))
    yield "byte_mask_products", gate[:1], {}
    dealt = byte(r, len(compare_radix256.monomials()), packed(n))
    for first in (True, False):
        last = (*gate, dealt, byte(r, packed(n)), byte(r, *s) & 1)
        yield "byte_compare_last", last, {"add_public": first}
    words, products = compare_radix16.words(n), [len(compare_radix16.monomials(p)) for p in (True, False)]
    for need_p in (True, False):
        yield "mask_products", (byte(r, compare_radix16.inputs(need_p), words),), {"need_p": need_p}
    for first in (True, False):
        level = (byte(r, 7, words), byte(r, 7, words), byte(r, products[0], words), byte(r, words))
        yield "compare_second", (*level, byte(r, 6, words // 4)), {"add_public": first}
        last = (
            byte(r, 6, words // 4),
            byte(r, 6, words // 4),
            byte(r, products[1], words // 4),
            byte(r, words // 4),
        )
        yield "compare_last", (*last, byte(r, *s) & 1), {"add_public": first}
        yield "bit_share", (byte(r, packed(n)), r(*s)), {"add_public": first}
    yield "pack_masked", (byte(r, *s) & 1, byte(r, packed(n))), {}
    yield "bits_as_ring", (byte(r, packed(n)),), {"shape": s}
    yield "product_share", (r(*s), r(*s), r(*s), r(*s), r(*s)), {}
    for shift in (0, 1, 16, 17, 32, 40, 61):
        for degree in (1, 2, 3, 5):
            if shift or degree > 1:
                yield "mask_powers", (r(*s),), {"shift": shift, "degree": degree}
            coefficients = tuple(r(degree + 1).tolist())
            yield "public_polynomial", (r(*s),), {"coefficients": coefficients, "shift": shift}
            wraps = [r(*s, dtype=ring.smallest_dtype(shift)) for _ in range(degree if shift else 0)]
            for first in (True, False):
                parameters = {"coefficients": coefficients, "shift": shift, "add_public": first}
                yield "polynomial_share", (r(*s), *(r(*s) for _ in range(degree)), *wraps), parameters
    for first in (True, False):
        mask, parameters = byte(r, packed(n)), {"add_public": first}
        yield "wrap_message", (r(*s), mask), parameters
        for shift in (1, 16, 17, 40):
            dealt = r(*s, dtype=ring.smallest_dtype(shift))
            opened = byte(r, packed(n)), byte(r, packed(n))
            yield "truncation_share", (r(*s), *opened, mask, dealt), {"shift": shift, **parameters}
    for first in (True, False):
        opened = byte(r, packed(3 * n)), byte(r, packed(n))
        yield "both_share", (*opened, r(3, *s), r(*s), r(3, *s)), {"add_public": first}
    for bits in (s, (3, *s), *([(*s[:-1], 1)] if s else [])):
        shape = tuple(torch.broadcast_shapes(bits, s))
        count = torch.Size(bits).numel()
        yield "select_share", (byte(r, packed(count)), r(*bits), r(*s), r(*s), r(*shape)), {}


def tensors(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_kernel_equals_its_torch_function(shape: tuple[int, ...]) -> None:
    seen = set()
    for name, args, parameters in cases(Random(len(shape) + 1), shape):
        before = [a.clone() for a in args]
        got, expected = KERNELS[name](*args, **parameters), KERNELS[name].reference(*args, **parameters)
        assert isinstance(got, tuple) == isinstance(expected, tuple), name
        for a, b in zip(tensors(got), tensors(expected), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b), (name, shape, parameters)
        assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True)), f"{name} wrote to its input"
        seen.add(name)
    assert seen == set(KERNELS)


def test_every_loop_stands_for_a_kernel() -> None:
    assert set(compiled.LOOPS) <= set(KERNELS)


@pytest.mark.parametrize("shape", [(7,), (5, 1, 409)], ids=str)
def test_meta_has_the_shapes_and_counts_fused_traffic(shape: tuple[int, ...]) -> None:
    for name, args, parameters in cases(Random(9), shape):
        ledger = Ledger()
        with observing(WorkCounter(ledger)):
            result = KERNELS[name](*(meta(tuple(a.shape), a.dtype) for a in args), **parameters)
        real = tensors(KERNELS[name](*args, **parameters))
        assert [(t.shape, t.dtype) for t in tensors(result)] == [(t.shape, t.dtype) for t in real], name
        counted = Work(1, 0, sum(t.numel() * t.element_size() for t in (*args, *real)))
        assert ledger.counts.work == {name: counted}, name


def test_loops_read_tensors_that_are_not_contiguous() -> None:
    r = Random(4)
    x, c, rho, product = (r(6, 10).t() for _ in range(4))
    mask = byte(r, packed(60))
    for name, args, parameters in (
        ("indicators", (x,), {}),
        ("mask_powers", (x,), {"shift": 16, "degree": 3}),
        ("polynomial_share", (c, x), {"coefficients": (3, 5), "shift": 0, "add_public": True}),
        ("select_share", (mask, rho, x, c, product), {}),
    ):
        got, expected = KERNELS[name](*args, **parameters), KERNELS[name].reference(*args, **parameters)
        assert all(torch.equal(a, b) for a, b in zip(tensors(got), tensors(expected), strict=True)), name


def test_kernels_off_the_cpu_are_the_torch_function(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setitem(compiled.LOOPS, "indicators", lambda r: called.append("native"))
    assert KERNELS["indicators"](meta((3,), torch.int64)).shape == (16, 3) and not called


@pytest.mark.parametrize("mode", [MetaMemo, lambda: WorkCounter(Ledger())])
def test_memo_returns_what_torch_returns(mode: Callable[[], MetaMemo]) -> None:
    def steps(x: Tensor) -> list[Tensor]:
        y = x.transpose(0, 1)
        z = y + 1
        z += y
        return [
            y,
            z,
            x * 2,
            x * 2.0,
            (x @ y).sum(0, keepdim=True),
            x.to(torch.uint8),
            torch.stack([x, x]),
            x.expand(2, 3, 4),
            x.reshape(-1)[:1] @ x[:1, :1],  # squeezed in place inside torch
        ]

    real = steps(torch.ones(3, 4, dtype=torch.int64))
    for _ in range(2):
        with mode():
            got = steps(torch.empty(3, 4, dtype=torch.int64, device="meta"))
        assert [(t.shape, t.dtype, t.stride()) for t in got] == [(t.shape, t.dtype, t.stride()) for t in real]


def test_work_of_products_is_counted_once_seen_or_remembered() -> None:
    x = meta((4, 5, 6), torch.int64)
    for _ in range(2):
        ledger = Ledger()
        with WorkCounter(ledger):
            torch.matmul(x, meta((6, 7), torch.int64))
        assert ledger.counts.macs_by_bits == {64: 4 * 5 * 6 * 7}
