"""Measures a device: the rates that turn counted work into seconds.

The rates are those that the engine reaches. Programs of the sizes that models have are counted and then run by one role without peers
(`replay.py`), each operation timed. A kind of work gets the non-negative time for a call, a byte and a multiply-accumulate that explain
its measured seconds best; what is left of the whole is the engine's own bookkeeping.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import inf
from statistics import median

import torch
from torch import Tensor, nn

import secure_eval
from cost_models.profile_files import Device, Rate
from cost_models.replay import Replay, Stopwatch, replay
from cost_models.squares import Quad, TwoQuad
from secure_eval.measurement import Work
from secure_eval.protocols.base import Protocol
from secure_eval.roles import Plan

Progress = Callable[[int, int, str], None]
_REPEATS = 5
_WARM_UP, _QUERIES = 4, 9


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
        self.heads, self.weights = heads, TwoQuad() if squares else nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3 * self.heads, -1)).transpose(0, 1).split(self.heads)
        weights = self.weights(q @ k.transpose(-1, -2))
        return self.norm(x + self.out((weights @ v).transpose(0, 1).flatten(-2)))


@dataclass(frozen=True)
class Workload:
    """A module to run, and the shape of its input; with `exchanged`, by processes too."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    exchanged: bool = False


def workloads() -> list[Workload]:
    """Between them every kind of work, in sizes from a few kilobytes to those of BERT-base, and messages both short and long."""
    return [
        Workload("comparisons", nn.ReLU(), (1 << 17,)),
        Workload("polynomials", nn.GELU(), (1 << 16,)),
        Workload("matrix products, 1 x 768", nn.Linear(768, 768), (1, 768)),
        Workload("matrix products, 32 x 384", nn.Linear(384, 1536), (32, 384)),
        Workload("matrix products, 128 x 768", nn.Linear(768, 3072), (128, 768)),
        Workload("feed-forward layer, 8 x 64", _FeedForward(64, nn.GELU()), (8, 64)),
        Workload("feed-forward layer, 32 x 384", _FeedForward(384, nn.GELU()), (32, 384)),
        Workload("feed-forward layer by squares, 32 x 384", _FeedForward(384, Quad()), (32, 384)),
        Workload("feed-forward layer, 128 x 256", _FeedForward(256, nn.ReLU()), (128, 256)),
        Workload("feed-forward layer, 128 x 768", _FeedForward(768, nn.GELU()), (128, 768), True),
        Workload("attention, 32 x 384", _Attention(384, 12, False), (32, 384), True),
        Workload("attention by squares, 32 x 384", _Attention(384, 12, True), (32, 384), True),
        Workload("attention, 128 x 256", _Attention(256, 8, False), (128, 256)),
        Workload("attention, 128 x 768", _Attention(768, 12, False), (128, 768), True),
        Workload("attention by squares, 128 x 768", _Attention(768, 12, True), (128, 768)),
    ]


@dataclass
class _Sample:
    """One phase of one role of one program: its work, and the seconds of each kind and of the whole; and of single calls."""

    work: Mapping[str, Work]
    seconds: Mapping[str, float]
    total: float
    calls: Sequence[tuple[str, Work, float]]


def calibrate(
    device: str = "cpu", progress: Progress | None = None, measured: Sequence[Workload] | None = None
) -> Device:
    """Measures local work by its kinds, and what exchanging messages takes besides the network, in a minute or two.

    Rates are those of one party with torch's current number of threads. `measured`: what to run, `workloads()` unless told otherwise;
    a kind of work that none of it does gets no rate. Raises ValueError where nothing exchanges messages.
    """
    where = torch.device(device)
    measured = workloads() if measured is None else measured
    steps = len(measured) + 1
    samples: list[_Sample] = []
    for i, workload in enumerate(measured):
        if progress:
            progress(i, steps, workload.name)
        program = secure_eval.capture(workload.module.eval(), (torch.zeros(workload.shape),))
        for protocol in ("dealer2pc", "replicated3pc"):
            samples.extend(_samples(program, secure_eval.protocols.get(protocol), device))
    if progress:
        progress(len(measured), steps, "messages")
    round_s, message_bytes_per_s = _messages([w for w in measured if w.exchanged])
    if progress:
        progress(steps, steps, "done")
    work = {kind: _rate(kind, samples) for kind in sorted({kind for s in samples for kind in s.seconds})}
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else _cpu_name()
    return Device(
        name=where.type,
        work=work,
        step_s=_step(samples),
        round_s=round_s,
        message_bytes_per_s=message_bytes_per_s,
        machine="gpu" if where.type == "cuda" else "cpu",
        hardware=f"{name}, {torch.get_num_threads()} thread(s) a party",
        versions=f"torch {torch.__version__}, Python {platform.python_version()}",
        date=date.today().isoformat(),
    )


