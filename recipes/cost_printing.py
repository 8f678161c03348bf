"""What `sordino cost` prints for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from recipes.printing import table
from results import wording

SHOWN = 12
PHASES = {"setup": "set-up, once a model", "offline": "offline, a query", "online": "online, a query"}


def cost(found: Mapping[str, Any]) -> None:
    """One answer: its phases, its most expensive parts, money and comparison systems where they were asked for."""
    online, seconds = found["online"], found["seconds"]
    rows = []
    for name, title in PHASES.items():
        phase = found["phases"][name]
        row = [title, wording.size(phase["bytes"]), wording.count(phase["rounds"]), *times(phase["seconds"])]
        rows.append([*row, wording.size(phase["peak_memory_bytes"])])
    header = ["phase", "bytes", "rounds", "compute", "network", "seconds", "a party's peak memory"]
    table(f"{found['model']} on {found['protocol']}, {conditions(found)}", header, rows)
    parts(found, "site", "modules")
    parts(found, "operation", "kinds of operations")
    if "generation" in found:
        generation(found)
    if "money" in found:
        money(found["money"])
    if "systems" in found:
        systems(found)
    typer.echo(f"Seconds are of device profile {wording.device_profile(found['device_profile'])}.")
    typer.echo(
        "A prediction: no values were computed, so whether they fit fixed point was not checked; where a run certifies them, "
        "a query costs less."
    )
    typer.echo(
        f"One online query: {wording.seconds(seconds['total'])} = compute "
        f"{wording.seconds(seconds['compute'])} "
        f"+ network {wording.seconds(seconds['network'])}; {online['macs']:,} multiply-accumulates. "
        f"A party keeps {wording.size(found['memory']['model_bytes'])} of the model, and "
        f"{wording.size(found['memory']['stored_bytes'])} for each query that is prepared ahead"
    )
    for line in found.get("public", ()):
        typer.echo(line)


def generation(found: Mapping[str, Any]) -> None:
    """A generation with a key/value cache: its prompt, its tokens and all of it."""
    told = found["generation"]
    titles = {"prefill": f"the prompt's {found['sequence_length']} tokens", "first": "first further token"}
    titles |= {"last": "last token", "total": f"all {told['new_tokens']} new tokens"}
    rows = [
        [
            title,
            wording.size(told[name]["offline"]["bytes"]),
            wording.size(told[name]["online"]["bytes"]),
            wording.count(told[name]["online"]["rounds"]),
            *times(told[name]["online"]["seconds"]),
        ]
        for name, title in titles.items()
    ]
    header = ["generation", "offline bytes", "online bytes", "rounds", "compute", "network", "seconds"]
    table("Text, token by token, with the cache shared between the parties", header, rows)


def parts(found: Mapping[str, Any], kind: str, title: str) -> None:
    """The most expensive modules or kinds of operations, by their seconds on this network; equal places of all layers in one row."""
    entries = sorted(alike(found[f"by_{kind}"], kind), key=lambda entry: -entry["seconds"]["total"])
    rows = [
        [
            entry[kind] or "(no module)",
            wording.count(entry["places"]),
            wording.size(entry["bytes"]),
            wording.count(entry["rounds"]),
            *times(entry["seconds"]),
            wording.percent(wording.ratio(entry["seconds"]["total"], found["seconds"]["total"])),
        ]
        for entry in entries[:SHOWN]
    ]
    if kind == "operation":
        rows = [[first, *others] for first, _, *others in rows]
    if rows:
        some = f"The most expensive of {len(entries)} {title}" if len(entries) > SHOWN else f"By {title}"
        header = [title, *(["places"] if kind == "site" else []), "bytes", "rounds", "compute", "network"]
        header += ["seconds", "of the query"]
        table(f"{some}, online; a round that several share counts in each", header, rows)


def alike(entries: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Entries whose names differ in the numbers of their layers only, added up: "layer.*.output" for all of them."""
    groups: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", entry[kind])
        group = groups.setdefault(
            name,
            {kind: name, "places": 0, "bytes": 0, "rounds": 0}
            | {"seconds": dict.fromkeys(entry["seconds"], 0.0)},
        )
        for key in ("bytes", "rounds"):
            group[key] += entry[key]
        group["places"] += 1
        for key, value in entry["seconds"].items():
            group["seconds"][key] += value
    return list(groups.values())


