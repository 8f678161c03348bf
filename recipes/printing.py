"""What the commands print for people: tables on standard output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from recipes.errors import complain


def table(
    title: str, header: list[str], rows: list[list[str]], bold: int | None = None, left: str | None = None
) -> None:
    """A table on standard output, wide enough for its columns where there is no terminal that says
    otherwise. The first column and the one named `left` are flush left."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    if title:  # a table's own title would be broken at the table's width
        console.print(Text(title, style="italic"))
    table = Table(header_style="bold")
    for position, name in enumerate(header):
        table.add_column(
            Text(name), justify="left" if position == 0 or name == left else "right", overflow="fold"
        )
    for number, row in enumerate(rows):
        table.add_row(*(Text(cell) for cell in row), style="bold green" if number == bold else None)
    console.print(table)


def summary(folder: Path) -> None:
    from results import wording
    from results.record import read

    record = read(folder / "record.json")
    header, rows = wording.summary(record)
    chosen = next((i for i, model in enumerate(record.headline()) if model.id == record.chosen), None)
    table(record.title or record.name, header, rows, chosen)
    typer.echo(wording.summary_note(record))
    emulated = wording.emulations(record)
    if emulated:
        table("Over emulated networks", ["model", *wording.EMULATION_HEADER], emulated)
    typer.echo(wording.headline(record))


def front(folder: Path) -> None:
    from recipes.files import read_json
    from results import wording

    front = read_json(folder / "search" / "front.json")
    points = [p for p in front["evaluated"] if p["id"] in front["points"] or p["names"]]
    rows = []
    for point in sorted(points, key=lambda p: p["seconds"]):
        tally: dict[str, int] = {}
        for variant in point["architecture"]["sites"].values():
            tally[variant] = tally.get(variant, 0) + 1
        made_of = ", ".join(f"{variant} ×{n}" for variant, n in sorted(tally.items())) or "exact"
        kl, online = point["scores"]["kl"], point["cost"]["online"]
        name = point["names"][0] if point["names"] else point["id"]
        row = [name, wording.number(kl), wording.seconds(point["seconds"]), wording.size(online["bytes"])]
        rows.append([*row, wording.count(online["rounds"]), made_of])
    header = [
        "candidate",
        "KL, untrained",
        f"predicted {front['network']}",
        "online bytes",
        "rounds",
        "made of",
    ]
    table("The front and the named baselines", header, rows)


def trained(folder: Path) -> None:
    from recipes.files import read_json
    from results import wording

    found = [read_json(path) for path in sorted((folder / "distill").glob("*/result.json"))]
    rows = [
        [r["title"], f"{r['validation']:.4f}", wording.percent(r["agreement"]), f"{r['seconds']:.0f}"]
        for r in found
    ]
    table("Distilled models", ["model", "validation score", "agreement", "training seconds"], rows)


def verification(found: dict[str, Any]) -> None:
    from results import wording

    rows = []
    for phase in ("setup", "offline", "online"):
        predicted, measured = found["predicted"][phase], found["measured"][phase]
        same = (predicted["bytes"], predicted["rounds"]) == (measured["bytes"], measured["rounds"])
        row = [phase, wording.count(predicted["bytes"]), wording.count(measured["bytes"])]
        row += [
            wording.count(predicted["rounds"]),
            wording.count(measured["rounds"]),
            "yes" if same else "NO",
        ]
        rows.append([*row, wording.seconds(measured["seconds"])])
    header = [
        "phase",
        "predicted bytes",
        "counted bytes",
        "predicted rounds",
        "counted rounds",
        "equal",
        "measured",
    ]
    table(f"{found['protocol']}, {found['samples']} examples, parties as {found['parties']}", header, rows)
    if found["emulated"]:
        from results.record import Emulated

        emulated = {name: Emulated.model_validate(run) for name, run in found["emulated"].items()}
        table("Over emulated networks", wording.EMULATION_HEADER, wording.emulation(emulated))
    accuracy = found["accuracy"]
    typer.echo(
        f"Score {accuracy['secure']:.4f} under MPC, {accuracy['plaintext']:.4f} in plaintext on the same "
        "examples; "
        f"agreement {wording.percent(found['agreement'])}, largest logit error {found['max_logit_error']:.2g}"
    )
    typer.echo(f"Whether values fit fixed point: {found['checked']}")


def doctor(found: dict[str, Any]) -> None:
    from results import wording

    hardware = found["hardware"]
    memory = wording.size(hardware["memory_bytes"])
    typer.echo(f"{hardware['processor']}: {hardware['cores']} cores, {memory}; {hardware['system']}")
    rows = [[name, version or "not installed"] for name, version in found["versions"].items()]
    table("Needed", ["package", "version"], rows)
    rows = [
        [name, entry["version"] or "not installed", entry["for"]] for name, entry in found["extras"].items()
    ]
    table("Optional", ["package", "version", "for"], rows)
    for line in found["problems"]:
        complain(line)
    if not found["problems"]:
        typer.echo("No problem found.")
