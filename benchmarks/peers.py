"""Sordino beside CrypTen and SPU: the same inputs, the same machine, in turn.

    python -m benchmarks.peers [--workloads NAME ...] [--systems NAME ...] [--repeats 3] [--json FILE] [--quick]

Each system runs every workload with its parties as separate processes over loopback, one compute thread a party, weights and
inputs secret. Systems take turns, starting with another one in each repeat, so that the load of the machine weighs on all
alike; ratios within one run mean something, seconds only on that machine. Bytes, rounds and messages are counted by each system.
CrypTen 0.4.1 and SPU 0.9.5 are installed from the package registry, each into an environment of its own, the first time
(`--environments`, by default ~/.cache/sordino/peers). Both need Python 3.11. What was repaired in CrypTen and which
options SPU runs with is said in peer_systems/crypten_runner.py and peer_systems/spu_runner.py; what a query's time contains, in
benchmarks/README.md. The result is written after every workload, so that a run cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.peer_systems import comparison, environments, reference
from benchmarks.peer_systems.workloads import QUICK, WORKLOADS, UnknownName, Workload, choose
from secure_eval import protocols

_HERE = Path(__file__).resolve().parent
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of several processes on few cores slow each other down
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
_PEERS: dict[str, tuple[str, list[str]]] = {
    "crypten": ("crypten", ["crypten_runner.py"]),
    "spu-semi2k": ("spu", ["spu_runner.py", "--protocol", "semi2k"]),
    "spu-aby3": ("spu", ["spu_runner.py", "--protocol", "aby3"]),
}
"""System -> its environment, and its runner with arguments."""


class RunError(RuntimeError):
    """A system did not answer."""


def system_names() -> list[str]:
    """Every system that can be named: the peers, then each of Sordino's protocols but the one that shares nothing."""
    ours = [f"{comparison.OURS}{name}" for name in protocols.names() if name != "plain"]
    return [*_PEERS, *ours]


def command_of(system: str, folder: Path, python: str | None = None) -> list[str]:
    """The command that runs a system on a workload's file, which is still to be appended. Installs a peer where needed."""
    if system in _PEERS:
        environment, (script, *arguments) = _PEERS[system]
        interpreter = environments.ensure(environment, folder, python)
        return [interpreter, str(_HERE / "peer_systems" / script), *arguments]
    protocol = system.removeprefix(comparison.OURS)
    return [sys.executable, "-m", "benchmarks.peer_systems.sordino_runner", "--protocol", protocol]


