"""The command `sordino`. Heavy imports stay inside the commands, so that `--help` answers at once.

Exit codes: 0 done; 1 done, but a contract was missed; 2 wrong input, said in one message; 3 a fault of
Sordino's own.
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from recipes import printing
from recipes.cost_command import cost_command
from recipes.errors import ContractMissed, complain
from recipes.show_command import show_command

P = ParamSpec("P")
R = TypeVar("R")

PACKAGES = ("secure_eval", "cost_models", "distill", "nas", "recipes", "results")

app = typer.Typer(
    name="sordino",
    help="Compress Hugging Face models so that they run fast under secure multi-party computation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run directory.", show_default="results/<name of the recipe>")
]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's YAML file, or the name of a shipped one.")
]


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="SORDINO_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Compress Hugging Face models so that they run fast under secure multi-party computation."""
    os.environ["SORDINO_DEBUG"] = "1" if debug else ""
    # Waiting OpenMP threads that spin make training several times slower; read when torch is imported, so set
    # here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _warn_of_shadowed_packages()


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Register a command whose errors become one message and an exit code."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        with _errors():
            return function(*args, **kwargs)

    name = function.__name__.removesuffix("_command")
    return app.command(name)(guarded)


@command
def run_command(recipe: RecipeName, out: Out = None) -> None:
    """Run a recipe from data to report, or go on with a run that was stopped.

    Stages: data, teacher, calibrate, search, distill, verify, export, report. A finished stage is skipped
    while what it depends on is unchanged.

    Example: `sordino run quickstart`
    """
    from recipes import run as runner

    path = runner.find(recipe)
    reporter = _reporter()
    contract: ContractMissed | None = None
    try:
        outcome = runner.run(path, out, command=_command_line(), reporter=reporter)
        folder = outcome.path
    except ContractMissed as missed:
        contract, folder = missed, missed.path
    printing.summary(folder)
    typer.echo(f"Report: {folder / 'report.html'}\nModel:  {folder / 'model'}")
    if contract is not None:
        raise contract


@command
def search_command(recipe: RecipeName, out: Out = None) -> None:
    """Run a recipe up to its search and print the front.

    Example: `sordino search quickstart`
    """
    from recipes import run as runner

    outcome = runner.run(
        runner.find(recipe), out, until="search", command=_command_line(), reporter=_reporter()
    )
    printing.front(outcome.path)


@command
def distill_command(recipe: RecipeName, out: Out = None) -> None:
    """Run a recipe up to its distilled students, baselines among them.

    Example: `sordino distill quickstart --out results/trial`
    """
    from recipes import run as runner

    outcome = runner.run(
        runner.find(recipe), out, until="distill", command=_command_line(), reporter=_reporter()
    )
    printing.trained(outcome.path)


@command
def verify_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory, such as a run's model/.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="Recipe that names the test data and the query's shape.",
            show_default="the run's own",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Test examples to answer.")] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="Protocol of the secure engine.")] = None,
    parties: Annotated[str | None, typer.Option("--parties", help="processes, or threads.")] = None,
    emulate: Annotated[
        list[str] | None,
        typer.Option(
            "--emulate",
            help="Network profile to emulate: queries over it are timed as well. May be given several times.",
            show_default="none",
        ),
    ] = None,
    emulated_samples: Annotated[
        int | None,
        typer.Option("--emulated-samples", min=1, help="Test examples to answer over each emulated network."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0.001, help="Seconds without progress of a role after which a query is given up."
        ),
    ] = None,
    unchecked: Annotated[
        bool,
        typer.Option(
            "--unchecked", help="Run a model even if its values do not fit fixed point on training texts."
        ),
    ] = False,
    json_output: Json = False,
) -> None:
    """Run a model under MPC on test examples and hold it against its plaintext answers and its predicted
    cost; with `--emulate` against its predicted seconds on a network as well.

    Exit code 1 if counted bytes or rounds differ from the predicted ones.

    Example: `sordino verify results/quickstart/model --samples 16 --emulate wan --json`
    """
    from recipes import verification

    found = verification.verify(
        model,
        recipe,
        samples,
        protocol,
        parties,
        emulate or [],
        emulated_samples,
        _reporter(json_output),
        timeout,
        unchecked,
    )
    if json_output:
        typer.echo(json.dumps(found, indent=2))
    else:
        printing.verification(found)
    if verification.differs(found):
        raise ContractMissed("counted bytes or rounds differ from the predicted ones", Path(model))


@command
def export_command(
    recipe: RecipeName,
    to: Annotated[Path | None, typer.Option("--to", help="Copy the model directory there as well.")] = None,
    out: Out = None,
) -> None:
    """Run a recipe up to the exported model, and copy it if asked to.

    Example: `sordino export quickstart --to ~/models/quickstart`
    """
    import shutil

    from recipes import run as runner
    from recipes.errors import RecipeError

    if to is not None and to.exists():
        raise RecipeError(f"--to {to}: it is there already; name a new directory")
    outcome = runner.run(
        runner.find(recipe), out, until="export", command=_command_line(), reporter=_reporter()
    )
    model = outcome.path / "model"
    if to is not None:
        shutil.copytree(model, to)
        model = to
    typer.echo(f"Model: {model}")


