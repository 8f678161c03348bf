"""Everything that can be wrong with a recipe, looked at within seconds, before any long work.

Faults that don't depend on each other are reported together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from recipes.checkpoint_files import check_vocabulary, check_weights
from recipes.checkpoints import locate_checkpoint
from recipes.context import BASELINE_VARIANTS, Context, example_inputs, has_head
from recipes.errors import RecipeError
from recipes.progress import Callback

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from distill import Calibration, Site, Splits

Found = TypeVar("Found")
STEPS = 5


class _Problems:
    """Collects messages of checks that fail for reasons that a user can act on; other exceptions pass."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def catch(self, place: str, check: Callable[[], Found]) -> Found | None:
        try:
            return check()
        except ValueError as error:
            self.lines.append(f"at $.{place}: {error}")
        except OSError as error:
            self.lines.append(f"at $.{place}: {error}")
        return None

    def stop(self) -> None:
        if self.lines:
            raise RecipeError("the recipe cannot be run:", self.lines)


def check(context: Context, progress: Callback) -> None:
    """Raises RecipeError with everything that is found wrong."""
    recipe, problems = context.recipe, _Problems()
    progress(0, STEPS, "checkpoint")
    config = problems.catch("teacher.checkpoint", lambda: load_config(context))
    if config is not None:
        problems.catch("teacher.checkpoint", lambda: check_weights(context.checkpoint))
        problems.catch("teacher.checkpoint", lambda: context.tokenizer)
    progress(1, STEPS, "data")
    # Without a checkpoint the data can still be read, though not its classes held against the checkpoint's.
    splits = problems.catch(
        "teacher.task.data", lambda: load_data(context) if config is None else context.read
    )
    problems.catch("search.sites", lambda: check_space(context, None))
    problems.stop()
    assert config is not None and splits is not None

    problems.catch("teacher", lambda: check_head(context))
    problems.catch(
        "teacher.checkpoint", lambda: check_vocabulary(context.tokenizer, config, splits.train["text"])
    )
    problems.catch("secure.sequence_length", lambda: check_length(context, config))
    problems.catch("verify.samples", lambda: check_samples(recipe.verify.samples, splits))
    if recipe.verify.emulate:
        problems.catch("verify.emulate", lambda: check_networks(recipe.verify.emulate))
        problems.catch(
            "verify.emulated_samples", lambda: check_samples(recipe.verify.emulated_samples, splits)
        )
    problems.catch("teacher.task.kind", lambda: check_task(splits))
    problems.stop()
    warn_of_contract(context, len(splits.validation))
    progress(2, STEPS, "model")
    model = problems.catch("teacher.checkpoint", lambda: build(context, config, splits.num_labels))
    if model is not None:
        sites = problems.catch("teacher.checkpoint", lambda: find_sites(model))
        if sites is not None:
            problems.catch("search", lambda: check_space(context, sites))
            problems.catch("baselines", lambda: check_baselines(context, sites))
        progress(3, STEPS, "operations")
        problems.catch("teacher.checkpoint", lambda: check_operations(context, model))
    problems.stop()
    assert model is not None
    if any(value is not None for value in recipe.search.limits.model_dump().values()):
        progress(4, STEPS, "limits")
        problems.catch("search.limits", lambda: check_limits(context, model, progress))
        problems.stop()
    progress(STEPS, STEPS, "checked")


def load_config(context: Context) -> Any:
    """The checkpoint's configuration. Raises RecipeError if the checkpoint isn't there or has none."""
    name = context.recipe.teacher.checkpoint
    locate_checkpoint(name, context.origin.parent)
    try:
        return context.config
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(f"checkpoint {name!r} does not load: {reason}") from None


def load_data(context: Context) -> Splits:
    """The splits as they are read; a file that is missing, a column or a pattern that does not fit is an error of distill's own."""
    import distill

    return distill.load(context.task)


def build(context: Context, config: Any, num_labels: int) -> PreTrainedModel:
    """The teacher's class without weights (on "meta"), with a head for the task."""
    import copy

    import torch
    from transformers import AutoModelForSequenceClassification

    from distill.padding import settle_padding

    shaped = copy.deepcopy(config)
    shaped.num_labels = num_labels
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(shaped, attn_implementation="eager")
    except (ValueError, KeyError) as error:
        raise RecipeError(f"transformers has no sequence classifier of this checkpoint: {error}") from None
    settle_padding(context.tokenizer, model.config)
    # As the fine-tuned teacher will have them: the prices of the model are then found again by the search.
    model.config.architectures = [type(model).__name__]
    model.config.problem_type = "single_label_classification" if num_labels > 1 else "regression"
    return model.eval()


