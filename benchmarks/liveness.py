"""Seconds from a role's end, or stop, to the caller's error: of each role in each phase, for SIGSTOP and SIGKILL.

    python benchmarks/liveness.py [--timeout 3] [--protocols dealer2pc replicated3pc] [--json FILE]

Every case starts processes of its own, brings them to the phase, sends the signal to one of them, and goes on. `before` means that the
signal is sent while the processes wait for the phase, `half-way` that it is sent inside it, over emulated links that make it long enough.
Seconds count from the signal to the error in the caller; processes left are those that still exist then, zombies too. Two more rows are
about the caller itself, in whose process client and owner are: killed in the middle of a query, and stopped for twice the timeout. The last
rows repeat one case a protocol with the default timeout.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secure_eval
from secure_eval import protocols
from secure_eval.model import SecureModel
from secure_eval.parties.processes import Processes
from secure_eval.parties.roles import Plan, role_names
from secure_eval.parties.watch import TIMEOUT_S

PHASES = ("set-up", "offline", "online")
SIGNALS = (signal.SIGSTOP, signal.SIGKILL)
SLOW = secure_eval.Link(round_trip_s=1.0, bandwidth_bytes_per_s=1e9)
HALF_WAY_S = 1.2
INPUTS = (torch.linspace(-2, 2, 16).view(2, 8),)


@dataclass
class Row:
    """One case. `seconds` is None where there was no error."""

    protocol: str
    role: str
    phase: str
    when: str
    signal: str
    timeout: float
    seconds: float | None = None
    outcome: str = ""
    processes_left: int = 0


def model() -> nn.Module:
    """A linear layer and a ReLU: every role has something to do in each of its phases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU()).eval()


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def case(row: Row) -> Row:
    """Runs one case and fills in what came of it."""
    program, cls = secure_eval.capture(model(), INPUTS), protocols.get(row.protocol)
    plan = Plan(program, cls, 16)
    started: list[Processes] = []
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(started[-1]._children[row.role].process.pid, signal.Signals[row.signal])

    def start() -> Processes:
        link = SLOW if row.when == "half-way" else None
        started.append(Processes(cls, 16, network=link, timeout=row.timeout))
        if row.phase == "set-up":
            send()
        return started[-1]

    def whole() -> None:
        try:
            secure = SecureModel(program, cls, start, plan, 16)
            if row.phase == "offline":
                send()
            secure.offline()
            if row.phase == "online":
                send() if row.when == "before" else threading.Timer(HALF_WAY_S, send).start()
            secure(*INPUTS)
            row.outcome = "answered: the role takes no part in this phase"
        finally:
            ended = time.monotonic()
            pids = [child.process.pid for child in started[-1]._children.values()]
            row.processes_left = sum(map(exists, pids)) if not row.outcome else 0
            row.seconds = None if row.outcome else round(ended - sent[-1], 2)
            started[-1].close()

    try:
        whole()
    except RuntimeError as error:
        row.outcome = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return row


def caller(protocol: str, how: str, timeout: float) -> Row:
    """The caller's own process, killed or stopped in the middle of a query."""
    row = Row(protocol, "client and owner", "online", "half-way", how, timeout)
    process = subprocess.Popen(
        [sys.executable, __file__, "--as-caller", protocol, "--timeout", str(timeout)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    children = [int(pid) for pid in process.stdout.readline().split()]
    time.sleep(HALF_WAY_S)
    sent = time.monotonic()
    os.kill(process.pid, signal.Signals[how])
    if how == "SIGSTOP":
        time.sleep(2 * timeout)
        os.kill(process.pid, signal.SIGCONT)
        row.outcome = f"stopped for {2 * timeout:g} s, then {process.stdout.readline().strip()}"
        process.wait()
    else:
        process.wait()
        until = time.monotonic() + 30
        while any(map(exists, children)) and time.monotonic() < until:
            time.sleep(0.01)
        row.seconds, row.outcome = round(time.monotonic() - sent, 2), "its processes end with it"
    row.processes_left = sum(map(exists, children))
    return row


def as_caller(protocol: str, timeout: float) -> None:
    with secure_eval.compile(model(), INPUTS, protocol, "processes", network=SLOW, timeout=timeout) as secure:
        secure.offline()
        launcher = secure._launcher
        assert isinstance(launcher, Processes)
        print(*(child.process.pid for child in launcher._children.values()), flush=True)
        error = (secure(*INPUTS) - model()(*INPUTS)).abs().max()
        print("answered rightly" if error < 2**-9 else f"wrong by {error}", flush=True)


def rows(protocol: str, timeout: float) -> list[Callable[[], Row]]:
    """All cases of a protocol."""
    roles = [r for r in role_names(protocols.get(protocol)) if r not in ("client", "owner")]
    found: list[Row] = [
        Row(protocol, role, phase, "before", how.name, timeout)
        for phase in PHASES
        for role in roles
        for how in SIGNALS
    ]
    found += [Row(protocol, r, "online", "half-way", "SIGSTOP", timeout) for r in roles if r != "dealer"]
    cases: list[Callable[[], Row]] = [lambda row=row: case(row) for row in found]  # type: ignore[misc]
    cases += [lambda how=how: caller(protocol, how.name, timeout) for how in SIGNALS]  # type: ignore[misc]
    cases.append(lambda: case(Row(protocol, roles[-1], "online", "before", "SIGSTOP", TIMEOUT_S)))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timeout", type=float, default=3.0)
    parser.add_argument("--protocols", nargs="+", default=["dealer2pc", "replicated3pc"])
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--as-caller", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_caller:
        as_caller(options.as_caller, options.timeout)
        return
    found: list[dict[str, Any]] = []
    for protocol in options.protocols:
        for run in rows(protocol, options.timeout):
            row = run()
            found.append(asdict(row))
            seconds = "" if row.seconds is None else f"{row.seconds:.2f} s"
            print(
                f"{row.protocol:14s} {row.role:17s} {row.phase:8s} {row.when:9s} {row.signal:8s} {row.timeout:4g}  {seconds:>8s}  "
                f"{row.processes_left} left  {row.outcome}",
                flush=True,
            )
            if options.json:
                about = {
                    "date": time.strftime("%Y-%m-%d"),
                    "command": " ".join(["python benchmarks/liveness.py", *sys.argv[1:]]),
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                    "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
                    "rows": found,
                }
                options.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