@command
def report_command(
    directory: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory with a record.json, or the record itself.")
    ],
    json_output: Json = False,
) -> None:
    """Make report.html and report.md of a run again, from its record alone.

    Example: `sordino report results/quickstart`
    """
    import results

    folder = directory.parent if directory.name == "record.json" else directory
    record = results.read(folder / "record.json")
    written = results.write_reports(record, folder)
    if json_output:
        typer.echo(record.model_dump_json(indent=2))
        return
    printing.summary(folder)
    typer.echo("\n".join(f"Wrote {path}" for path in written))


command(cost_command)
command(show_command)


@command
def calibrate_command(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File for the profile.", show_default="device.yaml, or network.yaml"
        ),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="Measure this machine's `auto` profile again, in 20 seconds or less: other work may have slowed it down.",
        ),
    ] = False,
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            metavar="listen|HOST:PORT",
            help="Measure a link instead: `listen` on one host, then the address of that host on the other.",
            show_default="none",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="With `--network listen`: port to listen on; 0 lets the system choose.",
            show_default="7341",
        ),
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option(
            "--tls",
            help="With --network: credentials of both ends, for mutual TLS 1.3 as between parties. The host that listens "
            "makes the file if it isn't there; copy it to the other.",
            show_default="none: nothing is encrypted",
        ),
    ] = None,
) -> None:
    """Measure how fast this machine computes, for `--device` and a recipe's `secure.device`; or, with `--network`,
    the link between two hosts, for `--network` of `sordino cost` and a recipe's `secure.network`.

    A link is measured over the engine's own transport: the round trip of small messages, and the payload bandwidth each way. The
    profile names neither host.

    Example: `sordino calibrate --output my_machine.yaml`

    Example: `sordino calibrate --network listen --port 7341` on one host, and on the other
    `sordino calibrate --network 192.0.2.7:7341 --output my_link.yaml`
    """
    from recipes import calibration, machine
    from recipes.errors import RecipeError

    if auto:
        if output is not None or network is not None:
            raise RecipeError(
                "--auto: is kept where `--device auto` looks for it, and goes without --output and --network"
            )
        typer.echo(f"Wrote {machine.measure(_reporter())}, the profile `auto` of this machine.")
        return
    listening = network == calibration.LISTEN
    if port is not None and not listening:
        raise RecipeError(
            f"--port {port}: goes with `--network {calibration.LISTEN}`; elsewhere write HOST:PORT"
        )
    if tls is not None and network is None:
        raise RecipeError(f"--tls {tls}: goes with --network")
    if listening:
        if output is not None:
            raise RecipeError(f"--output {output}: the profile is written by the other end, which connects")
        calibration.listen(calibration.PORT if port is None else port, tls, typer.echo)
        return
    if network is None:
        path = calibration.device(output or Path("device.yaml"), _reporter())
        typer.echo(f"Wrote {path}. Use it: sordino cost MODEL --device {path}")
    else:
        path = calibration.network(network, tls, output or Path("network.yaml"), _reporter())
        typer.echo(f"Wrote {path}. Use it: sordino cost MODEL --network {path}")


@command
def doctor_command(json_output: Json = False) -> None:
    """Look at this installation: versions, cores, memory, clashing package names, optional extras.

    Exit code 1 if something is broken.

    Example: `sordino doctor`
    """
    from recipes import doctor

    found = doctor.examine()
    if json_output:
        typer.echo(json.dumps(found, indent=2))
    else:
        printing.doctor(found)
    if found["problems"]:
        raise typer.Exit(1)


@command
def recipes_command(json_output: Json = False) -> None:
    """List the recipes that come with Sordino.

    Example: `sordino recipes`
    """
    from recipes import run as runner

    found = {name: {"path": str(path), "about": _about(path)} for name, path in runner.shipped().items()}
    if json_output:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, entry in found.items():
        typer.echo(f"{name:16} {entry['about']}\n{'':16} {entry['path']}")


def main() -> None:
    """Entry point of the command `sordino`."""
    app()


@contextmanager
def _errors() -> Iterator[None]:
    """Turn exceptions into one message and an exit code; with --debug they pass."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        complain("stopped; start the same command again and it goes on where it was")
        raise typer.Exit(130) from None
    except ContractMissed as missed:
        complain(str(missed))
        raise typer.Exit(1) from None
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("SORDINO_DEBUG"):
            raise
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        hint = "; make room and start the same command again: a run goes on where it was" if full else ""
        complain((str(error) or type(error).__name__) + hint)
        raise typer.Exit(2) from None
    except Exception as error:
        if os.environ.get("SORDINO_DEBUG"):
            raise
        complain(
            f"{type(error).__name__}: {error}\nThis is a fault of Sordino's; `sordino --debug …` shows where."
        )
        raise typer.Exit(3) from None


def _warn_of_shadowed_packages() -> None:
    """Our top-level names are ordinary words: say so if another distribution's package is the one that gets
    imported."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is not None and origin.parent.parent != home:
            complain(
                f"the package {name!r} is imported from {origin.parent}, which is not Sordino's; "
                "see `sordino doctor`"
            )


def _command_line() -> str:
    import shlex

    return shlex.join(["sordino", *sys.argv[1:]])


def _reporter(quiet: bool = False):  # type: ignore[no-untyped-def]
    from rich.console import Console

    from recipes.progress import Reporter

    return Reporter(Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True))


def _about(path: Path) -> str:
    """The first comment line of a recipe."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


if __name__ == "__main__":
    main()
