"""What the compiled loops of secure_eval/kernels/compiled gain over the torch functions that define them.

    python benchmarks/local_kernels.py [--elements 196608] [--repeats 15]

Each step runs on one core in four ways, in turn, so that the load of the machine weighs on all of them alike:
the torch function; the torch function on pieces that fit the cache (elementwise steps only); the loop; two
calls of the loop at once in two threads (wall time of both, halved: loops release the GIL). Milliseconds are
the best of the repeats, in CPU time of the thread (the two threads: wall time).

196,608 elements, two cores of an AMD EPYC (Zen 4) under other load, torch 2.13, numba 0.68:

    step                torch  pieces   loop  torch/loop  two threads
    indicators          19.44    5.89   0.98        19.8         1.95
    mask_powers        4.75    7.82   1.58         3.0         1.62
    mask_products        0.57    3.53      -           -            -
    compare_first       43.51       -   2.53        17.2         3.41
    compare_second       1.29       -      -           -            -
    compare_last         0.43       -      -           -            -
    polynomial_share     4.35    7.78   1.31         3.3         1.83
    pack_masked          0.06       -      -           -            -
    bits_as_ring         0.08       -      -           -            -
    select_share         1.01       -   0.26         3.8         0.30

With 4,096 elements the loops are 2 to 6 times faster. Two threads gain nothing in that table because both
cores were taken by other work. Compiling all five loops for one set of types takes about 10 s of CPU time,
once a machine; a later process loads them in 0.6 s. The AES stream gives 4.7 to 8 GB/s from 128 KiB on and
takes 13 us for a small tensor.

The torch functions of `indicators` and of the look-up in `compare_first` work on all sixteen groups at once.
Written as a Python loop over the groups they took about half as long (10 and 37 ms for 393,216 elements,
loop 1.5 and 5.1 ms): fewer, larger operations suit a GPU, and a CPU runs the loop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from secure_eval import ring
from secure_eval.kernels import compare_radix16, compiled
from secure_eval.kernels import masked_opening as local
from secure_eval.kernels.kernel import Kernel
from secure_eval.randomness import Stream, new_seed

Call = Callable[[], Any]
_PIECE = 4096


def _random(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8).view(dtype).view(shape)


def _pieces(kernel: Kernel[..., Any], tensors: list[Tensor], parameters: dict[str, Any]) -> Call:
    """The torch function on one cache-sized piece of the last dimension after the other."""

    def run() -> None:
        for parts in zip(*(t.split(_PIECE, -1) for t in tensors), strict=True):
            kernel.reference(*parts, **parameters)

    return run


def steps(n: int) -> list[tuple[Kernel[..., Any], list[Tensor], dict[str, Any], bool]]:
    """Kernel, inputs, parameters and whether it may be cut in pieces, for n elements."""
    words, byte = compare_radix16.words(n), torch.uint8
    products = [len(compare_radix16.monomials(p)) for p in (True, False)]
    wraps = [_random(n, dtype=ring.smallest_dtype(24)) for _ in range(3)]
    first = [
        _random(7, words, dtype=byte),
        _random(7, words, dtype=byte),
        _random(products[0], words, dtype=byte),
    ]
    last = [_random(6, words // 4, dtype=byte), _random(6, words // 4, dtype=byte)]
    last.append(_random(products[1], words // 4, dtype=byte))
    one, bit = {"add_public": True}, _random(-(-n // 8), dtype=byte)
    return [
        (compare_radix16.indicators, [_random(n)], {}, True),
        (local.mask_powers, [_random(n)], {"shift": 24, "degree": 3}, True),
        (compare_radix16.mask_products, [_random(7, words, dtype=byte)], {"need_p": True}, True),
        (
            compare_radix16.compare_first,
            [_random(n), _random(16, n, dtype=torch.int16), _random(7, words, dtype=byte)],
            {"thresholds": (0,), **one},
            False,
        ),
        (
            compare_radix16.compare_second,
            [*first, _random(words, dtype=byte), _random(6, words // 4, dtype=byte)],
            one,
            False,
        ),
        (
            compare_radix16.compare_last,
            [*last, _random(words // 4, dtype=byte), _random(n, dtype=byte) & 1],
            one,
            False,
        ),
        (
            local.polynomial_share,
            [_random(n) for _ in range(4)] + wraps,
            {"coefficients": (3, 5, 7, 9), "shift": 24, **one},
            True,
        ),
        (compare_radix16.pack_masked, [_random(n, dtype=byte) & 1, bit], {}, False),
        (local.bits_as_ring, [bit], {"shape": (n,)}, False),
        (local.wrap_message, [_random(n), bit], one, False),
        (
            local.truncation_share,
            [_random(n), bit, bit, bit, _random(n, dtype=torch.int16)],
            {"shift": 16, **one},
            False,
        ),
        (local.select_share, [bit, *(_random(n) for _ in range(4))], {}, False),
    ]


def best(calls: dict[str, Call], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of each call, the best of the repeats; the calls take turns."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            call()
            found[name] = min(found[name], (clock() - start) * 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compiled loops against the torch functions that define them."
    )
    parser.add_argument("--elements", type=int, default=196608)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pool = ThreadPoolExecutor(2)

    print(
        f"{'step':18s} {'torch':>8s} {'pieces':>8s} {'loop':>8s} {'torch/loop':>10s} {'2 threads':>9s} "
        f"{'first':>7s}"
    )
    for kernel, tensors, parameters, divisible in steps(options.elements):
        loop = compiled.LOOPS.get(kernel.name)
        calls: dict[str, Call] = {"torch": lambda k=kernel, t=tensors, p=parameters: k.reference(*t, **p)}
        if divisible:
            calls["pieces"] = _pieces(kernel, tensors, parameters)
        start = time.perf_counter()
        if loop is not None:
            calls["loop"] = lambda f=loop, t=tensors, p=parameters: f(*t, **p)
            calls["loop"]()
        first = time.perf_counter() - start
        ms = best(calls, options.repeats, time.thread_time)
        shown = {k: f"{v:.2f}" for k, v in ms.items()}
        ratio = both = ""
        if loop is not None:
            ratio = f"{ms['torch'] / ms['loop']:.1f}"
            twice = best(
                {"2": lambda c=calls["loop"]: list(pool.map(lambda _: c(), range(2)))}, 5, time.perf_counter
            )
            both = f"{twice['2'] / 2:.2f}"
        print(
            f"{kernel.name:18s} {shown['torch']:>8s} {shown.get('pieces', ''):>8s} "
            f"{shown.get('loop', ''):>8s} {ratio:>10s} {both:>9s} {first:>6.2f}s"
        )

    stream = Stream(new_seed(), "benchmark")
    number = iter(range(1 << 30))
    for size in (16, 1 << 14, 1 << 17, 1 << 20):
        ms_stream = best(
            {"": lambda s=size: stream.tensor(next(number), (s,))}, options.repeats, time.thread_time
        )[""]
        print(
            f"AES stream, {size * 8:8d} bytes: {ms_stream * 1e3:8.1f} us, "
            f"{size * 8 / ms_stream / 1e6:5.2f} GB/s"
        )


if __name__ == "__main__":
    main()
