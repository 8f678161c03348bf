"""The command `sordino cost`: its options, and which question they ask."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Compare = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--compare",
        metavar="A B",
        help="Two models or protocols side by side. What one does not say is taken from MODEL and --protocol.",
        show_default="none",
    ),
]
Swept = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        metavar="NAME=VALUE,VALUE,…",
        help="Ask for several values of sequence_length, batch, round_trip_s or bandwidth_bytes_per_s.",
        show_default="none",
    ),
]
Systems = Annotated[
    list[str] | None,
    typer.Option(
        "--system",
        help="Estimate what this other system would take as well, `all` for every one. May be given several times.",
        show_default="none",
    ),
]


def cost_command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A hub id, a model directory, package:<name>/<path>, or a config.json. Needed unless --compare names two models.",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[str, typer.Option("--protocol", help="Protocol of the secure engine.")] = "dealer2pc",
    network: Annotated[
        str, typer.Option("--network", help="Network profile: a name or a YAML file.")
    ] = "wan",
    device: Annotated[
        str,
        typer.Option(
            "--device",
            help="Device profile: auto (this machine, measured once), a name, or a file of `calibrate`.",
        ),
    ] = "auto",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Examples in one query.")] = 1,
    sequence_length: Annotated[
        int, typer.Option("--sequence-length", min=1, help="Tokens of a query.")
    ] = 128,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", min=0, help="Tokens that a language model generates after these.")
    ] = 0,
    compare: Compare = None,
    sweep: Swept = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="With --sweep: a page with the curves, one HTML file.", show_default="none"
        ),
    ] = None,
    system: Systems = None,
    systems: Annotated[bool, typer.Option("--systems", help="The same as `--system all`.")] = False,
    prices: Annotated[
        str | None,
        typer.Option(
            "--prices",
            help="Price profile, a name or a YAML file: tell money and energy too.",
            show_default="none",
        ),
    ] = None,
    queries_per_setup: Annotated[
        int, typer.Option("--queries-per-setup", min=1, help="With --prices: queries that share one set-up.")
    ] = 100_000,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")] = False,
) -> None:
    """Predict what a model would cost under MPC. Needs its configuration only, no weights.

    Bytes are the most that one party sends; seconds are those of one online query where no phase is named. Sordino's own
    counts are exact; those of other systems (`--system`) are estimates and say so.

    Example: `sordino cost bert-base-uncased --network wan --sequence-length 128`

    Example: `sordino cost bert-base-uncased --compare dealer2pc replicated3pc --prices cloud`

    Example: `sordino cost bert-base-uncased --sweep sequence_length=32,64,128,256,512 --plot sweep.html`
    """
    from recipes import answers, cost_printing, sweep_printing
    from recipes.errors import RecipeError

    if plot is not None and sweep is None:
        raise RecipeError(f"--plot {plot}: draws a sweep; give --sweep as well")
    if plot is not None and plot.suffix not in (".html", ".htm"):
        raise RecipeError(f"--plot {plot}: the page is an HTML file, so its name ends in .html")
    question = {
        "names": [model, protocol, network, device, prices, *(compare or [])],
        "shape": [batch, sequence_length],
        "more": [sweep, system, systems, queries_per_setup, new_tokens],
    }
    models = [name for name in (model, *(compare or ())) if name is not None]
    profiles = {"networks": network, "devices": device, "prices": prices}
    key = answers.key(question, models, profiles)
    found = answers.read(key)
    if found is None:
        wanted_systems = [*(system or []), *(["all"] if systems else [])]
        place = (
            network,
            device,
            batch,
            sequence_length,
            wanted_systems,
            prices,
            queries_per_setup,
            new_tokens,
        )
        with _rare_collection():
            found = _ask(model, protocol, compare, sweep, place, json_output)
        answers.write(key, found)
    if plot is not None:
        _write_plot(plot, found)
    if json_output:
        typer.echo(json.dumps(found, indent=2))
        return
    if sweep is not None:
        sweep_printing.sweep(found)
    elif "compare" in found:
        cost_printing.comparison(found)
    else:
        cost_printing.cost(found)
    if plot is not None:
        typer.echo(f"Plot: {plot}")


@contextmanager
def _rare_collection() -> Iterator[None]:
    """Look for unreachable cycles once per million new objects, not per 700: importing torch and transformers makes 700,000 that stay."""
    before = gc.get_threshold()
    gc.set_threshold(1_000_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.freeze()  # else the interpreter looks through all of it once more when it ends


def _ask(
    model: str | None,
    protocol: str,
    compare: tuple[str, str] | None,
    sweep: str | None,
    place: tuple[Any, ...],
    quiet: bool,
) -> dict[str, Any]:
    """The answer, worked out. Wrong names are refused before anything is counted."""
    from rich.console import Console

    from recipes import costing, machine, subjects, sweeping, vocabulary
    from recipes.progress import Reporter

    reporter = Reporter(Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True))
    wanted = None if sweep is None else sweeping.parse(sweep)
    asked = subjects.subjects(model, protocol, compare, vocabulary.protocols())
    machine.ready(place[1], reporter)
    setting, models = costing.Setting.named(*place), costing.Models()
    if wanted is not None:
        with reporter.step("count") as progress:
            return sweeping.sweep(models, asked, setting, wanted, progress)
    if len(asked) > 1:
        return costing.compare(models, asked, setting)
    return costing.answer(models, asked[0], setting)


def _write_plot(path: Path, found: dict[str, Any]) -> None:
    from recipes import cost_printing
    from recipes.files import write_text
    from results.sweep_plot import render_sweep

    write_text(path, render_sweep(found, cost_printing.labels(found.get("compare") or [found])))
