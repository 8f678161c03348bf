"""From the runners' answers to figures: best and median, ratios to Sordino in the same run, a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

OURS = "sordino-"
TIMES = ("online_s", "offline_s", "total_s")


def _best_and_median(values: Sequence[float]) -> dict[str, float] | None:
    return {"best": min(values), "median": statistics.median(values)} if values else None


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One system on one workload, over all the times that it was started.

    Seconds are the best and the median of all queries (`cpu_s`: of all starts), and None where the system doesn't tell the phases
    apart. Counts, errors and memory are the largest; counts that differed from start to start are listed under `varied` with the smallest
    and the largest. (Those of SPU's ABY3 do, by 3 %: its parties take different parts each time. Nobody else's should.)
    Raises ValueError where there is no run.
    """
    if not runs:
        raise ValueError("no run to sum up")
    queries = [query for run in runs for query in run["queries"]]
    counts: dict[str, dict[str, float]] = {}
    varied: dict[str, list[float]] = {}
    for phase in ("setup", "offline", "online"):
        counts[phase] = {}
        for key in ("bytes", "rounds", "messages"):
            found = [run[phase][key] for run in runs if key in run[phase]]
            if found and min(found) < max(found):
                varied[f"{phase} {key}"] = [min(found), max(found)]
            if found:
                counts[phase][key] = max(found)
    return {
        **{key: _best_and_median([q[key] for q in queries if key in q]) for key in TIMES},
        "cpu_s": _best_and_median([run["cpu_s"] for run in runs]),
        "online": counts["online"],
        "offline": counts["offline"],
        "setup": {**counts["setup"], "seconds": min(run["setup"]["seconds"] for run in runs)},
        "max_error": max(run["max_error"] for run in runs),
        "memory_bytes": max(run["memory_bytes"] for run in runs),
        "queries": len(queries),
        "varied": varied,
        "notes": runs[-1].get("notes", {}),
    }


def _over(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, key: str = "best") -> float | None:
    if not a or not b or not a.get(key) or not b.get(key):
        return None
    return float(a[key] / b[key])


def ratios(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """System -> Sordino's system -> how many times more the first takes. Best seconds; online bytes; None where a figure is missing.

    `total`: total over total. `total_to_online`: the system's total over Sordino's online seconds, which is how systems that make their
    randomness inside the query compare once Sordino's offline phase is past. `online`: online over online.
    """
    good = {name: s for name, s in systems.items() if "error" not in s}
    result: dict[str, dict[str, dict[str, float | None]]] = {}
    for name, system in good.items():
        for ours, mine in good.items():
            if ours.startswith(OURS) and ours != name:
                result.setdefault(name, {})[ours] = {
                    "total": _over(system["total_s"], mine["total_s"]),
                    "total_to_online": _over(system["total_s"], mine["online_s"]),
                    "online": _over(system["online_s"], mine["online_s"]),
                    "cpu": _over(system["cpu_s"], mine["cpu_s"]),
                    "bytes": _over(system["online"], mine["online"], "bytes"),
                }
    return result


def _seconds(value: Mapping[str, float] | None) -> str:
    return f"{value['best']:.3g} ({value['median']:.3g})" if value else "-"


def _megabytes(phase: Mapping[str, float]) -> str:
    return f"{phase['bytes'] / 1e6:.3g}" if "bytes" in phase else "-"


def _rounds(phase: Mapping[str, float]) -> str:
    if "rounds" in phase:
        return f"{phase['rounds']:.0f}"
    return f"{phase['messages']:.0f} msg" if "messages" in phase else "-"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def table(workloads: Mapping[str, Mapping[str, Any]], ours: Iterable[str]) -> Table:
    """The workloads of a result as one table, a section each, with a column of ratios for each of Sordino's systems in `ours`."""
    ours = list(ours)
    made = Table(
        title="Seconds: best (median). MB: sent online by the party that sends most. x: total / total, total / Sordino's online"
    )
    made.add_column("system", no_wrap=True)
    for heading in (
        "online s",
        "offline s",
        "total s",
        "CPU s",
        "MB",
        "rounds",
        "MB offline",
        "max error",
    ):
        made.add_column(heading, justify="right")
    for name in ours:
        made.add_column(f"x {name.removeprefix(OURS)}", justify="right")
    for workload in workloads.values():
        made.add_section()
        made.add_row(f"[bold]{workload['title']}[/bold]")
        for name, s in workload["systems"].items():
            if "error" in s:
                made.add_row(name, "failed")
                continue
            columns = []
            for mine in ours:
                ratio = workload["ratios"].get(name, {}).get(mine, {})
                both = (_times(ratio.get("total")), _times(ratio.get("total_to_online")))
                columns.append(", ".join(both) if ratio else "-")
            made.add_row(
                name,
                _seconds(s["online_s"]),
                _seconds(s["offline_s"]),
                _seconds(s["total_s"]),
                f"{s['cpu_s']['best']:.3g}",
                _megabytes(s["online"]),
                _rounds(s["online"]),
                _megabytes(s["offline"]),
                f"{s['max_error']:.2g}",
                *columns,
            )
    return made
