"""Sordino on one workload: the roles of a protocol, a process each, over loopback with mutual TLS.

    python -m benchmarks.peer_systems.sordino_runner WORKLOAD.npz --protocol dealer2pc [--queries 1] [--warm-ups 1]

prints one JSON object. `offline_s` and `online_s` are wall times that the caller sees, sharing the inputs and opening the
outputs to the client included; set-up (sharing the weights, opening them under a mask) is apart. Bytes are the most that any one role
sends, CPU seconds those of all processes, client and dealer included, offline and online.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import secure_eval
from benchmarks.peer_systems import reference

_TICKS = os.sysconf("SC_CLK_TCK")


def _processes(root: int) -> list[int]:
    """A process and all its descendants."""
    found = [root]
    for task in Path(f"/proc/{root}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _processes(int(child))
    return found


def _cpu_seconds(process: int) -> float:
    """User and system seconds of a process, in clock ticks (10 ms)."""
    after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS


def _peak_memory(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{process}/status says no VmHWM")


def measure(path: Path, protocol: str, queries: int = 1, warm_ups: int = 1) -> dict[str, Any]:
    """Runs the workload of a file that `reference.write` wrote.

    Raises UnknownProtocol, and ValueError for fewer than one query.
    """
    if queries < 1:
        raise ValueError(f"queries={queries}; allowed: 1 or more")
    specification, inputs, weights, expected = reference.read(path)
    module = reference.module(specification, weights)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    started = time.perf_counter()
    example = tuple(tensors.values())
    with secure_eval.compile(module, example, protocol=protocol, parties="processes") as secure:
        compiled = time.perf_counter() - started
        for _ in range(warm_ups):
            secure.offline()
            secure(*example)
        running = _processes(os.getpid())
        cpu = sum(map(_cpu_seconds, running))
        taken, outputs = [], []
        for _ in range(queries):
            start = time.perf_counter()
            secure.offline()
            prepared = time.perf_counter()
            outputs.append(secure(*example))
            end = time.perf_counter()
            taken.append({"offline_s": prepared - start, "online_s": end - prepared, "total_s": end - start})
        cpu = (sum(map(_cpu_seconds, running)) - cpu) / queries
        memory = max(map(_peak_memory, running))
        measured = secure.measurement
    error = max(float(np.abs(output.double().numpy() - expected).max()) for output in outputs)
    phases = {
        phase: {k: v for k, v in getattr(measured, phase).to_dict().items() if k in ("bytes", "rounds")}
        for phase in ("setup", "offline", "online")
    }
    by_operation = {name: counts.bytes for name, counts in measured.operations.items() if counts.bytes}
    return {
        "queries": taken,
        "cpu_s": cpu,
        "online": phases["online"],
        "offline": phases["offline"],
        "setup": {**phases["setup"], "seconds": measured.setup.seconds, "with_capture_s": compiled},
        "max_error": error,
        "memory_bytes": memory,
        "versions": {"torch": torch.__version__},
        "notes": {"fraction_bits": secure.fraction_bits, "online_bytes_by_operation": by_operation},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Sordino on one workload.")
    parser.add_argument("workload", type=Path, help="a file that benchmarks/peers.py wrote")
    parser.add_argument("--protocol", required=True, help="a name from secure_eval.protocols.names()")
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--warm-ups", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(measure(options.workload, options.protocol, options.queries, options.warm_ups)))


if __name__ == "__main__":
    main()
