"""Measures a device: the few rates that turn counted work into seconds.

The rates are those that the engine reaches. Small programs, each heavy in another kind of work, are counted and then run by one party
without peers (`replay.py`); the rates are the non-negative ones that explain the measured seconds best.
"""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from time import perf_counter

import torch
from torch import Tensor, nn

import secure_eval
from cost_models.profile_files import Device
from cost_models.replay import replay
from secure_eval.randomness import Stream, new_seed
from secure_eval.transport import Tcp, TensorSpec

Progress = Callable[[int, int, str], None]
_PINGS = 300
_RANDOM = 1 << 17


class _Chain(nn.Module):
    """Many small dependent steps: what an operation costs however little it computes."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(12):
            x = torch.relu(x * x - 0.5)
        return x


class _FeedForward(nn.Module):
    def __init__(self, width: int, activation: nn.Module):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation, self.norm = activation, nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(self.activation(self.up(x))))


class _Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ k


def _programs() -> list[tuple[str, secure_eval.Program]]:
    head = torch.zeros(8, 32, 32)
    modules: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = [
        ("small steps", _Chain(), (torch.zeros(16),)),
        ("comparisons", nn.ReLU(), (torch.zeros(1 << 17),)),
        ("polynomials", nn.GELU(), (torch.zeros(1 << 16),)),
        ("matrix products", nn.Linear(768, 3072), (torch.zeros(128, 768),)),
        ("feed-forward layer, 32 x 384", _FeedForward(384, nn.GELU()), (torch.zeros(32, 384),)),
        ("feed-forward layer, 128 x 256", _FeedForward(256, nn.ReLU()), (torch.zeros(128, 256),)),
        ("attention", _Attention(), (head, head)),
    ]
    return [(name, secure_eval.capture(module.eval(), inputs)) for name, module, inputs in modules]


def calibrate(device: str = "cpu", progress: Progress | None = None) -> Device:
    """Measures local work, the generator and the handling of a round's messages, in under a minute.

    Rates are those of one party with torch's current number of threads. Raises ValueError if the measurements explain no positive rate.
    """
    where = torch.device(device)
    programs = _programs()
    steps = len(programs) + 2
    rows, seconds = [], []
    protocol = secure_eval.protocols.get("dealer2pc")
    for i, (name, program) in enumerate(programs):
        if progress:
            progress(i, steps, name)
        counted = secure_eval.count(program, protocol).roles["online"]["party0"]
        measured = replay(program, protocol, device)
        assert measured.seconds is not None
        rows.append((counted.macs, counted.traffic_bytes, counted.kernels))
        seconds.append(measured.seconds)
    per_mac, per_byte, per_kernel = _non_negative(rows, seconds)
    if progress:
        progress(len(programs), steps, "generator")
    generator = _generator(where)
    if progress:
        progress(len(programs) + 1, steps, "messages")
    round_s = _round()
    if progress:
        progress(steps, steps, "done")
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else _cpu_name()
    return Device(
        name=where.type,
        macs_per_s=1 / per_mac,
        traffic_bytes_per_s=1 / per_byte,
        random_bytes_per_s=generator,
        kernel_s=per_kernel,
        round_s=round_s,
        hardware=f"{name}, {torch.get_num_threads()} thread(s) a party",
        versions=f"torch {torch.__version__}, Python {platform.python_version()}",
        date=date.today().isoformat(),
    )


def _non_negative(rows: list[tuple[float, float, float]], seconds: list[float]) -> tuple[float, float, float]:
    """Least squares in relative error for seconds = rows @ x, x > 0."""
    a = torch.tensor(rows, dtype=torch.float64) / torch.tensor(seconds, dtype=torch.float64)[:, None]
    unit = a.amax(0)
    a = a / unit
    x = torch.full((a.shape[1],), 0.1, dtype=torch.float64)
    target = a.T @ torch.ones(len(seconds), dtype=torch.float64)
    for _ in range(20000):  # multiplicative updates (Lee and Seung, 2001) stay positive
        x = x * target / (a.T @ (a @ x))
    x = x / unit
    if not bool((x > 0).all()):
        raise ValueError(f"calibration explains no positive rates: {x.tolist()} from {seconds}")
    return float(x[0]), float(x[1]), float(x[2])


def _generator(where: torch.device) -> float:
    """Bytes a second of the generator, for tensors of about the size that a query uses."""
    stream = Stream(new_seed(), "calibration")
    count = 200
    started = perf_counter()
    for index in range(count):
        stream.tensor(index, (_RANDOM,), device=where)
    return count * _RANDOM * 8 / (perf_counter() - started)


def _round() -> float:
    """Seconds that handling one round of small messages takes, with sockets of this machine."""
    ends = [Tcp(name, {peer: end}) for name, peer, end in zip("ab", "ba", socket.socketpair(), strict=True)]
    small = torch.zeros(8, dtype=torch.int64)

    def pings(transport: Tcp, peer: str) -> float:
        started = perf_counter()
        for _ in range(_PINGS):
            transport.exchange({peer: [small]}, {peer: [TensorSpec((8,))]})
        return (perf_counter() - started) / _PINGS

    with ThreadPoolExecutor(2) as pool:
        taken = list(pool.map(pings, ends, "ba"))
    for end in ends:
        end.close()
    return max(taken)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