def find_sites(model: PreTrainedModel) -> list[Site]:
    import distill

    return distill.find_sites(model)


def check_head(context: Context) -> None:
    """A checkpoint that is used as it is has a head with the task's classes."""
    if not context.given:
        return
    from distill import DataError

    config, train = context.config, context.recipe.teacher.train
    why = "train.epochs is 0" if train is not None else "the checkpoint has a head, so it is used as it is"
    if not has_head(config):
        raise RecipeError(
            f"{why}, but the checkpoint is {', '.join(config.architectures or []) or 'of no class'} and has no "
            "head for this task; give it at least one epoch"
        )
    try:
        _ = context.loaded
    except DataError as error:
        raise RecipeError(f"{why}, but {error}; `teacher.train` with epochs trains a new head") from None


def check_length(context: Context, config: Any) -> None:
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and context.sequence_length > most:
        raise RecipeError(f"{context.sequence_length} tokens, but this model takes at most {most}")


def warn_of_contract(context: Context, examples: int) -> None:
    """Says so where the validation examples are too few for a student that answers as the teacher does to keep the contract."""
    from recipes.paired import Comparison

    verify, students = context.recipe.verify, context.recipe.search.candidates
    shown = Comparison(examples, 0, 0).upper(1.0 - (1.0 - verify.level) / students)
    if shown > verify.max_drop:
        context.say(
            f"verify.max_drop is {verify.max_drop:g}, but {examples} validation examples show of a student that always answers as "
            f"the teacher only that it loses at most {shown:.3f} (at {verify.level:.0%} confidence over {students} "
            "students): unless one is better than the teacher, this run will end with a missed contract"
        )


def check_networks(names: list[str]) -> None:
    """Files of profiles say what a profile has to; that names are known was looked at before."""
    import cost_models

    for name in names:
        cost_models.network_profile(name)


def check_samples(wanted: int, splits: Splits) -> None:
    if wanted > len(splits.test):
        raise RecipeError(f"{wanted} examples, but the test split has only {len(splits.test)}")


def check_task(splits: Splits) -> None:
    """The search compares class probabilities, so it needs classes."""
    if splits.kind != "classification":
        raise RecipeError(
            f"the search scores candidates by class probabilities and cannot do {splits.kind!r} yet"
        )


def check_space(context: Context, sites: list[Site] | None) -> None:
    """The space names what exists and, once they are known, fits the model's sites."""
    from recipes.stages.search import space

    made = space(context.recipe)
    if sites is not None:
        made.options(sites)


def check_baselines(context: Context, sites: list[Site]) -> None:
    from distill import Architecture
    from recipes.stages.distill import baselines

    for name in baselines(context):
        Architecture.uniform(sites, BASELINE_VARIANTS[name]).validate(sites)


def check_operations(context: Context, model: PreTrainedModel) -> None:
    """Every operation of the model has a secure form; the error lists all that have none, with their
    modules."""
    import secure_eval

    inputs = example_inputs(context.tokenizer, context.recipe.secure.batch, context.sequence_length)
    secure_eval.capture(model, {name: value.to("meta") for name, value in inputs.items()})


def check_limits(context: Context, model: PreTrainedModel, progress: Callback) -> None:
    """Some candidate meets the limits. Prices need shapes only and are kept for the search."""
    import distill
    import nas
    from recipes.stages.search import limits, space

    recipe = context.recipe
    inputs = example_inputs(context.tokenizer, recipe.secure.batch, context.sequence_length)
    sites = distill.find_sites(model)
    table = nas.build_cost_table(
        model,
        shapes_only(sites),
        space(recipe),
        inputs,
        protocol=recipe.secure.protocol,
        run_dir=context.run.path,
        progress=progress,
    )
    bounds = nas.Limits.of(limits(recipe, table, sites))
    nas.check_limits(
        table, space(recipe), sites, bounds, network=recipe.secure.network, device=recipe.secure.device
    )


def shapes_only(sites: list[Site]) -> Calibration:
    """Statistics of made-up inputs: variants that are fitted to them have the right shapes, and no price depends on
    their values. So a model without weights can be priced."""
    import torch

    from distill import Calibration
    from distill.kinds import KINDS

    generator = torch.Generator().manual_seed(0)
    found = {}
    for site in sites:
        shape = (1, site.size, 8, 8) if site.kind == "softmax" else (1, 64, site.size)
        inputs = torch.randn(shape, generator=generator)
        observer = KINDS[site.kind].observer(site.size)
        observer.update((inputs,), inputs, None)
        found[site.name] = observer.statistics()
    return Calibration(found)