def money(found: Mapping[str, Any]) -> None:
    """Cents and watt-hours of 1,000 queries."""
    names = {**PHASES, "total": "all"}
    names["setup"] = f"set-up, for {found['queries_per_setup']:,} queries"
    rows = [[title, *charge(found[phase])] for phase, title in names.items()]
    prices = found["prices"]
    per_hour = f"US$ {prices['machine_hour_usd']:g} a machine-hour"
    if found["accelerated"]:
        per_hour += f" and {prices['accelerator_hour_usd']:g} an accelerator-hour"
    title = f"{found['queries']:,} queries with prices {prices['name']}: {per_hour}, {prices['egress_gb_usd']:g} a GB sent"
    header = [
        "phase",
        "machine-hours",
        "of them computing",
        "sent",
        "machines, occupied",
        "machines, computing",
    ]
    table(title, [*header, "egress", "all, occupied", "all, computing", "energy"], rows)
    typer.echo(
        "Occupied: machines wait for the network and are paid for it, one query at a time. Computing: enough queries side by side fill "
        "every wait. Energy is that of computing.\n"
        f"Prices of {prices['date'] or 'no date'}: {prices['note'] or 'no note'}"
    )


def charge(found: Mapping[str, Any]) -> list[str]:
    """One row of the money table after its title."""
    return [
        wording.number(found["occupied_hours"]),
        wording.number(found["working_hours"]),
        wording.size(found["egress_bytes"]),
        *(
            cents(found[key])
            for key in ("occupied_cents", "working_cents", "egress_cents", "total_cents", "least_cents")
        ),
        wording.ABSENT if found["watt_hours"] is None else f"{found['watt_hours']:.3g} Wh",
    ]


def systems(found: Mapping[str, Any]) -> None:
    """Comparison systems below our own line, with what is said of them."""
    priced = "money" in found

    def cells(entry: Mapping[str, Any]) -> list[str]:
        row = [wording.size(entry[f"{phase}_bytes"]) for phase in PHASES]
        row += [wording.size(entry["key_storage_bytes"] or None), wording.count(entry["rounds"])]
        row += times(entry["seconds"])
        if priced:
            total = entry["money"]["total"]
            row += [cents(total["total_cents"]), cents(total["least_cents"])]
        return row

    own = {f"{phase}_bytes": found["phases"][phase]["bytes"] for phase in PHASES}
    own |= {
        "key_storage_bytes": found["memory"]["stored_bytes"],
        "rounds": found["online"]["rounds"],
        "seconds": found["seconds"],
        "money": found.get("money"),
    }
    rows = [[f"{found['protocol']} (counted)", found["device"], *cells(own)]]
    rows += [[f"{e['system']} (estimate)", e["machine"], *cells(e)] for e in found["systems"]]
    header = ["system", "on", "set-up", "offline", "online", "kept for a query", "rounds"]
    header += ["compute", "network", "online seconds"]
    header += ["1,000 queries, occupied", "computing"] if priced else []
    table("Comparison systems: bytes that one party sends, a query online", header, rows, bold=0)
    notices(found["systems"])


def notices(systems: Sequence[Mapping[str, Any]]) -> None:
    """What has to be said whenever comparison systems are shown, each sentence once."""
    for notice in dict.fromkeys(entry["notice"] for entry in systems):
        typer.echo(notice)
    for entry in systems:
        if entry["compute_s"] is not None:
            typer.echo(
                f"{entry['system']}: compute on {entry['compute_hardware'] or 'hardware that is not named'}"
            )
        if entry["not_priced"]:
            missing = ", ".join(f"{work['count']} × {work['kind']}" for work in entry["not_priced"])
            typer.echo(f"{entry['system']}, not in its figures: {missing}")