def _samples(program: secure_eval.Program, protocol: type[Protocol], device: str) -> list[_Sample]:
    """Each role's phases but the set-up, run `_REPEATS` times as they are and as often under the stopwatch, after a first time."""
    plan = Plan(program, protocol, 16)
    counted = secure_eval.count(program, protocol, plan=plan).roles
    found = []
    for role, phases in (("dealer", ["offline"]), ("party0", ["offline", "online"])):
        if role not in counted["setup"]:
            continue
        replay = Replay(program, protocol, role, device, plan=plan)
        totals: dict[str, list[float]] = {phase: [] for phase in phases}
        watched: dict[str, list[Stopwatch]] = {phase: [] for phase in phases}
        for phase in phases:
            replay.run(phase)
        for _ in range(_REPEATS):
            for phase in phases:
                totals[phase].append(replay.seconds(phase))
            for phase in phases:
                watched[phase].append(replay.watched(phase))
        for phase in phases:
            work = counted[phase][role].work
            runs = watched[phase]
            seconds = {kind: median(run.seconds.get(kind, 0.0) for run in runs) for kind in work}
            calls = [
                (kind, done, median(run.calls[i][2] for run in runs))
                for i, (kind, done, _) in enumerate(runs[0].calls)
            ]
            found.append(_Sample(work, seconds, median(totals[phase]), calls))
    return found


def _rate(kind: str, samples: Sequence[_Sample]) -> Rate:
    """The rate of a kind that explains its measured seconds best."""
    found = [(work, seconds) for s in samples for name, work, seconds in s.calls if name == kind]
    if not found:
        found = [(s.work[kind], s.seconds[kind]) for s in samples if s.seconds.get(kind, 0.0) > 0]
    rows = [(w.calls, w.bytes, w.macs) for w, _ in found]
    call_s, byte_s, mac_s = non_negative(rows, [seconds for _, seconds in found])
    return Rate(
        call_s=call_s,
        bytes_per_s=1 / byte_s if byte_s else inf,
        macs_per_s=1 / mac_s if mac_s else inf,
    )


def _step(samples: Sequence[_Sample]) -> float:
    """Seconds of the engine's own bookkeeping for each call: what no kind of work accounts for."""
    calls = [sum(w.calls for w in s.work.values()) for s in samples]
    left = [max(0.0, s.total - sum(s.seconds.values())) for s in samples]
    return median(rest / count for rest, count in zip(left, calls, strict=True))


def non_negative(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """The x >= 0 for which rows @ x explains the seconds best: of the least Kullback-Leibler divergence.

    So the explained seconds add up to the measured ones: long and short samples weigh as what they take, and none pulls by its noise as
    with least squares. Found by multiplicative updates (Lee and Seung, 2001), which stay positive. Raises ValueError where no seconds
    are positive.
    """
    if not seconds or min(seconds) <= 0:
        raise ValueError(f"seconds are {list(seconds)}; allowed: positive numbers, one at least")
    a, b = torch.tensor(rows, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    unit = a.sum(0)
    used = unit > 0
    a = a[:, used] / unit[used]
    x = torch.full((a.shape[1],), float(b.sum()) / a.shape[1], dtype=torch.float64)
    for _ in range(20000):
        x = x * (a.T @ (b / (a @ x)))
    found = torch.zeros(len(unit), dtype=torch.float64)
    found[used] = torch.where(x * 1e6 > x.sum(), x, 0) / unit[used]
    return [float(value) for value in found]


def _messages(measured: Sequence[Workload]) -> tuple[float, float]:
    """Seconds of a round, and bytes a second, where parties are processes of this machine: what a query takes beyond its local work.

    Measured with the engine's own encrypted links, on the processor: an accelerator's messages go through it too.
    """
    rows, seconds = [], []
    for workload in measured:
        module, inputs = workload.module.eval(), (torch.zeros(workload.shape),)
        program = secure_eval.capture(module, inputs)
        alone = replay(program, secure_eval.protocols.get("dealer2pc"), repeats=_QUERIES)
        with secure_eval.compile(program, protocol="dealer2pc", parties="processes") as secure:
            taken = []
            for _ in range(_WARM_UP + _QUERIES):
                secure(*inputs)
                online = secure.measurement.online
                assert online.seconds is not None
                taken.append(online.seconds)
        left = median(taken[_WARM_UP:]) - alone
        if left > 0:  # else this machine was busy with something else while the party ran alone
            rows.append((online.rounds, online.handled_bytes))
            seconds.append(left)
    round_s, byte_s = non_negative(rows, seconds)
    return round_s, 1 / byte_s if byte_s else inf


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
