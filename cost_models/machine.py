"""The profile of the machine at hand, `device="auto"`: measured once, briefly, and kept with its date.

The shipped profile `cpu` says how kinds of work compare; a short calibration says how much faster or slower this machine does each. So a
few programs and seconds are enough, where a whole profile (`calibrate`) takes minutes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from time import monotonic

import torch
import yaml
from torch import nn

from cost_models.calibrate import Calibration, Workload, between_messages, bookkeeping, hardware, layers
from cost_models.profile_files import AUTO, Device, ProfileError
from cost_models.profile_files import device as load

log = logging.getLogger("sordino")

BASE = "cpu"
"""The shipped profile that is adapted."""
BUDGET_S = 18.0
"""Seconds that all may take, starting processes included: a round that would end later is not begun, but for the least."""
LEAST_ROUNDS, MOST_ROUNDS = 2, 9

Progress = Callable[[int, int, str], None]


def device(name_or_path: str | Path | Device = AUTO, progress: Progress | None = None) -> Device:
    """The device profile of that name or file; for "auto" that of this machine, measured now if it was not before.

    Measuring takes 20 seconds or less, says so (by `progress`, else as a warning of the logger "sordino"), and is done once for a machine,
    its number of usable cores and the versions of torch and of the shipped profile. Raises ProfileError.
    """
    if name_or_path != AUTO:
        return load(name_or_path)
    place = path()
    if place.is_file():
        try:
            return load(place)
        except ProfileError as error:
            log.warning("%s is measured again", error)
    if progress is None:
        log.warning("measuring this machine once, in 20 seconds or less; the profile is kept as %s", place)
    found = measure(progress)
    keep(found, place)
    return found


def folder() -> Path:
    """Where profiles of this machine are kept: `sordino/devices` in the user's cache directory, or in SORDINO_CACHE."""
    own = os.environ.get("SORDINO_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(own) if own else cache / "sordino") / "devices"


def path() -> Path:
    """The file of this machine's profile: another host, processor, number of cores or version is another machine."""
    base = load(BASE)
    about = [
        socket.gethostname(),
        hardware("cpu"),
        len(os.sched_getaffinity(0)),
        torch.__version__,
        base.to_dict(),
    ]
    text = json.dumps([*about, platform.python_version()], sort_keys=True)
    return folder() / f"auto-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}.yaml"


def keep(found: Device, place: Path) -> None:
    """Writes a profile, whole or not at all. A folder that cannot be written to is said, and is no reason to fail."""
    text = yaml.safe_dump(found.to_dict(), sort_keys=False, width=120, allow_unicode=True)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, suffix=".tmp", delete=False) as file:
            file.write(text)
        os.replace(file.name, place)
    except OSError as error:
        log.warning("the profile of this machine cannot be kept, and will be measured again: %s", error)


def measure(progress: Progress | None = None) -> Device:
    """A short calibration of this machine's processor: the shipped profile with each rate as much faster or slower as was measured.

    Kinds of work that the few programs do not do are taken to be as much faster or slower as all others together.
    """
    if progress:
        progress(0, MOST_ROUNDS, "measuring this machine once")
    base = load(BASE)
    end = monotonic() + BUDGET_S
    with _threads(1), Calibration("cpu", _workloads()) as calibration:
        calibration.measure()  # until its memory is in use, a machine is slower
        calibration.restart()
        rounds, took = 0, 0.0
        while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and monotonic() + took < end):
            began = monotonic()
            calibration.measure()
            took, rounds = monotonic() - began, rounds + 1
            if progress:
                progress(rounds, MOST_ROUNDS, "measuring this machine once")
        found = adapted(base, calibration)
    if progress:
        progress(MOST_ROUNDS, MOST_ROUNDS, "measured")
    return found


def _workloads() -> list[Workload]:
    """Few and small, and between them most kinds of work; messages both short and long."""
    feed_forward, attention = layers(384, 12)
    two = ("dealer2pc",)
    return [
        Workload("comparisons", nn.ReLU(), (1 << 15,), False, ("replicated3pc",)),
        Workload("matrix products, 64 x 768", nn.Linear(768, 768), (64, 768), False, two),
        Workload("feed-forward layer, 32 x 384", feed_forward, (32, 384), True, two),
        Workload("attention, 32 x 384", attention, (32, 384), False, two),
    ]


def adapted(base: Device, calibration: Calibration) -> Device:
    """`base` with its rates as much faster or slower as a calibration's samples say."""
    samples = calibration.samples()
    expected: dict[str, float] = {}
    measured: dict[str, float] = {}
    for sample in samples:
        for kind, work in sample.work.items():
            if sample.seconds.get(kind, 0.0) > 0:
                expected[kind] = expected.get(kind, 0.0) + base.rate(kind).seconds(work)
                measured[kind] = measured.get(kind, 0.0) + sample.seconds[kind]
    queries = calibration.queries()
    longer = between_messages(queries)
    overall = longer * sum(measured.values()) / sum(expected.values())
    times = {kind: longer * measured[kind] / expected[kind] for kind in expected if expected[kind] > 0}
    exchange = [
        q.exchange_s / (q.counts.rounds * base.round_s + q.counts.handled_bytes / base.message_bytes_per_s)
        for q in queries
    ]
    slower = median(exchange)
    return replace(
        base,
        name=AUTO,
        work={kind: rate.longer(times.get(kind, overall)) for kind, rate in base.work.items()},
        step_s=bookkeeping(samples) * longer,
        round_s=base.round_s * slower,
        message_bytes_per_s=base.message_bytes_per_s / slower,
        cores=len(os.sched_getaffinity(0)),
        hardware=f"{hardware('cpu')}, 1 thread(s) a party",
        versions=f"torch {torch.__version__}, Python {platform.python_version()}",
        date=date.today().isoformat(),
        note=f"a short calibration of this machine: the shipped profile {BASE!r} of {base.date}, each rate adapted",
    )


class _threads:
    """Torch's number of threads for a while."""

    def __init__(self, count: int):
        self._count = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