def comparison(found: Mapping[str, Any]) -> None:
    """Two answers side by side, and the second as a multiple of the first."""
    first, second = found["compare"]
    names = labels([first, second])

    def row(title: str, say: Any, *path: str) -> list[str]:
        a, b = (_at(one, path) for one in (first, second))
        return [title, say(a), say(b), wording.times(wording.ratio(b, a))]

    rows = []
    for phase, title in PHASES.items():
        name = title.split(",")[0]
        rows.append(row(f"{name}, bytes", wording.size, "phases", phase, "bytes"))
        rows.append(row(f"{name}, rounds", wording.count, "phases", phase, "rounds"))
        rows.append(row(f"{name}, MACs", wording.count, "phases", phase, "macs"))
        rows.append(row(f"{name}, peak memory", wording.size, "phases", phase, "peak_memory_bytes"))
        for kind in ("compute", "network", "total"):
            rows.append(row(f"{name}, {kind}", wording.seconds, "phases", phase, "seconds", kind))
    rows.append(row("kept for a query", wording.size, "memory", "stored_bytes"))
    if "money" in first:
        for key, title in (("total_cents", "occupied"), ("least_cents", "computing")):
            rows.append(row(f"1,000 queries, {title}", cents, "money", "total", key))
    table(f"Side by side, {conditions(first)}", ["", *names, "second / first"], rows)
    typer.echo(f"Seconds are of device profile {wording.device_profile(found['device_profile'])}.")
    tables = [{entry["operation"]: entry for entry in one["by_operation"]} for one in (first, second)]
    operations = sorted(
        {name for entries in tables for name in entries},
        key=lambda name: -max(_at(entries, (name, "seconds", "total")) or 0 for entries in tables),
    )
    rows = []
    for name in operations[:SHOWN]:
        a, b = (_at(entries, (name, "seconds", "total")) for entries in tables)
        sizes = [wording.size(_at(entries, (name, "bytes"))) for entries in tables]
        rows.append(
            [name, *sizes, wording.seconds(a), wording.seconds(b), wording.times(wording.ratio(b, a))]
        )
    header = ["kind of operation", *(f"{n}, bytes" for n in names), *(f"{n}, seconds" for n in names)]
    table("The most expensive kinds of operations, online", [*header, "second / first"], rows)
    for one, name in zip((first, second), names, strict=True):
        if "systems" in one:
            typer.echo(name)
            systems(one)


def labels(series: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells the subjects apart, or the one model and its protocol."""
    models, protocols = ({one[key] for one in series} for key in ("model", "protocol"))
    if len(series) > 1 and len(models) == 1:
        return [one["protocol"] for one in series]
    if len(series) > 1 and len(protocols) == 1:
        return [one["model"] for one in series]
    return [f"{one['model']} on {one['protocol']}" for one in series]


def conditions(found: Mapping[str, Any], without: str = "") -> str:
    """Batch, tokens, network and device, less what is being swept."""
    link = found["link"]
    parts = {
        "batch": f"batch {found['batch']}",
        "sequence_length": f"{found['sequence_length']} tokens",
        "round_trip_s": f"{found['network']} ({wording.seconds(link['round_trip_s'])} round trip)",
        "bandwidth_bytes_per_s": f"{wording.size(link['bandwidth_bytes_per_s'])}/s",
        "device": f"device {found['device']}",
    }
    return ", ".join(text for name, text in parts.items() if name != without)


def times(seconds: Mapping[str, float | None]) -> list[str]:
    """Compute, network and total as cells."""
    return [wording.seconds(seconds[key]) for key in ("compute", "network", "total")]


def cents(value: float | None) -> str:
    """US cents: 0.12345 -> "0.123 ¢"."""
    if value is None:
        return wording.ABSENT
    return f"{value:.3g} ¢" if value < 999.5 else f"{value:,.0f} ¢"


def _at(found: Any, path: Sequence[str]) -> Any:
    """The value at a path of keys; None where one is missing."""
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found
