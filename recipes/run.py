"""Run a recipe: its stages in order, each step skipped while its inputs' hash is unchanged, resumed where it
was killed."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import ContractMissed, RecipeError
from recipes.files import digest, fingerprint, read_json, write_json, write_text
from recipes.lock import Lock
from recipes.progress import Reporter
from recipes.rundir import STATE, RunDirectory, Step, library_versions

if TYPE_CHECKING:
    from recipes.context import Context

STAGES = ("data", "teacher", "calibrate", "search", "distill", "certify", "verify", "export", "report")
"""In the order in which they run."""

LOCK = ".lock"
FINISHED = "finished.json"


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `worked` says whether anything had to be done."""

    path: Path
    worked: bool


def package_version() -> str:
    """The installed version; "checkout" where the package is imported from a folder that was never
    installed."""
    try:
        return importlib.metadata.version("sordino")
    except importlib.metadata.PackageNotFoundError:
        return "checkout"


def run(
    recipe_path: Path,
    out: Path | None = None,
    *,
    until: str = "report",
    command: str = "",
    reporter: Reporter | None = None,
) -> Outcome:
    """Run the recipe in `recipe_path` up to the stage `until`, in `out` (results/<name> by default).

    Raises RecipeError (a ValueError) for wrong input, before any long work, and ContractMissed when the run
    is complete but `verify.max_drop` does not hold or a counted cost differs from the predicted one.
    """
    reporter = reporter or Reporter()
    text = read_recipe(recipe_path)
    if until == "report" and out is None:
        out = _default_out(recipe_path, text)
    early = None if out is None else _finished_before(out, text, recipe_path)
    if early is not None and until == "report":
        reporter.line(f"{out}: finished, and nothing it depends on has changed. Nothing to do.")
        return _outcome(out, False, early)  # type: ignore[arg-type]

    reporter.line(f"{recipe_path.name}: reading the recipe")
    # Heavy from here on: reading a recipe asks the registries for the names it may use.
    from recipes import machine, preflight
    from recipes.context import Context
    from recipes.reading import parse

    quiet_libraries()
    recipe = parse(text, str(recipe_path))
    path = out or Path("results") / (recipe.name or recipe_path.stem)
    directory = RunDirectory(path, package_version())
    directory.prepare()
    with Lock(path / LOCK):
        (path / STATE / FINISHED).unlink(missing_ok=True)
        context = Context(recipe, directory, recipe_path.resolve(), text, command, reporter.line)
        write_text(path / "recipe.yaml", text)
        write_json(path / STATE / "origin.json", {"origin": str(recipe_path.resolve())})
        machine.ready(recipe.secure.device, reporter)
        with reporter.step("check the recipe") as progress:
            preflight.check(context, progress)
        worked = False
        started = time.monotonic()
        for stage in STAGES[: STAGES.index(until) + 1]:
            for steps in _steps(stage, context):
                for step in steps:
                    worked = _do(step, directory, reporter) or worked
            if stage == "distill":
                from recipes.stages.distill import tidy

                tidy(context)
        if until != "report":
            reporter.line(f"{path}: done up to {until} in {time.monotonic() - started:.0f} s")
            return Outcome(path, worked)
        verdict = _verdict(context)
        write_json(
            path / STATE / FINISHED,
            {
                "identity": _identity(text, recipe_path),
                "outputs": _outputs(path),
                "sources": _sources(context),
                **verdict,
            },
        )
    if not worked:
        reporter.line(f"{path}: finished, and nothing it depends on has changed. Nothing to do.")
    return _outcome(path, worked, verdict)


def quiet_libraries() -> None:
    """One progress display is enough: transformers' and datasets' own bars and notes are switched off."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def read_recipe(path: Path) -> str:
    """The recipe's text. Raises RecipeError if there is no such file or it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(f"no recipe {str(path)!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {str(path)!r} cannot be read: {error}") from None


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def find(name: str) -> Path:
    """A recipe by its path or the name of a shipped one. Raises RecipeError with the names there are."""
    given = Path(name)
    if given.is_file():
        return given
    known = shipped()
    if name in known:
        return known[name]
    from recipes.errors import suggestion

    raise RecipeError(
        f"no recipe {name!r}: it is neither a file nor a shipped recipe{suggestion(name, known)}"
    )