def run_once(command: list[str], timeout_s: float) -> dict[str, Any]:
    """Runs one command and reads the JSON in the last line that it prints. Raises RunError."""
    paths = filter(None, [str(_HERE.parent), os.environ.get("PYTHONPATH")])
    variables = {**os.environ, **_ONE_THREAD}
    if command[0] == sys.executable:
        variables["PYTHONPATH"] = os.pathsep.join(paths)
    else:
        variables.pop("PYTHONPATH", None)  # a peer sees its own packages only
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        start_new_session=True,
    ) as process:
        try:
            out, log = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise RunError(f"no answer within {timeout_s:g} s") from None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise RunError(f"exit status {process.returncode}\n{log[-3000:].rstrip()}")
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        raise RunError(f"the answer is no JSON: {out[-500:]!r}") from None
    return answer


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this checkout, with a plus sign where tracked files differ from it."""
    git = ["git", "-C", str(_HERE)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.returncode else "")


def _header(options: argparse.Namespace) -> dict[str, Any]:
    try:
        sordino = metadata.version("sordino")
    except metadata.PackageNotFoundError:  # run from a checkout
        sordino = "not installed"
    return {
        "command": shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            "load_at_start": os.getloadavg()[0],
        },
        "versions": {
            "sordino": sordino,
            "commit": _commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "peers": {name: list(e.pins + e.alone) for name, e in environments.ENVIRONMENTS.items()},
        },
        "settings": {"repeats": options.repeats, "threads_a_party": 1, "warm_ups": options.warm_ups},
        "workloads": {},
    }


def _save(result: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(path)


def compare(
    workload: Workload, commands: dict[str, list[str]], options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """All systems on one workload, in turn: title, specification, what each system took, raw answers, ratios."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    errors: dict[str, str] = {}
    names = list(commands)
    warm_ups = workload.warm_ups if options.warm_ups is None else options.warm_ups
    arguments = ["--queries", str(workload.queries), "--warm-ups", str(warm_ups)]
    with tempfile.TemporaryDirectory(prefix="sordino-peers-") as folder:
        data = Path(folder) / "workload.npz"
        reference.write(workload, data)
        for repeat in range(options.repeats):
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                if name in errors:
                    continue
                try:
                    runs[name].append(run_once([*commands[name], str(data), *arguments], options.timeout))
                    took = f"{min(q['total_s'] for q in runs[name][-1]['queries']):.3g} s"
                except RunError as error:
                    errors[name], took = str(error), f"failed: {error}"
                console.print(
                    f"{workload.title}, {name}, {repeat + 1} of {options.repeats}: {took}", markup=False
                )
    systems = {
        name: {"error": errors[name]} if name in errors else comparison.summary(runs[name]) for name in names
    }
    return {
        "title": workload.title,
        "specification": workload.specification(),
        "warm_ups": warm_ups,
        "systems": systems,
        "ratios": comparison.ratios(systems),
        "runs": runs,
    }


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, checked: an unknown name ends the program with the names that there are."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Sordino beside CrypTen and SPU on the same inputs."
    )
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help=f"of: {', '.join(WORKLOADS)}")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help=f"of: {', '.join(system_names())}")
    parser.add_argument("--repeats", type=int, default=3, help="how often each system is started (default 3)")
    parser.add_argument(
        "--warm-ups", type=int, help="untimed queries before the timed ones, for every workload"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the whole result is written")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}, once")
    parser.add_argument(
        "--environments", type=Path, metavar="DIR", default=environments.DEFAULT_FOLDER, help="of the peers"
    )
    parser.add_argument("--python", metavar="PATH", help=f"a Python {environments.PYTHON} for the peers")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that one start may take")
    options = parser.parse_args(argv)
    try:
        chosen = options.workloads or list(QUICK if options.quick else WORKLOADS)
        options.workloads = choose("workload", chosen, list(WORKLOADS))
        options.systems = choose("system", options.systems or system_names(), system_names())
    except UnknownName as error:
        parser.error(str(error))
    if options.quick:
        options.repeats = 1
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: allowed is 1 or more")
    if options.warm_ups is not None and options.warm_ups < 0:
        parser.error(f"--warm-ups {options.warm_ups}: allowed is 0 or more")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.resolve().parent}")
    return options


def main() -> None:
    options = arguments()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM")
    )  # so that what it started ends as well
    progress, console = Console(stderr=True), Console(width=None if sys.stdout.isatty() else 200)
    commands = {}
    for name in options.systems:
        if name in _PEERS:
            progress.print(f"{name}: its environment", markup=False)
        try:
            commands[name] = command_of(name, options.environments, options.python)
        except environments.PeerInstallError as error:
            sys.exit(f"{name} can't be installed: {error}")
    result = _header(options)
    for name in options.workloads:
        result["workloads"][name] = compare(WORKLOADS[name], commands, options, progress)
        _save(result, options.json)
    ours = [name for name in options.systems if name.startswith(comparison.OURS)]
    console.print(comparison.table(result["workloads"], ours))
    failed = [
        f"{name} on {workload}: {s['error']}"
        for workload, r in result["workloads"].items()
        for name, s in r["systems"].items()
        if "error" in s
    ]
    if failed:
        sys.exit("failed: " + "\n".join(failed))


if __name__ == "__main__":
    main()
