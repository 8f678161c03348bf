"""`sordino verify`: any model directory under MPC, on the test examples of a recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes import run as runner
from recipes.certification import certify, recorded, refusal
from recipes.checkpoints import is_local, locate_checkpoint
from recipes.context import Context, class_names
from recipes.costs import counts_of
from recipes.emulated_run import emulated_run
from recipes.errors import RecipeError, suggestion
from recipes.pricing import described
from recipes.progress import Reporter
from recipes.reading import parse
from recipes.rundir import RunDirectory
from recipes.secure_run import secure_run

PARTIES = ("processes", "threads")


def verify(
    model: str,
    recipe: str | None,
    samples: int | None,
    protocol: str | None,
    parties: str | None,
    emulate: Sequence[str],
    emulated_samples: int | None,
    reporter: Reporter,
    timeout: float | None = None,
    unchecked: bool = False,
) -> dict[str, Any]:
    """In the words of `sordino verify --json`. What is None comes from the recipe, and the recipe from beside
    the model. emulate: network profiles over which queries are timed as well; the recipe's own list is not
    taken. unchecked: run a model whose values do not fit fixed point on training texts.

    Raises RecipeError for a model or recipe that isn't there, names that are unknown, and a model that does not fit.
    """
    import distill
    from distill.data import align

    runner.quiet_libraries()
    located = locate_checkpoint(model, Path.cwd())
    if not is_local(located):
        raise RecipeError(f"model {model!r}: a directory is needed")
    path = runner.find(recipe) if recipe is not None else _recipe_beside(Path(located))
    if parties is not None and parties not in PARTIES:
        raise RecipeError(f"--parties {parties!r} is not known{suggestion(parties, PARTIES)}")
    networks = [_network(name) for name in dict.fromkeys(emulate)]
    origin = _origin(path)
    given = parse(runner.read_recipe(path), str(origin))
    if protocol is not None:
        from recipes.vocabulary import protocols

        if protocol not in protocols():
            raise RecipeError(f"--protocol: unknown protocol {protocol!r}{suggestion(protocol, protocols())}")
        given = given.model_copy(update={"secure": given.secure.model_copy(update={"protocol": protocol})})
    context = Context(given, RunDirectory(path.parent, runner.package_version()), origin, "", "")
    loaded = distill.restore(located)
    splits = distill.load(context.task)
    if splits.num_labels != loaded.config.num_labels:
        raise RecipeError(
            f"model {model!r} has {loaded.config.num_labels} outputs, and the data of {path} "
            f"{splits.num_labels} labels"
        )
    splits = align(splits, class_names(loaded.config))
    from transformers import AutoTokenizer

    # With its family's configuration: the directory's own would be read by running the code that lies there.
    tokenizer = AutoTokenizer.from_pretrained(located, config=described(located)[1])
    tokens = distill.tokenize(splits.test, tokenizer, given.secure.sequence_length)
    wanted = samples if samples is not None else given.verify.samples
    if wanted > len(tokens):
        raise RecipeError(f"--samples {wanted}: the test split has only {len(tokens)} examples")
    emulated = emulated_samples if emulated_samples is not None else given.verify.emulated_samples
    if networks and emulated > len(tokens):
        raise RecipeError(f"--emulated-samples {emulated}: the test split has only {len(tokens)} examples")
    training = distill.tokenize(splits.train, tokenizer, given.secure.sequence_length)
    with reporter.step("certify") as progress:
        certified = certify(loaded, training, given.secure, progress)
    if not certified.fits and not unchecked:
        raise RecipeError(
            f"model {model!r}: {refusal(certified.violations)}. `--unchecked` runs it all the same, and says so"
        )
    chosen = parties or given.verify.parties
    bound = timeout if timeout is not None else given.verify.timeout_s
    with tempfile.TemporaryDirectory() as folder, reporter.step(f"verify {model}") as progress:
        found = secure_run(
            loaded,
            tokens,
            kind=splits.kind,
            secure=given.secure,
            samples=wanted,
            parties=chosen,
            timeout=bound,
            folder=Path(folder),
            progress=progress,
            certified=certified,
        )
    timed = {}
    for network in networks:
        with tempfile.TemporaryDirectory() as folder, reporter.step(f"emulate {network}") as progress:
            timed[network] = emulated_run(
                tokens,
                network=network,
                secure=given.secure,
                samples=emulated,
                parties=chosen,
                timeout=bound,
                log=Path(folder) / "queries.jsonl",
                progress=progress,
                certified=certified,
            )
    secure = found["secure"]
    return {
        "protocol": given.secure.protocol,
        "parties": chosen,
        "samples": secure["samples"],
        "predicted": found["predicted"],
        "measured": found["measured"],
        "emulated": timed,
        "max_logit_error": secure["max_logit_error"],
        "agreement": secure["agreement"],
        "checked": secure["checked"],
        "ranges": recorded(certified.to_dict()),
        "accuracy": {"plaintext": secure["plaintext"], "secure": secure["accuracy"]},
    }


def differs(found: dict[str, Any]) -> bool:
    """Whether counted bytes or rounds are not the predicted ones."""
    if not all(run["equal"] for run in found["emulated"].values()):
        return True
    return counts_of(found["predicted"]) != counts_of(found["measured"]) or not found["measured"]["constant"]


def _network(name: str) -> str:
    """The name of a network profile that is there. Raises RecipeError."""
    import cost_models

    try:
        cost_models.network_profile(name)
    except cost_models.ProfileError as error:
        raise RecipeError(f"--emulate: {error}") from None
    return name


def _recipe_beside(model: Path) -> Path:
    """The recipe of the run that a model directory belongs to. Raises RecipeError if there is none."""
    for folder in list(model.parents)[:3]:
        if (folder / "record.json").is_file() and (folder / "recipe.yaml").is_file():
            return folder / "recipe.yaml"
    raise RecipeError(
        f"{model} belongs to no run, so there is no telling on which data; name a recipe: --recipe RECIPE"
    )


def _origin(path: Path) -> Path:
    """Where the recipe was when it ran: the copy in a run directory still has paths relative to its first
    place."""
    from recipes.files import read_json

    noted = read_json(path.parent / ".state" / "origin.json") if path.name == "recipe.yaml" else None
    return Path(noted["origin"]) if noted else path.resolve()
