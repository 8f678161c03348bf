"""Measures a device: the rates that turn counted work into seconds.

The rates are those that the engine reaches. Programs of the sizes that models have are counted and then run by one role without peers
(`replay.py`), each operation timed. A kind of work gets the non-negative time for a call, a byte and a multiply-accumulate that explain
its measured seconds best; what is left of the whole is the engine's own bookkeeping.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import inf
from statistics import median

import torch
from torch import Tensor, nn

import secure_eval
from cost_models.profile_files import Device, Rate
from cost_models.replay import Replay, Stopwatch
from cost_models.squares import Quad, TwoQuad
from secure_eval.measurement import Counts, Work
from secure_eval.parties.roles import Plan
from secure_eval.protocols.base import Protocol

Progress = Callable[[int, int, str], None]
_ROUNDS = 7
WARM_UP = 5
"""Rounds before any counts: until its memory is in use, a machine is slower."""


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
    """A module to run, the shape of its input, and the protocols to run it under; with `exchanged`, by processes too."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    exchanged: bool = False
    protocols: tuple[str, ...] = ("dealer2pc", "replicated3pc")


def layers(width: int, heads: int) -> tuple[nn.Module, nn.Module]:
    """A feed-forward layer with GELU and an attention layer with softmax, each with a normalised residual."""
    return _FeedForward(width, nn.GELU()), _Attention(width, heads, False)


def workloads() -> list[Workload]:
    """Between them every kind of work, in sizes from a few kilobytes to those of BERT-base, and messages both short and long.

    The largest under one protocol, the exchanged ones under few: all are in memory together.
    """
    two = ("dealer2pc",)
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
        Workload("feed-forward layer, 128 x 768", _FeedForward(768, nn.GELU()), (128, 768), True, two),
        Workload("attention, 32 x 384", _Attention(384, 12, False), (32, 384), True),
        Workload("attention by squares, 32 x 384", _Attention(384, 12, True), (32, 384)),
        Workload("attention, 128 x 256", _Attention(256, 8, False), (128, 256)),
        Workload("attention, 128 x 768", _Attention(768, 12, False), (128, 768), True, two),
        Workload("attention by squares, 128 x 768", _Attention(768, 12, True), (128, 768), False, two),
    ]


@dataclass
class Sample:
    """One phase of one role of one program: its work, and the seconds of each kind and of the whole; and of single calls."""

    work: Mapping[str, Work]
    seconds: Mapping[str, float]
    total: float
    calls: Sequence[tuple[str, Work, float]]


def calibrate(
    device: str = "cpu", progress: Progress | None = None, measured: Sequence[Workload] | None = None
) -> Device:
    """Measures local work by its kinds, and what exchanging messages takes besides the network, in a few minutes.

    Rates are those of one party with torch's current number of threads. `measured`: what to run, `workloads()` unless told otherwise;
    a kind of work that none of it does gets no rate. Raises ValueError where nothing exchanges messages.
    """
    measured = workloads() if measured is None else measured
    steps = WARM_UP + _ROUNDS + 1
    if progress:
        progress(0, steps, "counting what will be run")
    with Calibration(device, measured) as calibration:
        for i in range(WARM_UP + _ROUNDS):
            if progress:
                progress(i + 1, steps, f"measuring, round {i + 1} of {WARM_UP + _ROUNDS}")
            if i == WARM_UP:
                calibration.restart()
            calibration.measure()
        found = calibration.device()
    if progress:
        progress(steps, steps, "done")
    return found


