"""Measures a device: the few rates that turn counted work into seconds.

The rates are those that the engine reaches. Small programs, each heavy in another kind of work, are counted and then run by one party
without peers (`replay.py`); the rates are the non-negative ones that explain the measured seconds best.
"""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from collections.abc import Callable
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


class _FeedForward(nn.Module):
    def __init__(self, width: int, activation: nn.Module):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation, self.norm = activation, nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(self.activation(self.up(x))))


class _Attention(nn.Module):
    """Self-attention with softmax, or with squares in its place, and a normalised residual, as a transformer has them."""

    def __init__(self, width: int, heads: int, squares: bool):
        super().__init__()
        self.qkv, self.out, self.norm = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            nn.LayerNorm(width),
        )
        self.heads, self.squares = heads, squares

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3 * self.heads, -1)).transpose(0, 1).split(self.heads)
        scores = q @ k.transpose(-1, -2)
        if self.squares:
            weights = (scores + 5.0) ** 2
            weights = weights / weights.sum(-1, keepdim=True)
        else:
            weights = torch.softmax(scores, -1)
        return self.norm(x + self.out((weights @ v).transpose(0, 1).flatten(-2)))


def _programs() -> list[tuple[str, secure_eval.Program]]:
    modules: list[tuple[str, nn.Module, tuple[Tensor, ...]]] = [
        ("comparisons", nn.ReLU(), (torch.zeros(1 << 17),)),
        ("polynomials", nn.GELU(), (torch.zeros(1 << 16),)),
        ("matrix products", nn.Linear(768, 3072), (torch.zeros(128, 768),)),
        ("feed-forward layer, 8 x 64", _FeedForward(64, nn.GELU()), (torch.zeros(8, 64),)),
        ("feed-forward layer, 32 x 384", _FeedForward(384, nn.GELU()), (torch.zeros(32, 384),)),
        ("feed-forward layer, 128 x 256", _FeedForward(256, nn.ReLU()), (torch.zeros(128, 256),)),
        ("attention, 32 x 384", _Attention(384, 12, False), (torch.zeros(32, 384),)),
        ("attention by squares, 32 x 384", _Attention(384, 12, True), (torch.zeros(32, 384),)),
        ("attention, 128 x 256", _Attention(256, 8, False), (torch.zeros(128, 256),)),
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


_PEER = """
import socket, sys, torch
from secure_eval.transport import Tcp, TensorSpec
transport = Tcp("b", {"a": socket.socket(fileno=int(sys.argv[1]))})
small = torch.zeros(8, dtype=torch.int64)
for _ in range(int(sys.argv[2])):
    transport.exchange({"a": [small]}, {"a": [TensorSpec((8,))]})
"""


def _round() -> float:
    """Seconds that a round of small messages takes between two processes of this machine."""
    mine, other = socket.socketpair()
    peer = subprocess.Popen(
        [sys.executable, "-c", _PEER, str(other.fileno()), str(_PINGS)], pass_fds=[other.fileno()]
    )
    other.close()
    transport = Tcp("a", {"b": mine}, timeout=60)
    small = torch.zeros(8, dtype=torch.int64)
    taken = []
    for _ in range(_PINGS):
        started = perf_counter()
        transport.exchange({"b": [small]}, {"b": [TensorSpec((8,))]})
        taken.append(perf_counter() - started)
    transport.close()
    peer.wait(60)
    return sorted(taken)[_PINGS // 2]


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
