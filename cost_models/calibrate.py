"""Measures a device: the few rates that turn counted work into seconds."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import date
from time import perf_counter

import torch

from cost_models.profile_files import Device
from secure_eval import ring
from secure_eval.randomness import Stream, new_seed

_MATMULS = (
    (128, 384, 384),
    (512, 384, 1536),
    (512, 1536, 384),
    (128, 768, 768),
    (128, 768, 3072),
    (128, 3072, 768),
)
_ELEMENTS = 1 << 20


def _best(step: Callable[[], object], sync: Callable[[], None], budget: float = 0.4) -> float:
    """Seconds of the fastest of several runs: the machine's own rate, other load left out."""
    step()
    best, spent = float("inf"), 0.0
    while spent < budget:
        started = perf_counter()
        step()
        sync()
        taken = perf_counter() - started
        best, spent = min(best, taken), spent + taken
    return best


def calibrate(device: str = "cpu", progress: Callable[[int, int, str], None] | None = None) -> Device:
    """Measures ring matrix products, elementwise traffic, the generator and the cost of a small operation. Some seconds.

    Rates are those of one party with torch's current number of threads.
    """
    where = torch.device(device)
    sync: Callable[[], None] = torch.cuda.synchronize if where.type == "cuda" else (lambda: None)
    stream = Stream(new_seed(), "calibration")

    def uniform(index: int, *shape: int) -> torch.Tensor:
        return stream.tensor(index, shape, device=where)

    steps = len(_MATMULS) + 3
    total_macs = total_seconds = 0.0
    for i, (m, k, n) in enumerate(_MATMULS):
        if progress:
            progress(i, steps, f"ring matmul {m}x{k}x{n}")
        x, w = uniform(2 * i, m, k), uniform(2 * i + 1, n, k).t()
        total_seconds += _best(lambda x=x, w=w: ring.matmul(x, w), sync)  # type: ignore[misc]
        total_macs += m * k * n
    if progress:
        progress(len(_MATMULS), steps, "elementwise")
    a, b = uniform(100, _ELEMENTS), uniform(101, _ELEMENTS)
    elementwise = _best(lambda: (a * b + a) >> 3, sync)
    if progress:
        progress(len(_MATMULS) + 1, steps, "generator")
    numbers = iter(range(1000, 1 << 40))
    generator = _best(lambda: stream.tensor(next(numbers), (_ELEMENTS,), device=where), sync)
    if progress:
        progress(len(_MATMULS) + 2, steps, "small operations")
    small = uniform(102, 16)

    def many() -> None:
        value = small
        for _ in range(1000):
            value = value + small

    overhead = _best(many, sync) / 1000
    if progress:
        progress(steps, steps, "done")
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else _cpu_name()
    return Device(
        name=where.type,
        macs_per_s=total_macs / total_seconds,
        traffic_bytes_per_s=3 * 3 * 8 * _ELEMENTS / elementwise,
        random_bytes_per_s=8 * _ELEMENTS / generator,
        kernel_s=overhead,
        hardware=f"{name}, {torch.get_num_threads()} thread(s) a party",
        versions=f"torch {torch.__version__}, Python {platform.python_version()}",
        date=date.today().isoformat(),
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