class Calibration:
    """Programs set up to be run again and again, each time all of them, and the rates that explain the medians of what they took.

    A machine's speed drifts from minute to minute: so every round runs everything once, and whoever compares a profile with other runs
    can have them between the rounds. Holds processes and memory until closed; a context manager.
    """

    def __init__(self, device: str = "cpu", measured: Sequence[Workload] | None = None):
        self._where = torch.device(device)
        self._single: list[_Single] = []
        self._exchanges: list[_Exchange] = []
        for workload in workloads() if measured is None else measured:
            program = secure_eval.capture(workload.module.eval(), (torch.zeros(workload.shape),))
            for name in workload.protocols:
                self._single.extend(_singles(program, secure_eval.protocols.get(name), device))
            if workload.exchanged:
                self._exchanges.append(_Exchange(program, workload.shape))

    def __enter__(self) -> Calibration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes. Safe to call twice."""
        for exchange in self._exchanges:
            exchange.secure.close()

    def restart(self) -> None:
        """Forgets all rounds so far, as those that warm up have to be."""
        for single in self._single:
            single.restart()
        for exchange in self._exchanges:
            exchange.restart()

    def measure(self) -> None:
        """Runs everything once."""
        for single in self._single:
            single.measure()
        for exchange in self._exchanges:
            exchange.measure()

    def samples(self) -> list[Sample]:
        """What each phase of each role did and took, medians of all rounds so far. Raises ValueError before the first."""
        return [sample for single in self._single for sample in single.samples()]

    def queries(self) -> list[Query]:
        """What the queries between processes exchanged and took. Raises ValueError before the first round."""
        return [exchange.query() for exchange in self._exchanges]

    def device(self) -> Device:
        """The profile of all rounds so far. Raises ValueError before the first, and where nothing exchanges messages."""
        samples, queries = self.samples(), self.queries()
        round_s, message_bytes_per_s = _messages(queries)
        longer = between_messages(queries)
        kinds = sorted({kind for sample in samples for kind in sample.seconds})
        gpu = self._where.type == "cuda"
        return Device(
            name=self._where.type,
            work={kind: _rate(kind, samples).longer(longer) for kind in kinds},
            step_s=bookkeeping(samples) * longer,
            round_s=round_s,
            message_bytes_per_s=message_bytes_per_s,
            cores=len(os.sched_getaffinity(0)),
            machine="gpu" if gpu else "cpu",
            hardware=f"{hardware(self._where)}, {torch.get_num_threads()} thread(s) a party",
            versions=f"torch {torch.__version__}, Python {platform.python_version()}",
            date=date.today().isoformat(),
        )


class _Single:
    """One role run by itself: each phase as it is and, after that, under the stopwatch."""

    def __init__(self, role: Replay, counted: Mapping[str, Mapping[str, Work]]):
        self._role, self._counted = role, counted
        self.restart()

    def restart(self) -> None:
        self._totals: dict[str, list[float]] = {phase: [] for phase in self._counted}
        self._watched: dict[str, list[Stopwatch]] = {phase: [] for phase in self._counted}

    def measure(self) -> None:
        for phase in self._counted:
            self._totals[phase].append(self._role.seconds(phase))
        for phase in self._counted:
            self._watched[phase].append(self._role.watched(phase))

    def samples(self) -> Iterator[Sample]:
        """What the rounds found, phase by phase: medians."""
        for phase, work in self._counted.items():
            runs = self._watched[phase]
            if not runs:
                raise ValueError("nothing has been measured; allowed: one round or more")
            seconds = {kind: median(run.seconds.get(kind, 0.0) for run in runs) for kind in work}
            calls = [
                (kind, done, median(run.calls[i][2] for run in runs))
                for i, (kind, done, _) in enumerate(runs[0].calls)
            ]
            yield Sample(work, seconds, median(self._totals[phase]), calls)


def _singles(program: secure_eval.Program, protocol: type[Protocol], device: str) -> Iterator[_Single]:
    """The roles whose work differs."""
    plan = Plan(program, protocol, 16)
    counted = secure_eval.count(program, protocol, plan=plan).roles
    for role, phases in (("dealer", ["offline"]), ("party0", ["offline", "online"])):
        if role in counted["setup"]:
            yield _Single(
                Replay(program, protocol, role, device, plan=plan),
                {phase: counted[phase][role].work for phase in phases},
            )


class _Exchange:
    """A query by one party alone, and by parties that are processes of this machine, with the engine's own encrypted links.

    On the processor: an accelerator's messages go through it too.
    """

    def __init__(self, program: secure_eval.Program, shape: tuple[int, ...]):
        self._alone = Replay(program, secure_eval.protocols.get("dealer2pc"))
        self.secure = secure_eval.compile(program, protocol="dealer2pc", parties="processes")
        self._inputs = (torch.zeros(shape),)
        self.restart()

    def restart(self) -> None:
        self._alone_s: list[float] = []
        self._together: list[Counts] = []

    def measure(self) -> None:
        self._alone.run("offline")
        self._alone_s.append(self._alone.seconds("online"))
        self.secure(*self._inputs)
        self._together.append(self.secure.measurement.roles["online"]["party0"])

    def query(self) -> Query:
        """What the rounds found: medians."""
        if not self._together:
            raise ValueError("nothing has been measured; allowed: one round or more")
        together = [(c.seconds or 0.0, c.exchange_seconds or 0.0) for c in self._together]
        return Query(
            self._together[0],
            median(self._alone_s),
            median(seconds - exchange for seconds, exchange in together),
            median(exchange for _, exchange in together),
        )


@dataclass
class Query:
    """A party's query: what it exchanged; seconds of its work, alone and between messages; seconds of the exchange."""

    counts: Counts
    alone_s: float
    between_s: float
    exchange_s: float


def _rate(kind: str, samples: Sequence[Sample]) -> Rate:
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


def bookkeeping(samples: Sequence[Sample]) -> float:
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


def _messages(queries: Sequence[Query]) -> tuple[float, float]:
    """Seconds of a round, and bytes a second, where parties are processes of this machine; waiting for each other included."""
    rows = [(query.counts.rounds, query.counts.handled_bytes) for query in queries]
    round_s, byte_s = non_negative(rows, [query.exchange_s for query in queries])
    return round_s, 1 / byte_s if byte_s else inf


def between_messages(queries: Sequence[Query]) -> float:
    """How many times as long the same work takes between messages, which leave the caches cold, and beside another party's."""
    return max(1.0, sum(q.between_s for q in queries) / sum(q.alone_s for q in queries))


def hardware(device: torch.device | str) -> str:
    """The name of a device's processor."""
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
