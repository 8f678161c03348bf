"""What `sordino cost --sweep` prints for people: a table for each subject, with bars on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from recipes.cost_printing import cents, conditions, labels, notices, times
from recipes.printing import table
from results import wording

BAR = 36
BAR_TITLE = "█ compute, ░ network"


def sweep(found: Mapping[str, Any]) -> None:
    """One table for each subject: a row a value, its online seconds drawn as bars on one scale."""
    parameter = found["sweep"]["parameter"]
    series = found.get("compare") or [found]
    names = labels(series)
    most = max(point["seconds"]["total"] for one in series for point in one["points"])
    for one, name in zip(series, names, strict=True):
        priced = "money" in one["points"][0]
        rows = []
        for point in one["points"]:
            row = [f"{point[parameter]:,g}", wording.size(point["offline"]["bytes"])]
            row += [wording.size(point["online"]["bytes"]), wording.count(point["online"]["rounds"])]
            row += times(point["seconds"])
            row += [cents(point["money"]["total"]["total_cents"])] if priced else []
            rows.append([*row, bar(point["seconds"], most)])
        header = [parameter, "offline bytes", "online bytes", "rounds", "compute", "network", "seconds"]
        header += ["1,000 queries"] if priced else []
        title = f"{name}, {conditions(one['points'][0], without=parameter)}"
        table(title, [*header, BAR_TITLE], rows, left=BAR_TITLE)
        estimates(parameter, one["points"])
    typer.echo(f"Seconds are of device profile {wording.device_profile(found['device_profile'])}.")


def estimates(parameter: str, points: Sequence[Mapping[str, Any]]) -> None:
    """Online seconds (bytes where no seconds are known) of the comparison systems, a row a value."""
    if "systems" not in points[0]:
        return
    rows = []
    for point in points:
        row = [f"{point[parameter]:,g}"]
        for entry in point["systems"]:
            row.append(
                f"{wording.seconds(entry['seconds']['total'])} / {wording.size(entry['online_bytes'])}"
            )
        rows.append(row)
    header = [parameter, *(f"{entry['system']} (estimate)" for entry in points[0]["systems"])]
    table("Comparison systems, online: seconds / bytes that one party sends", header, rows)
    notices(points[0]["systems"])


def bar(seconds: Mapping[str, float], most: float) -> str:
    """Compute and network seconds as a bar of at most BAR characters, which stands for `most` seconds."""
    if not most:
        return ""
    whole = round(BAR * seconds["total"] / most)
    work = min(whole, round(BAR * seconds["compute"] / most))
    return "█" * work + "░" * (whole - work)