def _default_out(recipe_path: Path, text: str) -> Path:
    """results/<name>, with the name taken from the text without validating it; validation comes later and
    says more."""
    import re

    named = re.search(r"^name:\s*['\"]?([A-Za-z0-9][A-Za-z0-9._-]*)['\"]?\s*(?:#.*)?$", text, re.MULTILINE)
    return Path("results") / (named.group(1) if named else recipe_path.stem)


def _steps(stage: str, context: Context) -> Iterable[list[Step]]:
    """The steps of a stage, in groups: a later group is asked for when the one before is finished."""
    from recipes.stages import (
        calibrate,
        certify,
        data,
        distill,
        emulate,
        export,
        report,
        search,
        teacher,
        verify,
    )

    makers: dict[str, tuple[Callable[[Context], list[Step]], ...]] = {
        "data": (data.steps,),
        "teacher": (teacher.steps,),
        "calibrate": (calibrate.steps,),
        "search": (search.steps,),
        "distill": (distill.steps,),
        "certify": (certify.steps,),
        "verify": (verify.choice_steps, verify.steps, emulate.steps),
        "export": (export.steps,),
        "report": (report.steps,),
    }
    for make in makers[stage]:
        yield make(context)


def _do(step: Step, directory: RunDirectory, reporter: Reporter) -> bool:
    """Do a step unless it is finished; whether it was done now."""
    if directory.finished(step):
        reporter.line(f"{step.title}: done before")
        return False
    changed = directory.changed(step)
    if changed:
        reporter.line(f"{step.title}: done before, but changed since: {', '.join(changed)}; done anew")
    with reporter.step(step.title) as progress:
        directory.run(step, progress)
    return True


def _verdict(context: Context) -> dict[str, Any]:
    from recipes import record

    return {"contract": record.contract(context), "unequal": record.unequal(context)}


def _outcome(path: Path, worked: bool, verdict: dict[str, Any]) -> Outcome:
    if verdict["unequal"]:
        raise ContractMissed(
            f"predicted and counted bytes or rounds differ for {', '.join(verdict['unequal'])}; see "
            f"{path / 'report.html'}. "
            "They are equal by construction, so this is a fault of Sordino's: please report it with the "
            "record",
            path,
        )
    if verdict["contract"] and not verdict["contract"]["met"]:
        raise ContractMissed(
            f"accuracy contract missed: {verdict['contract']['text']} Results are kept in {path}", path
        )
    return Outcome(path, worked)


def _identity(text: str, recipe_path: Path) -> str:
    """Names the recipe as written, where its relative paths start, and the versions that ran it."""
    versions = {"sordino": package_version(), **library_versions()}
    return digest({"text": text, "base": str(recipe_path.resolve().parent), "versions": versions})


def _outputs(path: Path) -> dict[str, str]:
    """What a finished run must still hold to count as finished, with its content."""
    wanted = ("record.json", "report.html", "report.md", "model")
    return {name: fingerprint(path / name) for name in wanted if (path / name).exists()}


def _sources(context: Context) -> dict[str, str]:
    """Content hashes of the files outside the run directory that it was made from."""
    from distill.data import locate
    from recipes.checkpoints import is_local

    found = {}
    if is_local(context.checkpoint):
        found[context.checkpoint] = fingerprint(Path(context.checkpoint))
    if not context.task.source.startswith("hub:"):
        file = Path(locate(context.task.source))
        found[str(file)] = fingerprint(file)
    return found


def _finished_before(path: Path, text: str, recipe_path: Path) -> dict[str, Any] | None:
    """What a finished run noted, if its recipe, version, sources and outputs are still the same. Imports
    nothing heavy."""
    noted = read_json(path / STATE / FINISHED)
    if not isinstance(noted, dict) or noted.get("identity") != _identity(text, recipe_path):
        return None
    for name, content in noted["outputs"].items():
        if not (path / name).exists() or fingerprint(path / name) != content:
            return None
    for name, content in noted["sources"].items():
        if not Path(name).exists() or fingerprint(Path(name)) != content:
            return None
    return noted
